"""The tables of a study, derived from what its variants gave on each window.

Every difference is paired over the windows that both sides have seen. It means *more quantized
minus less quantized*: positive says that quantizing this costs. An all-quantized model is compared
with the full-precision model, and so is a model of which only a unit is quantized. A model that
keeps a unit is what the all-quantized model is compared with.

Where the number of windows depended on the data (a goal other than a time), intervals and
p-values are those of confidence sequences (`sequences`).

Where a study has first-order estimates, each unit has its own beside the difference, with an
interval over the same windows (of the estimate; how far it is from the truth is not in it).

The columns `p_holm`, `tier` and `p_top` look at a unit's whole family: the units of the same level,
format, precision and direction (`multiple`, `tiers`, `ranks`). Columns that end in `_kl` are the
same tests of the difference of KL; that of the full-precision model is zero.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from fp4scope.design import NOTHING, Contrast, Family
from fp4scope.ledger import ActivationRecord, Results
from fp4scope.recipes import Recipe
from fp4scope.stats.findings.noise import rerun_noise
from fp4scope.stats.findings.pairing import Pairing, difference
from fp4scope.stats.findings.projections import layer_type
from fp4scope.stats.findings.storage import Storage, sizes_known
from fp4scope.stats.findings.windows import by_window
from fp4scope.stats.inference.intervals import mean, paired, perplexity_difference
from fp4scope.stats.inference.multiple import holm, p_value
from fp4scope.stats.inference.ranks import TOP_K, top_probabilities
from fp4scope.stats.inference.series import Series, aligned
from fp4scope.stats.inference.tiers import tiers
from fp4scope.table import Interval, Table

_MEASURES = ("ppl", "nll", "nll_stderr")
_DELTA = ("delta_nll", "delta_nll_stderr", "delta_nll_low", "delta_nll_high")
_DELTA_PPL = ("delta_ppl", "delta_ppl_low", "delta_ppl_high")
_DELTA_KL = ("delta_kl", "delta_kl_stderr", "delta_kl_low", "delta_kl_high")
_TESTS = ("p", "p_holm", "p_kl", "p_holm_kl")
_TOP = ("p_top", "p_top_kl")
_ESTIMATE = ("gradient_nll", "gradient_nll_stderr", "gradient_nll_low", "gradient_nll_high")
_REST = ("kl", "kl_stderr", "top1", "windows", "tokens")

FULL_PRECISION = "full precision"
"""What stands for the format of the model that nothing is quantized in."""
_NOISE = ("noise_nll", "noise_kl")

ALL_QUANTIZED_COLUMNS = ("format", "precision", *_MEASURES, *_DELTA, *_REST, *_NOISE)
_DIFFERENCE = ("precision", *_MEASURES, *_DELTA, *_DELTA_PPL, *_DELTA_KL, *_TESTS)
_STORED = ("bytes_kept", "bits_kept", "nll_per_mb")
_BEHIND = (*_REST, *_ESTIMATE, *_STORED)
UNIT_COLUMNS = {
    "projections": ("format", "direction", "projection", *_DIFFERENCE, "tier", *_TOP, *_BEHIND),
    "blocks": ("format", "direction", "block", *_DIFFERENCE, "tier", *_TOP, *_BEHIND),
    "layers": ("format", "direction", "projection", "block", *_DIFFERENCE, *_TOP, *_BEHIND),
    "patterns": ("format", "direction", "pattern", *_DIFFERENCE, "tier", *_TOP, *_BEHIND),
    "experts": ("format", "direction", "expert", "block", *_DIFFERENCE, *_TOP, *_BEHIND),
}
_TYPED = 1 + UNIT_COLUMNS["layers"].index("block")
_UNIT_NAME = {
    "projections": "projection", "layers": "projection", "patterns": "pattern", "experts": "expert",
}  # fmt: skip
ACTIVATION_COLUMNS = ("block", "projection", "max", "p999", "ratio")
PROJECTION_ACTIVATION_COLUMNS = ("projection", "max", "p999", "ratio", "ratio_max", "blocks")


def all_quantized_table(results: Results) -> Table:
    """The full-precision and every all-quantized model: what each costs, and how noisy it is.

    Those of the same precision stand together.
    """
    rows: list[dict[str, Any]] = []
    if (plain := measures_of(results, NOTHING)) is not None:
        rows.append({"format": FULL_PRECISION, "precision": ""} | plain | _noise(results, NOTHING))
    pairing = Pairing.of(results)
    for contrast in results.contrasts:
        measures = measures_of(results, contrast.own)
        if contrast.unit is not None or measures is None:
            continue
        row = {name: contrast.labels[name] for name in ("format", "precision")} | measures
        if (sides := pairing.sides(contrast)) is not None:
            row |= _difference(sides, results.anytime)
        rows.append(row | _noise(results, contrast.own))
    order = list(dict.fromkeys(row["precision"] for row in rows))
    return Table(ALL_QUANTIZED_COLUMNS, sorted(rows, key=lambda row: order.index(row["precision"])))


def unit_table(results: Results, level: str) -> Table:
    """Every unit of a level (`projections`, `blocks`, `layers`, `patterns`), in sweep order.

    A unit that was only estimated has nothing in the columns of what is measured. `bytes_kept` is
    what keeping the unit stores more, `bits_kept` the average bits of the model then. Layers also
    say what their block is, where blocks differ by more than the projections that they have.
    """
    nll, kl = (Pairing.of(results, measure) for measure in ("nll", "kl"))
    storage = Storage(results) if sizes_known(results) else None
    rows: list[dict[str, Any]] = []
    only: list[dict[str, Any]] = []
    families: dict[Family, list[_Member]] = defaultdict(list)
    for contrast in results.contrasts:
        if contrast.family.level != level:
            continue
        row = _names(contrast) | _estimate(results, contrast) | _stored(storage, contrast)
        measures = measures_of(results, contrast.own)
        if measures is None:
            only += [_price(row)] if "windows" in row else []
            continue
        rows.append(row | measures)
        sides, kls = nll.sides(contrast), kl.sides(contrast)
        if sides is not None and kls is not None:
            rows[-1] |= _difference(sides, results.anytime) | _kl_difference(kls, results.anytime)
            member = _Member(rows[-1], difference(sides), difference(kls))
            families[contrast.family].append(member)
        _price(rows[-1])
    for members in families.values():
        _compare(level, members, anytime=results.anytime)
    columns = UNIT_COLUMNS[level]
    if level == "layers" and results.model.get("layer_types"):
        columns = (*columns[:_TYPED], "layer_type", *columns[_TYPED:])
        for row in (*rows, *only):
            row["layer_type"] = layer_type(results, row["block"])
    return Table(columns, [*rows, *only])


@dataclass(frozen=True)
class _Member:
    """A unit of a family: its row, and what it costs by window."""

    row: dict[str, Any]
    nll: Series
    kl: Series


def _compare(level: str, members: Sequence[_Member], *, anytime: bool) -> None:
    """Fill in what depends on the whole family, over the windows that all of it has seen."""
    rows = [member.row for member in members]
    _, nll = aligned([member.nll for member in members])
    _, kl = aligned([member.kl for member in members])
    columns: dict[str, Sequence[float | str | None]] = {
        "p_holm": holm([row["p"] for row in rows]),
        "p_holm_kl": holm([row["p_kl"] for row in rows]),
        "p_top": top_probabilities(nll, TOP_K[level]),
        "p_top_kl": top_probabilities(kl, TOP_K[level]),
    }
    if "tier" in UNIT_COLUMNS[level]:
        columns["tier"] = tiers(nll, anytime=anytime)
    for name, values in columns.items():
        for row, value in zip(rows, values, strict=True):
            row[name] = value


def activation_table(activations: Sequence[ActivationRecord]) -> Table:
    """Input statistics of every layer."""
    return Table(ACTIVATION_COLUMNS, [vars(a) for a in activations])


def projection_activation_table(activations: Sequence[ActivationRecord]) -> Table:
    """Per projection: means over its blocks of max, P99.9 and their ratio, and the worst ratio.

    The ratio is the mean of the blocks' ratios, not the ratio of the means (as in table 1 of
    arXiv 2603.08747), which lets one block's outliers show.
    """
    groups: dict[str, list[ActivationRecord]] = defaultdict(list)
    for record in activations:
        groups[record.projection].append(record)
    rows: list[dict[str, Any]] = [
        {
            "projection": projection,
            "max": fmean(a.max for a in group),
            "p999": fmean(a.p999 for a in group),
            "ratio": fmean(ratios) if (ratios := [a.ratio for a in group if a.ratio]) else None,
            "ratio_max": max(ratios, default=None),
            "blocks": len(group),
        }
        for projection, group in groups.items()
    ]
    rows.sort(key=lambda row: -(row["ratio"] or 0.0))
    return Table(PROJECTION_ACTIVATION_COLUMNS, rows)


def undecided(row: Mapping[str, Any]) -> bool:
    """Whether a row's interval holds zero."""
    return Interval.of(row, "delta_nll").holds_zero


def cost(row: Mapping[str, Any]) -> float | None:
    """What a row says quantizing costs: measured, or else estimated."""
    return row["gradient_nll"] if row["delta_nll"] is None else row["delta_nll"]


def only_estimated(row: Mapping[str, Any]) -> bool:
    """Whether a unit's cost was estimated and not measured."""
    return row["delta_nll"] is None and row["gradient_nll"] is not None


def _names(contrast: Contrast) -> dict[str, Any]:
    labels = contrast.labels
    return labels | {_UNIT_NAME.get(labels["level"], "unit"): labels["unit"]}


def _estimate(results: Results, contrast: Contrast) -> dict[str, Any]:
    """The first-order estimate of a contrast, and where it was taken."""
    series = by_window(results.ledger, contrast.own, "gradient")
    if series is None:
        return {}
    extent = _extent(results, contrast.own, "gradient")
    return mean(series.values).columns("gradient_nll") | extent


def _stored(storage: Storage | None, contrast: Contrast) -> dict[str, Any]:
    """What keeping a contrast's unit stores more."""
    if storage is None or contrast.unit is None:
        return {}
    more = storage.kept(contrast.family.setting, contrast.unit.sites)
    return {"bytes_kept": more.bytes, "bits_kept": more.bits}


def _price(row: dict[str, Any]) -> dict[str, Any]:
    """The row with what it costs for each million bytes; nothing of what stores nothing."""
    costs, stored = row.get("delta_nll", row.get("gradient_nll")), row.get("bytes_kept")
    row["nll_per_mb"] = costs / (stored / 1e6) if costs is not None and stored else None
    return row


def _noise(results: Results, recipe: Recipe) -> dict[str, Any]:
    noise = rerun_noise(results, recipe)
    return {} if noise is None else {"noise_nll": noise.nll, "noise_kl": noise.kl}


def measures_of(results: Results, recipe: Recipe) -> dict[str, Any] | None:
    """What a recipe's predictions are, by itself; None where it was not measured."""
    nlls, kls = (by_window(results.ledger, recipe, name) for name in ("nll", "kl"))
    if nlls is None or kls is None:
        return None
    nll, kl = mean(nlls.values), mean(kls.values)
    found = nll.columns("nll") | kl.columns("kl") | _extent(results, recipe, "nll")
    return found | {"ppl": float(np.exp(nll.mean)), "top1": _share(results, recipe)}


def whole_difference(results: Results, more: Recipe, less: Recipe) -> dict[str, Any]:
    """How far two recipes are apart in NLL and KL, paired over the windows of both."""
    row: dict[str, Any] = {}
    for measure in ("nll", "kl"):
        series = [by_window(results.ledger, one, measure) for one in (more, less)]
        known = [one for one in series if one is not None]
        if len(known) == 2:
            found = paired(*aligned(known)[1].T, anytime=results.anytime)
            row |= found.columns(f"delta_{measure}")
    return row


def _share(results: Results, recipe: Recipe) -> float:
    """Of all targets, those with the full-precision model's most likely token."""
    rows, agree, targets = results.ledger[recipe], 0.0, 0
    columns = zip(rows.replicas, rows.tokens, rows.values["top1"], strict=True)
    for replica, tokens, top1 in columns:
        if replica < results.ledger.counted and top1 is not None:
            agree, targets = agree + top1, targets + tokens
    return agree / targets


def _extent(results: Results, recipe: Recipe, measure: str) -> dict[str, int]:
    """How many windows a measure has, and their targets."""
    rows = results.ledger[recipe]
    columns = zip(rows.indices, rows.tokens, rows.values[measure], strict=True)
    windows = {window: tokens for window, tokens, value in columns if value is not None}
    return {"windows": len(windows), "tokens": sum(windows.values())}


def _difference(sides: tuple[Series, Series], anytime: bool) -> dict[str, Any]:
    """Paired over the windows that both have seen."""
    more, less = (side.values for side in sides)
    nll = paired(more, less, anytime=anytime)
    ppl = perplexity_difference(more, less, anytime=anytime)
    tested = {"p": p_value(nll, anytime=anytime)}
    return nll.columns("delta_nll") | ppl.columns("delta_ppl") | tested


def _kl_difference(sides: tuple[Series, Series], anytime: bool) -> dict[str, Any]:
    more, less = (side.values for side in sides)
    found = paired(more, less, anytime=anytime)
    return found.columns("delta_kl") | {"p_kl": p_value(found, anytime=anytime)}
