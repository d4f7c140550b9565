r"""Whether the wavefront measures what running the model once for every variant does.

    python benchmarks/agreement.py model.gguf --text wikitext.txt --seq-len 256 --windows 8
    python benchmarks/agreement.py model.gguf --text wikitext.txt --windows 24 --device cuda \
        --dtype float16

Reference, all-quantized models and projections, both formats and directions, W4A4. In FP32 on a CPU
every difference is 0. On a GPU batches and fused kernels round in another order, which W4A4
magnifies; so the mean difference of each variant stands there with its 95% t interval over windows,
the largest difference of a window, and how many intervals contain 0. Below it the run-to-run noise:
what the wavefront's own jitter controls differ by from the same configuration without.
"""

import argparse
import sys

import numpy as np
from shared import calibrated, machine, opened

from fp4scope.data import evaluation_text, evaluation_windows
from fp4scope.design import design
from fp4scope.models import load_model
from fp4scope.operands import Injector
from fp4scope.recipes import Recipe
from fp4scope.stats.inference.intervals import paired
from fp4scope.study import Study
from fp4scope.sweep import measure_naively


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--text", required=True)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--seq-len", type=int, default=2048)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    study = Study.build(sweep="projections", **vars(parser.parse_args()))
    loaded = load_model(
        study.model.name, device=study.numerics.device, dtype=study.numerics.dtype.value
    )
    windows = evaluation_windows(
        study.data, evaluation_text(study.data), loaded.tokenizer, loaded.config.model_type
    )
    ids = windows.ids
    print(
        f"{machine(loaded.device)}, {loaded.dtype_name}\n"
        f"{loaded.name}, {len(ids)} windows of {study.data.seq_len} tokens of {windows.source}"
    )

    injector = Injector(loaded.model, calibrated(loaded, ids[-4:]))
    runs = design(study, loaded.layout.sites).runs
    with opened(loaded, ids, runs, injector) as sweep:
        sweep.run()
    ledger = sweep.log.ledger
    swept: dict[tuple[Recipe, int], dict[int, float]] = {}
    for recipe in ledger:
        rows = ledger[recipe]
        for window, replica, nll in zip(
            rows.indices, rows.replicas, rows.values["nll"], strict=True
        ):
            swept.setdefault((recipe, replica), {})[window] = nll or 0.0
    chosen = [run for run in runs if not run.replica]
    inside = 0
    print(
        f"\n{'wavefront less one model run at a time':62}{'millinats a token':>27}{'largest':>10}"
    )
    for run, metrics in zip(chosen, measure_naively(loaded, ids, chosen, injector), strict=True):
        own = swept[run.recipe, 0]
        differences = np.array([(own[w] - m.nll) / m.tokens for w, m in enumerate(metrics)])
        inside += _print(run.name, differences)
    print(f"{inside} of {len(chosen)} intervals contain 0")
    print(f"\n{'run-to-run noise':62}")
    for run in chosen:
        if not run.recipe.edits:
            own, again = (swept[run.recipe, replica] for replica in (0, 1))
            tokens = study.data.seq_len - 1
            _print(run.name, np.array([again[w] - own[w] for w in own]) / tokens)
    return 0


def _print(name: str, differences: np.ndarray) -> bool:
    found = paired(differences, np.zeros_like(differences))
    low, high = (float("nan") if x is None else 1e3 * x for x in (found.low, found.high))
    largest = 1e3 * np.abs(differences).max()
    print(f"{name:62}{1e3 * found.mean:+8.4f} [{low:+.4f}, {high:+.4f}]{largest:10.4f}")
    return bool(low <= 0 <= high)


if __name__ == "__main__":
    sys.exit(main())
