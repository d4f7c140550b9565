"""Fills in the tables of docs/reproduction.md: arXiv 2603.08747 beside a run of our own.

    python benchmarks/reproduction.py            # fills the tables in
    python benchmarks/reproduction.py --check    # exit code 1 if they are out of date

The paper's numbers (tables 1 to 4, and what its captions say of single blocks) are in the CSV
files of docs/paper; ours come from the results of a run of the paper's preset.
"""

import argparse
import csv
import re
import sys
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import fp4scope
from fp4scope.report.numbers import interval, number
from fp4scope.stats import MIN_WINDOWS, by_window, hypotheses, paired, significant, spearman
from fp4scope.stats.findings.depth import depth_table
from fp4scope.stats.findings.families import families
from fp4scope.stats.inference.series import aligned
from fp4scope.stats.inference.tiers import separable
from fp4scope.table import Table

DOCS = Path(__file__).parents[1] / "docs"
DOCUMENT = DOCS / "reproduction.md"
OURS = DOCS / "results" / "qwen2.5-coder-0.5b"
SIZES = ("Qwen2.5-0.5B", "Qwen2.5-7B", "Qwen2.5-14B")
MODEL = SIZES[0]
BOTH, WEIGHTS = "W4A4", "W4A16"
FORMATS = {"mxfp4": "mxfp4:floor", "nvfp4": "nvfp4"}
"""The paper's names, and what of ours is held against them."""
READINGS = [(f"mxfp4:{rule}", o) for o in (BOTH, WEIGHTS) for rule in ("floor", "rceil", "even")]
"""Of MXFP4, each against NVFP4 with the same operands."""
CHECKS = {"weights only": "weights", "windows of 512": "seq512"}
_ROUNDING = 0.05
"""The paper gives percentages with one decimal."""
_Row = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description="Fill in the tables of docs/reproduction.md.")
    parser.add_argument("results", nargs="?", type=Path, default=OURS)
    parser.add_argument("--document", type=Path, default=DOCUMENT)
    parser.add_argument("--check", action="store_true", help="only say whether it is up to date")
    options = parser.parse_args()
    found = fp4scope.load(options.results)
    old = options.document.read_text(encoding="utf-8")
    new = filled(old, {name: "\n".join(table(found)) for name, table in TABLES.items()})
    if options.check:
        print(f"{options.document} is {'up to date' if new == old else 'out of date'}")
        return int(new != old)
    options.document.write_text(new, encoding="utf-8")
    return 0


def filled(document: str, tables: dict[str, str]) -> str:
    """A document with each table between its two markers."""
    for name, table in tables.items():
        marked = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        if not marked.search(document):
            raise SystemExit(f"no <!-- {name} --> ... <!-- end --> in the document")
        document = marked.sub(lambda m, table=table: f"{m[1]}\n{table}\n\n{m[2]}", document)
    return document


def read(name: str) -> list[_Row]:
    """A table of the paper."""
    with (DOCS / "paper" / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def readings(found: fp4scope.Diagnosis) -> Iterable[str]:
    """MXFP4's perplexity over NVFP4's, in nats: what does not depend on the reference."""
    yield from header("reading", "MXFP4", "NVFP4", "MXFP4 less NVFP4, millinats")
    for model in SIZES:
        pair = [paper_projections(model, fmt)["all-quantized"] for fmt in FORMATS]
        yield row(
            f"the paper, {model}", *map(number, pair), number(1e3 * np.log(pair[0] / pair[1]))
        )
    runs = {"ours": found, **checks(found, "windows of 512")}
    runs |= {str(run.results.model["name"]): run for run in beside(found)}
    for name, run in runs.items():
        ppl = {(r["format"], r["precision"]): r["ppl"] for r in run.all_quantized}
        wholes = {
            (c.labels["format"], c.labels["precision"]): by_window(run.results.ledger, c.own, "nll")
            for c in run.results.contrasts
            if c.unit is None
        }
        for mxfp4, precision in READINGS:
            pair = [wholes.get((fmt, precision)) for fmt in (mxfp4, "nvfp4")]
            series = [seen for seen in pair if seen is not None]
            if len(series) < 2:
                continue
            gap = paired(*aligned(series)[1].T)
            shown = [number(ppl[fmt, precision]) for fmt in (mxfp4, "nvfp4")]
            ends = {"gap": gap.mean, "gap_low": gap.low, "gap_high": gap.high}
            yield row(f"{name}, {mxfp4}, {precision}", *shown, interval(ends, "gap"))


def projections(found: fp4scope.Diagnosis) -> Iterable[str]:
    """Tables 2 and ours: what keeping each projection saves, in the order of the paper."""
    for fmt, ours in FORMATS.items():
        paper = paper_projections(MODEL, fmt)
        saved = savings(paper)
        rows = {r["projection"]: r for r in kept(found.projections, fmt)}
        here = {name: r["delta_nll"] for name, r in rows.items()}
        ranks = ranked(here)
        yield f"**{fmt}** (ours: `{ours}`)"
        yield ""
        sides = ("PPL, paper", "ours", "saves, millinats, paper", "ours", "ours, tier")
        yield from header("projection", *sides)
        ppl = found.all_quantized.where(format=ours, precision=BOTH)["ppl"][0]
        yield row("all-quantized", number(paper["all-quantized"]), number(ppl), "", "", "")
        for rank, (name, value) in enumerate(saved.items(), 1):
            r = rows[name]
            shown = (number(paper[name]), number(r["ppl"]), f"{number(1e3 * value)} ({rank})")
            yield row(name, *shown, f"{interval(r)} ({ranks[name]})", r["tier"] or "")
        yield ""
        yield f"Ranks in brackets; the rank correlation of the two orders is {alike(saved, here)}."
        yield ""


def other_readings(found: fp4scope.Diagnosis) -> Iterable[str]:
    """What keeping each projection saves under other readings of the protocol, millinats."""
    runs = {"as above": found, **checks(found, "weights only", "windows of 512")}
    yield from header("format", "projection", "paper", *runs)
    for fmt, ours in FORMATS.items():
        saved = savings(paper_projections(MODEL, fmt))
        sides = []
        for run in runs.values():
            rows = run.projections.where(direction="keep", format=ours)
            sides.append({r["projection"]: r["delta_nll"] for r in rows})
        for name, value in saved.items():
            yield row(fmt, name, *(number(1e3 * v) for v in (value, *(s[name] for s in sides))))
        yield row(fmt, "rank correlation with the paper", "", *(alike(saved, s) for s in sides))


def orders(found: fp4scope.Diagnosis) -> Iterable[str]:
    """How alike the projections are ordered: the paper's sizes, this run, and runs beside it.

    A run of a model with other projections (of experts, say) has no place in this order.
    """
    orders = {
        f"{model.removeprefix('Qwen2.5-')} {fmt}": savings(paper_projections(model, fmt))
        for model in SIZES
        for fmt in FORMATS
    }
    for run in (found, *beside(found)):
        for fmt in FORMATS:
            saved = {r["projection"]: r["delta_nll"] for r in kept(run.projections, fmt)}
            if saved.keys() == savings(paper_projections(MODEL, fmt)).keys():
                orders[f"{run.results.model['name']} {fmt}"] = saved
    names = list(orders)
    yield from header("rank correlation", *names[1:])
    for i, one in enumerate(names[:-1], 1):
        yield row(one, *[""] * (i - 1), *(alike(orders[one], orders[n]) for n in names[i:]))


def activations(found: fp4scope.Diagnosis) -> Iterable[str]:
    """Table 1 beside ours."""
    ours = {r["projection"]: r for r in found.projection_activations}
    sides = ("P99.9, paper", "ours", "max, paper", "ours", "max / P99.9, paper", "ours")
    yield from header("projection", *sides)
    for r in read("activations"):
        if r["model"] == MODEL:
            own = ours[r["projection"]]
            pairs = [(r[key], number(own[key])) for key in ("p999", "max", "ratio")]
            yield row(r["projection"], *(value for pair in pairs for value in pair))


def statements(found: fp4scope.Diagnosis) -> Iterable[str]:
    """What the paper's captions say of blocks of the 0.5B model, and what ours has there."""
    yield from header("figure", "the paper says", "ours", "")
    for s in read("statements"):
        said, ours, verdict = STATEMENTS[s["kind"]](found, s)
        where = f"{s['projection']}, {s['format']}"
        yield row(s["figure"], f"{where}: {said}", ours, verdict)


def _peaks(found: fp4scope.Diagnosis, s: _Row) -> tuple[str, str, str]:
    """The named blocks are the most costly of the projection, in any order."""
    rows, ranks, named, shown = _named(found, s)
    top = [b for b in named if significant(rows[b]) and ranks[b] <= len(named)]
    first = next(b for b in ranks if ranks[b] == 1)
    if first not in named:
        shown += f"; the largest is {first}: {change(rows[first])}{unsure(rows[first])}"
    apart = _told_apart(found, s)
    beaten = all({first, b} in apart for b in named)
    if top:
        verdict = "agrees" if len(top) == len(named) else "in part"
    else:
        verdict = "disagrees" if beaten else "undecided"
    return f"peaks at {s['blocks'].replace(' ', ', ')}", shown, verdict


def _change(found: fp4scope.Diagnosis, s: _Row) -> tuple[str, str, str]:
    """Perplexity changes by so many percent: whether ours does too, as far as can be told."""
    r = curve(found, s)[int(s["blocks"])]
    value, low, high = percents(r)
    said = float(s["percent"])
    if low is None or high is None:
        verdict = "undecided"
    elif low - _ROUNDING <= said <= high + _ROUNDING:
        verdict = "agrees" if significant(r) else "undecided"
    elif significant(r) and said * value < 0:
        verdict = "other sign"
    else:
        verdict = "smaller here" if abs(value) < abs(said) else "larger here"
    return f"block {s['blocks']} changes PPL by {said:g}%", change(r) + unsure(r), verdict


def _early(found: fp4scope.Diagnosis, s: _Row) -> tuple[str, str, str]:
    """The first third of the blocks dominates."""
    rows = kept(depth_table(found.results), s["format"]).where(projection=s["projection"])
    ends = [rows[0][f"share_early{end}"] for end in ("", "_low", "_high")] if rows else [None]
    if None in ends:
        return "the early blocks dominate", "their cost in all is not significant", "undecided"
    share, low, high = (100 * end for end in ends)
    ours = f"{share:.0f}% [{low:.0f}, {high:.0f}] of the cost in the first third"
    verdict = "agrees" if low > 50 else "disagrees" if high < 50 else "undecided"
    return "the early blocks dominate", ours, verdict


def _flat(found: fp4scope.Diagnosis, s: _Row) -> tuple[str, str, str]:
    """The blocks cost about the same: they spread less than those of most projections."""
    names = dict.fromkeys(found.projections["projection"])
    curves = {name: curve(found, s | {"projection": name}).values() for name in names}
    spreads = {n: float(np.std([percents(r)[0] for r in of], ddof=1)) for n, of in curves.items()}
    own, rows = spreads[s["projection"]], curves[s["projection"]]
    place, count = ranked({n: -v for n, v in spreads.items()})[s["projection"]], len(spreads)
    known = f"{sum(map(significant, rows))} of {len(rows)} significant"
    ours = f"spread {own:.2f}% of PPL, place {place} of {count} from the least; {known}"
    verdict = "agrees" if own < np.median([*spreads.values()]) else "disagrees"
    return "about the same in all blocks", ours, verdict


def _strong(found: fp4scope.Diagnosis, s: _Row) -> tuple[str, str, str]:
    """Keeping the projection of the named blocks helps, each significantly."""
    rows, _, named, shown = _named(found, s)
    held = [b for b in named if significant(rows[b]) and rows[b]["delta_nll"] > 0]
    verdict = "agrees" if len(held) == len(named) else "in part" if held else "undecided"
    return f"strong at {s['blocks'].replace(' ', ', ')}", shown, verdict


def _named(
    found: fp4scope.Diagnosis, s: _Row
) -> tuple[dict[int, _Row], dict[int, int], list[int], str]:
    """A projection's layers and ranks by block, the blocks that a caption names, and these."""
    rows = curve(found, s)
    ranks = ranked({b: r["delta_nll"] for b, r in rows.items()})
    named = [int(b) for b in s["blocks"].split()]
    shown = "; ".join(f"{b}: {change(rows[b])}, rank {ranks[b]}{unsure(rows[b])}" for b in named)
    return rows, ranks, named, shown


def _told_apart(found: fp4scope.Diagnosis, s: _Row) -> list[set[int | None]]:
    """The pairs of blocks whose layers of a statement's projection cost differently."""
    (family,) = [
        f
        for f in families(found.results, "layers")
        if tuple(f.labels.values()) == (FORMATS[s["format"]], BOTH, "keep")
    ]
    columns = [i for i, unit in enumerate(family.units) if unit.name == s["projection"]]
    costs, blocks = family.costs[:, columns], [family.units[i].block for i in columns]
    pairs = separable(costs) if len(costs) >= MIN_WINDOWS else []
    return [{blocks[i], blocks[j]} for i, j in pairs]


STATEMENTS: dict[str, Callable[..., tuple[str, str, str]]] = {
    "peaks": _peaks, "strong": _strong, "change": _change, "early": _early, "flat": _flat,
}  # fmt: skip


def resolution(found: fp4scope.Diagnosis) -> Iterable[str]:
    """How small a change of a layer can be and still be significant."""
    yield from header(
        "format", "half an interval, % of PPL", "smallest significant change", "significant layers"
    )
    for fmt in FORMATS:
        rows = kept(found.layers, fmt).rows
        ends = [(low, high) for _, low, high in map(percents, rows)]
        widths = [(high - low) / 2 for low, high in ends if low is not None and high is not None]
        known = [abs(percents(r)[0]) for r in rows if significant(r)]
        middle = f"{np.median(widths):.2f} ({min(widths):.2f} to {max(widths):.2f})"
        yield row(
            fmt, middle, f"{min(known):.2f}%" if known else "none", f"{len(known)} of {len(rows)}"
        )


def verdicts(found: fp4scope.Diagnosis) -> Iterable[str]:
    """What each run says of the paper's four hypotheses."""
    runs = (found, *beside(found))
    yield from header("hypothesis", *(run.results.model["name"] for run in runs))
    for held in zip(*(hypotheses(run.results) for run in runs), strict=True):
        yield row(held[0].name, *(hypothesis.verdict.value for hypothesis in held))


TABLES = {
    "readings": readings,
    "projections": projections,
    "operands": other_readings,
    "orders": orders,
    "activations": activations,
    "statements": statements,
    "resolution": resolution,
    "hypotheses": verdicts,
}


def beside(found: fp4scope.Diagnosis) -> list[fp4scope.Diagnosis]:
    """The runs of other models."""
    folder = found.folder
    kept = sorted(folder.parent.glob("*/results.json")) if folder else []
    return [kept_run(path.parent) for path in kept if path.parent != folder]


def checks(found: fp4scope.Diagnosis, *names: str) -> dict[str, fp4scope.Diagnosis]:
    """Runs of the same model in which one thing differs, as far as they are kept."""
    kept = found.folder.parent / "checks" if found.folder else None
    folders = {name: kept / CHECKS[name] for name in names} if kept else {}
    return {name: kept_run(at) for name, at in folders.items() if at.exists()}


@cache
def kept_run(folder: Path) -> fp4scope.Diagnosis:
    """A run of docs/results: several tables show it, and it is read and tabulated once."""
    return fp4scope.load(folder)


def paper_projections(model: str, fmt: str) -> dict[str, float]:
    """PPL by projection, and of the all-quantized model."""
    rows = [r for r in read("projections") if (r["model"], r["format"]) == (model, fmt)]
    return {r["projection"]: float(r["ppl"]) for r in rows}


def savings(ppl: dict[str, float]) -> dict[str, float]:
    """What keeping each projection saves, nats, the largest first."""
    base = ppl["all-quantized"]
    saved = {name: float(np.log(base / p)) for name, p in ppl.items() if name != "all-quantized"}
    return dict(sorted(saved.items(), key=lambda item: -item[1]))


def alike(one: dict[str, float], other: dict[str, float]) -> str:
    """Rank correlation of the orders in which two lists have the same projections."""
    return f"{float(spearman(*np.array([[one[n], other[n]] for n in one]).T)):.2f}"


def curve(found: fp4scope.Diagnosis, s: _Row) -> dict[int, _Row]:
    """The layers of a statement's projection, by block."""
    rows = kept(found.layers, s["format"]).where(projection=s["projection"])
    return {r["block"]: r for r in rows}


def kept(table: Table, fmt: str) -> Table:
    """The rows of ours that are held against the paper's."""
    return table.where(direction="keep", format=FORMATS[fmt], precision=BOTH)


def ranked(values: dict[Any, float]) -> dict[Any, int]:
    """1 for the largest."""
    return {name: i for i, name in enumerate(sorted(values, key=lambda n: -values[n]), 1)}


def percents(r: _Row) -> tuple[float, float | None, float | None]:
    """The change of PPL in percent with its interval; the paper's sign: negative improves."""

    def percent(nats: float | None) -> float | None:
        return None if nats is None else 100 * float(np.expm1(-nats))

    low, high = percent(r["delta_nll_high"]), percent(r["delta_nll_low"])
    return 100 * float(np.expm1(-r["delta_nll"])), low, high


def change(r: _Row) -> str:
    value, low, high = percents(r)
    shown, *ends = (number(v, sign=True, digits=2) for v in (value, low, high))
    return f"{shown}%" + ("" if low is None else f" [{', '.join(ends)}]")


def unsure(r: _Row) -> str:
    return "" if significant(r) else " (not significant)"


def header(*names: str) -> list[str]:
    return [row(*names), row(*["---"] * len(names))]


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
