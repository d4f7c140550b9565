"""What quantizing leaves of the full-precision model's routing, in models with routers."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

from fp4scope.design import NOTHING
from fp4scope.design import ROUTING as ROUTING_LEVEL
from fp4scope.ledger import ROUTERS, ROUTING, ActivationRecord, Results
from fp4scope.recipes import Recipe
from fp4scope.stats.findings.units import FULL_PRECISION
from fp4scope.stats.findings.windows import by_window
from fp4scope.stats.inference.intervals import paired
from fp4scope.stats.inference.multiple import p_value
from fp4scope.stats.inference.series import aligned
from fp4scope.table import Table
from fp4scope.treatments import FEWEST_TOKENS

ROUTING_COLUMNS = (
    "format", "precision", "direction", "level", "unit", "block", *ROUTING, "windows",
)  # fmt: skip
ROUTER_COLUMNS = ("format", "precision", "unit", "block", "experts", *ROUTING, "windows")
REPLAY_COLUMNS = (
    "format", "precision", "sites",
    *(
        f"{part}_{measure}{end}"
        for measure in ("nll", "kl")
        for part in ("own", "values", "routing")
        for end in ("", "_low", "_high")
    ),
    "p_nll", "p_kl", "windows",
)  # fmt: skip
SEEN_COLUMNS = ("block", "experts", "count", "fewest", "median", "most", "few", "below")


def routing_table(results: Results) -> Table:
    """Every recipe's routing beside that of the full-precision model, means over windows.

    The first row is the ceiling: the full-precision model's own perturbed realisations, in which
    tokens near a tie go elsewhere by rounding alone.
    """
    rows = [labels | _means(results, recipe) for labels, recipe in _recipes(results)]
    return Table(ROUTING_COLUMNS, [row for row in rows if "windows" in row])


def router_table(results: Results) -> Table:
    """The same of whole models at every router."""
    rows: list[dict[str, Any]] = []
    for labels, recipe in _recipes(results):
        for place, (block, experts) in enumerate(results.model.get("routed_experts", ())):
            at = labels | {"block": block, "experts": experts}
            rows.append(at | _means(results, recipe, place))
    return Table(ROUTER_COLUMNS, [row for row in rows if "windows" in row])


def _recipes(results: Results) -> Iterator[tuple[dict[str, Any], Recipe]]:
    """The full-precision model's perturbed realisations, then what every contrast ran."""
    yield {"format": FULL_PRECISION, "precision": "", "level": "model", "unit": ""}, NOTHING
    asked = {contrast.own for contrast in results.contrasts}
    for contrast in results.contrasts:
        yield contrast.labels, contrast.own
    for recipe in results.ledger:
        if recipe.replay:
            for one in (replace(recipe, replay=False), recipe):
                if one not in asked:
                    unit = f"{_sites(recipe)}{', replayed' * one.replay}"
                    yield _labels(recipe) | {"level": ROUTING_LEVEL, "unit": unit}, one


def _labels(recipe: Recipe) -> dict[str, Any]:
    # What else it holds is of sites with a setting of their own.
    setting = recipe.base or recipe.edits[0][1]
    assert setting is not None
    return {"format": setting.format, "precision": setting.precision}


def _sites(recipe: Recipe) -> str:
    return "experts" if recipe.base is None else "all"


def replay_table(results: Results) -> Table:
    """How much of the damage is routing: with the model's own, and with full precision's forced.

    Of all sites and of experts alone, nats per token: `own` is what quantizing costs, `values` what
    it costs where tokens go to the experts that the full-precision model chooses, with its weights,
    and `routing` what the first is above the second, paired over windows. So too for KL.
    """
    rows: list[dict[str, Any]] = []
    for recipe in results.ledger:
        row = _labels(recipe) | {"sites": _sites(recipe)} if recipe.replay else {}
        for measure in ("nll", "kl") if row else ():
            subjects = replace(recipe, replay=False), recipe, NOTHING
            series = [by_window(results.ledger, one, measure) for one in subjects]
            if any(one is None for one in series):
                break
            windows, columns = aligned([one for one in series if one is not None])
            own, values, plain = columns.T
            pairs = {"own": (own, plain), "values": (values, plain), "routing": (own, values)}
            for part, sides in pairs.items():
                found = paired(*sides, anytime=results.anytime)
                row |= found.columns(f"{part}_{measure}")
                if part == "routing":
                    row[f"p_{measure}"] = p_value(found, anytime=results.anytime)
            row["windows"] = len(windows)
        if "windows" in row:
            rows.append(row)
    return Table(REPLAY_COLUMNS, rows)


def _means(results: Results, recipe: Recipe, router: int | None = None) -> dict[str, Any]:
    names = ROUTING if router is None else ROUTERS
    found: dict[str, Any] = {}
    for name, measure in names.items():
        extra = recipe == NOTHING
        series = by_window(results.ledger, recipe, measure, extra=extra, router=router)
        if series is not None:
            found |= {name: float(series.values.mean()), "windows": len(series.values)}
    return found


def seen_table(activations: Iterable[ActivationRecord]) -> Table:
    """How many tokens of the calibration text the experts of each block saw.

    `few` is how many saw fewer than `FEWEST_TOKENS`, and `below` has their numbers. The products of
    an expert see the same tokens, so the first of them speaks for it.
    """
    found: dict[tuple[int, str], Sequence[int]] = {}
    for record in activations:
        if record.tokens is not None:
            holder = record.projection.rpartition(".")[0].removesuffix(".*")
            found.setdefault((record.block, holder or record.projection), record.tokens)
    rows: list[dict[str, Any]] = []
    for (block, experts), tokens in sorted(found.items()):
        below = [str(expert) for expert, seen in enumerate(tokens) if seen < FEWEST_TOKENS]
        row = {"block": block, "experts": experts, "count": len(tokens), "fewest": min(tokens)}
        row |= {"median": median(tokens), "most": max(tokens)}
        rows.append(row | {"few": len(below), "below": " ".join(below)})
    return Table(SEEN_COLUMNS, rows)
