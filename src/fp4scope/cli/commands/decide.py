"""From a model or results to what each linear gets."""

from pathlib import Path
from typing import Any

import click

from fp4scope.cli.given import domains_of, given_of, slug, study_from
from fp4scope.cli.options import (
    PATH,
    Argument,
    Option,
    command,
    out_option,
    quiet_option,
    whole_study,
)
from fp4scope.cli.stopped import stoppable
from fp4scope.errors import StudyError

_PALETTE = {"formats": "nvfp4,fp8"}
"""What every engine loads layer by layer, beside full precision."""


def _bounds() -> list[click.Parameter]:
    """What a recipe may cost or store, and what it may choose from."""
    return [
        Option(
            ["--accept"],
            multiple=True,
            metavar="BAR",
            help="The smallest recipe that is predicted to meet it: 'ppl<2%', 'mnat<20', "
            "'kl<0.02'; repeatable",
        ),
        Option(
            ["--max-bits"],
            type=float,
            metavar="N",
            help="The best recipe with at most so many bits for each weight of the linears",
        ),
        Option(["--max-size"], metavar="SIZE", help="The best recipe of such a checkpoint: 4GB"),
        Option(
            ["--palette"],
            metavar="FORMATS",
            help="What to choose from, e.g. nvfp4,fp8,bf16  [default: what was measured and the "
            "engine loads, and full precision]",
        ),
        Option(
            ["--engine"],
            type=click.Choice(["vllm", "sglang", "trtllm", "any"]),
            help="What has to load every layer as it is chosen  [default: any, without --palette]",
        ),
        Option(
            ["--serve-on"],
            metavar="sm90",
            help="A GPU on which engines serve FP4 weight-only; then W4A16 is chosen from",
        ),
    ]


@command(
    lambda: [
        Argument(["out"], type=PATH, help="A folder with results, as `run` leaves it"),
        *_bounds(),
        Option(
            ["--measured"],
            metavar="NAME",
            help="Choose nothing: write this recipe, which the run measured (run --recipe), so "
            "that it can be exported",
        ),
        out_option("The recipe's file  [default: OUT/recipe.yaml]", name="path"),
    ],
    "out/choose --accept 'ppl<2%'",
    "out/choose --max-size 400MB --palette nvfp4,bf16",
    "out/mine --measured mine -o mine.yaml",
)
def recipe(out: Path, path: Path | None, measured: str | None, **options: Any) -> None:  # noqa: ANN401
    """Decide from a run what each linear gets."""
    from fp4scope.cli.recipe import print_measured, print_recipe
    from fp4scope.files import require_writable

    with stoppable("nothing was written"):
        if path is not None:
            require_writable(path)
        if measured is not None:
            if given := [name for name, value in options.items() if value]:
                raise StudyError(
                    f"--measured chooses nothing, so --{given[0].replace('_', '-')} does not go "
                    "with it"
                )
            print_measured(out, measured, path)
            return
        print_recipe(out, out=path, **options)


@command(
    lambda: [
        Argument(
            ["model"],
            required=False,
            help="Hub id, local folder or GGUF file; or OUT, a folder of `run` or `recommend`",
        ),
        out_option("Folder for the studies and recipe.yaml  [default: OUT, or fp4scope-MODEL]"),
        quiet_option("No progress"),
        *_bounds(),
        *whole_study(**_PALETTE),
    ],
    "Qwen/Qwen2.5-0.5B --accept 'ppl<2%' -o out/qwen05",
)
def recommend(
    out: Path | None,
    quiet: bool,
    config: Path | None,
    model: str | None,
    accept: tuple[str, ...],
    max_bits: float | None,
    max_size: str | None,
    palette: str | None,
    engine: str | None,
    serve_on: str | None,
    **options: Any,  # noqa: ANN401
) -> None:
    """Choose a recipe, and measure it on other text."""
    from fp4scope.cli.exits import leave
    from fp4scope.cli.recommend import print_going_on, print_recommendation
    from fp4scope.deploy.bound import bound_of, required
    from fp4scope.deploy.palette import default_formats
    from fp4scope.study import is_run

    bound = required(bound_of(accept, max_bits, max_size))
    choice = {"palette": palette, "engine": engine, "serve_on": serve_on}
    kept = "what was measured is kept in {}; repeat the same command to go on"
    if model is not None and config is None and is_run(model):
        folder = out or Path(model)
        with stoppable(kept.format(folder)):
            given = given_of(options)
            found = print_going_on(Path(model), folder, bound, given, quiet=quiet, **choice)
    else:
        own = {} if config else {"formats": default_formats(engine, serve_on)}
        domains = domains_of(options.get("text"))
        if domains is not None:
            options["text"] = str(next(iter(domains.values())))
        study = study_from(own | given_of({"model": model} | options), config)
        folder = out or Path(f"fp4scope-{slug(study)}")
        with stoppable(kept.format(folder)):
            found = print_recommendation(study, folder, bound, texts=domains, quiet=quiet, **choice)
    leave(found)
