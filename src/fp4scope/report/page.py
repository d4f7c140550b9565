"""`report.html`: the study as one file that works offline.

The charts are small SVGs drawn by `templates/report.js` from one JSON block, not by a plotting
library: plotly's smallest bundle alone takes half of the 2 MB that a page may have, and a heat
map that a screen reader reads as a table and charts that follow the reader's theme would have to be
added to it by hand all the same.

Nothing is fetched: a content security policy allows the page's own style and script, by their
hashes, and nothing else. Everything that comes from results is escaped, in the markup by
jinja2 and in the JSON by `_json`.
"""

import base64
import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from fp4scope.ledger import require_reported
from fp4scope.names import visible
from fp4scope.report import labels, sections
from fp4scope.report.answer import DISTRUST, answer
from fp4scope.report.causes import about_causes
from fp4scope.report.designed import about_designed
from fp4scope.report.divergence import divergence
from fp4scope.report.findings import Findings
from fp4scope.report.given import given_recipes
from fp4scope.report.numbers import percent
from fp4scope.report.payload import payload
from fp4scope.report.render import as_html, shown
from fp4scope.report.repairs import benefit
from fp4scope.report.routing import about_routing
from fp4scope.report.section import Section
from fp4scope.report.selection import LAYERS_SHOWN, sole_precision
from fp4scope.report.sentences import (
    agreements,
    headlines,
    neighbour_line,
    next_step,
    sums,
    then_step,
)
from fp4scope.report.stopping import intervals_used, stopping_lines, windows_measured
from fp4scope.report.tasks import about_tasks
from fp4scope.report.tokens import tokens
from fp4scope.stats import MIN_WINDOWS, hypotheses


def page(found: Findings) -> str:
    """The report of a study as HTML."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fp4scope.report"),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        autoescape=True,
        finalize=_shown,
    )
    environment.filters |= {"percent": percent, "table": _table}
    style, script = (_asset(f"report.{suffix}") for suffix in ("css", "js"))
    results = found.results
    require_reported(vars(results))
    # What `_asset`, `_table` and `_json` return is ours or escaped: it stands as it is.
    return environment.get_template("report.html.j2").render(
        style=style,
        script=script,
        policy=policy(style, script),
        payload=_json(payload(found)),
        labels=labels,
        model=results.model,
        data=results.data,
        protocol=results.protocol,
        environment=results.environment,
        study=_yaml(results.study),
        command=_command(results.environment),
        replicas=results.study["numerics"]["replicas"],
        anytime=results.anytime,
        only=sole_precision(found),
        dtype=labels.full_precision(results),
        windows=windows_measured(results),
        intervals=intervals_used(results),
        min_windows=MIN_WINDOWS,
        answer=answer(found),
        DISTRUST=DISTRUST,
        next=shlex.join(next_step(found, Path("OUT"))),
        then=shlex.join(then_step(next_step(found, Path("OUT")))),
        headlines=[*stopping_lines(results), *headlines(found, short=True)],
        costs=[*sections.costs(found), *divergence(found)],
        benefit=list(benefit(found)),
        compared=[
            *about_tasks(found.tasks, found.bars),
            *given_recipes(found),
            *sections.against_each_other(found),
        ],
        tokens=list(tokens(found)),
        designed=about_designed(found),
        causes=about_causes(found),
        routing=about_routing(found),
        one_rule=_one_rule(found),
        units={
            level: list(sections.units(found, level))
            for level in ("projections", "blocks", "patterns")
        }
        | {"experts": list(sections.units(found, "experts", apart=True, most=LAYERS_SHOWN))},
        standing_out=sections.standing_out(found) if found.layers else None,
        directions={
            level: list(dict.fromkeys(map(labels.direction, table["direction"])))
            for level, table in (("projections", found.projections), ("layers", found.layers))
        },
        agreements=agreements(found),
        estimates_mean=labels.ESTIMATES_MEAN if results.estimated else "",
        activations=sections.activations(found),
        hypotheses=[(h, sections.evidence(h)) for h in hypotheses(results)],
        neighbours=neighbour_line(results),
        sums=sums(found),
    )


def _shown(value: Any) -> Any:  # noqa: ANN401
    """What an expression of the template shows; what is marked as safe stays."""
    return visible(value) if type(value) is str else value


def _one_rule(found: Findings) -> bool:
    """Whether one of MXFP4's scale rules was measured, and no other."""
    return len({fmt for fmt in found.all_quantized["format"] if fmt.startswith("mxfp4:")}) == 1


def _table(section: Section) -> Any:  # noqa: ANN401
    from markupsafe import Markup

    return Markup(as_html(section))


def _asset(name: str) -> Any:  # noqa: ANN401
    from markupsafe import Markup

    return Markup((files("fp4scope.report") / "templates" / name).read_text(encoding="utf-8"))


def document(title: str, header: str, main: str) -> str:
    """A page without a script, in the style of all pages.

    Args:
        title: As text.
        header: HTML.
        main: HTML.
    """
    style = str(_asset("report.css"))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy(style)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        '<meta name="referrer" content="no-referrer">\n'
        f"<title>{shown(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n"
        f"<header>{header}</header>\n<main>\n{main}\n</main>\n</body>\n</html>\n"
    )


def policy(style: str, script: str | None = None) -> str:
    """The content security policy: this style, this script if any, nothing from anywhere."""

    def digest(text: str) -> str:
        return base64.b64encode(hashlib.sha256(str(text).encode()).digest()).decode()

    return (
        f"default-src 'none'; style-src 'sha256-{digest(style)}'; "
        + ("" if script is None else f"script-src 'sha256-{digest(script)}'; ")
        + "img-src data:; base-uri 'none'; form-action 'none'"
    )


def _json(value: Any) -> Any:  # noqa: ANN401
    """JSON that may stand inside a script element, whatever its strings hold."""
    from markupsafe import Markup

    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _yaml(study: Mapping[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(dict(study), sort_keys=False, allow_unicode=True)


def _command(environment: Mapping[str, Any]) -> str | None:
    command: Sequence[str] | None = environment.get("command")
    return shlex.join(["fp4scope", *command[1:]]) if command else None
