"""`report.md`: the study in words and tables, from a template."""

import shlex
from pathlib import Path
from typing import Any

from fp4scope.ledger import require_reported
from fp4scope.names import markdown as escaped
from fp4scope.report import labels
from fp4scope.report.answer import DISTRUST, answer
from fp4scope.report.causes import about_causes
from fp4scope.report.designed import about_designed
from fp4scope.report.divergence import divergence
from fp4scope.report.figures import figure_names
from fp4scope.report.findings import Findings
from fp4scope.report.given import given_recipes
from fp4scope.report.numbers import interval, percent
from fp4scope.report.render import as_markdown
from fp4scope.report.repairs import benefit
from fp4scope.report.routing import about_routing
from fp4scope.report.section import Section
from fp4scope.report.sections import activations, against_each_other, costs, units
from fp4scope.report.selection import LAYERS_SHOWN, groups, lowering
from fp4scope.report.sentences import agreements, headlines, neighbour_line, next_step, then_step
from fp4scope.report.stopping import intervals_used, stopping_lines, windows_measured
from fp4scope.report.tasks import about_tasks
from fp4scope.report.tokens import tokens
from fp4scope.stats import MIN_WINDOWS


def markdown(found: Findings) -> str:
    """The report of a study as Markdown, with links to the figures beside it."""
    import jinja2

    results = found.results
    require_reported(vars(results))
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fp4scope.report"),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
        autoescape=False,
        finalize=_shown,
    )
    environment.filters |= {"percent": percent, "table": _table, "figure": _figure}
    return environment.get_template("report.md.j2").render(
        labels=labels,
        results=results,
        model=results.model,
        data=results.data,
        protocol=results.protocol,
        environment=results.environment,
        study=results.study,
        answer=answer(found),
        benefit=list(benefit(found)),
        DISTRUST=DISTRUST,
        next=_Safe(escaped(shlex.join(next_step(found, Path("OUT"))))),
        then=_Safe(escaped(shlex.join(then_step(next_step(found, Path("OUT")))))),
        headlines=headlines(found),
        agreements=agreements(found),
        estimates_mean=labels.ESTIMATES_MEAN if results.estimated else "",
        costs=[
            *costs(found),
            *divergence(found),
            *about_tasks(found.tasks, found.bars),
            *given_recipes(found),
            *against_each_other(found),
        ],
        tokens=list(tokens(found)),
        designed=about_designed(found),
        causes=about_causes(found),
        routing=about_routing(found),
        levels={
            labels.level(level): list(units(found, level, apart=True))
            for level in ("projections", "blocks", "patterns")
        },
        layers=list(units(found, "layers", apart=True, most=LAYERS_SHOWN)),
        experts=list(units(found, "experts", apart=True, most=LAYERS_SHOWN)),
        lowering=_lowering(found),
        activations=activations(found),
        figures=figure_names(found),
        neighbours=neighbour_line(results),
        stopping=stopping_lines(results),
        windows=windows_measured(results),
        intervals=intervals_used(results),
        min_windows=MIN_WINDOWS,
    )


def _lowering(found: Findings) -> list[str]:
    """The layers of each family whose quantization lowers the loss, in a sentence each."""
    said = []
    for group, rows in groups(found.layers):
        if lower := lowering(rows):
            which = "this one" if len(lower) == 1 else "any of these"
            more = f" (the {LAYERS_SHOWN} largest of {len(lower)})"
            named = ", ".join(f"{labels.place(r)} {interval(r)}" for r in lower[:LAYERS_SHOWN])
            said.append(
                f"{labels.family(group).capitalize()}: the loss falls with {which} quantized"
                f"{more if len(lower) > LAYERS_SHOWN else ''}: {named}."
            )
    return said


class _Safe(str):
    """Markdown whose names are escaped already."""


def _table(section: Section, depth: int = 3) -> str:
    return _Safe(as_markdown(section, depth))


def _shown(value: Any) -> Any:  # noqa: ANN401
    """What an expression of the template shows: names do not act as Markdown."""
    return escaped(value) if type(value) is str else value


def _figure(name: str, said: str) -> str:
    """A figure beside the report, light or dark as the reader has it.

    Args:
        name: Of its file, which needs no escaping.
        said: In words, without quotation marks.
    """
    return _Safe(
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="figures/{name}-dark.svg">'
        f'<img alt="{said}" src="figures/{name}.svg"></picture>'
    )
