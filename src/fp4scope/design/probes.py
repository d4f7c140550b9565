"""Settings that tell why quantizing something costs what it does, and what helps. Pure data."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from fp4scope.formats import FORMATS, BlockFormat, ScaleRule, Span, get_format
from fp4scope.treatments import Fault, Fit, Setting, Treatment

GAINS = (-30.0, -20.0)
"""Noise behind a product, in decibels of what leaves it, that its gain is measured with.

FP4 of both operands is off by about -20 to -14 dB. Two levels show how far damage is proportional
to the energy of an error.
"""


def variants(setting: Setting) -> dict[str, Setting]:
    """What is measured beside a setting, by what it tells.

    `weights` and `inputs` are the operands alone; `noise` has both with their error replaced by
    noise of the same energy in each block. Nothing of a setting that treats one operand.

    Example:
        >>> {name: s.precision for name, s in variants(Setting.from_json("nvfp4")).items()}
        {'weights': 'W4A16', 'inputs': 'W16A4', 'noise': 'W4A4'}
    """
    weight, entering = setting.weight, setting.input
    if weight is None or entering is None:
        return {}
    return {
        "weights": Setting(weight=weight),
        "inputs": Setting(input=entering),
        "noise": Setting(replace(weight, fault=Fault.NOISE), replace(entering, fault=Fault.NOISE)),
    }


def gains() -> list[Setting]:
    """Noise behind a product, level by level."""
    return [Setting(noise=db) for db in GAINS]


_LARGER = tuple(map(get_format, ("mxfp8:e4m3:even", "fp8")))
"""Of eight bits, with the rules of engines."""
_TURNED = (16, 32, 128)
MOMENTS_BYTES = 4 << 30
"""Of what is known of the inputs of a unit's linears; what needs more is not fitted."""


def remedies(setting: Setting, widths: Iterable[int]) -> dict[str, Setting | None]:
    """What may be done to a few linears instead of a setting, by name; None is full precision.

    Other rules for the scales, of weights alone and of both operands; NVFP4 in the place of MXFP4;
    inputs of eight bits or in full precision; weights in full precision; both of eight bits or in
    full precision; weights rounded to the second order; smoothing; and rotations. Nothing for a
    setting that treats one operand.

    Args:
        setting: It.
        widths: Inputs of each linear; they must hold whole blocks of what is turned.

    Example:
        >>> found = remedies(Setting.from_json("nvfp4"), [64])
        >>> [name for name in found if name.startswith("nvfp4+h")], found["bf16"]
        (['nvfp4+hadamard16', 'nvfp4+hadamard32'], None)
    """
    weight, entering = setting.weight, setting.input
    if weight is None or entering is None:
        return {}
    found: list[Setting] = []
    for fmt in _alike(weight.format):
        other = replace(weight, format=fmt)
        both = replace(entering, format=fmt) if entering.format == weight.format else entering
        found += [Setting(other, entering), Setting(other, both)]
    if weight.format.name.startswith("mxfp4"):
        nvfp4 = get_format("nvfp4")
        found.append(Setting(Treatment(nvfp4), Treatment(nvfp4, entering.amax)))
    found += [Setting(weight, Treatment(fmt)) for fmt in _LARGER]
    found += [Setting(weight=weight), Setting(input=entering)]
    found += [Setting(Treatment(fmt), Treatment(fmt)) for fmt in _LARGER]
    widths = list(widths)
    found += list(_fitted(weight, entering, widths))
    found += [
        Setting(replace(weight, hadamard=block), replace(entering, hadamard=block))
        for block in _TURNED
        if not any(width % block for width in widths)
    ]
    return {one.name: one for one in found if one != setting} | {"bf16": None}


def _fitted(weight: Treatment, entering: Treatment, widths: list[int]) -> Iterator[Setting]:
    """What is fitted to the calibration text; of formats whose blocks have a scale each."""
    fmt = weight.format
    if fmt.span is not Span.BLOCK or fmt.rule is ScaleRule.HIF4:
        return
    if sum(4 * width * width for width in widths) > MOMENTS_BYTES:
        return
    if not any(width % fmt.block_size for width in widths):
        yield Setting(replace(weight, fit=Fit.GPTQ), entering)
    yield Setting(replace(weight, fit=Fit.SMOOTH), replace(entering, fit=Fit.SMOOTH))


def _alike(fmt: BlockFormat) -> Iterator[BlockFormat]:
    """Formats of the same elements, blocks and scales, that are chosen by another rule."""
    kind = fmt.element, fmt.block_size, fmt.scale, fmt.span
    for other in FORMATS.values():
        if other != fmt and (other.element, other.block_size, other.scale, other.span) == kind:
            yield other
