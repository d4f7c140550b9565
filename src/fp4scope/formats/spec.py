"""Block formats, as data.

A block format cuts the last axis of a tensor into blocks, gives each block one scale, and
stores every element in a few bits: `x ~ q * block_scale * tensor_scale`.

* The *element* is a small number format. E2M1 has the magnitudes 0, 0.5, 1, 1.5, 2, 3, 4, 6;
  rounding is to nearest, ties to the even code, saturating. An integer is a float with one
  exponent bit: the subnormals and the one normal binade have the same spacing.
* The *scale rule* says how the block's largest magnitude `a` (its amax) becomes its scale.
  The scale of an MX format is a power of two (E8M0), and people disagree about which one: that
  is worth tens of percent of perplexity, so the rule is part of the format's name. The scale of
  NVFP4 and its relatives is an E4M3 number times one FP32 scale for the whole tensor.
* The *span* says what shares a scale: a block of a row, a square of a matrix, a whole row (an
  output of a weight, a token of an input), or the tensor. An FP8 format is E4M3 with one of them.
  HiF4's blocks hold groups of 8 and of 4 numbers, each with one bit that doubles its scale.

Sources: OCP Microscaling Formats (MX) v1.0, sections 5 and 6; NVIDIA's published NVFP4
recipe as ModelOpt implements it; Four Over Six (arXiv 2512.02010); NVINT4 as in arXiv 2510.25602;
compressed-tensors' FP8 strategies `channel`, `token`, `tensor` and `block`; HiFloat4's published
GPU emulation. Those of weights alone: the package gguf, compressed-tensors and bitsandbytes.
"""

import math
from dataclasses import dataclass, replace
from enum import Enum
from functools import cached_property
from typing import Any

from fp4scope.errors import FormatError, nearest, shown


@dataclass(frozen=True, kw_only=True, eq=False)
class ElementFormat:
    """A small number format with subnormals and no NaN or Inf. Equal is what is the same object.

    `bias` is the exponent bias; `max` the largest magnitude. Floats are stored as sign and
    magnitude; with `integer`, as two's complement, which has no negative zero. The most negative
    integer is left unused, so that every format is symmetric.
    """

    name: str
    exponent_bits: int
    mantissa_bits: int
    bias: int
    max: float
    integer: bool = False

    @property
    def bits(self) -> int:
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def min_exponent(self) -> int:
        """Exponent of the smallest normal value; below it the spacing stays the same."""
        return 1 - self.bias

    @property
    def max_exponent(self) -> int:
        """Exponent of the largest value: `emax` of the MX specification."""
        return math.frexp(self.max)[1] - 1

    @property
    def smallest(self) -> float:
        """The smallest magnitude above zero, which is also the finest spacing."""
        return 2.0 ** (self.min_exponent - self.mantissa_bits)

    @cached_property
    def magnitudes(self) -> tuple[float, ...]:
        """The value of every non-negative code, by code: code n stands for magnitude n."""
        values: list[float] = []
        for code in range(2 ** (self.bits - 1)):
            exponent, mantissa = divmod(code, 2**self.mantissa_bits)
            fraction = mantissa / 2**self.mantissa_bits
            if exponent == 0:
                values.append(fraction * 2.0**self.min_exponent)
            else:
                values.append((1 + fraction) * 2.0 ** (exponent - self.bias))
        return tuple(v for v in values if v <= self.max)


class ScaleRule(Enum):
    """How a block's amax `a` becomes its scale. Value: (formula, source).

    `max` is the largest element, `m` its mantissa bits, `emax` its exponent; `A` is the amax of the
    tensor.
    """

    FLOOR = (
        "2^(floor(log2 a) - emax)",
        "OCP MX v1.0 section 6.3; microxcaling. The top of a block can clip.",
    )
    RCEIL = (
        "2^ceil(log2(a / max))",
        "NVIDIA ModelOpt, cuBLAS and cuDNN, torchao's inference config. Never clips.",
    )
    EVEN = (
        "2^(floor(log2 a) - emax + [mantissa(a) >= 2 - 2^-(m + 1)])",
        "compressed-tensors and llm-compressor, AMD Quark, vLLM's reference. 1.75 for E2M1.",
    )
    TENSOR = (
        "g * s, s = E4M3(a / (max g)), g = A / (448 max)",
        "NVIDIA ModelOpt; 448 is the largest E4M3.",
    )
    FOUR_OVER_SIX = (
        "g * s, s = E4M3(a / (6 g)) or E4M3(a / (4 g)), g = A / (256 * 6)",
        "Four Over Six (arXiv 2512.02010): for each block the one with the smaller squared error.",
    )
    MSE = (
        "g * s, s from 7 E4M3 numbers above to 3 below E4M3(a / (6 g)), g = A / (448 * 6)",
        "Of each block the one with the least squared error, of several the largest. NVIDIA "
        "ModelOpt searches all of E4M3 so, for weights.",
    )
    ONE = (
        "1",
        "vLLM's and SGLang's FP8 cache of keys and values where no scale was calibrated.",
    )
    AMAX = (
        "a / max; A / max if the tensor has one scale",
        "compressed-tensors and llm-compressor (FP8), vLLM; ModelOpt's static scales.",
    )
    HIF4 = (
        "s * m8 * m4, s = E6M2(bf16(a / 7)), m8 and m4 in {1, 2} for groups of 8 and of 4",
        "HiFloat4 (Ascend), as its authors' GPU emulation computes it.",
    )

    SIGNED_AMAX = (
        "FP16(m / min), m the number of largest magnitude, min the least element",
        "llama.cpp's Q4_0 and Q5_0, as the package gguf makes them; elements round halves up.",
    )
    FP16_AMAX = (
        "FP16(a / max)",
        "llama.cpp's Q8_0, as the package gguf makes it; elements round halves away from zero.",
    )
    HALF_RANGE = (
        "BF16(a / 7.5)",
        "compressed-tensors and llm-compressor, symmetric integers: half of the range of 15 steps.",
    )
    QUANTILES = (
        "a",
        "NormalFloat (QLoRA, arXiv 2305.14314), as bitsandbytes has it, without double "
        "quantization; elements are quantiles of a normal distribution.",
    )

    @property
    def label(self) -> str:
        return self.name.lower().replace("four_over_six", "4over6")

    @property
    def formula(self) -> str:
        return self.value[0]

    @property
    def source(self) -> str:
        return self.value[1]


class Span(Enum):
    """What shares a scale. Value: how tables name it, around a block size."""

    BLOCK = "{0}"
    """So many numbers of a row."""
    TILE = "{0}x{0}"
    """So many rows by so many columns of a matrix."""
    ROW = "row"
    """The whole last axis: an output of a weight, a token of an input."""
    TENSOR = "tensor"
    """Everything."""


@dataclass(frozen=True, kw_only=True, eq=False)
class BlockFormat:
    """Elements in blocks that share a scale. `scale_bits` are the bits of one block scale.

    Equal is what is the same object: formats are looked up at every quantization. `block_size` is
    what a width has to be a multiple of; 1 where rows of any width do.
    """

    name: str
    element: ElementFormat
    block_size: int
    scale: str
    scale_bits: int
    rule: ScaleRule
    span: Span = Span.BLOCK

    def __reduce__(self) -> Any:  # noqa: ANN401
        """By name, so that another process finds its own object."""
        named = _EVERY.get(self.name) is self
        return (get_treatment_format, (self.name,)) if named else super().__reduce__()

    @property
    def is_for_weights(self) -> bool:
        """Whether only weights have it, beside inputs of 16 bits."""
        return self.rule in _FOR_WEIGHTS

    @property
    def bits_per_element(self) -> float:
        """Stored bits for each element, the block scale included; scales of rows and tensor not."""
        return self.bits_in(None)

    def bits_in(self, cols: int | None) -> float:
        """Stored bits for each element in rows of so many, the scale of a row included too.

        Example:
            >>> get_format("fp8").bits_in(512), get_format("nvfp4").bits_in(512)
            (8.0625, 4.5)
        """
        shared = {Span.BLOCK: self.block_size, Span.TILE: self.block_size**2, Span.ROW: cols}
        count = shared.get(self.span)
        return self.element.bits + (self.scale_bits / count if count else 0.0)

    @property
    def block(self) -> str:
        """What shares a scale, for people."""
        return self.span.value.format(self.block_size)

    @cached_property
    def for_input(self) -> "BlockFormat":
        """What an input gets where a weight gets this: blocks of a token's row for squares."""
        return replace(self, span=Span.BLOCK) if self.span is Span.TILE else self

    @cached_property
    def for_tiles(self) -> "BlockFormat":
        """The same for squares that are laid out as rows, one each."""
        return replace(self, span=Span.ROW, block_size=1)

    @property
    def is_scaled_by_amax(self) -> bool:
        """Whether one amax alone, of a span of any size, makes the scale: FP8 and its squares."""
        return self.rule in (ScaleRule.AMAX, ScaleRule.ONE) or (
            self.scale == "E8M0" and self.block_size != MX_BLOCK
        )

    @property
    def is_given_scale(self) -> bool:
        """Whether the scale is not made from the amax of what shares it alone."""
        return self.uses_tensor_amax or self.rule is ScaleRule.ONE

    @property
    def uses_tensor_amax(self) -> bool:
        """Whether the scale needs the amax of the whole tensor, calibrated or measured."""
        if self.rule is ScaleRule.AMAX:
            return self.span is Span.TENSOR
        return self.rule in (ScaleRule.TENSOR, ScaleRule.FOUR_OVER_SIX, ScaleRule.MSE)

    @property
    def tensor_divisor(self) -> float:
        """What the tensor's amax is divided by to give its scale: the largest block scale that it
        may get, times the largest element.
        """
        if self.rule in (ScaleRule.AMAX, ScaleRule.ONE):
            return self.element.max
        # Four over six leaves room for a scale 1.5 times as large.
        largest = 256.0 if self.rule is ScaleRule.FOUR_OVER_SIX else E4M3.max
        return largest * self.element.max


E2M1 = ElementFormat(name="E2M1", exponent_bits=2, mantissa_bits=1, bias=1, max=6.0)
E2M3 = ElementFormat(name="E2M3", exponent_bits=2, mantissa_bits=3, bias=1, max=7.5)
E3M2 = ElementFormat(name="E3M2", exponent_bits=3, mantissa_bits=2, bias=3, max=28.0)
E4M3 = ElementFormat(name="E4M3", exponent_bits=4, mantissa_bits=3, bias=7, max=448.0)
E5M2 = ElementFormat(name="E5M2", exponent_bits=5, mantissa_bits=2, bias=15, max=57344.0)
INT8 = ElementFormat(
    name="INT8", exponent_bits=1, mantissa_bits=6, bias=1, max=127 / 64, integer=True
)
S1P2 = ElementFormat(name="S1P2", exponent_bits=1, mantissa_bits=2, bias=1, max=1.75)
INT4 = ElementFormat(name="INT4", exponent_bits=1, mantissa_bits=2, bias=-1, max=7.0, integer=True)

INT5 = ElementFormat(name="INT5", exponent_bits=1, mantissa_bits=3, bias=-2, max=15.0, integer=True)
Q8 = ElementFormat(name="INT8", exponent_bits=1, mantissa_bits=6, bias=-5, max=127.0, integer=True)
NF4 = ElementFormat(name="NF4", exponent_bits=1, mantissa_bits=2, bias=1, max=1.0)
"""Of it only the bits and the largest are so: its 16 values are those of a table."""

_FOR_WEIGHTS = frozenset(
    {ScaleRule.SIGNED_AMAX, ScaleRule.FP16_AMAX, ScaleRule.HALF_RANGE, ScaleRule.QUANTILES}
)

MSE_ABOVE, MSE_BELOW = 7, 3
"""How many E4M3 numbers `ScaleRule.MSE` tries above and below the scale of the amax."""

MX_BLOCK = 32
NV_BLOCK = 16
FP8_BLOCK = 128
HIF4_BLOCK = 64


def _mx(name: str, element: ElementFormat, rule: ScaleRule) -> BlockFormat:
    return BlockFormat(
        name=name, element=element, block_size=MX_BLOCK, scale="E8M0", scale_bits=8, rule=rule
    )


def _mx_with_each_rule(name: str, element: ElementFormat) -> list[BlockFormat]:
    rules = (ScaleRule.FLOOR, ScaleRule.RCEIL, ScaleRule.EVEN)
    return [_mx(f"{name}:{rule.name.lower()}", element, rule) for rule in rules]


def _nv(name: str, element: ElementFormat, rule: ScaleRule) -> BlockFormat:
    return BlockFormat(
        name=name,
        element=element,
        block_size=NV_BLOCK,
        scale="E4M3 x FP32",
        scale_bits=8,
        rule=rule,
    )


def _fp8(
    suffix: str, rule: ScaleRule, span: Span, size: int = 1, scale: str = "FP32", bits: int = 32
) -> BlockFormat:
    return BlockFormat(
        name=f"fp8{suffix}",
        element=E4M3,
        block_size=size,
        scale=scale,
        scale_bits=bits,
        rule=rule,
        span=span,
    )


_ALL = (
    *_mx_with_each_rule("mxfp4", E2M1),
    _nv("nvfp4", E2M1, ScaleRule.TENSOR),
    _nv("nvfp4:4over6", E2M1, ScaleRule.FOUR_OVER_SIX),
    _nv("nvfp4:mse", E2M1, ScaleRule.MSE),
    _nv("nvint4", INT4, ScaleRule.TENSOR),
    # 32 bits of scales in a block: E6M2, and one bit for each group of 8 and of 4.
    BlockFormat(
        name="hif4",
        element=S1P2,
        block_size=HIF4_BLOCK,
        scale="E6M2 x 2^{0,1,2}",
        scale_bits=32,
        rule=ScaleRule.HIF4,
    ),
    *_mx_with_each_rule("mxfp6:e2m3", E2M3),
    *_mx_with_each_rule("mxfp6:e3m2", E3M2),
    *_mx_with_each_rule("mxfp8:e4m3", E4M3),
    *_mx_with_each_rule("mxfp8:e5m2", E5M2),
    _mx("mxint8", INT8, ScaleRule.FLOOR),
    _fp8("", ScaleRule.AMAX, Span.ROW),
    _fp8(":tensor", ScaleRule.AMAX, Span.TENSOR),
    _fp8(":block128", ScaleRule.AMAX, Span.TILE, FP8_BLOCK),
    _fp8(":block128:ue8m0", ScaleRule.RCEIL, Span.TILE, FP8_BLOCK, "E8M0", 8),
)

FORMATS: dict[str, BlockFormat] = {f.name: f for f in _ALL}
"""What anything can be quantized to."""
CACHE_FORMATS: dict[str, BlockFormat] = {
    f.name: f for f in (_fp8(":unscaled", ScaleRule.ONE, Span.TENSOR),)
}
"""Without any scale: what else keys, values and probabilities can be."""


def _weights(
    name: str, element: ElementFormat, size: int, scale: str, bits: int, rule: ScaleRule
) -> BlockFormat:
    return BlockFormat(
        name=name, element=element, block_size=size, scale=scale, scale_bits=bits, rule=rule
    )


WEIGHT_FORMATS: dict[str, BlockFormat] = {
    f.name: f
    for f in (
        _weights("q8_0", Q8, 32, "FP16", 16, ScaleRule.FP16_AMAX),
        _weights("q5_0", INT5, 32, "FP16", 16, ScaleRule.SIGNED_AMAX),
        _weights("q4_0", INT4, 32, "FP16", 16, ScaleRule.SIGNED_AMAX),
        _weights("int4:g128", INT4, 128, "BF16", 16, ScaleRule.HALF_RANGE),
        _weights("nf4", NF4, 64, "FP32", 32, ScaleRule.QUANTILES),
    )
}
"""What people run already, beside inputs of 16 bits: yardsticks for whole models."""
_EVERY = FORMATS | CACHE_FORMATS | WEIGHT_FORMATS
# The rule of the MX specification, where a name leaves it open.
ALIASES: dict[str, str] = {
    name.removesuffix(":floor"): name for name in FORMATS if name.endswith(":floor")
} | {"mxfp8": "mxfp8:e4m3:floor", "fp8:calibrated": "fp8:tensor"}
_CACHE_ALIASES = {"fp8": "fp8:unscaled"}
"""What engines call an FP8 cache has scale 1."""


def _key(name: object) -> str:
    """As `FORMATS` has it; of what is no text, nothing."""
    key = name.strip().lower() if isinstance(name, str) else ""
    return ALIASES.get(key, key)


def get_format(name: object) -> BlockFormat:
    """The format called `name`; plain `mxfp4` is the OCP rule, `mxfp4:floor`.

    Raises:
        FormatError: There is no such format; the message names the closest.

    Example:
        >>> get_format("mxfp4").name
        'mxfp4:floor'
        >>> get_format("nvfp4").bits_per_element
        4.5
    """
    key = _key(name)
    if key in CACHE_FORMATS:
        raise FormatError(f"{key} has no scale; it is for --kv-cache and --attention only")
    return _known(name, FORMATS | WEIGHT_FORMATS)


def get_cache_format(name: object) -> BlockFormat:
    """The format that an option for keys, values and probabilities means: `fp8` has scale 1 there.

    Raises:
        FormatError: There is no such format; the message names the closest.
    """
    key = _key(name)
    return _known(_CACHE_ALIASES.get(key, name), FORMATS | CACHE_FORMATS)


def cache_format_name(fmt: BlockFormat) -> str:
    """What `get_cache_format` reads as this format, in the words of engines.

    Example:
        >>> cache_format_name(get_cache_format("fp8")), get_cache_format("fp8").name
        ('fp8', 'fp8:unscaled')
    """
    return next((alias for alias, name in _CACHE_ALIASES.items() if name == fmt.name), fmt.name)


def get_treatment_format(name: object) -> BlockFormat:
    """The format that a recipe names: one of all that there are, by its own name.

    Raises:
        FormatError: There is no such format; the message names the closest.
    """
    return _known(name, _EVERY)


def _known(name: object, known: dict[str, BlockFormat]) -> BlockFormat:
    key = _key(name)
    if key not in known:
        raise FormatError(f"unknown format {shown(name)}; {nearest(key, known)}")
    return known[key]
