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
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from typing import Any

from fp4scope.ledger import require_reported
from fp4scope.names import visible
from fp4scope.report.evidence import columns
from fp4scope.report.findings import Findings
from fp4scope.report.numbers import number, percent, spread
from fp4scope.report.payload import payload
from fp4scope.report.selection import (
    by_cost,
    costliest,
    groups,
    is_estimated,
    is_measured,
    lowering,
    sole_operands,
)
from fp4scope.report.sentences import (
    ESTIMATE,
    ESTIMATES_MEAN,
    LOWER_LOSS,
    agreements,
    headlines,
    neighbour_line,
    sums,
)
from fp4scope.report.stopping import intervals_used, stopping_lines, windows_measured
from fp4scope.stats import (
    MIN_WINDOWS,
    hypotheses,
    significant,
)
from fp4scope.table import Table

NAMED = 5
"""Cells that are named in a list of the most costly."""


def page(diagnosis: Findings) -> str:
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
    environment.filters |= {"number": number, "percent": percent, "spread": spread}
    style, script = (_asset(f"report.{suffix}") for suffix in ("css", "js"))
    results = diagnosis.results
    require_reported(vars(results))
    held = hypotheses(results)
    # What `_asset` and `_json` return is ours or escaped: it stands in the page as it is.
    return environment.get_template("report.html.j2").render(
        style=style,
        script=script,
        policy=_policy(style, script),
        payload=_json(payload(diagnosis)),
        model=results.model,
        data=results.data,
        protocol=results.protocol,
        environment=results.environment,
        study=_yaml(results.study),
        command=_command(results.environment),
        replicas=results.study["numerics"]["replicas"],
        anytime=results.anytime,
        operands=[o for o in dict.fromkeys(diagnosis.baselines["operands"]) if o],
        only=sole_operands(diagnosis),
        windows=windows_measured(results),
        intervals=intervals_used(results),
        min_windows=MIN_WINDOWS,
        headlines=[*stopping_lines(results), *headlines(diagnosis, short=True)],
        baselines=by_cost(diagnosis.baselines),
        formats=_against(diagnosis.formats),
        both=diagnosis.operands,
        components=list(_side_by_side(diagnosis, diagnosis.components, "component")),
        blocks=list(_side_by_side(diagnosis, diagnosis.blocks, "block")),
        patterns=list(_side_by_side(diagnosis, diagnosis.patterns, "pattern")),
        cells=list(_cells(diagnosis)),
        named=NAMED,
        lower_loss=LOWER_LOSS,
        directions={
            "components": list(dict.fromkeys(diagnosis.components["direction"])),
            "cells": list(dict.fromkeys(diagnosis.cells["direction"])),
        },
        agreements=agreements(diagnosis),
        estimate=ESTIMATE,
        estimates_mean=ESTIMATES_MEAN if results.estimated else "",
        activations=diagnosis.component_activations,
        hypotheses=held,
        evidence=[columns(hypothesis) for hypothesis in held],
        explanations=[hypothesis.explanation for hypothesis in held],
        neighbours=neighbour_line(results),
        sums=sums(diagnosis),
    )


def _shown(value: Any) -> Any:  # noqa: ANN401
    """What an expression of the template shows; what is marked as safe stays."""
    return visible(value) if type(value) is str else value


def _against(table: Table) -> list[dict[str, Any]]:
    """Comparisons of formats: one row for each pair, whatever the operands."""
    pairs: dict[tuple[str, str], dict[str, Any]] = {}
    for row in table:
        pair = pairs.setdefault((row["format"], row["against"]), row | {"by_operands": {}})
        pair["by_operands"][row["operands"]] = row
    return sorted(pairs.values(), key=lambda pair: pair["rules"])


def _side_by_side(diagnosis: Findings, table: Table, name: str) -> Iterator[dict[str, Any]]:
    """A table for each direction and choice of operands: units down, formats across."""
    keys = dict.fromkeys((row["direction"], row["operands"]) for row in table)
    for direction, operands in keys:
        chosen = table.where(direction=direction, operands=operands)
        formats = list(dict.fromkeys(chosen["format"]))
        by_unit: dict[Any, dict[str, Any]] = {}
        for row in chosen:
            by_unit.setdefault(row[name], {})[row["format"]] = row
        control = {row["format"]: row for row in diagnosis.baselines if row["operands"] == operands}
        reference = diagnosis.baselines.where(format="reference").rows
        yield {
            "name": name,
            "direction": direction,
            "operands": operands,
            "formats": formats,
            "measured": is_measured(chosen.rows),
            "estimated": is_estimated(chosen.rows),
            "control": "baseline" if direction == "restore" else "reference",
            "controls": [
                control.get(fmt) if direction == "restore" else next(iter(reference), None)
                for fmt in formats
            ],
            "rows": [
                (unit, [by_unit[unit].get(fmt) for fmt in formats])
                for unit in costliest(chosen, name)
            ],
            "windows": sorted({row["windows"] for row in chosen}),
        }


def _cells(diagnosis: Findings) -> Iterator[dict[str, Any]]:
    """What stands out among the cells of each format, operands and direction."""
    shares = diagnosis.noise_shares.where(level="cells")
    for group, rows in groups(diagnosis.cells):
        found = [row for row in rows if row["p_holm"] is not None]
        told = [row for row in found if significant(row)]
        yield group | {
            "count": len(rows),
            "estimated": not is_measured(rows),
            "tested": bool(found),
            "told": len(told),
            "share": next(iter(shares.where(**group)["share"]), None),
            "largest": [row for row in told if row["delta_nll"] > 0][:NAMED]
            if told
            else rows[:NAMED],
            "lowering": lowering(rows),
        }


def _asset(name: str) -> Any:  # noqa: ANN401
    from markupsafe import Markup

    return Markup((files("fp4scope.report") / "templates" / name).read_text(encoding="utf-8"))


def _policy(style: str, script: str) -> str:
    """The content security policy: this style, this script, nothing from anywhere."""

    def digest(text: str) -> str:
        return base64.b64encode(hashlib.sha256(str(text).encode()).digest()).decode()

    return (
        f"default-src 'none'; style-src 'sha256-{digest(style)}'; "
        f"script-src 'sha256-{digest(script)}'; img-src data:; base-uri 'none'; form-action 'none'"
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
