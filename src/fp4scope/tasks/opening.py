"""Tasks by name or from files, with their data, before any model is loaded.

lm-eval is imported when it is needed: it comes with the extra `eval`.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

from fp4scope.data import cached_only_if_unreachable
from fp4scope.errors import DataError, StudyError, shown
from fp4scope.models.fusion import replaced
from fp4scope.tasks import humaneval
from fp4scope.tasks.sandbox import can_run

RUN_CODE = "--run-code"
_INSTALL = "tasks need lm-eval: pip install 'fp4scope[eval]'"
_LINES = (".jsonl", ".jsonl.gz")
_CONFIGS = (".yaml", ".yml")


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What is asked of tasks.

    Attributes:
        tasks: Names that lm-eval knows, its configurations (`.yaml`), or `NAME=FILE` with the lines
            of HumanEval.
        recipes: As `parse_recipes` takes them.
        limit: Documents of each task at most; None for all.
        batch_size: Requests in a forward.
        fewshot: Examples before each document, in place of the task's own number.
        chat: Whether the model is asked through its chat template.
        replicas: Runs of each recipe under perturbations of one unit in the last place, which tell
            the noise.
        problem: A field of documents; those that have it in common are one problem. Without it
            documents of one prompt are.
        run_code: Whether programs that the model writes may be run.
        accept: Bars on tasks, such as `task:arc_easy<2`.
    """

    tasks: Sequence[str]
    recipes: Sequence[str]
    limit: int | None = None
    batch_size: int = 1
    fewshot: int | None = None
    chat: bool = False
    replicas: int = 1
    problem: str | None = None
    run_code: bool = False
    accept: Sequence[str] = ()


def open_tasks(wish: Wish) -> dict[str, Any]:
    """lm-eval's tasks by name, with their data.

    Args:
        wish: What is asked.

    Raises:
        StudyError: lm-eval is not there, a task is unknown, or it runs code and may not.
        DataError: A task's data cannot be had.
    """
    if not wish.tasks:
        raise StudyError("no tasks are given; name some, such as --tasks arc_easy,gsm8k")
    _require_lm_eval()
    found: dict[str, Any] = {}
    with silent():
        manager = _manager([item for item in wish.tasks if not _is_file(item)])
        for item in wish.tasks:
            for name, task in _opened(item, manager, wish.chat).items():
                if name in found:
                    raise StudyError(f"task {shown(name)} is given twice; give each once")
                _require_code(name, task, own=item.endswith(_LINES), allowed=wish.run_code)
                _set_fewshot(task, wish.fewshot)
                found[name] = task
    return found


def _require_lm_eval() -> None:
    try:
        import lm_eval  # noqa: F401
    except ImportError as error:
        raise StudyError(f"{_INSTALL} ({error})") from None


def _is_file(item: str) -> bool:
    path = item.partition("=")[2] or item
    return path.endswith((*_LINES, *_CONFIGS))


def _manager(names: Sequence[str]) -> Any:  # noqa: ANN401
    """lm-eval's index of tasks; of its own only where one is named, since that takes seconds."""
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_defaults=bool(names))
    known = [*manager.all_tasks, *manager.all_groups, *manager.all_tags]
    for name in names:
        if name not in known:
            close = get_close_matches(name, known, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(close)}?" if close else "`lm-eval ls tasks` has them"
            raise StudyError(
                f"lm-eval knows no task {shown(name)}; {hint} A local one is a .yaml of lm-eval, "
                "or NAME=FILE.jsonl with lines of HumanEval"
            )
    return manager


def _opened(item: str, manager: Any, chat: bool) -> Mapping[str, Any]:  # noqa: ANN401
    spec: Any = item
    if _is_file(item):
        name, _, path = item.rpartition("=")
        spec = path
        if not Path(path).is_file():
            raise DataError(f"there is no file {shown(path)} for the task {shown(item)}")
        if path.endswith(_LINES):
            if not name:
                raise StudyError(f"tasks has {shown(item)}; name it: humaneval={item}")
            spec = humaneval.config(name, Path(path), chat=chat)
        elif name:
            raise StudyError(f"tasks has {shown(item)}; a .yaml names its task itself: {path}")
    try:
        with nullcontext() if _is_file(item) else cached_only_if_unreachable():
            return manager.load([spec])["tasks"]
    except Exception as error:  # whatever the library that fetches raises
        reason = " ".join(str(error).split())[:300]
        raise DataError(
            f"the data of the task {shown(item)} cannot be had: {type(error).__name__}: {reason}; "
            "it comes from the Hub, so check the network, or bring the Hub's cache (HF_HOME) from "
            "a machine that has it, or give a task of local files"
        ) from None


def _require_code(name: str, task: Any, *, own: bool, allowed: bool) -> None:  # noqa: ANN401
    """Refuse to run code that was not allowed, or that lm-eval would run in this process."""
    if not getattr(task, "UNSAFE_CODE", False):
        return
    if not own:
        raise StudyError(
            f"the task {shown(name)} runs code that the model writes, by a scorer in this process; "
            f"only HumanEval from a file runs in one of its own: --tasks {name}=FILE.jsonl"
        )
    if not allowed:
        raise StudyError(
            f"the task {shown(name)} runs code that the model writes; allow it with {RUN_CODE}: it "
            "runs in a process of its own, under limits, which hold accidents but no attack"
        )
    if not can_run():
        raise StudyError(f"the task {shown(name)} runs code, which this system cannot limit")


def _set_fewshot(task: Any, wanted: int | None) -> None:  # noqa: ANN401
    """As lm-eval has it: a task that says 0 keeps it."""
    own = task.get_config("num_fewshot")
    if own is None or (wanted is not None and own != 0):
        task.set_config(key="num_fewshot", value=wanted or 0)


@contextmanager
def silent() -> Iterator[None]:
    """Without what lm-eval shows: warnings about its own command line, and bars of prompts."""
    from lm_eval.api import task as prompts

    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with replaced(prompts.__dict__, "tqdm", partial(prompts.tqdm, disable=True)):
            yield
    finally:
        logger.setLevel(level)
