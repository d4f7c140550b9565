"""Recipes that were measured as wholes: what each costs, and how large the model is in it."""

from dataclasses import dataclass
from typing import Any

from fp4scope.design import NOTHING
from fp4scope.ledger import Results
from fp4scope.recipes import Recipe
from fp4scope.stats.findings.units import measures_of, whole_difference
from fp4scope.table import Table
from fp4scope.treatments import FULL_PRECISION_BITS

GIVEN_COLUMNS = (
    "recipe", "bits", "model_bits", "bytes", "ppl", "nll", "nll_stderr",
    "delta_nll", "delta_nll_stderr", "delta_nll_low", "delta_nll_high",
    "delta_kl", "delta_kl_stderr", "delta_kl_low", "delta_kl_high",
    "kl", "kl_stderr", "top1", "windows", "tokens",
)  # fmt: skip


@dataclass(frozen=True)
class Size:
    """How much a model stores in a recipe.

    Attributes:
        bits: For each weight that can be quantized, block scales included.
        model_bits: For each parameter, embeddings, head and norms among them.
        bytes: Of the whole checkpoint; None where the number of parameters is not known.
        linear_bytes: Of what can be quantized.
    """

    bits: float
    model_bits: float | None
    bytes: float | None
    linear_bytes: float


def size(results: Results, recipe: Recipe) -> Size:
    """How much the model of a study stores in a recipe. What is no site has 16 bits."""
    sites = [site for site in results.sites if site.is_linear]
    bits = recipe.average_bits(sites)
    parameters = results.model.get("parameters")
    own = sum(site.parameters for site in sites)
    if parameters is None:
        return Size(bits, None, None, bits * own / 8)
    stored = bits * own + FULL_PRECISION_BITS * (parameters - own)
    return Size(bits, stored / parameters, stored / 8, bits * own / 8)


def given_table(results: Results) -> Table:
    """Every recipe that was given, against the full-precision model."""
    rows: list[dict[str, Any]] = []
    for name, recipe in results.given.items():
        measures = measures_of(results, recipe)
        if measures is None:
            continue
        found = size(results, recipe)
        row = {"recipe": name} | measures | whole_difference(results, recipe, NOTHING)
        rows.append(
            row | {"bits": found.bits, "model_bits": found.model_bits, "bytes": found.bytes}
        )
    return Table(GIVEN_COLUMNS, rows)
