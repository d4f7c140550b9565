r"""What a decision takes on a real model: windows, layer-windows and seconds, beside a full sweep.

    python benchmarks/decision.py MODEL OUT --text wikitext.txt --device cuda --dtype float16
    python benchmarks/decision.py MODEL OUT --text wikitext.txt --device cuda --dtype float16 \
        --rival DIR && python benchmarks/engine/modelopt_choices.py DIR --methods kl_div \
        --formats nvfp4 --kl-windows 146 --batch 8

Each goal is a run of its own, in a folder of OUT, which must be new; the last has no goal: every
layer on every window. A first run on 8 windows, which counts for nobody, compiles kernels. Seconds
are those of the whole run and of its phase that measures. Of each goal it is said which units were
found, and how many of these are among the ten that the full sweep has by the same measure.
`decision.json` has all of it. --rival makes the folder that ModelOpt's scores are taken in, of all
windows.
"""

import argparse
import gc
import json
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from shared import machine

import fp4scope
from fp4scope.data import evaluation_text, evaluation_windows
from fp4scope.ledger import Results
from fp4scope.models import load_model
from fp4scope.stats import Pairing
from fp4scope.study import Study
from fp4scope.sweep import Progress

GOALS = ("best=10", "best=10,by=kl", "best=10,by=kl,within=3mnat")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--format", default="nvfp4")
    parser.add_argument("--direction", default="only")
    parser.add_argument("--seq-len", type=int, default=2048)
    parser.add_argument("--windows", type=int)
    parser.add_argument("--goals", nargs="*", default=GOALS)
    parser.add_argument("--rival", type=Path)
    options = parser.parse_args()
    print(machine(options.device), flush=True)
    options.folder.mkdir(parents=True)  # a run that is there already would take no time
    asked: dict[str, Any] = {
        "text": str(options.text),
        "seq_len": options.seq_len,
        "windows": options.windows,
        "device": options.device,
        "dtype": options.dtype,
        "formats": options.format,
        "direction": options.direction,
        "sweep": "layers",
    }
    measured(options.model, asked | {"windows": 8}, options.folder / "warm")
    runs = {
        goal: measured(options.model, asked | {"stop_when": goal}, options.folder / f"goal-{i}")
        for i, goal in enumerate(options.goals)
    }
    full, seconds = measured(options.model, asked, options.folder / "full")
    rows = [row_of(goal, results, took, full) for goal, (results, took) in runs.items()]
    rows.append({"goal": "none"} | spent(full) | seconds)
    said = {"machine": machine(options.device), "model": options.model, "asked": asked}
    (options.folder / "decision.json").write_text(json.dumps(said | {"rows": rows}, indent=1))
    print(
        "| goal | windows | layer-windows | of all | s | s measuring | decided | shared with full |"
    )
    print("|" + " --- |" * 8)
    for row in rows:
        print(
            f"| {row['goal']} | {row['windows']} | {row['layer_windows']} | {row['share']:.1%} | "
            f"{row['seconds']:.1f} | {row['measuring_s']:.1f} | {row.get('decided', '')} | "
            f"{row.get('shared', '')} |"
        )
    if options.rival:
        prepare(options, Study.build(model=options.model, **asked))


def measured(model: str, asked: dict[str, Any], folder: Path) -> tuple[Results, dict[str, float]]:
    """A run as a user makes it, and how long it and its phases took."""
    took: defaultdict[str, float] = defaultdict(float)
    begun = last = time.perf_counter()
    phase = "loading"

    def tell(event: Progress) -> None:
        nonlocal last, phase
        now = time.perf_counter()
        took[phase] += now - last
        last, phase = now, event.phase

    results = fp4scope.diagnose(model, output_dir=folder, progress=tell, **asked).results
    seconds = time.perf_counter() - begun
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return results, {"seconds": seconds, "measuring_s": took["measuring"]}


def row_of(goal: str, results: Results, seconds: dict[str, float], full: Results) -> dict[str, Any]:
    (family,) = results.protocol["stopping"]["families"]
    found = {
        (unit["unit"], unit["block"])
        for unit in family["units"]
        if unit["fate"] in ("accepted", "chosen")
    }
    costs = means(full, family.get("by", "nll"))
    ranked = sorted(costs, key=lambda unit: -costs[unit])
    tenth = costs[ranked[family["k"] - 1]]
    return (
        {"goal": goal}
        | spent(results)
        | seconds
        | {
            "decided": family["decided"],
            "found": sorted(map(list, found)),
            "shared": len(found & set(ranked[: family["k"]])),
            "short_mnat": 1e3 * max((tenth - costs[unit] for unit in found), default=0.0),
        }
    )


def spent(results: Results) -> dict[str, Any]:
    """Windows, and pairs of a unit and a window that it was measured on."""
    rows = [results.ledger[c.own].indices for c in results.contrasts if c.unit is not None]
    windows = results.data["windows"]
    pairs = sum(len(set(row)) for row in rows)
    return {
        "windows": max(len(set(row)) for row in rows),
        "layer_windows": pairs,
        "share": pairs / (windows * len(rows)),
    }


def means(results: Results, measure: str) -> dict[tuple[str, int | None], float]:
    pairing = Pairing(results.ledger, measure)
    found = {}
    for contrast in results.contrasts:
        if contrast.unit is not None and (cost := pairing.difference(contrast)) is not None:
            labels = contrast.labels
            found[labels["unit"], labels["block"]] = float(np.mean(cost.values))
    return found


def prepare(options: argparse.Namespace, study: Study) -> None:
    """What `engine/modelopt_choices.py` reads: the model as a folder, ids of all windows."""
    loaded = load_model(options.model, device="cpu")
    windows = evaluation_windows(
        study.data, evaluation_text(study.data), loaded.tokenizer, loaded.config.model_type
    )
    options.rival.mkdir(exist_ok=True, parents=True)
    loaded.model.save_pretrained(options.rival / "model")
    asked = {"ids": windows.ids.tolist(), "bits": [5.0]}
    (options.rival / "asked.json").write_text(json.dumps(asked))


if __name__ == "__main__":
    main()
