"""What recipes lose on tasks, document by document, and how much of that is rounding alone."""

from collections.abc import Iterator
from typing import Any

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
    "documents_for_point", "reruns", "rerun_flips", "rerun_loss",
)  # fmt: skip


def task_table(found: TaskResults | None) -> Table:
    """A row for each task, metric and recipe.

    `loss` is the full-precision model's score less the recipe's. `rerun_flips` and `rerun_loss`
    are those of the same recipe under perturbations of one unit in the last place: the mean share
    of documents that flip, and the largest loss or gain.

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
        full = found.scores.get((task, found.full, 0), {})
        for place, metric in enumerate(full):
            for recipe in found.recipes:
                own = found.scores.get((task, recipe, 0), {}).get(metric)
                if own is None:
                    continue
                told = {"task": task, "metric": metric, "main": place == 0, "recipe": recipe}
                count = {"documents": len(own), "problems": len(set(documents.problems))}
                scores = {
                    "score": sum(own) / len(own),
                    "full": sum(full[metric]) / len(own),
                }
                cost = {} if recipe == found.full else _cost(found, task, metric, own)
                yield told | count | scores | cost | _noise(found, task, recipe, metric, own)


def _cost(found: TaskResults, task: str, metric: str, own: list[float]) -> dict[str, Any]:
    full = found.scores[task, found.full, 0][metric]
    seen = flips(full, own, found.tasks[task].problems)
    return seen.loss.columns("loss") | {
        "lost": seen.lost,
        "gained": seen.gained,
        "flips": seen.share,
        "design": seen.design,
        "documents_for_point": seen.documents_for(POINT),
    }


def _noise(
    found: TaskResults, task: str, recipe: str, metric: str, own: list[float]
) -> dict[str, Any]:
    """What the same recipe scores otherwise when it is run again, perturbed."""
    others = [
        flips(own, scores[metric], found.tasks[task].problems)
        for (known, name, replica), scores in found.scores.items()
        if (known, name) == (task, recipe) and replica and metric in scores
    ]
    if not others:
        return {"reruns": 0}
    return {
        "reruns": len(others),
        "rerun_flips": sum(other.share for other in others) / len(others),
        "rerun_loss": max((other.loss.mean for other in others), key=abs),
    }
