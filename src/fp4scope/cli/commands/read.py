"""From results to pages, comparisons and explanations."""

import sys
from pathlib import Path

from fp4scope.cli.options import (
    PATH,
    Argument,
    Option,
    accept_option,
    command,
    json_option,
    open_option,
    out_option,
)
from fp4scope.cli.stopped import complain, stoppable
from fp4scope.names import visible


@command(
    lambda: [
        Argument(["out"], type=PATH, help="A folder with results, as `run` leaves it"),
        Option(["--figures"], is_flag=True, help="Also the paper's figures, each as PDF and SVG"),
        Option(["--card"], is_flag=True, help="Also card.md, lines to paste into a model card"),
        accept_option("Whether whole models meet it, in place of the run's own bar"),
        open_option(),
    ],
    "out --open",
    "out --figures",
    "out --card",
)
def report(out: Path, figures: bool, card: bool, accept: tuple[str, ...], open: bool) -> None:
    """Write report.html, a page by itself, from results."""
    from fp4scope.cli.output import open_page
    from fp4scope.deploy.bar import parse_bar
    from fp4scope.diagnosis import load
    from fp4scope.report import write_report
    from fp4scope.report.card import write_card

    with stoppable("the results are as they were"):
        bars = [parse_bar(text).text for text in accept]
        found = load(out)
        if bars:
            found.results.protocol["accept"] = bars
        written = write_report(found, out, with_figures=figures)
        for path in [*written, write_card(found, out)] if card else written:
            print(visible(str(path)))
    if open:
        open_page(out)


@command(
    lambda: [
        Argument(
            ["outputs"], nargs=-1, type=PATH, help="Folders of runs; others are held to the first"
        ),
        Option(
            ["--fail-if"],
            multiple=True,
            metavar="CONDITION",
            help="Exit with 1 if it holds for an output after the first: 'cost(nvfp4) > 40', "
            "'change.low > 0' (millinats), beyond-noise; repeatable",
        ),
        out_option("A Markdown file, or a page where it ends in .html"),
        json_option("The comparison, as JSON"),
    ],
    "out/0.5b out/1.5b out/7b -o sizes.md",
    "out/main out/pr --fail-if 'cost(nvfp4) > 40'",
)
def compare(
    outputs: tuple[Path, ...], fail_if: tuple[str, ...], out: Path | None, json: Path | None
) -> None:
    """Runs side by side: sizes, formats, checkpoints, what changed."""
    from fp4scope.cli.compare import print_comparison

    with stoppable("nothing was written"):
        failed = print_comparison(list(outputs), list(fail_if), out, json)
    for line in failed:
        complain(f"fail-if {line}")
    if failed:
        sys.exit(1)


@command(
    lambda: [
        Argument(["out"], type=PATH, help="A folder with results of a run with --causes"),
        Argument(["unit"], required=False, help="A projection, or a layer such as 3.down_proj"),
    ],
    "out down_proj",
)
def explain(out: Path, unit: str | None) -> None:
    """Why a projection or layer costs what it does."""
    from fp4scope.cli.explain import print_explanation

    with stoppable("the results are as they were"):
        print_explanation(out, unit)
