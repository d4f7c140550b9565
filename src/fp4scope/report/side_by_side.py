"""A comparison in words and tables: sentences and `Section`s, for a terminal or as Markdown."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fp4scope.ledger import Results
from fp4scope.names import markdown as escaped
from fp4scope.report import labels
from fp4scope.report.joint import JointFindings
from fp4scope.report.labels import direction
from fp4scope.report.numbers import interval, number, percent, relative, spread
from fp4scope.report.render import as_markdown
from fp4scope.report.section import Column, Section, naming, texts
from fp4scope.report.selection import LAYERS_SHOWN
from fp4scope.report.stopping import windows_measured
from fp4scope.report.token_changes import (
    largest_token_changes,
    token_change_lines,
    token_changes,
)
from fp4scope.stats import SIGNIFICANCE
from fp4scope.table import Interval, Table

_BEYOND = {True: "beyond noise", False: "within noise", None: "not known"}
_TREND = {
    "rises": "rises with size, every step significantly",
    "falls": "falls with size, every step significantly",
    "neither": "is not monotone in size: there are significant steps either way",
    "open": "is not shown to be monotone in size, nor not to be: too few steps are significant",
}

_Row = Mapping[str, Any]


def markdown(comparison: JointFindings) -> str:
    """The comparison as Markdown."""
    lines = [f"# {escaped(' · '.join(comparison.runs))}", "", escaped(headline(comparison)), ""]
    lines += [f"- {escaped(line)}" for line in findings(comparison)] or [
        "Nothing of these is in common."
    ]
    if comparison.warnings:
        lines += ["", "**Not the same in all:**", ""]
        lines += [f"- {escaped(warning)}" for warning in comparison.warnings]
    for section in sections(comparison):
        lines += ["", as_markdown(section, 2)]
    return "\n".join(lines) + "\n"


def findings(comparison: JointFindings) -> list[str]:
    """What the comparison found, a sentence each."""
    tokens = token_change_lines(comparison)
    return [*_changed(comparison), *tokens, *_scaled(comparison), *_ordered(comparison)]


def headline(comparison: JointFindings) -> str:
    """The comparison in one sentence: what changed, or whether the order carries over."""
    if comparison.compared:
        whole = comparison.changes.where(level="model")
        beyond = [row for row in whole if row["beyond_noise"]]
        if not whole:
            return "Nothing that both measured could have changed."
        if not beyond:
            return f"None of {len(whole)} costs of whole models changed beyond noise."
        worst = max(beyond, key=lambda row: abs(row["change"]))
        return (
            f"{len(beyond)} of {len(whole)} costs of whole models changed beyond noise, most that "
            f"of {worst['format']} ({worst['precision']}), by {interval(worst, 'change')} "
            "millinats."
        )
    table = comparison.agreement.where(level="projections")
    orders = [row for row in table if row["rho"] is not None]
    if not orders:
        return "These outputs have no order of projections in common."
    alike = sum((row["rho_low"] or 0.0) > 0 for row in orders)
    ends = [number(end([row["rho"] for row in orders]), digits=2) for end in (min, max)]
    return (
        f"Orders of projections correlate at {' to '.join(dict.fromkeys(ends))} (Spearman): "
        f"{alike} of {len(orders)} pairs of outputs, formats and directions significantly."
    )


def sections(comparison: JointFindings, *, brief: bool = False) -> Iterator[Section]:
    """Every table that there is something in.

    Args:
        comparison: It.
        brief: Whether of groups of tokens those alone are shown that changed beyond noise.
    """
    yield _outputs(comparison.runs, comparison.all_quantized)
    yield _costs(comparison.all_quantized)
    yield from _projections(comparison)
    if comparison.scale:
        yield _scale(comparison.scale)
    if comparison.agreement:
        yield _agreement(comparison.agreement)
    for old, new in comparison.compared:
        yield from _changes(old, new, comparison.changes.where(output=new))
        of_tokens = largest_token_changes if brief else token_changes
        yield from of_tokens(comparison, old, new)


def _section(
    title: str,
    names: Sequence[str],
    values: Sequence[str],
    rows: Sequence[Sequence[str]],
    note: str = "",
) -> Section:
    columns = [*map(naming, names), *(Column(label, label) for label in values)]
    return Section(title, columns, [texts(*row) for row in rows], note=note)


def _outputs(runs: Mapping[str, Results], models: Table) -> Section:
    ppl = {row["output"]: row["reference_ppl"] for row in models}
    rows = []
    for name, results in runs.items():
        model, data = results.model, results.data
        parameters = model.get("parameters")
        rows.append(
            [
                name,
                str(model.get("name")),
                str(model.get("dtype")),
                _size(parameters) if parameters else "",
                str(model.get("blocks")),
                f"{windows_measured(results)} x {data.get('seq_len')}",
                str(data.get("source")),
                number(ppl.get(name)),
            ]
        )
    values = ("parameters", "blocks", "windows", "text", "reference PPL")
    return _section("Outputs", ("output", "model", "dtype"), values, rows)


def _costs(models: Table) -> Section:
    several = len(set(models["precision"])) > 1
    rows = [
        [
            row["output"],
            f"{row['format']}, {row['precision']}" if several else row["format"],
            relative(row).text,
            interval(row),
            number(row["ppl"]),
            number(row["kl"]),
            percent(row["top1"]),
            "" if row["noise_nll"] is None else spread(1e3 * row["noise_nll"]),
        ]
        for row in models
    ]
    values = ("% of PPL", "millinats", "PPL", "KL", "top-1", "noise")
    note = f"Millinats and KL (nats) per token, with 95% intervals. {labels.SIGN} {labels.NOISE}"
    return _section("What each format costs", ("output", "format"), values, rows, note)


def _projections(comparison: JointFindings) -> Iterator[Section]:
    source = comparison.projections
    families = dict.fromkeys((r["direction"], r["format"], r["precision"]) for r in source)
    for way, fmt, precision in families:
        found = source.where(direction=way, format=fmt, precision=precision)
        by_output: dict[str, dict[str, _Row]] = {}
        for row in found:
            by_output.setdefault(row["output"], {})[row["projection"]] = row
        order = sorted(
            dict.fromkeys(found["projection"]),
            key=lambda name: min(rows[name]["rank"] for rows in by_output.values() if name in rows),
        )
        rows = [
            [name, *(_ranked(of[name]) if name in of else "" for of in by_output.values())]
            for name in order
        ]
        title = f"Projections, {labels.family(found[0])}: millinats, {direction(way).effect}"
        note = (
            "Rank, cost, and letters: projections of an output that share one do not differ "
            "significantly."
        )
        yield _section(title, ("projection",), tuple(by_output), rows, note)


def _ranked(row: _Row) -> str:
    return f"{row['rank']}: {interval(row)} {row['tier'] or ''}".rstrip()


def _scale(scale: Table) -> Section:
    rows = [
        [
            f"{row['format']}, {row['precision']}",
            f"{row['smaller']} → {row['larger']}",
            f"{_size(row['parameters'])} → {_size(row['parameters_larger'])}",
            f"{_milli(row['before'])} → {_milli(row['after'])}",
            interval(row, "change"),
            number(row["p_holm"]),
        ]
        for row in scale
    ]
    values = ("parameters", "cost (millinats)", "change (millinats)", "p (Holm)")
    note = f"Changes are {_pairing(scale)}, with 95% intervals; Holm over the steps of a format."
    return _section("Cost and model size", ("format", "step"), values, rows, note)


def _agreement(agreement: Table) -> Section:
    rows = []
    for row in agreement:
        level = labels.level(row["level"])
        level += f", {row['parts']} parts of the depth" if row["parts"] else ""
        pairs = "" if row["same"] is None else f"{row['same']}, {row['reversed']}, {row['open']}"
        own = [row["own_one"], row["own_other"]]
        rows.append(
            [
                f"{row['one']}, {row['other']}",
                _format(row, "format_other", "format"),
                row["direction"],
                level,
                str(row["units"]),
                _rho(row),
                ", ".join(number(value, digits=2) for value in own),
                number(row["rho_apart"], digits=2),
                pairs,
            ]
        )
    names = ("outputs", "format", "direction", "level")
    values = ("units", "rho", "own order", "on other text", "same, reversed, open")
    note = (
        "Rho: Spearman's, with a 95% interval over a number of windows that was fixed beforehand; "
        "it says nothing of other models or projections. On other text: the one output on one half "
        "of the windows, the other on the other half; own order: each output so with itself, which "
        "says how much of a low rho is noise. Same, reversed, open: pairs of projections that both "
        "outputs tell apart and order alike or the other way, and those not decided (Holm at 5%)."
    )
    return _section("Same order?", names, values, rows, note)


def _changes(old: str, new: str, changes: Table) -> Iterator[Section]:
    few = [row for row in changes if row["level"] != "layers"]
    layers = sorted(
        changes.where(level="layers"), key=lambda r: (not r["beyond_noise"], -abs(r["change"]))
    )
    title = f"What changed from {old} to {new}"
    several = len(set(changes["precision"])) > 1
    note = (
        f"Millinats, {_pairing(changes)}. P is Holm's over all that these two have in common, an "
        "equal share of the 5% for each level. Beyond noise: significant. What rounding alone "
        "does is part of what differs between windows, so p allows for it."
    )
    if few:
        yield _change_section(title, few, several, note)
    if layers:
        more = f": {LAYERS_SHOWN} of {len(layers)}" if len(layers) > LAYERS_SHOWN else ""
        yield _change_section(
            f"{title}, layers{more}", layers[:LAYERS_SHOWN], several, "" if few else note
        )


def _change_section(title: str, rows: Sequence[_Row], several: bool, note: str) -> Section:
    shown = [
        [
            _format(row, "format_before", "format", arrow=True)
            + (f", {row['precision']}" if several else ""),
            "" if _whole(row) else row["direction"],
            "everything" if _whole(row) else labels.place(row),
            f"{_milli(row['before'])} → {_milli(row['after'])}",
            interval(row, "change"),
            number(row["p_holm"]),
            _BEYOND[row["beyond_noise"]],
        ]
        for row in rows
    ]
    values = ("cost", "change", "p (Holm)", "")
    return _section(title, ("format", "direction", "unit"), values, shown, note)


def _changed(comparison: JointFindings) -> Iterator[str]:
    for old, new in comparison.compared:
        changes = comparison.changes.where(output=new)
        for row in changes.where(level="model"):
            what = _format(row, "format_before", "format", arrow=True)
            yield (
                f"From {old} to {new}, the cost of {what} ({row['precision']}) changed by "
                f"{interval(row, 'change')} millinats: {_verdict(row)}."
            )
        units = [row for row in changes if row["level"] != "model"]
        if units and any(row["beyond_noise"] is not None for row in units):
            counts = []
            for level in dict.fromkeys(row["level"] for row in units):
                of = [row for row in units if row["level"] == level]
                beyond = sum(bool(row["beyond_noise"]) for row in of)
                counts.append(f"{beyond} of {len(of)} {labels.level(level)}")
            yield f"From {old} to {new}, {' and '.join(counts)} changed beyond noise."
        elif not changes:
            yield f"{old} and {new} have nothing in common that could have changed."


def _verdict(row: _Row) -> str:
    if row["p_holm"] is None:
        return "no interval, so no verdict"
    if row["beyond_noise"]:
        return "beyond noise"
    if row["p_holm"] <= SIGNIFICANCE:
        return "significant, but finer than two machines agree on"
    return f"not significant (p {number(row['p_holm'])})"


def _scaled(comparison: JointFindings) -> Iterator[str]:
    scale = comparison.scale
    for fmt, precision in dict.fromkeys((r["format"], r["precision"]) for r in scale):
        steps = scale.where(format=fmt, precision=precision)
        if steps[0]["trend"] is not None:
            sizes = ", ".join(
                [_size(steps[0]["parameters"]), *map(_size, steps["parameters_larger"])]
            )
            said = _TREND[steps[0]["trend"]]
            yield f"Over {sizes}, what {fmt} ({precision}) costs {said}."


def _ordered(comparison: JointFindings) -> Iterator[str]:
    for row in comparison.agreement.where(level="projections"):
        if (row["one"], row["other"]) in comparison.compared:
            continue  # what changed says more of two runs of one model
        total = row["units"] * (row["units"] - 1) // 2
        line = (
            f"{row['direction'].capitalize()}, "
            f"{_format(row, 'format_other', 'format')} ({row['precision']}): {row['one']} and "
            f"{row['other']} order {row['units']} projections with rho {_rho(row)}"
        )
        if row["same"] is not None:
            line += (
                f"; of {total} pairs, {row['same']} are in the same order in both, "
                f"{row['reversed']} reversed, {row['open']} not decided"
            )
        yield f"{line}."


def _rho(row: _Row) -> str:
    rho, low, high = (number(end, digits=2) for end in Interval.of(row, "rho"))
    return f"{rho} [{low}, {high}]" if low else f"{rho} (no interval)"


def _whole(row: _Row) -> bool:
    """Whether a change is one of a whole model."""
    return row["level"] == "model"


def _format(row: _Row, one: str, other: str, *, arrow: bool = False) -> str:
    if row[one] == row[other]:
        return row[one]
    return f"{row[one]} → {row[other]}" if arrow else f"{row[other]} and {row[one]}"


def _pairing(table: Table) -> str:
    kinds = set(table["paired"])
    if kinds == {True}:
        return "paired window by window"
    unpaired = "not paired (Welch), since the windows hold other tokens"
    return unpaired if kinds == {False} else f"some paired window by window, some {unpaired}"


def _milli(value: float) -> str:
    return number(1e3 * value, sign=True)


def _size(parameters: int) -> str:
    """`135M`, `1.5B`."""
    for scale, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if parameters >= scale:
            return f"{parameters / scale:.3g}{letter}"
    return str(parameters)
