r"""The wavefront against evaluating the same layers one model run at a time, in one program run.

    python benchmarks/sweep.py                       # CPU, a random model, no download
    python benchmarks/sweep.py --model model.gguf    # a real one
    python benchmarks/sweep.py --device cuda --config qwen2.5-0.5b --windows 16 --seq-len 2048 \
        --formats mxfp4:floor,nvfp4 --rivals modelopt,eager --sample 8

All layers (or some: --layers), restore, weights and activations, NLL with KL and top-1 on every
side; the self-check is in the wavefront's time, compilation in nobody's. Prints seconds a variant,
ratios, and how many blocks each layer cost: the wavefront's mean over layers must be (L + 1) / 2L
of a whole run's, or this exits with 1. Beside it the floor: the operations that the sweep needs, at
the rate that this machine reaches in a large matrix product. A head that is large beside the blocks
(small models have one) limits the ratio, because every variant needs its own logits; so its size is
printed too.

Rivals: `naive` runs the model once a variant and window, with quantized weights kept and this
project's kernels; `eager` quantizes weights and activations in every forward with twenty lines of
PyTorch, as a paper's script does; `modelopt` is NVIDIA ModelOpt: quantized once, the layer's
quantizers switched off. The last two evaluate 16 windows at a time. With --sample a rival
evaluates about so many layers, evenly chosen, and its mean time is compared.
"""

import argparse
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import torch
import transformers

from fp4scope.design import Run, design
from fp4scope.formats import FORMATS, BlockFormat
from fp4scope.ledger import Log
from fp4scope.metrics import ReferencePredictions, compare, reference_predictions
from fp4scope.models import LoadedModel, adopt, load_model
from fp4scope.operands import Injector, observe_inputs
from fp4scope.recipes import Recipe
from fp4scope.study import Study
from fp4scope.sweep import (
    Memory,
    Shape,
    Worker,
    check,
    measure_naively,
    schedule,
    scheduler,
    self_check,
)
from fp4scope.sweep.wavefront import head_in_blocks

CONFIGS = {
    # Blocks of SmolLM2-135M; a head as large beside them as Qwen2.5-7B's (2.3 blocks).
    "small": transformers.LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=14_400,
    ),
    "qwen2.5-0.5b": transformers.Qwen2Config(
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        vocab_size=151_936,
        tie_word_embeddings=True,
    ),
    "qwen2.5-7b": transformers.Qwen2Config(
        hidden_size=3584,
        intermediate_size=18_944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        vocab_size=152_064,
    ),
    "qwen2.5-14b": transformers.Qwen2Config(
        hidden_size=5120,
        intermediate_size=13_824,
        num_hidden_layers=48,
        num_attention_heads=40,
        num_key_value_heads=8,
        vocab_size=152_064,
    ),
}
# More windows at a time than a rival needs to keep the GPU busier than its own Python.
_BATCH = 16


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a GGUF file, folder or hub id; default: random weights")
    parser.add_argument("--config", default="small", choices=CONFIGS)
    parser.add_argument("--layers", default="", help="only of these linears, such as down_proj")
    parser.add_argument("--formats", default="mxfp4:floor")
    parser.add_argument("--windows", type=int, default=1)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rivals", default="naive", help="of naive, eager, modelopt")
    parser.add_argument("--sample", type=int, default=0, help="variants a rival evaluates; 0: all")
    options = parser.parse_args()

    device = torch.device(options.device)
    loaded = _load(options.model, options.config, device)
    ids = random_text(loaded, options.windows, options.seq_len)
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor()
    rate = _matrix_rate(loaded)
    print(
        f"{time.strftime('%Y-%m-%d')}, torch {torch.__version__}, transformers "
        f"{transformers.__version__}, {name or platform.machine()}, {torch.get_num_threads()} "
        f"threads, {loaded.dtype_name}, large matrix products at {rate / 1e12:.3g} TFLOP/s\n"
        f"{loaded.name}: {len(loaded.stack)} blocks, head as large as "
        f"{head_in_blocks(loaded):.1f} blocks; {options.windows} windows of {options.seq_len}"
    )
    amax = calibrated(loaded, ids)
    failed = False
    for fmt in options.formats.split(","):
        variants = layer_variants(loaded, fmt, options.layers)
        failed |= _one_format(loaded, ids, fmt, variants, amax, rate, options)
    return int(failed)


def random_text(loaded: LoadedModel, windows: int, seq_len: int) -> torch.Tensor:
    """Token ids (windows, seq_len), the same each time."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(5, loaded.config.vocab_size, (windows, seq_len), generator=generator)


def layer_variants(loaded: LoadedModel, fmt: str, layers: str) -> list[Run]:
    """`keep` of these layers, without what is perturbed: a rival would not have that."""
    study = Study.build(model="-", formats=fmt, sweep="layers", layers=layers, direction="keep")
    return [run for run in design(study, loaded.layout.sites).runs if not run.replica]


def _is_whole(recipe: Recipe) -> bool:
    """Whether every site is quantized."""
    return recipe.base is not None and not recipe.edits


def _one_format(
    loaded: LoadedModel,
    ids: torch.Tensor,
    fmt: str,
    variants: list[Run],
    amax: dict[str, float],
    rate: float,
    options: argparse.Namespace,
) -> bool:
    depth, windows = len(loaded.stack), len(ids)
    injector = Injector(loaded.model, amax)
    layers = [run for run in variants if run.recipe.edits]
    block_0 = {site.name for site in loaded.layout.sites.blocks[0]}
    first = [run for run in variants if run.recipe.edited <= block_0]
    compiled_s = _swept(loaded, ids, first, injector).seconds
    swept = _swept(loaded, ids, variants, injector)

    # The reference and the all-quantized model run whole; the rest is the layers'.
    per_layer = (swept.blocks / windows - 2 * depth) / len(layers)
    operations = _operations(loaded, ids, (2 + len(layers) * per_layer / depth), len(variants))
    mine = swept.seconds / len(variants)
    print(
        f"\n{fmt}: {len(layers)} layers and 2 all-quantized models, {swept.shape}; before, a sweep "
        f"of block 0 took {compiled_s:.1f} s, with kernels to compile or to find compiled"
        + (f"; peak of device memory {swept.peak_gb:.1f} GB" if swept.peak_gb else "")
    )
    print(
        f"  {'':26}{'ms a variant':>13}{'ratio':>8}{'blocks a layer':>15}{'all-quantized NLL':>19}"
    )
    floor = operations / rate / len(variants)
    print(f"  {'floor':26}{1e3 * floor:13.1f}{floor / mine:8.2f}")
    print(f"  {'wavefront':26}{1e3 * mine:13.1f}{1:8.2f}{per_layer:15.2f}{swept.nll:19.4f}")
    chosen = variants
    if options.sample:
        step = max(1, len(layers) // options.sample)
        chosen = [v for v in variants if v not in layers] + layers[step // 2 :: step]
    injector.forget()
    for rival in filter(None, options.rivals.split(",")):
        label, theirs, their_nll = _RIVALS[rival](loaded, ids, fmt, chosen, injector)
        print(
            f"  {label:26}{1e3 * theirs:13.1f}{theirs / mine:8.2f}{depth:15.2f}{their_nll:14.4f}"
            + (f"   ({len(chosen)} variants)" if len(chosen) < len(variants) else "")
        )
    if per_layer != (depth + 1) / 2:
        print(f"FAILED: expected {(depth + 1) / 2} blocks a layer")
        return True
    return False


class _Swept(NamedTuple):
    seconds: float
    nll: float
    """Of the all-quantized model, in nats a token."""
    blocks: int
    """Runs of a block on a window, without those of the self-check."""
    shape: Shape
    peak_gb: float | None
    """Of what PyTorch allocates on the device, the model included."""


def opened(
    loaded: LoadedModel,
    ids: torch.Tensor,
    runs: Sequence[Run],
    injector: Injector,
    log: Log,
    budget: int | None = None,
) -> scheduler.Scheduler:
    """A sweep of these runs, checked and ready, that takes so many bytes beside the model."""
    checked = self_check(loaded, ids)
    memory = Memory(loaded, runs, ids.shape[1], checked.captured_bytes, budget)
    return schedule(Worker(loaded, ids, injector), memory, log, checked)


def _swept(
    loaded: LoadedModel,
    ids: torch.Tensor,
    variants: Sequence[Run],
    injector: Injector,
) -> _Swept:
    cuda = loaded.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as folder, _counted(loaded) as blocks:
        log = Log(Path(folder) / "journal.jsonl", {})
        _wait(loaded.device)
        begun = time.perf_counter()
        sweep = opened(loaded, ids, variants, injector, log)
        blocks.clear()

        def check_again(*args: object) -> None:
            before = len(blocks)
            check.still_the_same(*args)
            del blocks[before:]

        with patch.object(scheduler, "still_the_same", check_again):
            sweep.run()
        _wait(loaded.device)
        seconds = time.perf_counter() - begun
        whole = next(run.recipe for run in variants if _is_whole(run.recipe))
        nll = sum(log.ledger[whole].values["nll"]) / (ids.numel() - len(ids))
        log.close()
    peak_gb = torch.cuda.max_memory_allocated() / 1e9 if cuda else None
    return _Swept(seconds, nll, sum(blocks), sweep.shape, peak_gb)


def _naive(
    loaded: LoadedModel,
    ids: torch.Tensor,
    fmt: str,
    variants: Sequence[Run],
    injector: Injector,
) -> tuple[str, float, float]:
    begun = time.perf_counter()
    measured = measure_naively(loaded, ids, variants, injector)
    seconds = time.perf_counter() - begun
    place = next(i for i, run in enumerate(variants) if _is_whole(run.recipe))
    tokens = sum(w.tokens for w in measured[place])
    return "naive", seconds / len(variants), sum(w.nll for w in measured[place]) / tokens


def _eager(
    loaded: LoadedModel,
    ids: torch.Tensor,
    fmt: str,
    variants: Sequence[Run],
    injector: Injector,
) -> tuple[str, float, float]:
    @contextmanager
    def applied(variant: Run) -> Iterator[None]:
        linears = [
            loaded.model.get_submodule(name)
            for name, _ in variant.recipe.in_block(loaded.layout.sites)
        ]
        for linear in linears:
            linear.forward = partial(_quantized_linear, linear, FORMATS[fmt])
        yield
        for linear in linears:
            del linear.forward

    return "eager, on the fly", *_one_by_one(loaded.model, ids, variants, applied)


def _quantized_linear(linear: torch.nn.Linear, fmt: BlockFormat, x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.linear(_textbook(x, fmt), _textbook(linear.weight, fmt), linear.bias)


def _textbook(x: torch.Tensor, fmt: BlockFormat) -> torch.Tensor:
    """Quantize-dequantize by logarithms and steps, without an eye to speed or to the last bit."""
    blocks = x.float().unflatten(-1, (-1, fmt.block_size))
    amax = blocks.abs().amax(-1, keepdim=True).clamp(min=1e-30)
    if fmt.uses_tensor_amax:
        g = amax.max() / (6 * 448)
        scale = (amax / 6 / g).to(torch.float8_e4m3fn).float().clamp(min=2**-9) * g
    else:
        scale = 2.0 ** (amax.log2().floor() - 2)
    y = (blocks / scale).clamp(-6, 6)
    step = 2.0 ** (y.abs().clamp(min=1).log2().floor() - 1)
    return ((y / step).round() * step * scale).flatten(-2).to(x.dtype)


def _modelopt(
    loaded: LoadedModel,
    ids: torch.Tensor,
    fmt: str,
    variants: Sequence[Run],
    injector: Injector,
) -> tuple[str, float, float]:
    import modelopt
    import modelopt.torch.quantization as mtq

    model = transformers.AutoModelForCausalLM.from_config(loaded.config).to(
        loaded.device, loaded.dtype
    )
    model.load_state_dict(loaded.model.state_dict())
    model.eval()
    with torch.no_grad():
        config = mtq.NVFP4_DEFAULT_CFG if fmt == "nvfp4" else mtq.MXFP4_DEFAULT_CFG
        mtq.quantize(model, config, lambda m: [m(row[None].to(loaded.device)) for row in ids[:4]])
    quantizers = [m for m in model.modules() if type(m).__name__.endswith("TensorQuantizer")]
    enabled = sum(q.is_enabled for q in quantizers)

    @contextmanager
    def applied(variant: Run) -> Iterator[None]:
        on = dict(variant.recipe.in_block(loaded.layout.sites))
        off = set(loaded.layout.linears) - set(on)
        chosen = [
            q
            for name in off
            for module in [model.get_submodule(name)]
            for q in (module.weight_quantizer, module.input_quantizer)
        ]
        for quantizer in chosen:
            quantizer.disable()
        yield
        for quantizer in chosen:
            quantizer.enable()

    times = _one_by_one(model, ids, variants, applied)
    preset = "NVFP4_DEFAULT_CFG" if fmt == "nvfp4" else "MXFP4_DEFAULT_CFG"
    print(f"  modelopt {modelopt.__version__}, {preset}, {enabled} quantizers enabled")
    return "modelopt", *times


_RIVALS = {"naive": _naive, "eager": _eager, "modelopt": _modelopt}


@torch.no_grad()
def _one_by_one(
    model: torch.nn.Module,
    ids: torch.Tensor,
    variants: Sequence[Run],
    applied: Callable[[Run], AbstractContextManager[None]],
) -> tuple[float, float]:
    """Seconds a variant, and the all-quantized model's NLL; settings are applied to every batch."""
    device = next(model.parameters()).device
    batches = ids.to(device).split(_BATCH)
    needed = {run.against for run in variants}
    compared: dict[Recipe, list[ReferencePredictions]] = {}

    def evaluate(variant: Run) -> float:
        total = torch.zeros((), dtype=torch.float64, device=device)
        window = 0
        for batch in batches:
            with applied(variant):
                logits = model(batch, use_cache=False).logits[:, :-1]
            for own, row in zip(logits, batch, strict=True):
                if variant.recipe in needed:
                    compared.setdefault(variant.recipe, []).append(reference_predictions(own))
                against = compared[variant.against][window]
                total += compare(own[None], row[1:], against).nll.sum(dtype=torch.float64)
                window += 1
        return total.item() / (ids.numel() - len(ids))

    nll = {run.recipe: evaluate(run) for run in variants if not run.recipe.edits}
    begun = time.perf_counter()
    others = [run for run in variants if run.recipe.edits]
    for variant in others:
        evaluate(variant)
    seconds = (time.perf_counter() - begun) / len(others)
    whole = next(run.recipe for run in variants if _is_whole(run.recipe))
    return seconds, nll[whole]


def _operations(loaded: LoadedModel, ids: torch.Tensor, runs: float, variants: int) -> float:
    """Of matrix products: so many whole bodies, a head for each variant."""
    config, tokens = loaded.config, ids.numel()
    linears = sum(site.parameters for site in loaded.layout.sites)
    heads = config.num_attention_heads * getattr(
        config, "head_dim", config.hidden_size // config.num_attention_heads
    )
    attention = 2 * 2 * ids.shape[1] / 2 * heads * len(loaded.stack)
    body = tokens * (2 * linears + attention)
    return runs * body + variants * tokens * 2 * config.hidden_size * config.vocab_size


def _matrix_rate(loaded: LoadedModel) -> float:
    """Operations a second in a large matrix product."""
    size = 8192 if loaded.device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, dtype=loaded.dtype, device=loaded.device) for _ in range(2))
    best = 0.0
    for _ in range(5):
        _wait(loaded.device)
        begun = time.perf_counter()
        for _ in range(5):
            a @ b
        _wait(loaded.device)
        best = max(best, 5 * 2 * size**3 / (time.perf_counter() - begun))
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def calibrated(loaded: LoadedModel, ids: torch.Tensor) -> dict[str, float]:
    def forwards() -> Iterator[None]:
        for row in ids[:4]:
            loaded.logits(row, last=1)
            yield

    observed = observe_inputs(loaded.model, loaded.layout.linears, forwards())
    return {name: statistics.max for name, statistics in observed.items()}


def _load(name: str | None, config: str, device: torch.device) -> LoadedModel:
    if name is not None:
        return load_model(name, device=str(device))
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with device:
        model = transformers.AutoModelForCausalLM.from_config(CONFIGS[config], dtype=dtype)
    return adopt(model.to(device), None, name=f"random {config}")


@contextmanager
def _counted(loaded: LoadedModel) -> Iterator[list[int]]:
    """How many windows go through a block, one number for each call."""
    calls: list[int] = []

    def hook(block: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        if "forward" not in vars(block):  # else it only steps aside for the tail
            calls.append(len(args[0]))

    blocks = loaded.model.get_submodule(loaded.layout.blocks_path).children()
    hooks = [block.register_forward_pre_hook(hook) for block in blocks]
    try:
        yield calls
    finally:
        for handle in hooks:
            handle.remove()


if __name__ == "__main__":
    sys.exit(main())
