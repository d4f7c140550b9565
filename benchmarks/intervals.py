"""How often the intervals of fp4scope hold: of differences where neighbours are alike, of ranks.

    python benchmarks/intervals.py docs/results/*/          # differences, by family
    python benchmarks/intervals.py --ranks                  # rank correlations, on made data

Differences: the recorded windows are the population and their means the truth. Runs of windows of
random length, 12 on average, are drawn with replacement until there are n (the stationary
bootstrap: Politis and Romano 1994, JASA 89(428)), and the 95% t interval is built with the standard
error of `fp4scope.stats.inference.dependence` and with s / sqrt(n).

Ranks: heavy-tailed costs (t, 3 degrees of freedom) of two lists with a given correlation, and
independent normal noise in every window. The truth is the rank correlation without noise.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scipy import stats

import fp4scope
from fp4scope.stats import spearman, standard_errors
from fp4scope.stats.findings.pairing import costs
from fp4scope.stats.inference.agreement import DRAWS, interval_of_draws
from fp4scope.stats.inference.dependence import drawn_means

RUN = 12
SIZES = (16, 32, 64)
"""And all of the windows."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="*", type=Path)
    parser.add_argument("--ranks", action="store_true")
    parser.add_argument("--draws", type=int, default=400)
    parser.add_argument("--studies", type=int, default=200)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    for folder in options.results:
        differences(folder, options.draws, rng)
    if options.ranks:
        paired(options.studies, rng)
        unpaired(options.studies, rng)


def differences(folder: Path, draws: int, rng: np.random.Generator) -> None:
    families: dict[str, list[np.ndarray]] = defaultdict(list)
    for contrast, series in costs(fp4scope.load(folder).results).items():
        labels = contrast.labels
        name = f"{labels['level']}, {labels['direction']}, {labels['format']}"
        families["whole models" if contrast.unit is None else name].append(series.values)
    sizes = (*SIZES, len(next(iter(families.values()))[0]))
    print(f"\n{folder}: coverage in %, in brackets with s / sqrt(n); rows below 93% at the end\n")
    print(f"| family | units | {' | '.join(map(str, sizes))} | below | worst |")
    print("| --- " * (len(sizes) + 4) + "|")
    for name, units in families.items():
        values = np.stack(units, axis=1)
        layers = []
        for n in sizes:
            inside, plain = covered(values, n, draws, rng)
            layers.append(f"{100 * inside.mean():.0f} ({100 * plain.mean():.0f})")
        below = f"{100 * (inside < 0.93).mean():.0f}%"
        row = [name, str(len(units)), *layers, below, f"{100 * inside.min():.0f}"]
        print(f"| {' | '.join(row)} |", flush=True)


def covered(
    values: np.ndarray, n: int, draws: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The share of draws whose interval has the mean, by unit; with either standard error."""
    picks = np.empty((n, draws), np.int64)
    for i in range(n):
        fresh = rng.integers(0, len(values), draws)
        begins = (rng.random(draws) < 1 / RUN) | (i == 0)
        picks[i] = np.where(begins, fresh, (picks[i - 1] + 1) % len(values))
    t, found = stats.t.ppf(0.975, n - 1), []
    for columns in np.array_split(values, max(1, values.shape[1] // 20), axis=1):
        drawn = columns[picks]
        off = np.abs(drawn.mean(axis=0) - columns.mean(axis=0))
        plain = drawn.std(axis=0, ddof=1) / n**0.5
        found.append([(off <= t * e).mean(axis=0) for e in (standard_errors(drawn), plain)])
    both = np.concatenate([np.stack(f) for f in found], axis=1)
    return both[0], both[1]


def paired(studies: int, rng: np.random.Generator) -> None:
    print("\nPaired lists, noise of a window 3 times the spread of units\n")
    shapes = ((30, 8), (30, 32), (210, 8), (210, 32), (210, 96))
    print(f"| units, windows | {' | '.join(f'{u}, {w}' for u, w in shapes)} |")
    print("| --- " * (len(shapes) + 1) + "|")
    rows: dict[str, list[str]] = defaultdict(list)
    for units, windows in shapes:
        hits = np.zeros(3)
        for truth, one, other in made(units, (windows, windows), 3.0, 0.8, studies, rng):
            drawn = drawn_means(np.concatenate([one, other], axis=1), DRAWS)
            hits += held(truth, one, other, spearman(drawn[:, :units], drawn[:, units:]))
        for name, hit in zip(KINDS, hits / studies, strict=True):
            rows[name].append(f"{100 * hit:.0f}%")
    for name, layers in rows.items():
        print(f"| {name} interval | {' | '.join(layers)} |", flush=True)


def unpaired(studies: int, rng: np.random.Generator) -> None:
    print("\nLists of other text, 40 and 30 windows; over correlations of 0, 0.7 and 0.97\n")
    sizes = (4, 7, 28, 100)
    print(f"| units | {' | '.join(map(str, sizes))} |")
    print("| --- " * (len(sizes) + 1) + "|")
    for noise in (0.1, 0.3, 0.6):
        rows: dict[str, list[str]] = {kind: [] for kind in KINDS[1:]}
        for units in sizes:
            shares = []
            for correlation in (0.0, 0.7, 0.97):
                hits, scale = np.zeros(3), noise * 35**0.5
                for truth, one, other in made(units, (40, 30), scale, correlation, studies, rng):
                    mine, theirs = drawn_means(one, DRAWS), drawn_means(other, DRAWS, seed=1)
                    hits += held(truth, one, other, spearman(mine, theirs))
                shares.append(100 * hits / studies)
            for i, kind in enumerate(KINDS[1:], 1):
                values = [share[i] for share in shares]
                rows[kind].append(f"{min(values):.0f}-{max(values):.0f}%")
        for kind, layers in rows.items():
            print(f"| noise {noise}, {kind} | {' | '.join(layers)} |", flush=True)


KINDS = ("percentile", "mirrored", "joined")
"""The draws' quantiles; these mirrored at rho; all between both, which fp4scope gives."""


def held(truth: float, one: np.ndarray, other: np.ndarray, drawn: np.ndarray) -> list[bool]:
    """Whether each kind of interval holds the rank correlation without noise."""
    return covering(truth, float(spearman(one.mean(axis=0), other.mean(axis=0))), drawn)


def covering(truth: float, rho: float, drawn: np.ndarray) -> list[bool]:
    least, most = np.quantile(drawn, [0.025, 0.975])
    mirrored = min(2 * rho - most, rho), max(2 * rho - least, rho)
    ends = (least, most), mirrored, interval_of_draws(rho, drawn)
    return [low - 1e-9 <= truth <= high + 1e-9 for low, high in ends]


def made(
    units: int,
    windows: tuple[int, int],
    noise: float,
    correlation: float,
    studies: int,
    rng: np.random.Generator,
) -> Iterator[tuple[float, np.ndarray, np.ndarray]]:
    """The true rank correlation, and the two lists, windows by units; noise in units of spread."""
    spread = 3**0.5  # of t with 3 degrees of freedom
    for _ in range(studies):
        one, rest = rng.standard_t(3, (2, units))
        other = correlation * one + (1 - correlation**2) ** 0.5 * rest
        sides = [
            side + noise * spread * rng.normal(size=(count, units))
            for side, count in zip((one, other), windows, strict=True)
        ]
        yield float(spearman(one, other)), sides[0], sides[1]


if __name__ == "__main__":
    main()
