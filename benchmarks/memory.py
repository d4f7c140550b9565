"""How much memory a sweep takes beside the model, against what it was given.

    python benchmarks/memory.py                    # the Qwen2.5-0.5B architecture, 1.5 GB
    python benchmarks/memory.py --model model.gguf --memory 500MB

Runs one window of 2048 tokens on the CPU in a sweep of projections (or of the layers of some
linears: --layers) and prints the peak of the resident set above what it was with the model
loaded. Exits with 1 if it is more than --memory. Linux only.
"""

import argparse
import sys
import time
from pathlib import Path

from shared import machine, model_of, opened, random_text

from fp4scope.design import design
from fp4scope.operands import Injector
from fp4scope.study import Study, parse_memory


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a GGUF file, folder or hub id; default: random weights")
    parser.add_argument("--memory", default="1.5GB")
    parser.add_argument("--seq-len", type=int, default=2048)
    parser.add_argument("--sweep", default="projections")
    parser.add_argument("--layers", default="")
    parser.add_argument("--direction", default="keep")
    parser.add_argument("--formats", default="nvfp4")
    options = parser.parse_args()
    allowed = parse_memory(options.memory)

    loaded = model_of(options.model, "qwen2.5-0.5b")
    study = Study.build(
        model="-",
        formats=options.formats,
        sweep=options.sweep,
        layers=options.layers,
        direction=options.direction,
    )
    runs = design(study, loaded.layout.sites).runs
    ids = random_text(loaded, 1, options.seq_len)
    injector = Injector(loaded.model, dict.fromkeys(loaded.layout.linears, 10.0))

    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far was that of loading
    begun = time.perf_counter()
    with opened(loaded, ids, runs, injector, allowed) as sweep:
        sweep.run()
    seconds = time.perf_counter() - begun
    taken = _status("VmHWM") - before
    weights = sum(p.numel() * p.element_size() for p in loaded.model.parameters())
    print(
        f"{machine()}; {loaded.name}, "
        f"{loaded.dtype_name}, weights {weights / 1e9:.2f} GB; {len(runs)} runs, one "
        f"window of {options.seq_len} tokens, {seconds:.0f} s\n{sweep.shape}\n"
        f"allowed {allowed / 1e9:.2f} GB, planned {sweep.memory_bytes / 1e9:.2f} GB, "
        f"taken {taken / 1e9:.2f} GB beside the model"
    )
    return int(taken > allowed)


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) * 1024


if __name__ == "__main__":
    sys.exit(main())
