"""The words of the field for what the tables hold: the one map from values to what readers see."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fp4scope.ledger import Results
from fp4scope.stats import MIN_WINDOWS, SIGNIFICANCE


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
MIXED = Direction(
    "designed",
    "this is quantized or not, with about half of everything else",
    "cost on average over what else is quantized",
    "mean of the runs that do not quantize it",
)
_DIRECTIONS = {way.name: way for way in (KEEP, ONLY, MIXED)}
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
    """A direction by its value in a table."""
    return _DIRECTIONS[value]


def precision(rows: Iterable[Mapping[str, Any]]) -> str:
    """Bits of weights and activations, as in W4A16; of formats of other widths, each."""
    return "/".join(dict.fromkeys(row["precision"] for row in rows))


def level(value: str) -> str:
    """A kind of units, in the plural."""
    return "all-quantized models" if value == "model" else value


def family(row: Mapping[str, Any]) -> str:
    """What units are compared within, for a title: direction, format, precision."""
    return ", ".join(part for part in (row["direction"], row["format"], row["precision"]) if part)


def place(row: Mapping[str, Any]) -> str:
    """A unit's name: `5.down_proj`, `down_proj`, `5`."""
    name = (
        row["unit"]
        if "unit" in row
        else next((row[key] for key in ("projection", "pattern", "expert") if key in row), "")
    )
    return f"{'' if row.get('block') is None else row['block']}.{name or ''}".strip(".")


def blocks(model: Mapping[str, Any]) -> str:
    """How many blocks a model has, and of what types where it has several.

    Example:
        >>> blocks({"blocks": 3, "layer_types": ["sliding_attention"] * 2 + ["full_attention"]})
        '3 blocks (2 sliding_attention, 1 full_attention)'
    """
    types = Counter(model.get("layer_types") or [])
    told = ", ".join(f"{count} {name}" for name, count in types.items())
    return f"{model['blocks']} blocks ({told})" if told else f"{model['blocks']} blocks"


def so_many_windows(counts: Iterable[int]) -> str:
    """The fewest and the most.

    Example:
        >>> so_many_windows([1]), so_many_windows([16, 8])
        ('1 window', '8 to 16 windows')
    """
    known = sorted(counts)
    ends = [*dict.fromkeys((known[0], known[-1]))]
    return f"{' to '.join(map(str, ends))} window{'s' * (ends != [1])}"


def with_intervals(counts: Iterable[int], anytime: bool) -> str:
    """The same, and what intervals they have.

    Args:
        counts: Of windows.
        anytime: Whether the windows were as many as it took.

    Example:
        >>> with_intervals([16], False), with_intervals([4], False)
        ('16 windows, 95% intervals', '4 windows, too few for intervals')
    """
    known = list(counts)
    if max(known) < MIN_WINDOWS:
        return f"{so_many_windows(known)}, too few for intervals"
    return f"{so_many_windows(known)}, 95% {'confidence sequences' if anytime else 'intervals'}"


def windows_are(count: int) -> str:
    """As sentences begin.

    Example:
        >>> windows_are(1), windows_are(3)
        ('1 window is', '3 windows are')
    """
    return f"{count} window{'s are' if count != 1 else ' is'}"


def full_precision(results: Results) -> str:
    """The dtype that the unquantized model runs in, as the field writes it."""
    dtype = str(results.model.get("dtype"))
    return _DTYPES.get(dtype, "full precision")


def format_name(row: Mapping[str, Any], results: Results) -> str:
    """A whole model's format; of the unquantized one its dtype."""
    return row["format"] if row["precision"] else full_precision(results)
