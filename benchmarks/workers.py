r"""Throughput of a sweep by 1, 2 and 4 workers of one host, each on its own GPU, or on the CPU.

    python benchmarks/workers.py --device cuda --config qwen2.5-0.5b --workers 1,2,4
    python benchmarks/workers.py --device cuda --config qwen2.5-7b --layers down_proj
    python benchmarks/workers.py --model FOLDER --windows 12 --seq-len 64 --workers 1,2
    python benchmarks/workers.py --model FOLDER --device cuda --offload disk --sweep projections \
        --windows 8 --warm 2 --workers 1,2 --csv larger.csv

Random weights, or a model by its name; random text. All counts in one run, one after the other, on
the same windows. Each count sweeps twice, and the second is timed: the first compiles kernels in
every worker. Loading is apart: how long it took from starting the others until all were ready. The
ratio is to the first count. Also: how many windows each worker measured, how far NLL of a window is
from that of the first count, the peak of PyTorch on this process's device, and by how much less of
the host's memory is available than at first. --csv adds the rows to a file as they come.

--offload has the blocks wait on the host; how fast they come to the device is timed first, twice,
with nothing to compute. --warm: how many windows for each worker the first sweep has, if not all.
"""

import argparse
import csv
import os
import sys
import time
from collections import Counter
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import psutil
import torch
from shared import CONFIGS, layer_runs, machine, model_of, opened, random_text, wait

from fp4scope.design import Run
from fp4scope.models import Shelf
from fp4scope.operands import Injector
from fp4scope.recipes import Recipe
from fp4scope.study import Place
from fp4scope.sweep import Alone, Crew, Worker, self_check
from fp4scope.sweep.cluster import connected
from fp4scope.sweep.remote import Remote


@dataclass(frozen=True)
class Build:
    """Makes the same worker in every process."""

    model: str | None
    config: str
    device: str
    windows: int
    seq_len: int
    offload: str
    sharing: int
    shelf: Shelf | None = None

    def __call__(self) -> Worker:
        where = (self.device, self.offload, self.sharing, self.shelf)
        loaded = model_of(self.model, self.config, *where)
        ids = random_text(loaded, self.windows, self.seq_len)
        injector = Injector(loaded.model, dict.fromkeys(loaded.layout.linears, 10.0))
        return Worker(loaded, ids, injector, check=self_check(loaded, ids))


@dataclass(frozen=True)
class Row:
    """A count, in seconds; `shares` are windows by worker, this process first."""

    model: str
    blocks: str
    workers: int
    load_s: float
    sweep_s: float
    tokens_a_second: float
    ratio: float
    shares: str
    nll_apart: float
    tflop_a_second: float
    device_gb: float
    host_gb: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model")
    parser.add_argument("--config", default="qwen2.5-0.5b", choices=CONFIGS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--format", default="nvfp4")
    parser.add_argument("--sweep", default="layers", choices=["layers", "projections"])
    parser.add_argument("--layers", default="")
    parser.add_argument("--offload", default="no", choices=["auto", "no", "yes", "disk"])
    parser.add_argument("--warm", type=int)
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--seq-len", type=int, default=2048)
    parser.add_argument("--workers", default="1,2,4")
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args()
    counts = [int(count) for count in options.workers.split(",")]
    cuda = options.device.startswith("cuda")
    # Others import this file's neighbours too.
    here = str(Path(__file__).parent)
    os.environ["PYTHONPATH"] = os.pathsep.join([here, os.environ.get("PYTHONPATH", "")])
    begun, available = time.perf_counter(), psutil.virtual_memory().available
    given = (options.model, options.config, options.device, options.windows, options.seq_len)
    build = Build(*given, options.offload, max(counts))
    home = build()
    loaded = time.perf_counter() - begun
    runs = layer_runs(home.loaded, options.format, options.layers, options.sweep)
    waiting = home.loaded.offloaded
    print(
        f"{machine(options.device)}, {home.loaded.dtype_name}, {home.loaded.name}, "
        f"{len(runs)} runs on {options.windows} windows of {options.seq_len}, {options.format}; "
        f"this process loaded in {loaded:.1f} s",
        flush=True,
    )
    if waiting is not None:
        build = replace(build, offload=waiting.kind, shelf=waiting.shelf)
        both = " and ".join(f"{_copying(home):.1f}" for _ in range(2))
        print(
            f"blocks wait {waiting.place}, {waiting.size_bytes / 1e9:.1f} GB, and come to the "
            f"device with {both} GB/s; {waiting.scratch_bytes / 1e9:.1f} GB in a scratch file",
            flush=True,
        )
    rows: list[Row] = []
    first: dict[Recipe, list[float | None]] = {}
    with ExitStack() as stack:
        stack.enter_context(connected(Place(max(counts)), gpus=cuda))
        for count in counts:
            begun = time.perf_counter()
            crew = Alone(home) if count == 1 else Remote(Place(count), build, home)
            with closing(crew):
                while isinstance(crew, Remote) and crew.ready < count:
                    crew.wait(lambda note: print(note) if note else None)
                load_s = time.perf_counter() - begun if count > 1 else loaded
                _sweep(home, runs, crew, options.warm and count * options.warm)
                if cuda:
                    torch.cuda.reset_peak_memory_stats()
                sweep_s, nll, shares, work = _sweep(home, runs, crew)
                host_gb = (available - psutil.virtual_memory().available) / 1e9
            device_gb = torch.cuda.max_memory_allocated() / 1e9 if cuda else 0.0
            tflop = 2e-12 * work * options.seq_len * home.loaded.active / len(home.loaded.stack)
            first = first or nll
            rate = len(runs) * home.ids.numel() / sweep_s
            ratio = rate / rows[0].tokens_a_second if rows else 1.0
            apart = max(
                abs(a - b) / options.seq_len
                for recipe, values in first.items()
                for a, b in zip(values, nll[recipe], strict=True)
                if a is not None and b is not None
            )
            place = "on the device" if waiting is None else waiting.place
            told = (home.loaded.name, place, count, load_s, sweep_s, rate, ratio, shares, apart)
            rows.append(Row(*told, tflop / sweep_s, device_gb, host_gb))
            print(
                f"{count} workers: {sweep_s:.1f} s, {ratio:.2f} times, {tflop / sweep_s:.0f} "
                f"TFLOP/s, {device_gb:.1f} GB on the device, {host_gb:.1f} GB of the host",
                flush=True,
            )
            if options.csv is not None:
                _add(options.csv, rows[-1])
    print("\n| workers | load s | sweep s | tokens a second | ratio | windows | NLL apart |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for row in rows:
        print(
            f"| {row.workers} | {row.load_s:.1f} | {row.sweep_s:.2f} | {row.tokens_a_second:,.0f} "
            f"| {row.ratio:.2f} | {row.shares} | {row.nll_apart:.2g} |"
        )
    return 0


def _add(path: Path, row: Row) -> None:
    new = not path.exists()
    with path.open("a", newline="") as file:
        table = csv.DictWriter(file, list(asdict(row)))
        if new:
            table.writeheader()
        table.writerow(asdict(row))


def _copying(home: Worker) -> float:
    """GB a second of a pass over the blocks in which nothing is computed."""
    loaded = home.loaded
    begun = time.perf_counter()
    for block in range(len(loaded.stack)):
        loaded.stack.bring(block)
    wait(loaded.device)
    assert loaded.offloaded is not None
    return loaded.offloaded.size_bytes / (time.perf_counter() - begun) / 1e9


def _sweep(
    home: Worker, runs: list[Run], crew: Crew, windows: int | None = None
) -> tuple[float, dict[Recipe, list[float | None]], str, float]:
    """Seconds, NLL by recipe in the order of windows, who measured how many, blocks on a window."""
    before = Counter(crew.measured) if isinstance(crew, Remote) else Counter()
    ids = home.ids[:windows]
    with opened(home.loaded, ids, runs, Injector(home.loaded.model), crew=crew) as sweep:
        wait(home.loaded.device)
        begun = time.perf_counter()
        sweep.run()
        wait(home.loaded.device)
        seconds = time.perf_counter() - begun
    ledger = sweep.log.ledger
    nll = {
        recipe: [
            value
            for _, value in sorted(
                zip(ledger[recipe].indices, ledger[recipe].values["nll"], strict=True)
            )
        ]
        for recipe in ledger
    }
    shares = crew.measured - before if isinstance(crew, Remote) else {0: len(home.ids)}
    told = " + ".join(str(shares[number]) for number in sorted(shares))
    return seconds, nll, told, sweep.work * len(ids)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    sys.exit(main())
