"""Whether the verdicts on the paper's hypotheses err as seldom as they say, on made data.

    python benchmarks/hypotheses.py docs/results/*/

Intervals: rank correlations of seven projections' costs with Max / P99.9, of random costs. The
truth is the correlation without noise of windows.

Mechanism: all 5040 orders of seven projections, with the tails of recorded studies. How many give
each verdict by the rule of version 0.1 (which of two correlations is higher) and by the exact
permutation test; also of the 144 in which the MLP's three come first or stay among themselves.

Localization: curves of 24 blocks that peak in the final third, or tie there with blocks before it.
How often the peak is called an earlier one, by the share of draws (version 0.1) and by the test.

Ceiling: how the order of n windows of a recorded study correlates with that of all its others, and
what `ceilings` says of it, from 2n windows.
"""

import argparse
from itertools import permutations
from pathlib import Path
from statistics import fmean

import numpy as np
from intervals import KINDS, covering

import fp4scope
from fp4scope.kinds import kind_of_path
from fp4scope.stats import spearman
from fp4scope.stats.findings.depth import peak_p
from fp4scope.stats.findings.families import families
from fp4scope.stats.inference.agreement import DRAWS, ceilings
from fp4scope.stats.inference.dependence import drawn_means
from fp4scope.stats.inference.permutations import permutation_test, rank_fit

WINDOWS = 146
BLOCKS, FINAL = 24, 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="+", type=Path)
    parser.add_argument("--studies", type=int, default=400)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    runs = {folder.name: fp4scope.load(folder) for folder in options.results}
    measured = {name: tails(run) for name, run in runs.items()}
    correlations(next(iter(measured.values())), options.studies, rng)
    print("\nVerdicts over all orders, in %: supported, contradicted\n")
    for name, of in measured.items():
        mechanism(name, of)
    localization(options.studies, rng)
    print("\nOrder of 8 windows against the rest, and the ceiling said from 16\n")
    for name, run in runs.items():
        ceiling(name, run, rng)


def tails(run: fp4scope.Diagnosis) -> dict[str, float]:
    """Mean Max / P99.9 of each projection."""
    rows = run.projection_activations
    return {row["projection"]: float(row["ratio"]) for row in rows}


def correlations(tail: dict[str, float], studies: int, rng: np.random.Generator) -> None:
    x, everyone = np.array([*tail.values()]), np.zeros(len(tail), np.int64)
    strata = np.array([kind_of_path(name) == "MLP" for name in tail]).astype(np.int64)
    print("\nIntervals (95%) of seven projections' rank correlations that hold the truth, in %\n")
    print(f"| windows, noise of a mean | correlation | {' | '.join(KINDS)} |")
    print("| --- " * 5 + "|")
    for windows, noise in ((16, 0.3), (WINDOWS, 0.1), (WINDOWS, 0.3), (WINDOWS, 0.6)):
        for name, groups in (("with the tail", everyone), ("within kinds", strata)):
            hits = np.zeros(3)
            for _ in range(studies):
                truth = rng.normal(size=len(x))
                costs = truth + noise * windows**0.5 * rng.normal(size=(windows, len(x)))
                rho, own = (float(rank_fit(y, x, groups)) for y in (truth, costs.mean(axis=0)))
                hits += covering(rho, own, rank_fit(drawn_means(costs, DRAWS), x, groups))
            shown = " | ".join(f"{100 * hit / studies:.0f}" for hit in hits)
            print(f"| {windows}, {noise} | {name} | {shown} |", flush=True)


def mechanism(model: str, tail: dict[str, float]) -> None:
    x = np.array([*tail.values()])
    mlp = np.array([kind_of_path(name) == "MLP" for name in tail])
    orders = np.array([*permutations(range(len(x)))], np.float64)
    ordered = np.arange(float(len(x)))
    by_tail = spearman(orders, x) / spearman(ordered, np.sort(x))
    by_kind = spearman(orders, mlp.astype(float))
    full = by_kind / spearman(ordered, np.sort(mlp.astype(float)))
    before = (by_tail > full) & (by_tail > 0), (by_tail < by_kind) | (by_tail < 0)
    tests = [permutation_test(order, x, mlp.astype(np.int64)) for order in orders]
    now = (
        np.array([test.p_more <= 0.05 for test in tests]),
        np.array([test.p_less <= 0.05 for test in tests]),
    )
    first = orders[:, mlp].min(axis=1) > orders[:, ~mlp].max(axis=1)
    for name, chosen in (("all", np.ones(len(orders), bool)), ("MLP first", first)):
        shown = [
            ", ".join(f"{100 * side[chosen].mean():.0f}" for side in rule) for rule in (before, now)
        ]
        print(f"{model}, {name} ({chosen.sum()}): before {shown[0]}; now {shown[1]}", flush=True)


def localization(studies: int, rng: np.random.Generator) -> None:
    print("\nLate peaks called earlier ones, in % of curves, at 5% and at 5% / 28\n")
    print("| the truth | by draws | by the test |")
    print("| --- | --- | --- |")
    early = np.arange(BLOCKS) < FINAL
    for name, tied, ahead in (
        ("one final block ties with sixteen others", 16, 0.0),
        ("with four others", 4, 0.0),
        ("with one other", 1, 0.0),
        ("one final block is ahead of sixteen by one standard error", 16, 1.0),
    ):
        costs = np.zeros(BLOCKS)
        costs[:tied] = 10.0
        costs[-1] = 10.0 + ahead
        hits = np.zeros((2, 2))
        for _ in range(studies):
            seen = costs + WINDOWS**0.5 * rng.normal(size=(WINDOWS, BLOCKS))
            draws = drawn_means(seen, 4000).argmax(axis=1)
            p = (draws >= FINAL).mean(), peak_p(seen, early)
            hits += np.array([[value <= level for level in (0.05, 0.05 / 28)] for value in p])
        shown = [", ".join(f"{100 * x / studies:.1f}" for x in row) for row in hits]
        print(f"| {name} | {shown[0]} | {shown[1]} |", flush=True)


def ceiling(model: str, run: fp4scope.Diagnosis, rng: np.random.Generator) -> None:
    for family in families(run.results, "layers"):
        costs = family.costs
        real, said = [], []
        for _ in range(20):
            start = int(rng.integers(0, len(costs) - 16))
            seen = costs[start : start + 16]
            rest = np.delete(costs, np.s_[start : start + 16], axis=0).mean(axis=0)
            real += [float(spearman(half.mean(axis=0), rest)) for half in (seen[:8], seen[8:])]
            said.append((ceilings(seen) or (0.0, 0.0))[1])
        print(
            f"{model}, {family.name}: {fmean(real):.2f}, said {fmean(said):.2f} "
            f"({np.std(said):.2f} from one to the next)",
            flush=True,
        )


if __name__ == "__main__":
    main()
