r"""What the measures of routing cost: the same sweep with and without them, by turns.

    python benchmarks/routing.py                              # CPU, a small random mixture
    python benchmarks/routing.py --device cuda --shape qwen3-30b-a3b --blocks 4 \
        --windows 16 --seq-len 2048

All projections, keep and only, W4A4. Prints seconds of every round and the ratio of the medians,
then how many tensor operations the measures of one batch take at one router: on a GPU about as many
kernels. They do not wait for the device.
"""

import argparse
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from unittest.mock import patch

import torch
import transformers
from frames import SHAPES
from shared import calibrated, machine, opened, random_text, wait
from torch.utils._python_dispatch import TorchDispatchMode

from fp4scope.design import Run, design
from fp4scope.models import LoadedModel, adopt
from fp4scope.operands import Choice, Injector
from fp4scope.study import Study
from fp4scope.sweep.routing import Routes, Seen, alike

SMALL = transformers.Qwen3MoeConfig(
    vocab_size=2048, hidden_size=256, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=2, head_dim=64, num_experts=32, num_experts_per_tok=4,
    moe_intermediate_size=128, norm_topk_prob=True,
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--shape", default="small", choices=["small", *SHAPES])
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--formats", default="nvfp4")
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()

    config = SHAPES.get(options.shape, SMALL)
    config.num_hidden_layers = options.blocks
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[: options.blocks]
    torch.manual_seed(0)
    dtype = torch.bfloat16 if options.device.startswith("cuda") else torch.float32
    with torch.device(options.device):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    loaded = adopt(model, None, name=f"random {options.shape}")
    ids = random_text(loaded, options.windows, options.seq_len)
    study = Study.build(model="-", formats=options.formats, sweep="projections")
    runs = design(study, loaded.layout.sites).runs
    injector = Injector(loaded.model, calibrated(loaded, ids))
    print(
        f"{machine(options.device)}, {loaded.dtype_name}\n{loaded.name}: {options.blocks} blocks, "
        f"{len(runs)} runs on {options.windows} windows of {options.seq_len}"
    )
    times: dict[str, list[float]] = {"without": [], "with": []}
    for number in range(options.rounds + 1):
        for kind, found in times.items():
            took = swept(loaded, ids, runs, injector, without=kind == "without")
            if number:  # the first compiles
                found.append(took)
    for kind, found in times.items():
        listed = " ".join(f"{seconds:.2f}" for seconds in found)
        print(f"  {kind:8} {statistics.median(found):7.2f} s   ({listed})")
    ratio = statistics.median(times["with"]) / statistics.median(times["without"])
    print(f"  ratio    {ratio:7.3f}")
    print(f"  {operations()} operations at a router, for a batch of any size")


def swept(
    loaded: LoadedModel, ids: torch.Tensor, runs: list[Run], injector: Injector, *, without: bool
) -> float:
    """Seconds of a sweep, its self-check left out."""
    device = loaded.device
    with opened(loaded, ids, runs, injector) as sweep, unheard() if without else nullcontext():
        wait(device)
        begun = time.perf_counter()
        sweep.run()
        wait(device)
        return time.perf_counter() - begun


@contextmanager
def unheard() -> Iterator[None]:
    """Sweeps that do not listen to routers."""
    nothing = {
        "listening": lambda self: nullcontext(),
        "take": lambda self, edges, windows: None,
        "at": lambda self, node: None,
    }
    with ExitStack() as stack:
        for name, instead in nothing.items():
            stack.enter_context(patch.object(Routes, name, instead))
        yield


def operations() -> int:
    """Tensor operations of the measures of one batch at one router."""

    class Count(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
            # What only looks at the same memory in another way starts no kernel.
            self.count += not func.is_view
            return func(*args, **(kwargs or {}))

    index = torch.randn(2, 2, 16, 8).topk(4).indices
    logs = torch.randn(2, 2, 16, 8).log_softmax(-1)
    one = Seen.of(Choice(index, torch.rand(2, 2, 16, 4), 8, logs)).of_state(0)
    with Count() as counted:
        logs.float().log_softmax(-1).clamp_min(-87.0)
        alike(Seen.of(Choice(index, torch.rand(2, 2, 16, 4), 8, logs)), one)
    return counted.count


if __name__ == "__main__":
    main()
