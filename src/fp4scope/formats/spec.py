"""FP4 block formats, as data.

A block format cuts the last axis of a tensor into blocks, gives each block one scale, and
stores every element in a few bits: `x ~ q * block_scale * tensor_scale`.

* The *element* is a small floating-point format. E2M1 has the magnitudes
  0, 0.5, 1, 1.5, 2, 3, 4, 6; rounding is to nearest, ties to the even code, saturating.
* The *scale rule* says how the block's largest magnitude `a` (its amax) becomes its scale.
  MXFP4's scale is a power of two (E8M0), and people disagree about which one: that is worth
  tens of percent of perplexity, so the rule is part of the format's name. NVFP4's scale is
  an E4M3 number times one FP32 scale for the whole tensor.

Sources: OCP Microscaling Formats (MX) v1.0, sections 5 and 6; NVIDIA's published NVFP4
recipe as ModelOpt implements it.
"""

from dataclasses import dataclass
from enum import Enum
from functools import cached_property

from fp4scope.errors import FormatError, nearest


@dataclass(frozen=True, kw_only=True)
class ElementFormat:
    """A sign-magnitude floating-point element with subnormals and no NaN or Inf.

    `bias` is the exponent bias; `max` the largest magnitude.
    """

    name: str
    exponent_bits: int
    mantissa_bits: int
    bias: int
    max: float

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
        return 2**self.exponent_bits - 1 - self.bias

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
    """How a block's amax `a` becomes its scale. Value: (formula, source)."""

    FLOOR = (
        "2^(floor(log2 a) - emax)",
        "OCP MX v1.0 section 6.3; microxcaling. The top of a block can clip.",
    )
    RCEIL = (
        "2^ceil(log2(a / max))",
        "NVIDIA ModelOpt, cuBLAS and cuDNN, torchao's inference config. Never clips.",
    )
    EVEN = (
        "2^(floor(log2 a) - emax + [mantissa(a) >= 1.75])",
        "compressed-tensors and llm-compressor, AMD Quark, vLLM's reference.",
    )
    TENSOR = (
        "g * E4M3(a / (6 g)), g = A / 2688 with A the tensor's amax",
        "NVIDIA ModelOpt; 2688 = 6 * 448, the largest E2M1 times the largest E4M3.",
    )

    @property
    def formula(self) -> str:
        return self.value[0]

    @property
    def source(self) -> str:
        return self.value[1]


@dataclass(frozen=True, kw_only=True)
class BlockFormat:
    """Elements in blocks that share a scale. `scale_bits` are the bits of one block scale."""

    name: str
    element: ElementFormat
    block_size: int
    scale: str
    scale_bits: int
    rule: ScaleRule

    @property
    def bits_per_element(self) -> float:
        """Stored bits for each element, the block scale included and the tensor scale not."""
        return self.element.bits + self.scale_bits / self.block_size

    @property
    def uses_tensor_amax(self) -> bool:
        """Whether the scale needs the amax of the whole tensor, calibrated or measured."""
        return self.rule is ScaleRule.TENSOR


E2M1 = ElementFormat(name="E2M1", exponent_bits=2, mantissa_bits=1, bias=1, max=6.0)


def _mxfp4(rule: ScaleRule) -> BlockFormat:
    return BlockFormat(
        name=f"mxfp4:{rule.name.lower()}",
        element=E2M1,
        block_size=32,
        scale="E8M0",
        scale_bits=8,
        rule=rule,
    )


_ALL = (
    _mxfp4(ScaleRule.FLOOR),
    _mxfp4(ScaleRule.RCEIL),
    _mxfp4(ScaleRule.EVEN),
    BlockFormat(
        name="nvfp4",
        element=E2M1,
        block_size=16,
        scale="E4M3 x FP32",
        scale_bits=8,
        rule=ScaleRule.TENSOR,
    ),
)

FORMATS: dict[str, BlockFormat] = {f.name: f for f in _ALL}
ALIASES: dict[str, str] = {"mxfp4": "mxfp4:floor"}


def get_format(name: str) -> BlockFormat:
    """The format called `name`; plain `mxfp4` is the OCP rule, `mxfp4:floor`.

    Raises:
        FormatError: There is no such format; the message names the closest.

    Example:
        >>> get_format("mxfp4").name
        'mxfp4:floor'
        >>> get_format("nvfp4").bits_per_element
        4.5
    """
    key = str(name).strip().lower()
    key = ALIASES.get(key, key)
    if key not in FORMATS:
        raise FormatError(f"unknown format {name!r}; {nearest(key, FORMATS)}")
    return FORMATS[key]
