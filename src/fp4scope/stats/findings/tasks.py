"""What recipes lose on tasks, document by document, and how much of that is rounding alone."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from fp4scope.ledger import TaskResults
from fp4scope.recipes import Recipe
from fp4scope.stats.inference.flips import flips
from fp4scope.stats.inference.intervals import Estimate
from fp4scope.table import Table

POINT = 0.01
"""Of a score between 0 and 1."""

TASK_COLUMNS = (
    "task", "metric", "main", "recipe", "documents", "problems", "score", "full",
    "loss", "loss_stderr", "loss_low", "loss_high", "lost", "gained", "flips", "design",
    "documents_for_point", "runs", "rerun_flips", "rerun_loss",
)  # fmt: skip


def task_table(found: TaskResults | None) -> Table:
    """A row for each task, metric and recipe.

    `loss` is the full-precision model's score less the recipe's, over all `runs` of both: the
    first, and those under perturbations of one unit in the last place, each beside its like. All
    runs of a document are of its problem. `rerun_flips` and `rerun_loss` are those of the perturbed
    runs against the first of the same recipe: the mean share of documents that flip, and the
    largest loss or gain.

    Args:
        found: What was scored; None for nothing.
    """
    rows = [] if found is None else list(_rows(found))
    return Table(TASK_COLUMNS, rows)


def task_costs(found: TaskResults, recipe: Recipe) -> dict[str, Estimate]:
    """What a recipe loses on each task by its first metric, under the names of bars.

    Args:
        found: What was scored.
        recipe: Any; one that was not scored has none.
    """
    names = [name for name, own in found.recipes.items() if own == recipe]
    table = task_table(found)
    return {
        f"task:{row['task']}": Estimate(
            row["loss"], row["loss_stderr"], row["loss_low"], row["loss_high"], row["documents"]
        )
        for row in table
        if row["main"] and row["recipe"] in names and row["loss"] is not None
    }


def _rows(found: TaskResults) -> Iterator[dict[str, Any]]:
    for task, documents in found.tasks.items():
        for place, metric in enumerate(found.scores.get((task, found.full, 0), {})):
            full = _runs(found, task, found.full, metric)
            for recipe in found.recipes:
                own = _runs(found, task, recipe, metric)
                runs = min(len(full), len(own))
                if not runs:
                    continue
                told = {"task": task, "metric": metric, "main": place == 0, "recipe": recipe}
                count = {
                    "documents": len(own[0]),
                    "problems": len(set(documents.problems)),
                    "runs": runs,
                }
                scores = {"score": np.mean(own[:runs]), "full": np.mean(full[:runs])}
                cost = {}
                if recipe != found.full:
                    cost = _cost(full[:runs], own[:runs], documents.problems)
                plain = {name: float(value) for name, value in scores.items()}
                yield told | count | plain | cost | _noise(own, documents.problems)


def _runs(found: TaskResults, task: str, recipe: str, metric: str) -> list[list[float]]:
    """Scores of documents by run, the first one first."""
    runs: list[list[float]] = []
    while metric in (scores := found.scores.get((task, recipe, len(runs)), {})):
        runs.append(scores[metric])
    return runs


def _cost(
    full: Sequence[list[float]], own: Sequence[list[float]], problems: Sequence[int]
) -> dict[str, Any]:
    runs = len(own)
    seen = flips(np.concatenate(full), np.concatenate(own), list(problems) * runs)
    needed = seen.documents_for(POINT)
    return seen.loss.columns("loss") | {
        "lost": seen.lost,
        "gained": seen.gained,
        "flips": seen.share,
        "design": seen.design,
        "documents_for_point": None if needed is None else -(-needed // runs),
    }


def _noise(own: Sequence[list[float]], problems: Sequence[int]) -> dict[str, Any]:
    """What the same recipe scores otherwise when it is run again, perturbed."""
    others = [flips(own[0], again, problems) for again in own[1:]]
    if not others:
        return {}
    return {
        "rerun_flips": sum(other.share for other in others) / len(others),
        "rerun_loss": max((other.loss.mean for other in others), key=abs),
    }
