"""Quantize-dequantize against a copy and against the peers, and what it costs a forward pass.

    python benchmarks/qdq.py                  # CPU, FP32
    python benchmarks/qdq.py --device cuda    # BF16

The first table: `out.copy_(x)` with a reused output, ours on every backend, and every installed
peer, on the same tensor in one run; ratios to the copy, and how many elements a peer has otherwise
(a last bit counts). The second: a forward pass of a model the size of SmolLM2-135M with every
linear quantized in weights (once, before) and activations, as a ratio to the same forward without,
beside a second plain forward, whose ratio is the noise. Interleaved runs on a CPU: the median time,
and the median over rounds of the ratio within a round.
On a GPU the median of calls in a CUDA graph (forwards run as they are).
"""

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from shared import machine, model_of, random_text, wait

from fp4scope.formats import FORMATS, BlockFormat
from fp4scope.kernels import BACKENDS, qdq, using
from fp4scope.kernels.dispatch import tensor_scales
from fp4scope.kernels.eager import quantize_blocks
from fp4scope.operands import Injector
from fp4scope.treatments import Setting, Treatment

Function = Callable[[], torch.Tensor]
GOLDEN = Path(__file__).parents[1] / "tests/data/golden_inputs.npz"
SHAPES = {"cpu": [(2048, 896), (4096, 4096)], "cuda": [(2048, 896), (8192, 8192)]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--formats", default="mxfp4:floor,mxfp4:rceil,nvfp4")
    parser.add_argument("--shapes", help="such as 2048x896,4096x4096", default=None)
    parser.add_argument("--repeat", type=int, default=15)
    parser.add_argument("--skip-forward", action="store_true")
    options = parser.parse_args()
    cuda = options.device == "cuda"
    torch.manual_seed(0)
    dtype = torch.bfloat16 if cuda else torch.float32
    print(f"{machine(options.device)}, {dtype}\n")
    shapes = SHAPES[options.device]
    if options.shapes:
        shapes = [tuple(map(int, shape.split("x"))) for shape in options.shapes.split(",")]
    formats = [FORMATS[f] for f in options.formats.split(",")]
    _golden(options.device)
    _random(options.device)
    for shape in shapes:
        _table(shape, dtype, options.device, formats, options.repeat)
    if not options.skip_forward:
        _forwards(options.device, formats, options.repeat)
    return 0


def _golden(device: str) -> None:
    """Every backend against plain torch on the CPU: recorded edge cases, all formats, all bits."""
    values = elements = 0
    with np.load(GOLDEN) as file:
        inputs = [torch.from_numpy(file[key]) for key in file.files]
    for x in inputs:
        x = x.view(torch.bfloat16) if x.dtype == torch.uint16 else x
        if not x.isfinite().all():
            continue
        for fmt in FORMATS.values():
            with using("torch"):
                expected = qdq(x, fmt)
            for name in _backends(torch.device(device)):
                with using(name):
                    found = qdq(x.to(device), fmt).cpu()
                values += _differing(found, expected)
                elements += x.numel()
    backends = ", ".join(_backends(torch.device(device)))
    print(f"golden inputs, {len(FORMATS)} formats, {backends}: {values} of {elements} differ")


def _random(device: str) -> None:
    """The backend against plain torch there, all bits: normal numbers, a new amax each time.

    Then blocks with the same largest elements, in which the others, where they can be without being
    larger, are within two units in the last place of a tie; four over six may then choose its other
    scale, at which they are not.
    """
    rows, times = (512, 200) if device == "cuda" else (32, 20)
    generator = torch.Generator(device).manual_seed(0)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        values, ties, elements = 0, 0, 0
        for _ in range(times):
            x = torch.randn(rows, 2048, device=device, generator=generator)
            factor = (2 * torch.rand((), device=device, generator=generator) - 1).exp()
            amax = x.abs().amax() * factor
            x = x.to(dtype)
            for fmt in FORMATS.values():
                given = amax if fmt.uses_tensor_amax else None
                values += _wrong(x, fmt, given)
                ties += _wrong(_near_ties(x, fmt, given, generator), fmt, given)
                elements += x.numel()
        print(f"{dtype}: {values} of {elements} random numbers differ, {ties} of as many near ties")
    print()


def _wrong(x: torch.Tensor, fmt: BlockFormat, amax: torch.Tensor | None) -> int:
    with using("torch"):
        expected = qdq(x, fmt, amax)
    with using(_backends(x.device)[0]):
        found = qdq(x, fmt, amax)
    return _differing(found, expected)


def _near_ties(
    x: torch.Tensor, fmt: BlockFormat, amax: torch.Tensor | None, generator: torch.Generator
) -> torch.Tensor:
    blocks = x.unflatten(-1, (-1, fmt.block_size))
    g = tensor_scales(x, fmt, amax) if fmt.uses_tensor_amax else None
    _, scales, _ = quantize_blocks(blocks.float(), fmt, g)
    grid = torch.tensor(fmt.element.magnitudes, device=x.device)
    midpoints = (grid[1:] + grid[:-1]) / 2
    draw = partial(torch.randint, device=x.device, generator=generator)
    ties = _bits((midpoints[draw(len(midpoints), blocks.shape)] * scales).to(x.dtype))
    near = ties + draw(-2, 3, blocks.shape, dtype=ties.dtype)
    near = near.clamp(min=0).view(x.dtype).copysign(blocks)
    magnitudes = blocks.abs()
    largest = magnitudes.amax(-1, keepdim=True)
    return torch.where((magnitudes == largest) | (near.abs() > largest), blocks, near).flatten(-2)


def _differing(found: torch.Tensor, expected: torch.Tensor) -> int:
    return int((_bits(found) != _bits(expected)).sum())


def _bits(x: torch.Tensor) -> torch.Tensor:
    return x.view(torch.int32 if x.dtype == torch.float32 else torch.int16)


def _table(
    shape: tuple[int, ...], dtype: torch.dtype, device: str, formats: list[BlockFormat], repeat: int
) -> None:
    x = torch.randn(shape, dtype=dtype, device=device)
    out = torch.empty_like(x)
    amax = x.abs().amax().float()
    copied: Function = partial(out.copy_, x)
    print(f"{shape[0]} x {shape[1]}")
    print(f"  {'format':18}{'who':34}{'ms':>9}{'x copy':>9}{'differ':>9}")
    for fmt in formats:
        expected = qdq(x, fmt, amax if fmt.uses_tensor_amax else None)
        rivals = list(_ours(x, fmt, amax, out)) + list(_peers(x, fmt, amax))
        functions = [copied, *(function for _, function in rivals)]
        if device == "cuda":
            whose = ["copy", *(who for who, _ in rivals)]
            taken = [[_on_the_device(*pair)] for pair in zip(whose, functions, strict=True)]
        else:
            taken = _interleaved(functions, device, repeat)
        (seconds, ratio), *theirs = _medians(taken)
        print(f"  {fmt.name:18}{'copy':34}{1e3 * seconds:9.4f}{ratio:9.2f}")
        for (who, function), (seconds, ratio) in zip(rivals, theirs, strict=True):
            differ = int((function() != expected).sum())
            print(f"  {'':18}{who:34}{1e3 * seconds:9.4f}{ratio:9.2f}{differ:9d}")
    print()


def _ours(
    x: torch.Tensor, fmt: BlockFormat, amax: torch.Tensor, out: torch.Tensor
) -> Iterator[tuple[str, Function]]:
    scale_amax = amax if fmt.uses_tensor_amax else None
    for name in _backends(x.device):

        def run(name: str = name) -> torch.Tensor:
            with using(name):
                return qdq(x, fmt, scale_amax, out=out)

        yield f"fp4scope, {name}", run


def _backends(device: torch.device) -> list[str]:
    found = []
    for name in BACKENDS:
        try:
            with using(name):
                found.append(name)
        except ValueError:
            continue
    return [name for name in found if name != ("triton" if device.type == "cpu" else "numba")]


def _peers(x: torch.Tensor, fmt: BlockFormat, amax: torch.Tensor) -> Iterator[tuple[str, Function]]:
    for peer in (_torchao, _compressed_tensors, _modelopt):
        try:
            yield from peer(x, fmt, amax)
        except ImportError:
            continue


def _torchao(
    x: torch.Tensor, fmt: BlockFormat, amax: torch.Tensor
) -> Iterator[tuple[str, Function]]:
    import torchao
    from torchao.prototype.mx_formats.mx_tensor import MXTensor, ScaleCalculationMode
    from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor, per_tensor_amax_to_scale

    def mx(x: torch.Tensor) -> torch.Tensor:
        mode = ScaleCalculationMode[fmt.rule.name]
        packed = MXTensor.to_mx(x, torch.float4_e2m1fn_x2, fmt.block_size, mode)
        return packed.dequantize(x.dtype)

    def nv(x: torch.Tensor) -> torch.Tensor:
        scale = per_tensor_amax_to_scale(amax)
        return NVFP4Tensor.to_nvfp4(x, per_tensor_scale=scale).dequantize(x.dtype)

    function = nv if fmt.name == "nvfp4" else mx if fmt.name.startswith("mxfp4") else None
    if function is None:
        return
    yield f"torchao {torchao.__version__}, eager", partial(function, x)
    if x.is_cuda:
        yield f"torchao {torchao.__version__}, compiled", partial(torch.compile(function), x)


def _compressed_tensors(
    x: torch.Tensor, fmt: BlockFormat, amax: torch.Tensor
) -> Iterator[tuple[str, Function]]:
    import compressed_tensors
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize
    from compressed_tensors.quantization.quant_scheme import PRESET_SCHEMES
    from compressed_tensors.quantization.utils import (
        compute_dynamic_scales_and_zp,
        generate_gparam,
    )

    scheme = {"nvfp4": "NVFP4", "mxfp4:even": "MXFP4"}.get(fmt.name)
    if scheme is None:
        return
    arguments = PRESET_SCHEMES[scheme]["input_activations"]
    scale = generate_gparam(-amax, amax) if fmt.uses_tensor_amax else None

    def run() -> torch.Tensor:
        scales, zeros = compute_dynamic_scales_and_zp(x, arguments, None, scale)
        return fake_quantize(x, scales, zeros, arguments, scale)

    yield f"compressed-tensors {compressed_tensors.__version__}", run


def _modelopt(
    x: torch.Tensor, fmt: BlockFormat, amax: torch.Tensor
) -> Iterator[tuple[str, Function]]:
    if not x.is_cuda or fmt.name != "nvfp4":
        return
    import modelopt
    from modelopt.torch.kernels.quantization.gemm import fp4_fake_quant_block

    yield f"modelopt {modelopt.__version__}, triton", partial(fp4_fake_quant_block, x, amax)


def _forwards(device: str, formats: list[BlockFormat], repeat: int) -> None:
    loaded = model_of(None, "smollm2-135m", device)
    ids = random_text(loaded, 1, 512).to(device)
    injector = Injector(loaded.model, dict.fromkeys(loaded.layout.linears, 10.0))

    @torch.no_grad()
    def forward() -> torch.Tensor:
        return loaded.model(ids, use_cache=False).logits

    print(f"one forward of 512 tokens, {len(loaded.layout.linears)} linears, SmolLM2-135M's size")
    print(f"  {'format':18}{'who':34}{'ms':>9}{'x plain':>9}")
    for fmt in formats:
        settings = dict.fromkeys(loaded.layout.linears, Setting(Treatment(fmt), Treatment(fmt)))

        def quantized(backend: str, settings: dict[str, Setting] = settings) -> torch.Tensor:
            with using(backend), injector.applied(settings):
                return forward()

        backends = _backends(ids.device)
        functions = [forward, forward, *(partial(quantized, name) for name in backends)]
        labels = ["plain", "plain, again: the noise", *(f"W4A4, {name}" for name in backends)]
        found = _medians(_interleaved(functions, device, repeat))
        for label, (seconds, ratio) in zip(labels, found, strict=True):
            name = fmt.name if label == "plain" else ""
            print(f"  {name:18}{label:34}{1e3 * seconds:9.1f}{ratio:9.3f}")


def _medians(taken: list[list[float]]) -> list[tuple[float, float]]:
    """Of each: seconds, and ratio to the first in the same round, which drifts as it does."""
    return [
        (
            statistics.median(times),
            statistics.median(a / b for a, b in zip(times, taken[0], strict=True)),
        )
        for times in taken
    ]


def _interleaved(functions: list[Function], device: str, repeat: int) -> list[list[float]]:
    """Seconds of each in every round, all functions in chance order, after two rounds to warm up.

    In a fixed order one always follows the same other one: of two equal forwards the second took
    3% longer.
    """
    taken: list[list[float]] = [[] for _ in functions]
    places, chance = list(range(len(functions))), random.Random(0)
    for turn in range(repeat + 2):
        chance.shuffle(places)
        for place in places:
            seconds = _seconds(functions[place], device)
            if turn >= 2:
                taken[place].append(seconds)
    return taken


def _on_the_device(who: str, function: Function) -> float:
    """Median seconds in a graph of many calls: without the time that Python takes to launch."""
    from triton.testing import do_bench, do_bench_cudagraph

    if "compressed-tensors" in who:  # it copies from the host, which a graph cannot hold
        return 1e-3 * do_bench(function, return_mode="median")
    with torch.cuda.stream(torch.cuda.Stream()):
        return 1e-3 * do_bench_cudagraph(function, rep=20, return_mode="median")


def _seconds(function: Function, device: str) -> float:
    wait(torch.device(device))
    begun = time.perf_counter()
    function()
    wait(torch.device(device))
    return time.perf_counter() - begun


if __name__ == "__main__":
    sys.exit(main())
