"""Scores of documents by task, recipe and replica, and their file, `tasks.json`."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fp4scope.design import NOTHING
from fp4scope.errors import Fp4ScopeError, OutputError, StudyError, shown
from fp4scope.files import named, read_bytes, replace_file
from fp4scope.ledger.checks import first_problem
from fp4scope.ledger.schema import Count, Name, Replica, Scalar, Share, Text
from fp4scope.recipes import Recipe

TASKS = "tasks.json"
_VERSION = 1
_ADVICE = "take it from a backup, or remove it and repeat the command"


class _Fields(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class Documents(_Fields):
    """Documents of a task, and a model's scores on them.

    Attributes:
        prompts: A hash of what the model was asked, by document.
        problems: Which problem each document belongs to.
        scores: By metric, the task's first one first.
    """

    prompts: Annotated[list[Name], Field(min_length=1)]
    problems: list[Count]
    scores: Annotated[dict[Name, list[Share]], Field(min_length=1)]


class _Run(_Fields):
    task: Name
    recipe: Name
    replica: Replica
    scores: dict[Name, list[Share]]


class _Task(_Fields):
    prompts: Annotated[list[Name], Field(min_length=1)]
    problems: list[Count]


class _File(_Fields):
    version: Literal[1]
    identity: dict[Text, Scalar | list[Scalar]]
    environment: dict[Text, Any]
    accept: list[Text]
    tasks: dict[Name, _Task]
    recipes: dict[Name, dict[Text, Any]]
    runs: list[_Run]


@dataclass
class TaskResults:
    """What recipes score on tasks.

    Attributes:
        identity: What decides the scores besides recipe and task.
        environment: Under what conditions they were measured.
        accept: Bars that recipes are held to.
        tasks: Of each task its documents: prompts and problems.
        recipes: By name; the full-precision model first.
        scores: By task, name of recipe and replica: by metric, a score for each document.
    """

    identity: dict[str, Any]
    environment: dict[str, Any] = field(default_factory=dict)
    accept: list[str] = field(default_factory=list)
    tasks: dict[str, _Task] = field(default_factory=dict)
    recipes: dict[str, Recipe] = field(default_factory=dict)
    scores: dict[tuple[str, str, int], dict[str, list[float]]] = field(default_factory=dict)

    def add(self, task: str, recipe: str, replica: int, found: Documents) -> None:
        """Take in what a recipe scored on a task.

        Raises:
            StudyError: It was asked something else than others were.
        """
        asked = _Task(prompts=found.prompts, problems=found.problems)
        if self.tasks.setdefault(task, asked) != asked:
            raise StudyError(
                f"the task {shown(task)} asks {recipe} other questions than were asked before, so "
                "its scores are not comparable; the task has changed: use another folder"
            )
        self.scores[task, recipe, replica] = found.scores

    @property
    def full(self) -> str:
        """Name of the full-precision model."""
        return next(name for name, recipe in self.recipes.items() if recipe == NOTHING)

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all.

        Raises:
            OutputError: It cannot be written.
        """
        content = _File(
            version=_VERSION,
            identity=self.identity,
            environment=self.environment,
            accept=self.accept,
            tasks=self.tasks,
            recipes={name: recipe.to_json() for name, recipe in self.recipes.items()},
            runs=[
                _Run(task=task, recipe=recipe, replica=replica, scores=scores)
                for (task, recipe, replica), scores in self.scores.items()
            ],
        )
        text = json.dumps(content.model_dump(mode="json"), allow_nan=False, separators=(",", ":"))
        replace_file(path, text.encode(), "choose another folder with -o")


def read_tasks(path: Path) -> TaskResults:
    """What such a file holds.

    Raises:
        OutputError: It cannot be read, or is damaged: the message names the place.
    """
    content = read_bytes(path, "results of tasks", OutputError)
    try:
        found = _File.model_validate_json(content)
        recipes = {name: Recipe.from_json(data) for name, data in found.recipes.items()}
        _require_consistent(found, recipes)
    except (ValidationError, Fp4ScopeError, ValueError, RecursionError) as error:
        problem = (
            first_problem(error.errors(include_url=False))
            if isinstance(error, ValidationError)
            else str(error)
        )
        raise OutputError(f"{named(path)} is damaged: {problem}; {_ADVICE}") from None
    return TaskResults(
        identity=dict(found.identity),
        environment=found.environment,
        accept=found.accept,
        tasks=found.tasks,
        recipes=recipes,
        scores={(run.task, run.recipe, run.replica): run.scores for run in found.runs},
    )


def _require_consistent(found: _File, recipes: Mapping[str, Recipe]) -> None:
    if NOTHING not in recipes.values():
        raise ValueError("recipes: there is no full-precision model")
    for name, task in found.tasks.items():
        if len(task.problems) != len(task.prompts):
            raise ValueError(f"tasks: {shown(name)} has not one problem for each document")
    for run in found.runs:
        if run.task not in found.tasks or run.recipe not in recipes:
            raise ValueError(f"runs: there is no {shown(run.recipe)} or no {shown(run.task)}")
        count = len(found.tasks[run.task].prompts)
        if not run.scores or any(len(scores) != count for scores in run.scores.values()):
            raise ValueError(f"runs: {shown(run.task)} has not one score for each document")
