"""Whether the decision rule errs as rarely as it says, and what it saves, on recorded windows.

    python benchmarks/stopping.py out/results.json --format nvfp4 --direction isolate
    python benchmarks/stopping.py out/results.json --best 5 --within 10mnat --horizon 600

The recorded windows are the population and the recorded means the truth. In each trial windows
are drawn with replacement, all units in the same ones, and the rule (`fp4scope.stats.search`)
looks after every chunk up to the horizon. An error is a decision with a member that costs
less than the k-th most costly unit does, less the tolerance; members accepted before an undecided
end count too. Two savings: of unit-windows up to the horizon, and, where it was decided, of what
measuring all units to the decision would take. Without --format and --direction it goes through
all that the study has.
"""

import argparse
import time
from pathlib import Path

import numpy as np
from scipy import stats

from fp4scope.ledger import Results, read_results
from fp4scope.stats import Fate, Pairing, search
from fp4scope.study import BestGoal, parse_goal


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--format")
    parser.add_argument("--direction")
    parser.add_argument("--level", default="layers")
    parser.add_argument("--best", default="10")
    parser.add_argument("--within", default="3mnat")
    parser.add_argument("--error", default="5%")
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--horizon", type=int, help="windows at most; by default as recorded")
    parser.add_argument("--chunk", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    goal = parse_goal(f"best={options.best},within={options.within},error={options.error}")
    assert isinstance(goal, BestGoal)

    print(f"{goal}, {options.trials} trials, a look every {options.chunk} windows\n")
    print(
        "| format | direction | units | horizon | decided | mean windows | errors (95% interval) "
        "| accepted at the end | dropped | saved of the horizon | by dropping alone | s a trial |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for (level, fmt, _, direction), costs in recorded(read_results(options.results)).items():
        wanted = (options.format or fmt, options.direction or direction, options.level)
        if (fmt, direction, level) == wanted:
            horizon = options.horizon or len(costs)
            row = simulate(costs, goal, horizon, options)
            print(f"| {fmt} | {direction} | {costs.shape[1]} | {horizon} | {row} |", flush=True)


def recorded(results: Results) -> dict[tuple[str, ...], np.ndarray]:
    """What each unit cost in each window, windows by units, by family."""
    pairing, found = Pairing(results.ledger), {}
    for contrast in results.contrasts:
        cost = pairing.difference(contrast)
        if contrast.unit is not None and cost is not None:
            found.setdefault(tuple(contrast.family.labels.values()), []).append(cost.values)
    return {name: np.stack(columns, axis=1) for name, columns in found.items()}


def simulate(costs: np.ndarray, goal: BestGoal, horizon: int, options: argparse.Namespace) -> str:
    rng = np.random.default_rng(options.seed)
    truth = costs.mean(axis=0)
    least = np.sort(truth)[-goal.k] - goal.within
    ends = [*range(options.chunk, horizon, options.chunk), horizon]
    wrong = accepted = dropped = spent = 0
    windows: list[int] = []
    saved: list[float] = []
    begun = time.perf_counter()
    for _ in range(options.trials):
        found = search(costs[rng.integers(0, len(costs), horizon)], ends, goal)
        wrong += bool((truth[found.found] < least - 1e-12).any())
        accepted += found.fates.count(Fate.ACCEPTED)
        dropped += found.fates.count(Fate.DROPPED)
        spent += sum(found.windows)
        if found.decided:
            windows.append(max(found.windows))
            saved.append(1 - sum(found.windows) / (windows[-1] * costs.shape[1]))
    trials = options.trials
    seconds = (time.perf_counter() - begun) / trials
    low, high = stats.binomtest(wrong, trials).proportion_ci(method="exact")
    return " | ".join(
        [
            f"{len(windows)} of {trials}",
            f"{np.mean(windows):.0f}" if windows else "-",
            f"{wrong} ({low:.1%} to {high:.1%})",
            f"{accepted / trials:.1f}",
            f"{dropped / trials:.1f}",
            f"{1 - spent / (trials * horizon * costs.shape[1]):.0%}",
            f"{np.mean(saved):.0%}" if saved else "-",
            f"{seconds:.2f}",
        ]
    )


if __name__ == "__main__":
    main()
