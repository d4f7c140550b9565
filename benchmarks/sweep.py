"""The wavefront against the naive sweep of the same cells, in one run.

    python benchmarks/sweep.py                       # a random model, no download
    python benchmarks/sweep.py --model model.gguf    # a real one

Prints times, their ratio, and how many blocks each cell cost: the wavefront's mean over cells must
be (L + 1) / 2L of the naive sweep's, or this exits with 1. All cells (or some: --cells, whole
components), restore, weights and activations; the self-check is in the time. A head that is large
beside the blocks (small models have one) limits the ratio, because every variant needs its own
logits; so the head's size is printed too.
"""

import argparse
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import transformers

from fp4scope.inject import Injector
from fp4scope.models import LoadedModel, adopt, load_model
from fp4scope.observe import observe_inputs
from fp4scope.study import Study
from fp4scope.sweep import Journal, PlannedVariant, Sweep, measure_naively, plan
from fp4scope.sweep.wavefront import head_in_blocks

# Blocks of SmolLM2-135M; a head as large beside them as Qwen2.5-7B's (2.3 blocks).
CONFIG = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 14_400,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a GGUF file, folder or hub id; default: random weights")
    parser.add_argument("--cells", default="", help="only of these linears, such as down_proj")
    parser.add_argument("--format", default="mxfp4:floor")
    parser.add_argument("--windows", type=int, default=1)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()

    loaded = _load(options.model, options.device)
    generator = torch.Generator().manual_seed(0)
    shape = (options.windows, options.seq_len)
    ids = torch.randint(5, loaded.config.vocab_size, shape, generator=generator)
    study = Study.build(
        model="-", formats=options.format, sweep="cells", cells=options.cells, direction="restore"
    )
    # Without the jitter controls: the naive sweep would not have them.
    variants = [v for v in plan(study, loaded.layout) if v.variant.direction != "jitter"]

    def forwards() -> Iterator[None]:
        for row in ids:
            loaded.logits(row, last=1)
            yield

    observed = observe_inputs(loaded.model, loaded.layout.linears, forwards())
    injector = Injector(loaded.model, {name: s.max for name, s in observed.items()})

    with _counted(loaded) as naive_blocks:
        begun = time.perf_counter()
        measure_naively(loaded, ids, variants, injector)
        naive_s = time.perf_counter() - begun
    injector.forget(loaded.layout.linears)
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(Path(folder) / "journal.jsonl", {})
        begun = time.perf_counter()
        sweep = Sweep(loaded, ids, variants, injector, journal)
        check_s = time.perf_counter() - begun
        with _counted(loaded) as blocks:
            sweep.run()
        wavefront_s = time.perf_counter() - begun
        journal.close()

    return _report(
        loaded, variants, ids, sweep, naive_blocks, blocks, naive_s, check_s, wavefront_s
    )


def _report(
    loaded: LoadedModel,
    variants: list[PlannedVariant],
    ids: torch.Tensor,
    sweep: Sweep,
    naive_blocks: list[int],
    blocks: list[int],
    naive_s: float,
    check_s: float,
    wavefront_s: float,
) -> int:
    depth, windows = len(loaded.stack), len(ids)
    cells = sum(v.variant.level == "cells" for v in variants)
    # The capture, the reference and the baseline run whole; the rest is the cells'.
    per_cell = (sum(blocks) / windows - 3 * depth) / cells
    expected = (depth + 1) / 2
    device = torch.cuda.get_device_name() if loaded.device.type == "cuda" else platform.processor()
    print(
        f"torch {torch.__version__}, transformers {transformers.__version__}, "
        f"{device or platform.machine()}, {torch.get_num_threads()} threads, {loaded.dtype_name}\n"
        f"{loaded.name}: {depth} blocks, head as large as {head_in_blocks(loaded):.1f} blocks; "
        f"{cells} cells, {windows} windows of {ids.shape[1]}; {sweep.shape}\n"
    )
    print(f"{'':12}{'seconds':>10}{'blocks per cell and window':>30}")
    print(f"{'naive':12}{naive_s:10.1f}{depth:30.2f}")
    print(f"{'wavefront':12}{wavefront_s:10.1f}{per_cell:30.2f}   (self-check {check_s:.1f} s)")
    print(f"{'ratio':12}{naive_s / wavefront_s:10.2f}{depth / per_cell:30.2f}")
    whole = len(variants) * depth * windows
    if per_cell != expected or sum(naive_blocks) != whole:
        print(f"FAILED: expected {expected} blocks a cell, and {whole} of the naive sweep in all")
        return 1
    return 0


def _load(name: str | None, device: str) -> LoadedModel:
    if name is not None:
        return load_model(name, device=device)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**CONFIG)
    model = transformers.AutoModelForCausalLM.from_config(config).to(device)
    return adopt(model, None, name="random Llama")


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
