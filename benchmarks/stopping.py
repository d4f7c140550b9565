"""Whether the decision rule errs as rarely as it says, and what it saves, on recorded windows.

    python benchmarks/stopping.py docs/results/qwen2.5-coder-0.5b --format nvfp4 --direction only
    python benchmarks/stopping.py OUT --by nll,kl --within 3mnat,1mnat --trials 1000
    python benchmarks/stopping.py OUT --horizon 600

The recorded windows are the population and the recorded means the truth. In each trial the windows
come in another order (with --horizon: drawn with replacement, so many), all units in the same one,
and the rule (`fp4scope.stats.search`) looks as often as a run would. An error is a decision with a
member that costs less than the k-th most costly unit does, less the tolerance; members accepted
before an undecided end count too. Layer-windows are pairs of a unit and a window that it was
measured on; `first look` is the share of these before anything can be decided, which no order of
units could save. Without --format and --direction it goes through all that the study has.
"""

import argparse
import time
from itertools import product
from pathlib import Path

import numpy as np
from scipy import stats

from fp4scope.ledger import Results, read_results
from fp4scope.stats import BestSearch, Pairing
from fp4scope.study import BestGoal
from fp4scope.study.goals import parse_goal
from fp4scope.sweep import looks

COLUMNS = (
    "by", "within", "format", "direction", "units", "windows", "decided", "mean windows",
    "layer-windows", "of all", "first look", "errors (95% interval)", "s a trial",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, help="a folder of a run, or its results.json")
    parser.add_argument("--format")
    parser.add_argument("--direction")
    parser.add_argument("--level", default="layers")
    parser.add_argument("--best", default="10")
    parser.add_argument("--by", default="nll")
    parser.add_argument("--within", default="3mnat")
    parser.add_argument("--error", default="5%")
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--horizon", type=int, help="draw so many windows, with replacement")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    path = options.results / "results.json" if options.results.is_dir() else options.results
    results = read_results(path)

    print(f"{options.trials} trials, best {options.best}, error {options.error}\n")
    print(f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}")
    for by, within in product(options.by.split(","), options.within.split(",")):
        goal = parse_goal(f"best={options.best},by={by},within={within},error={options.error}")
        assert isinstance(goal, BestGoal)
        for (level, fmt, _, direction), costs in recorded(results, by).items():
            wanted = (options.format or fmt, options.direction or direction, options.level)
            if (fmt, direction, level) == wanted:
                row = simulate(costs, goal, options)
                print(f"| {by} | {within} | {fmt} | {direction} | {row} |", flush=True)


def recorded(results: Results, measure: str) -> dict[tuple[str, ...], np.ndarray]:
    """What each unit cost in each window, windows by units, by family."""
    pairing, found = Pairing(results.ledger, measure), {}
    for contrast in results.contrasts:
        cost = pairing.difference(contrast)
        if contrast.unit is not None and cost is not None:
            found.setdefault(tuple(contrast.family.labels.values()), []).append(cost.values)
    return {name: np.stack(columns, axis=1) for name, columns in found.items()}


def simulate(costs: np.ndarray, goal: BestGoal, options: argparse.Namespace) -> str:
    rng = np.random.default_rng(options.seed)
    truth = costs.mean(axis=0)
    least = np.sort(truth)[-goal.k] - goal.within
    horizon = options.horizon or len(costs)
    ends = looks(goal, horizon)
    wrong = spent = 0
    windows: list[int] = []
    begun = time.perf_counter()
    for _ in range(options.trials):
        if options.horizon:
            drawn = costs[rng.integers(0, len(costs), horizon)]
            found = searched(drawn, np.arange(horizon), ends, goal)
        else:
            found = searched(costs, rng.permutation(len(costs)), ends, goal)
        wrong += bool((truth[found.found] < least - 1e-12).any())
        spent += sum(found.windows)
        if found.decided:
            windows.append(max(found.windows))
    trials, units = options.trials, costs.shape[1]
    seconds = (time.perf_counter() - begun) / trials
    low, high = stats.binomtest(wrong, trials).proportion_ci(method="exact")
    return " | ".join(
        [
            f"{units}",
            f"{horizon}",
            f"{len(windows)} of {trials}",
            f"{np.mean(windows):.0f}" if windows else "-",
            f"{spent / trials:.0f}",
            f"{spent / (trials * horizon * units):.1%}",
            f"{trials * ends[0] * units / spent:.0%}",
            f"{wrong} ({low:.1%} to {high:.1%})",
            f"{seconds:.2f}",
        ]
    )


def searched(costs: np.ndarray, order: np.ndarray, ends: list[int], goal: BestGoal) -> BestSearch:
    """The search as a run does it: at each look what was measured, in the order of the text."""
    found = BestSearch(costs.shape[1], goal)
    for end in ends:
        if found.decided:
            break
        found.look(costs[np.sort(order[:end])][:, found.active])
    return found


if __name__ == "__main__":
    main()
