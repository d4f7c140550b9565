"""Results as tables on the terminal."""

from typing import Any

from rich.console import Console
from rich.table import Table

from fp4scope.formats import FORMATS
from fp4scope.formats.spec import ALIASES
from fp4scope.report.diagnosis import Diagnosis
from fp4scope.report.markdown import groups, headlines, interval, number, percent

CELLS_SHOWN = 10


def console(stderr: bool = False) -> Console:
    """A console that prints names and paths as they are: nothing in them is markup."""
    return Console(stderr=stderr, markup=False, highlight=False)


def print_formats() -> None:
    out = console()
    table = _table("Number formats", ("format", "element", "scale"), ("block", "bits/element"))
    for fmt in FORMATS.values():
        aliases = [a for a, name in ALIASES.items() if name == fmt.name]
        name = fmt.name + (f" (= {', '.join(aliases)})" if aliases else "")
        bits = f"{fmt.bits_per_element:g}"
        table.add_row(name, fmt.element.name, fmt.scale, str(fmt.block_size), bits)
    out.print(table)
    out.print("\nScale of a block, from its amax a", style="bold")
    for fmt in FORMATS.values():
        out.print(f"{fmt.name:13} {fmt.rule.formula}")
        out.print(f"{'':13} {fmt.rule.source}", style="dim", soft_wrap=True)
    out.print("\nElements: round to nearest, ties to the even code, saturating", style="bold")
    for element in {fmt.element.name: fmt.element for fmt in FORMATS.values()}.values():
        grid = ", ".join(f"{m:g}" for m in element.magnitudes)
        out.print(f"{element.name:13} ±{{{grid}}}")


def print_diagnosis(diagnosis: Diagnosis) -> None:
    """Everything a finished run found, and where it is."""
    out = console()
    for table in (baselines(diagnosis), *unit_tables(diagnosis), activations(diagnosis)):
        out.print()
        out.print(table)
    out.print()
    for line in headlines(diagnosis):
        out.print(f"- {line}", style="bold", soft_wrap=True)
    data = diagnosis.results.data
    out.print(
        "\nDifferences are millinats per token, more quantized minus less quantized (positive: "
        f"quantizing this costs),\npaired over {data['windows']} windows of {data['seq_len']} "
        "tokens, with 95% t intervals. restore: everything quantized but\nthis, what keeping it "
        "saves; isolate: only this quantized, what it costs.",
        soft_wrap=True,
    )
    if prior := diagnosis.results.model["prior_quantization"]:
        out.print(
            f"These weights were quantized before ({prior}): the reference is the dequantized "
            "file, and FP4 comes on top of that.",
            style="bold",
            soft_wrap=True,
        )
    if diagnosis.folder is not None:
        out.print("\nWritten:")
        for path in sorted(diagnosis.folder.glob("*")):
            out.print(f"  {path / '*.svg, *.png' if path.is_dir() else path}", soft_wrap=True)


def baselines(diagnosis: Diagnosis) -> Table:
    table = _table(
        "What each format costs",
        ("format", "operands"),
        ("PPL", "cost (millinats)", "KL (nats)", "top-1"),
    )
    for row in diagnosis.baselines:
        table.add_row(
            row["format"],
            row["operands"],
            number(row["ppl"]),
            interval(row),
            number(row["kl"]),
            percent(row["top1"]),
        )
    return table


def unit_tables(diagnosis: Diagnosis) -> list[Table]:
    """Components (and blocks and patterns) in full, the largest cells."""
    tables = [component_table(diagnosis)] if diagnosis.components else []
    levels = {
        "Blocks": (diagnosis.blocks, ("block",)),
        "Patterns": (diagnosis.patterns, ("pattern",)),
        "Cells": (diagnosis.cells, ("block", "component")),
    }
    for title, (source, names) in levels.items():
        for group, rows in groups(source):
            heading = f"{title}, {_describe(group)}"
            if title == "Cells" and len(rows) > CELLS_SHOWN:
                heading += f": the {CELLS_SHOWN} largest of {len(rows)}"
                rows = rows[:CELLS_SHOWN]
            table = _table(heading, names, ("PPL", "difference (millinats)"))
            for row in rows:
                table.add_row(*(str(row[n]) for n in names), number(row["ppl"]), interval(row))
            tables.append(table)
    return tables


def component_table(diagnosis: Diagnosis) -> Table:
    """Every component in one table: a column for each format, operands and direction."""
    found = list(groups(diagnosis.components))
    several = len({group["operands"] for group, _ in found}) > 1
    heads = [
        f"{group['format']}\n{group['direction']}" + (f"\n{group['operands']}" if several else "")
        for group, _ in found
    ]
    table = _table("Components: difference in millinats per token", ("component",), heads)
    rows = [{row["component"]: row for row in rows} for _, rows in found]
    weight = {
        name: max((r[name]["delta_nll"] or 0.0) for r in rows if name in r)
        for name in dict.fromkeys(name for r in rows for name in r)
    }
    for name in sorted(weight, key=lambda n: -weight[n]):
        table.add_row(name, *(interval(r[name]) if name in r else "" for r in rows))
    return table


def activations(diagnosis: Diagnosis) -> Table:
    table = _table(
        "Activations entering each component, means over blocks",
        ("component",),
        ("max", "P99.9", "max / P99.9", "largest of a block"),
    )
    for row in diagnosis.component_activations:
        values = (row["max"], row["p999"], row["ratio"], row["ratio_max"])
        table.add_row(row["component"], *(number(v) for v in values))
    return table


def _table(title: str, names: tuple[str, ...], values: Any) -> Table:  # noqa: ANN401
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, title_style="bold")
    for name in names:
        table.add_column(name, no_wrap=True)
    for value in values:
        table.add_column(value, justify="right", no_wrap=True)
    return table


def _describe(group: dict[str, str]) -> str:
    return f"{group['format']}, {group['operands']}, {group['direction']}"
