"""What replicas of the all-quantized model save, and how often the intervals hold.

    python benchmarks/controls.py docs/results/*/                    # recorded studies
    python benchmarks/controls.py docs/results/x --replicas OUT/x    # with replicas of another run
    python benchmarks/controls.py --simulate                         # where the truth is known

Recorded studies: the squared standard error of what kept units save, without the control and
with it (the mean over a family), that of Newey and West and s / sqrt(n); and how many are told from
zero (Holm, 5%). Replicas of another run of the same model and text may stand in: to a chaotic map
another machine is one more perturbation.

Simulated: an all-quantized model and its units with noise of which units share a part that rises
with depth, heavy tails (t, 5 degrees of freedom), and what windows differ by besides. The truth is
known.
"""

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np
from scipy import stats

import fp4scope
from fp4scope.design import NOTHING, Family
from fp4scope.ledger import Ledger, Results, Rows
from fp4scope.stats import holm, standard_errors
from fp4scope.stats.findings.controls import held_out
from fp4scope.stats.findings.pairing import Pairing
from fp4scope.stats.inference.multiple import p_values
from fp4scope.study import Direction


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="*", type=Path)
    parser.add_argument("--replicas", type=Path, help="another run of the same model and text")
    parser.add_argument("--simulate", action="store_true")
    options = parser.parse_args()
    for folder in options.results:
        results = fp4scope.load(folder).results
        if options.replicas is not None:
            join(results, fp4scope.load(options.replicas).results)
        recorded(results, folder.name)
    if options.simulate:
        simulated(np.random.default_rng(0))


def join(results: Results, other: Results) -> None:
    """Give the whole models of a study the further replicas that they have in another."""
    if results.data.get("sha256") != other.data.get("sha256"):
        raise SystemExit("the two runs have other windows")
    counted = results.ledger.counted
    found = {subject: results.ledger[subject] for subject in results.ledger}
    for subject in {NOTHING, *(c.own for c in results.contrasts if c.unit is None)}:
        theirs = other.ledger.rows(subject)
        if theirs is None or max(theirs.replicas) < counted:
            continue
        rows = Rows()
        for source, further in ((found[subject], False), (theirs, True)):
            places = zip(source.indices, source.replicas, source.tokens, strict=True)
            for row, (window, replica, tokens) in enumerate(places):
                values = {name: column[row] for name, column in source.values.items()}
                known = {name: value for name, value in values.items() if value is not None}
                if (replica >= counted) == further:
                    rows.put(window, replica, tokens, known)
        found[subject] = rows
    results.ledger = Ledger(found, counted=counted)


def recorded(results: Results, name: str) -> None:
    print(f"\n{name}: of what kept units save, before and after\n")
    print("| measure, family | SE, millinats | variance | s / sqrt(n) | told from zero |")
    print("| --- " * 5 + "|")
    for column in ("nll", "kl"):
        before = restored(results, Pairing(results.ledger, column))
        after = restored(results, Pairing.of(results, column))
        for family, one, other in zip(before, before.values(), after.values(), strict=True):
            if np.array_equal(one, other):
                continue  # no replicas that say anything of this measure
            se = [float(np.mean(standard_errors(x) ** 2)) for x in (one, other)]
            plain = other.var(axis=0).mean() / one.var(axis=0).mean()
            told = [count(x) for x in (one, other)]
            print(
                f"| {column}, {family.level}, {family.setting.format} "
                f"| {1e3 * se[0] ** 0.5:.2f}, {1e3 * se[1] ** 0.5:.2f} "
                f"| {100 * (se[1] / se[0] - 1):+.1f}% | {100 * (plain - 1):+.1f}% "
                f"| {told[0]}, {told[1]} of {one.shape[1]} |",
                flush=True,
            )


def restored(results: Results, pairing: Pairing) -> dict[Family, np.ndarray]:
    """What kept units cost, windows by units, of each family."""
    found: dict[Family, list[np.ndarray]] = defaultdict(list)
    for contrast in results.contrasts:
        if contrast.family.direction is Direction.KEEP:
            cost = pairing.difference(contrast)
            assert cost is not None
            found[contrast.family].append(cost.values)
    return {key: np.stack(values, axis=1) for key, values in found.items()}


def count(costs: np.ndarray) -> int:
    """Units told from zero."""
    p = p_values(costs.mean(axis=0), standard_errors(costs), len(costs))
    return sum(x is not None and x <= 0.05 for x in holm(p.tolist()))


def simulated(rng: np.random.Generator, studies: int = 1000, units: int = 24) -> None:
    """Units over the depth: variance over that without control, and coverage before and after."""
    depth = np.arange(units) / units
    print("\nSimulated: variance (after over before); coverage before, after\n")
    sizes = (8, 16, 32, 146)
    print(f"| replicas, share of noise | {' | '.join(map(str, sizes))} |")
    print("| --- " * (len(sizes) + 1) + "|")
    for replicas in (1, 4, 8):
        for share in (0.9, 0.5, 0.0):
            layers = []
            for n in sizes:
                squares, inside = np.zeros(2), np.zeros(2)
                for _ in range(studies):
                    luck, *again = rng.standard_t(5, (1 + replicas, n))
                    own = rng.standard_t(5, (n, units))
                    noise = (1 - depth) * luck[:, None] + (1 - depth**2) ** 0.5 * own
                    besides = rng.standard_t(5, (n, units)) * (2 * (1 - depth)) ** 0.5
                    costs = share**0.5 * noise + (1 - share) ** 0.5 * besides
                    control = luck - np.mean(again, axis=0)
                    pooled = costs @ (1 - depth) / np.sum((1 - depth) ** 2)
                    taken = (held_out(pooled, control) * control)[:, None] * (1 - depth)
                    for k, values in enumerate((costs, costs - taken)):
                        means, limit = values.mean(axis=0), stats.t.ppf(0.975, n - 1)
                        squares[k] += np.mean(means**2)
                        inside[k] += np.mean(np.abs(means) <= limit * standard_errors(values))
                hits = 100 * inside / studies
                layers.append(f"{squares[1] / squares[0]:.2f}; {hits[0]:.1f}, {hits[1]:.1f}")
            print(f"| {replicas}, {share} | {' | '.join(layers)} |", flush=True)


if __name__ == "__main__":
    main()
