"""Results as tables on the terminal."""

from collections.abc import Iterator
from typing import Any

from rich.console import Console, Group

from fp4scope.cli.terminal import Grid, clock, command, console, say, show, titled
from fp4scope.diagnosis import Diagnosis
from fp4scope.formats import FORMATS
from fp4scope.formats.spec import ALIASES, ElementFormat
from fp4scope.report.files import outputs
from fp4scope.report.numbers import interval, number, percent, spread
from fp4scope.report.selection import (
    CELLS_SHOWN,
    by_cost,
    costliest,
    groups,
    is_estimated,
    is_measured,
)
from fp4scope.report.sentences import (
    ESTIMATE,
    ESTIMATES_MEAN,
    MEANING,
    agreements,
    headlines,
    next_step,
)
from fp4scope.report.stopping import intervals_used, stopping_lines, windows_measured

GRID_SHOWN = 32


def print_formats() -> None:
    out = console()
    table = Grid(("format", "element", "scale", "rule"), ("block", "bits/element"))
    for fmt in FORMATS.values():
        names = (fmt.name, fmt.element.name, fmt.scale, fmt.rule.label)
        table.add_row(*names, str(fmt.block_size), f"{fmt.bits_per_element:g}")
    show(out, titled("Number formats", table))
    short = [f"{alias} is {name}" for alias, name in ALIASES.items()]
    say(out, f"Bits count the block scales. Short names: {', '.join(short)}.")
    out.print("\nRules: the scale of a block", style="bold")
    say(
        out,
        "a: amax of the block; A: amax of the tensor; max: largest element; emax: its exponent; "
        "m: mantissa bits",
    )
    hang = " " * 11
    for rule in dict.fromkeys(fmt.rule for fmt in FORMATS.values()):
        say(out, f"{rule.label:10} {rule.formula}", hang=hang)
        say(out, f"{'':10} {rule.source}", style="dim", hang=hang)
    out.print("\nElements: round to nearest, ties to the even code, saturating", style="bold")
    for element in dict.fromkeys(fmt.element for fmt in FORMATS.values()):
        say(out, f"{element.name:10} {_grid(element)}", hang=hang)


def _grid(element: ElementFormat) -> str:
    """Its magnitudes, or how many and how large if they would fill the screen."""
    magnitudes = element.magnitudes
    if len(magnitudes) <= GRID_SHOWN:
        return f"±{{{', '.join(f'{m:g}' for m in magnitudes)}}}"
    smallest = magnitudes[1]
    step = f"steps of {smallest:g}" if element.integer else f"smallest {smallest:g}"
    return f"0 to ±{element.max:g} in {len(magnitudes)} magnitudes, {step}"


def print_diagnosis(diagnosis: Diagnosis) -> None:
    """Everything a finished run found: files, tables, legend, findings, and where to go on."""
    out = console()
    _files(out, diagnosis)
    for table in (*baselines(diagnosis), *unit_tables(diagnosis), activations(diagnosis)):
        out.print()
        show(out, table)
    results = diagnosis.results
    most = "up to " if results.anytime else ""
    say(
        out,
        "\nDifferences are millinats per token, more quantized minus less quantized (positive: "
        f"quantizing this costs), paired over {most}{windows_measured(results)} windows of "
        f"{results.data['seq_len']} tokens, with {intervals_used(results).rstrip(',')}. restore: "
        "everything quantized but this, what keeping it saves; isolate: only this quantized, what "
        "it costs. Components that share a letter cannot be told apart. Rerun noise: what "
        "rounding alone does to a mean NLL, millinats.",
        style="dim",
    )
    if results.estimated:
        say(out, ESTIMATES_MEAN, style="dim")
    out.print()
    for line in (*stopping_lines(results), *headlines(diagnosis), *agreements(diagnosis)):
        say(out, f"- {line}", style="bold", hang="  ")
    if prior := results.model["prior_quantization"]:
        say(
            out,
            f"These weights were quantized before ({prior}): the reference is the dequantized "
            "file, and FP4 comes on top of that.",
            style="bold",
        )
    _further(out, diagnosis)


def _files(out: Console, diagnosis: Diagnosis) -> None:
    if diagnosis.folder is None:
        return
    names = [path.name for path in outputs(diagnosis.folder)]
    if figures := len(list(diagnosis.folder.glob("figures/*"))):
        names.append(f"figures ({figures})")
    out.print(f"\nWritten to {diagnosis.folder}:", soft_wrap=True)
    say(out, f"  {', '.join(names)}", hang="  ")


def _further(out: Console, diagnosis: Diagnosis) -> None:
    """The page, the next command, and how long this took."""
    out.print()
    wall = diagnosis.results.environment.get("wall_s")
    if wall is not None:
        out.print(f"Took: {clock(wall)}")
    if diagnosis.folder is None:
        return
    page = diagnosis.folder / "report.html"
    if page.exists():
        out.print(f"Open: {page.resolve().as_uri()}", soft_wrap=True)
    if words := next_step(diagnosis, diagnosis.folder):
        command(out, "Next:", words)


def baselines(diagnosis: Diagnosis) -> Iterator[Group]:
    """The reference and what each format costs, a table for each choice of operands."""
    columns = ("PPL", "cost (millinats)", "KL (nats)", "top-1", "rerun noise")
    source = by_cost(diagnosis.baselines)
    reference = source.where(operands="").rows
    names = [name for name in dict.fromkeys(source["operands"]) if name]
    for operands in names or [""]:
        table = Grid(("format",), columns)
        for row in [*reference, *(source.where(operands=operands) if names else ())]:
            values = (number(row["ppl"]), interval(row), number(row["kl"]), percent(row["top1"]))
            jitter = "" if row["jitter_nll"] is None else spread(1e3 * row["jitter_nll"])
            table.add_row(row["format"], *values, jitter)
        said = f", {operands}" if len(names) > 1 else ""
        yield titled(f"What each format costs{said}", table)


def unit_tables(diagnosis: Diagnosis) -> list[Group]:
    """Components (and blocks and patterns) in full, the largest cells."""
    tables = component_tables(diagnosis)
    levels = {
        "Blocks": (diagnosis.blocks, ("block",)),
        "Patterns": (diagnosis.patterns, ("pattern",)),
        "Cells": (diagnosis.cells, ("block", "component")),
    }
    for title, (source, names) in levels.items():
        for group, rows in groups(source):
            heading = f"{title}, {group['direction']}, {group['format']}, {group['operands']}"
            if title == "Cells" and len(rows) > CELLS_SHOWN:
                heading += f": the {CELLS_SHOWN} largest of {len(rows)}"
                rows = rows[:CELLS_SHOWN]
            tables.append(titled(heading, _units(names, rows)))
    return tables


def _units(names: tuple[str, ...], rows: list[dict[str, Any]]) -> Grid:
    """What was measured of these units, what was estimated, or both."""
    measured, estimated = is_measured(rows), is_estimated(rows)
    columns = ("PPL", "difference (millinats)") if measured else ()
    table = Grid(names, (*columns, f"{ESTIMATE}, millinats") if estimated else columns)
    for row in rows:
        values = [number(row["ppl"]), interval(row)] if measured else []
        values += [interval(row, "gradient_nll")] if estimated else []
        table.add_row(*(str(row[n]) for n in names), *values)
    return table


def component_tables(diagnosis: Diagnosis) -> list[Group]:
    """A table for each direction and choice of operands, with columns for each format."""
    tables = []
    source = diagnosis.components
    for direction, operands in dict.fromkeys((r["direction"], r["operands"]) for r in source):
        rows = source.where(direction=direction, operands=operands)
        by_format = {
            name: {r["component"]: r for r in rows.where(format=name)}
            for name in dict.fromkeys(rows["format"])
        }
        columns = {}
        for name, found in by_format.items():
            if is_measured([*found.values()]):
                columns[name] = {c: _with_tier(row) for c, row in found.items()}
            if is_estimated([*found.values()]):
                estimates = {c: interval(row, "gradient_nll") for c, row in found.items()}
                columns[f"{name}, {ESTIMATE}"] = estimates
        table = Grid(("component",), columns)
        for name in costliest(rows, "component"):
            table.add_row(name, *(shown.get(name, "") for shown in columns.values()))
        meaning = MEANING[direction]
        tables.append(titled(f"Components, {direction}, {operands}: millinats {meaning}", table))
    return tables


def _with_tier(row: dict[str, Any]) -> str:
    return f"{interval(row)} {row['tier']}" if row["tier"] else interval(row)


def activations(diagnosis: Diagnosis) -> Group:
    table = Grid(("component",), ("max", "P99.9", "max / P99.9", "largest of a block"))
    for row in diagnosis.component_activations:
        values = (row["max"], row["p999"], row["ratio"], row["ratio_max"])
        table.add_row(row["component"], *(number(v) for v in values))
    return titled("|x| entering each component, means over blocks", table)
