r"""A sweep with the blocks in host memory against the same one with the whole model on the GPU.

    python benchmarks/offload.py --config qwen2.5-0.5b --limit 1GB
    python benchmarks/offload.py --config qwen2.5-14b --limit 80GB --windows 8 --layers down_proj

Random weights. First everything on the device, without a limit; then with `--offload yes` and no
more memory than --limit for everything that PyTorch allocates there, the rest of the model
included, which it enforces itself (`set_per_process_memory_fraction`). Each sweeps twice, and the
second is timed: the first compiles kernels. Prints tokens a second (windows * tokens * variants),
how often each block was copied, the peak of the device memory, and how far the results are apart.
--skip-whole leaves the first out.
"""

import argparse
import sys
import time
from typing import NamedTuple

import torch
import transformers
from shared import CONFIGS, layer_runs, machine, opened, random_text

from fp4scope.models import LoadedModel, adopt
from fp4scope.operands import Injector
from fp4scope.recipes import Recipe
from fp4scope.study import parse_memory
from fp4scope.sweep import Shape


class Run(NamedTuple):
    shape: Shape
    seconds: float
    tokens_a_second: float
    peak_gb: float
    copies: int
    nll: dict[Recipe, list[float | None]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="qwen2.5-0.5b", choices=CONFIGS)
    parser.add_argument("--limit", default="1GB")
    parser.add_argument("--format", default="mxfp4:floor")
    parser.add_argument("--layers", default="")
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--seq-len", type=int, default=2048)
    parser.add_argument("--skip-whole", action="store_true")
    options = parser.parse_args()
    limit = parse_memory(options.limit)
    device = torch.device("cuda")
    print(
        f"{machine(device)}, bfloat16, {options.config}, "
        f"{options.windows} windows of {options.seq_len}, {options.format}"
    )
    whole = None
    if not options.skip_whole:
        loaded = adopt(_model(options.config), None, name="random", device=device)
        whole = _sweep(loaded, options, memory=None)
        _print("whole model on the device", whole)
        del loaded
        torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total))
    loaded = adopt(_model(options.config), None, name="random", device=device, offload="yes")
    torch.cuda.empty_cache()
    sweep = _sweep(loaded, options, memory=int(0.95 * limit) - torch.cuda.memory_allocated())
    _print(f"blocks on the host, {options.limit}", sweep)
    copies = sweep.copies / len(loaded.stack)
    passes = -(-options.windows // sweep.shape.windows) * sweep.shape.groups
    print(f"  each block was copied {copies:.2f} times, in {passes} passes")
    if whole is not None:
        apart = [
            abs(a - b) / options.seq_len
            for key, values in whole.nll.items()
            for a, b in zip(values, sweep.nll[key], strict=True)
        ]
        print(f"  NLL of a window apart by at most {max(apart):.2g} nats a token")
        print(
            f"  throughput {sweep.tokens_a_second / whole.tokens_a_second:.3f} of the whole one's"
        )
    return 0


def _model(config: str) -> transformers.PreTrainedModel:
    """Random weights in host memory, drawn on the device, which is faster at it."""
    torch.manual_seed(0)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(CONFIGS[config], dtype=torch.bfloat16)
    model = model.to_empty(device="cpu")
    for name, parameter in model.named_parameters():
        drawn = torch.empty(parameter.shape, dtype=parameter.dtype, device="cuda")
        parameter.data.copy_(drawn.fill_(1) if "norm" in name else drawn.normal_(0, 0.02))
    model.tie_weights()
    rotary = model.model.rotary_emb
    rotary.__init__(config=model.config)
    return model


def _sweep(loaded: LoadedModel, options: argparse.Namespace, memory: int | None) -> Run:
    ids = random_text(loaded, options.windows, options.seq_len)
    runs = layer_runs(loaded, options.format, options.layers)
    injector = Injector(loaded.model, dict.fromkeys(loaded.layout.linears, 10.0))
    with opened(loaded, ids, runs, injector, memory) as sweep:
        sweep.run()  # compiles kernels for its shapes
    with opened(loaded, ids, runs, injector, memory) as sweep:
        before = _copies(loaded)
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
        begun = time.perf_counter()
        sweep.run()
        torch.cuda.synchronize()
        seconds = time.perf_counter() - begun
    ledger = sweep.log.ledger
    nll = {recipe: ledger[recipe].values["nll"] for recipe in ledger}
    rate = len(runs) * ids.numel() / seconds
    peak_gb = torch.cuda.max_memory_allocated() / 1e9
    return Run(sweep.shape, seconds, rate, peak_gb, _copies(loaded) - before, nll)


def _copies(loaded: LoadedModel) -> int:
    return loaded.offloaded.copies if loaded.offloaded is not None else 0


def _print(label: str, run: Run) -> None:
    print(
        f"{label}: {run.seconds:.1f} s, {run.tokens_a_second:,.0f} tokens a second, peak "
        f"{run.peak_gb:.2f} GB, {run.shape}"
    )


if __name__ == "__main__":
    sys.exit(main())
