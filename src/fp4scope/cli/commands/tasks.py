"""From a model to what recipes lose on tasks."""

from pathlib import Path
from typing import Any

from fp4scope.cli.given import slug, study_from
from fp4scope.cli.options import (
    NUMBER,
    POSITIVE,
    Option,
    command,
    listed,
    model_argument,
    out_option,
    quiet_option,
    study_options,
)
from fp4scope.cli.stopped import stoppable

_TASKS = (
    "revision", "exclude", "lm_head", "dataset", "calibration_text", "calibration_windows",
    "calibration_seq_len", "bos", "dtype", "device", "scales", "seed", "allow_partial",
    "trust_remote_code", "allow_pickle",
)  # fmt: skip


@command(
    lambda: [
        model_argument(required=True),
        Option(
            ["--tasks"],
            multiple=True,
            required=True,
            metavar="TASKS",
            help="Names that lm-eval knows, its configurations (.yaml), or NAME=FILE.jsonl with "
            "lines of HumanEval; by commas or repeated",
        ),
        Option(
            ["--recipes"],
            multiple=True,
            required=True,
            metavar="RECIPES",
            help="What is held against full precision: formats as nvfp4 or mxfp4:even/w4a16, and "
            "files that hold recipes; by commas or repeated",
        ),
        Option(["--limit"], type=POSITIVE, metavar="N", help="Documents of each task at most"),
        Option(["--num-fewshot"], type=NUMBER, metavar="N", help="Examples before each document"),
        Option(["--chat"], is_flag=True, help="Ask through the model's chat template"),
        Option(
            ["--batch-size"],
            type=POSITIVE,
            default=1,
            metavar="N",
            help="Requests in a forward  [default: 1]",
        ),
        Option(
            ["--replicas"],
            type=NUMBER,
            default=1,
            metavar="N",
            help="Second runs of every recipe, perturbed by one unit in the last place, which tell "
            "the noise  [default: 1]",
        ),
        Option(
            ["--problem"],
            metavar="FIELD",
            help="Documents that have this field in common are one problem  [default: by prompt]",
        ),
        Option(
            ["--run-code"],
            is_flag=True,
            help="Run programs that the model writes: in processes of their own, under limits",
        ),
        Option(
            ["--accept"],
            multiple=True,
            metavar="BAR",
            help="Whether recipes meet it, in points of a score: 'task:arc_easy<2'; repeatable",
        ),
        out_option("Folder for tasks.json and tasks.csv  [default: fp4scope-MODEL]"),
        quiet_option("No progress"),
        *study_options(*_TASKS),
    ],
    "Qwen/Qwen2.5-0.5B --tasks arc_easy --recipes nvfp4 -o out",
    "m.gguf --tasks humaneval=he.jsonl --run-code --recipes nvfp4",
)
def tasks(
    tasks: tuple[str, ...],
    recipes: tuple[str, ...],
    num_fewshot: int | None,
    out: Path | None,
    quiet: bool,
    limit: int | None,
    batch_size: int,
    chat: bool,
    replicas: int,
    problem: str | None,
    run_code: bool,
    accept: tuple[str, ...],
    **options: Any,  # noqa: ANN401
) -> None:
    """What recipes lose on tasks, through lm-eval."""
    study = study_from(options)
    folder = out or Path(f"fp4scope-{slug(study)}")
    with stoppable(f"what was scored is kept in {folder}; repeat the same command to go on"):
        from fp4scope.cli.tasks import print_tasks
        from fp4scope.tasks import Wish

        wish = Wish(
            tasks=listed(tasks),
            recipes=listed(recipes),
            limit=limit,
            batch_size=batch_size,
            fewshot=num_fewshot,
            chat=chat,
            replicas=replicas,
            problem=problem,
            run_code=run_code,
            accept=accept,
        )
        print_tasks(study, wish, folder, quiet)
