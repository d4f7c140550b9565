"""The words of the field for what the tables hold: the one map from values to what readers see."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fp4scope.errors import FormatError
from fp4scope.formats import get_format
from fp4scope.ledger import Results
from fp4scope.stats import SIGNIFICANCE
from fp4scope.treatments import FULL_PRECISION_BITS


@dataclass(frozen=True)
class Direction:
    """How a unit's effect is asked for.

    Attributes:
        name: What it is called.
        meaning: What is quantized, and what the difference then says.
        effect: The difference, on an axis.
        control: The model that the difference is from.
    """

    name: str
    meaning: str
    effect: str
    control: str


KEEP = Direction(
    "keep",
    "all is quantized but this, which says what keeping it in full precision saves",
    "saved by keeping it in full precision",
    "all-quantized model",
)
ONLY = Direction(
    "only",
    "only this is quantized, which says what that costs on its own",
    "cost of quantizing only it",
    "full-precision model",
)
_DIRECTIONS = {"keep": KEEP, "only": ONLY, "restore": KEEP, "isolate": ONLY}
_LEVELS = {
    "components": "projections",
    "cells": "layers",
    "baselines": "all-quantized models",
}
_OPERANDS = {"weights+activations": "WA", "weights": "W", "activations": "A"}
_DTYPES = {"bfloat16": "BF16", "float16": "FP16", "float32": "FP32"}

EFFECT = "millinats per token"
SIGNIFICANT = (
    f"Significant: at {SIGNIFICANCE:.0%}, by Holm's correction over the units of one format, "
    "precision and direction."
)
SIGN = (
    "Positive means that quantizing this costs. 10 millinats per token are about 1% of perplexity."
)
NOISE = (
    "Run-to-run noise: what rounding alone does to the mean NLL between two runs of the same "
    "configuration, in millinats."
)
LOWER_LOSS = (
    "A lower loss on this text does not make a model closer to the one in full precision; how "
    "close it is, KL says."
)
ESTIMATE = "estimate (first order)"
ESTIMATES_MEAN = (
    "Estimates are first order: one forward and one backward pass for each window and point, "
    "<gradient, move of the linear's output>, no curvature and no interplay of errors. Their "
    "intervals are over windows and do not contain how far an estimate is from what a run with "
    "--method exact would measure."
)


def direction(value: str) -> Direction:
    """A direction by its value in a table, of today or of version 0.1."""
    return _DIRECTIONS.get(value) or Direction(value, value, value, value)


def precision(operands: str, *formats: str) -> str:
    """Bits of weights and activations, as in W4A16; of formats of other widths, each.

    Example:
        >>> precision("weights", "nvfp4"), precision("", "reference"), precision("W4A4", "nvfp4")
        ('W4A16', '', 'W4A4')
    """
    treated = _OPERANDS.get(operands)
    if treated is None:
        return operands
    found: dict[str, None] = {}
    for name in formats or ("nvfp4",):
        bits = _element_bits(name)
        sides = (bits if side in treated else FULL_PRECISION_BITS for side in "WA")
        found["W{:.0f}A{:.0f}".format(*sides)] = None
    return "/".join(found)


def _element_bits(name: str) -> int:
    try:
        return get_format(name).element.bits
    except FormatError:  # of results that name a format which this version does not know
        return 4


def level(value: str) -> str:
    """A kind of units, in the plural."""
    return _LEVELS.get(value, value)


def family(row: Mapping[str, Any]) -> str:
    """What units are compared within, for a title: direction, format, precision."""
    shown = (direction(row["direction"]).name, row["format"], under(row))
    return ", ".join(part for part in shown if part)


def under(row: Mapping[str, Any]) -> str:
    """The precision of a row."""
    return precision(row["operands"], row["format"])


def place(row: Mapping[str, Any]) -> str:
    """A unit's name: `5.down_proj`, `down_proj`, `5`."""
    name = row["unit"] if "unit" in row else row.get("component", row.get("pattern", ""))
    return f"{'' if row.get('block') is None else row['block']}.{name or ''}".strip(".")


def full_precision(results: Results) -> str:
    """The dtype that the unquantized model runs in, as the field writes it."""
    dtype = str(results.model.get("dtype"))
    return _DTYPES.get(dtype, "full precision")


def format_name(row: Mapping[str, Any], results: Results) -> str:
    """A whole model's format; of the unquantized one its dtype."""
    return full_precision(results) if not row["operands"] else row["format"]
