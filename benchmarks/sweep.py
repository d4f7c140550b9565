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
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import NamedTuple
from unittest.mock import patch

import torch
import transformers
from shared import CONFIGS, calibrated, layer_runs, machine, model_of, opened, random_text, wait

from fp4scope.design import Run
from fp4scope.formats import FORMATS, BlockFormat
from fp4scope.metrics import ReferencePredictions, compare, reference_predictions
from fp4scope.models import LoadedModel
from fp4scope.operands import Injector
from fp4scope.recipes import Recipe
from fp4scope.sweep import Shape, check, measure_naively, worker
from fp4scope.sweep.wavefront import head_in_blocks

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
    loaded = model_of(options.model, options.config, options.device)
    ids = random_text(loaded, options.windows, options.seq_len)
    rate = _matrix_rate(loaded)
    print(
        f"{machine(device)}, {loaded.dtype_name}, large matrix products at "
        f"{rate / 1e12:.3g} TFLOP/s\n"
        f"{loaded.name}: {len(loaded.stack)} blocks, head as large as "
        f"{head_in_blocks(loaded):.1f} blocks; {options.windows} windows of {options.seq_len}"
    )
    amax = calibrated(loaded, ids)
    failed = False
    for fmt in options.formats.split(","):
        runs = layer_runs(loaded, fmt, options.layers)
        case = _Case(loaded, ids, fmt, runs, Injector(loaded.model, amax))
        failed |= _one_format(case, rate, options)
    return int(failed)


class _Case(NamedTuple):
    """What the wavefront and its rivals evaluate."""

    loaded: LoadedModel
    ids: torch.Tensor
    fmt: str
    runs: Sequence[Run]
    injector: Injector

    @property
    def whole(self) -> Recipe:
        """The all-quantized model."""
        return next(r.recipe for r in self.runs if r.recipe.base and not r.recipe.edits)


def _one_format(case: _Case, rate: float, options: argparse.Namespace) -> bool:
    loaded, variants = case.loaded, case.runs
    depth, windows = len(loaded.stack), len(case.ids)
    layers = [run for run in variants if run.recipe.edits]
    block_0 = {site.name for site in loaded.layout.sites.blocks[0]}
    first = [run for run in variants if run.recipe.edited <= block_0]
    compiled_s = _swept(case._replace(runs=first)).seconds
    swept = _swept(case)

    # The reference and the all-quantized model run whole; the rest is the layers'.
    per_layer = (swept.blocks / windows - 2 * depth) / len(layers)
    operations = _operations(loaded, case.ids, (2 + len(layers) * per_layer / depth), len(variants))
    mine = swept.seconds / len(variants)
    print(
        f"\n{case.fmt}: {len(layers)} layers and 2 all-quantized models, {swept.shape}; before, a "
        f"sweep of block 0 took {compiled_s:.1f} s, with kernels to compile or to find compiled"
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
    case.injector.forget()
    for rival in filter(None, options.rivals.split(",")):
        label, theirs, their_nll = _RIVALS[rival](case._replace(runs=chosen))
        print(
            f"  {label:26}{1e3 * theirs:13.1f}{theirs / mine:8.2f}{depth:15.2f}{their_nll:19.4f}"
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


def _swept(case: _Case) -> _Swept:
    loaded = case.loaded
    cuda = loaded.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    wait(loaded.device)
    begun = time.perf_counter()
    with _counted(loaded) as blocks, opened(loaded, case.ids, case.runs, case.injector) as sweep:
        blocks.clear()

        def check_again(*args: object) -> None:
            before = len(blocks)
            check.still_the_same(*args)
            del blocks[before:]

        with patch.object(worker, "still_the_same", check_again):
            sweep.run()
        wait(loaded.device)
        seconds = time.perf_counter() - begun
    nll = sum(sweep.log.ledger[case.whole].values["nll"]) / (case.ids.numel() - len(case.ids))
    peak_gb = torch.cuda.max_memory_allocated() / 1e9 if cuda else None
    return _Swept(seconds, nll, sum(blocks), sweep.shape, peak_gb)


def _naive(case: _Case) -> tuple[str, float, float]:
    begun = time.perf_counter()
    measured = measure_naively(case.loaded, case.ids, case.runs, case.injector)
    seconds = time.perf_counter() - begun
    own = measured[[run.recipe for run in case.runs].index(case.whole)]
    return "naive", seconds / len(case.runs), sum(w.nll for w in own) / sum(w.tokens for w in own)


def _eager(case: _Case) -> tuple[str, float, float]:
    @contextmanager
    def applied(variant: Run) -> Iterator[None]:
        names = [name for name, _ in variant.recipe.in_block(case.loaded.layout.sites)]
        linears = [case.loaded.model.get_submodule(name) for name in names]
        for linear in linears:
            linear.forward = partial(_quantized_linear, linear, FORMATS[case.fmt])
        yield
        for linear in linears:
            del linear.forward

    return "eager, on the fly", *_one_by_one(case.loaded.model, case, applied)


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


def _modelopt(case: _Case) -> tuple[str, float, float]:
    import modelopt
    import modelopt.torch.quantization as mtq

    loaded, fmt = case.loaded, case.fmt
    model = transformers.AutoModelForCausalLM.from_config(loaded.config).to(
        loaded.device, loaded.dtype
    )
    model.load_state_dict(loaded.model.state_dict())
    model.eval()
    with torch.no_grad():
        config = mtq.NVFP4_DEFAULT_CFG if fmt == "nvfp4" else mtq.MXFP4_DEFAULT_CFG
        mtq.quantize(
            model, config, lambda m: [m(row[None].to(loaded.device)) for row in case.ids[:4]]
        )
    quantizers = [m for m in model.modules() if type(m).__name__.endswith("TensorQuantizer")]
    enabled = sum(q.is_enabled for q in quantizers)

    @contextmanager
    def applied(variant: Run) -> Iterator[None]:
        on = dict(variant.recipe.in_block(loaded.layout.sites))
        off = [model.get_submodule(name) for name in loaded.layout.linears if name not in on]
        chosen = [q for module in off for q in (module.weight_quantizer, module.input_quantizer)]
        for quantizer in chosen:
            quantizer.disable()
        yield
        for quantizer in chosen:
            quantizer.enable()

    times = _one_by_one(model, case, applied)
    preset = "NVFP4_DEFAULT_CFG" if fmt == "nvfp4" else "MXFP4_DEFAULT_CFG"
    print(f"  modelopt {modelopt.__version__}, {preset}, {enabled} quantizers enabled")
    return "modelopt", *times


_RIVALS = {"naive": _naive, "eager": _eager, "modelopt": _modelopt}


@torch.no_grad()
def _one_by_one(
    model: torch.nn.Module,
    case: _Case,
    applied: Callable[[Run], AbstractContextManager[None]],
) -> tuple[float, float]:
    """Seconds a variant, and the all-quantized model's NLL; settings are applied to every batch."""
    device, ids, variants = case.loaded.device, case.ids, case.runs
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
    return seconds, nll[case.whole]


def _operations(loaded: LoadedModel, ids: torch.Tensor, runs: float, variants: int) -> float:
    """Of matrix products: so many whole bodies, a head for each variant."""
    config, tokens = loaded.config, ids.numel()
    heads = config.num_attention_heads * getattr(
        config, "head_dim", config.hidden_size // config.num_attention_heads
    )
    attention = 2 * 2 * ids.shape[1] / 2 * heads * len(loaded.stack)
    body = tokens * (2 * loaded.active + attention)
    return runs * body + variants * tokens * 2 * config.hidden_size * config.vocab_size


def _matrix_rate(loaded: LoadedModel) -> float:
    """Operations a second in a large matrix product."""
    size = 8192 if loaded.device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, dtype=loaded.dtype, device=loaded.device) for _ in range(2))
    best = 0.0
    for _ in range(5):
        wait(loaded.device)
        begun = time.perf_counter()
        for _ in range(5):
            a @ b
        wait(loaded.device)
        best = max(best, 5 * 2 * size**3 / (time.perf_counter() - begun))
    return best


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
