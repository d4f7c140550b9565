"""Whole models that are measured beside what a study sweeps: a few of hundreds of variants.

They answer what is asked first of a format: what the rule costs that engines use, whether better
weight scales help, what weights alone cost, and how far FP8 is.
"""

from collections.abc import Iterable
from dataclasses import replace

from fp4scope.formats import BlockFormat, get_format
from fp4scope.treatments import Configuration

_RELATIVES = {
    family: (f"{family}:even", f"{family}:rceil")
    for family in ("mxfp4", "mxfp6:e2m3", "mxfp6:e3m2", "mxfp8:e4m3", "mxfp8:e5m2")
} | {"nvfp4": ("nvfp4", "nvfp4:4over6", "nvfp4:4over6/nvfp4")}
"""By a format without its rule: the rules that engines use, and better scales of weights."""
_YARDSTICK = get_format("fp8")
_FEW = 4
"""Bits of elements that engines also serve with activations in full precision."""


def beside(swept: Iterable[Configuration], *, both: bool) -> tuple[Configuration, ...]:
    """More configurations whose all-quantized model is worth measuring.

    Args:
        swept: Those whose units are measured.
        both: Whether weights and inputs of these are quantized, where their names leave it open.

    Example:
        >>> list(map(str, beside([Configuration.parse("mxfp4")], both=True)))
        ['mxfp4:even', 'mxfp4:rceil', 'mxfp4:floor/w4a16', 'fp8']
    """
    swept = tuple(swept)
    found = [
        replace(Configuration.parse(name), operands=one.operands)
        for one in swept
        for name in _RELATIVES.get(_family(one.weight), ())
    ]
    for one in swept:
        on_both = one.operands == "WA" if one.operands else both
        if one.weight.element.bits <= _FEW and on_both:
            found.append(Configuration(one.weight, one.weight, "W"))
    for one in swept:
        if one.weight.element.bits < _YARDSTICK.element.bits:
            found.append(Configuration(_YARDSTICK, _YARDSTICK, one.operands))
    return tuple(one for one in dict.fromkeys(found) if one not in swept)


def _family(fmt: BlockFormat) -> str:
    """A format's name without its scale rule."""
    return fmt.name.removesuffix(f":{fmt.rule.label}")
