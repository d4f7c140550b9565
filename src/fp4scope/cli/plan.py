"""`fp4scope plan`: what a study will take and reach."""

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from fp4scope.cli.output import STDOUT, write_json
from fp4scope.cli.progress import Screen
from fp4scope.cli.terminal import Grid, clock, console, say, show, titled
from fp4scope.report.labels import level
from fp4scope.report.numbers import number
from fp4scope.study import Study
from fp4scope.treatments import FEWEST_TOKENS

if TYPE_CHECKING:
    from fp4scope.conductor.forecast import StudyForecast

JSON_VERSION = 1


def print_plan(study: Study, json: Path | None, quiet: bool) -> None:
    """Load the model, probe it shortly, and say what a run would do.

    Args:
        study: What would be run.
        json: Where the forecast goes for machines, if anywhere.
        quiet: Whether to show no progress.
    """
    with Screen(quiet) as screen:
        screen.note("loading torch and the model ...")
        from fp4scope.conductor import forecast

        found = forecast(study, progress=screen)
    if json is not None:
        write_json(json, _data(found))
    if json != STDOUT:
        _print(study, found)


def _data(found: "StudyForecast") -> dict[str, Any]:
    known = {name: value for name, value in asdict(found).items() if name not in ("study", "shape")}
    return {"version": JSON_VERSION} | known


def _print(study: Study, found: "StudyForecast") -> None:
    out, shape, model = console(), found.shape, found.model
    levels = Counter()
    for family in found.families:
        levels[f"{level(family.level)} ({family.direction})"] += family.units
    if found.causes:
        levels["to tell causes"] = found.causes
    kinds = ", ".join(f"{count} {kind}" for kind, count in levels.items())
    passes = f"{found.passes} over the weights"
    if shape.groups > 1:
        passes += f" ({shape.groups} groups of variants a chunk)"
    share = 1 - found.executions / (found.variants * model["blocks"] * found.windows)
    rows = {
        "coverage": f"{model['coverage']:.1%} of the blocks' parameters, "
        f"{model['blocks']} blocks, {len(model['projections'])} projections",
        "variants": f"{found.variants}: {kinds}, the rest whole models and their replicas",
        "windows": f"{found.windows} of {found.tokens} tokens",
        "chunk": f"{found.task} windows; batches of {shape.block} windows in a block, "
        f"{shape.head} in the head" + (", states on the host" if shape.spill else ""),
        "memory": f"{found.memory_bytes / 1e9:.1f} GB beside the model (of "
        f"{found.budget_bytes / 1e9:.1f} GB); the model takes "
        f"{found.room.device_bytes / 1e9:.1f} GB"
        + (f"; both for each of {found.workers} workers" if found.workers > 1 else ""),
        "passes": passes,
        "work": f"{found.executions:,} blocks on one window, "
        f"{share:.0%} fewer than one run for each variant",
        "time": f"about {clock(found.sweep_s)} and {clock(found.calibration_s)} of calibration",
    }
    if found.coarse_s is not None:
        less = ",".join(one for one in study.flat()["sweep"] if not one.startswith("layers"))
        rows["time"] += f"; without single layers about {clock(found.coarse_s)} (--sweep {less})"
    if found.workers > 1 and model["device"].startswith("cpu"):
        from fp4scope.conductor.room import PROCESS_BYTES

        each = found.memory_bytes + found.room.device_bytes + PROCESS_BYTES
        host = found.workers * each + found.room.host_bytes
        rows["host"] = f"{host / 1e9:.1f} GB of memory for all {found.workers} workers"
    elif found.room.host_bytes:
        rows["host"] = f"{found.room.host_bytes / 1e9:.1f} GB of memory for blocks that wait"
        if found.workers > 1:
            rows["host"] += f", for all {found.workers} workers"
    if found.blocks is not None:
        rows["blocks"] = found.blocks.removeprefix("the blocks ")
    if found.workers > 1:
        rows["time"] += f"; {found.workers} workers share the sweep, each loads the model first"
    if found.crowded is not None:
        rows["time"] += f"; {found.crowded}"
    if found.whole is not None:
        del rows["chunk"], rows["passes"]
        forwards = found.executions // model["blocks"]
        rows["work"] = f"{forwards:,} forwards of the whole model, one for each recipe and window"
        rows["because"] = found.whole
    few, experts = found.unseen
    if few:
        rows["calibration"] = (
            f"about {few} of {experts} experts will see fewer than {FEWEST_TOKENS} tokens of it, "
            "and take the largest input of their layer"
        )
    if found.remedies:
        rows["remedies"] = (
            f"at most {found.remedies} variants on {-(-found.windows // 2)} windows, behind these: "
            f"about {clock(found.remedies_s)} more"
        )
    if study.question.stop_when is not None:
        rows["stops when"] = (
            f"{study.question.stop_when}, or all windows are measured: the time is the most"
        )
    if found.estimates_s is not None:
        rows["time"] += f"; estimates to first order about {clock(found.estimates_s)}"
        rows["memory"] += "; the graph of one window, for the estimates, is not in it"
    facts = Table.grid(padding=(0, 2, 0, 0))
    for name, text in rows.items():
        facts.add_row(name, text)
    out.print()
    show(out, titled(f"Plan for {model['name']}, {model['dtype']} on {model['device']}", facts))
    widths = Grid(("format", "precision", "direction", "units"), ("number", "± millinats"))
    for family in found.families:
        reached = (
            "too few windows" if family.half_width is None else number(1e3 * family.half_width)
        )
        way = family.direction
        names = (family.format, family.precision, way, level(family.level))
        widths.add_row(*names, str(family.units), reached)
    out.print()
    if found.families:
        title = f"Half-width of the 95% intervals after {found.windows} windows, if independent"
        show(out, titled(title, widths))
    say(out, f"\nEstimated from a probe: {found.probe}.")
