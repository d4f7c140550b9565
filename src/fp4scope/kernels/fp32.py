"""FP32 numbers as the integers that their bits are, and what that makes of an element format.

With the sign cleared, FP32 orders like int32, NaN and Inf last.
"""

import struct

from fp4scope.formats.spec import BlockFormat, ElementFormat, ScaleRule

MANTISSA_BITS = 23
MAGNITUDE = 0x7FFFFFFF
INF = 0x7F800000


def bits(value: float) -> int:
    """The bits of the nearest FP32 number.

    Example:
        >>> hex(bits(1.0))
        '0x3f800000'
    """
    return int(struct.unpack("<i", struct.pack("<f", value))[0])


def rounding(element: ElementFormat) -> tuple[int, int, int]:
    """What rounding a magnitude to an element takes.

    Bits of the largest value; bits of the smallest normal; and what, added to the exponent bits of
    a magnitude, gives the bits of the number whose last place is the element's spacing there.
    """
    shift = (MANTISSA_BITS - element.mantissa_bits) << MANTISSA_BITS
    return bits(element.max), bits(2.0**element.min_exponent), shift


def scale_byte(fmt: BlockFormat) -> tuple[int, int, int]:
    """What the byte of an E8M0 scale takes, from the bits of an amax.

    `zero`, `carry`, `emax`: the byte is 0 for bits up to `zero`, else that of 2^k with
    k + 127 = ((bits + carry) >> 23) - emax.

    RCEIL asks for the power of two at or above the FP32 quotient amax / max. With max = M 2^emax
    and M < 2, the amax one unit above M 2^k has the quotient 2^(k - emax) (1 + 2^-23 / M), more
    than half a unit above the power of two, and goes on to the next: so the carry is what M lacks
    to 2, less one unit. Only at 2^-127, where units are twice as large, that quotient rounds down.
    """
    one, emax = 1 << MANTISSA_BITS, fmt.element.max_exponent
    carry, zero = 0, 0
    if fmt.rule is ScaleRule.EVEN:  # a mantissa that the element would round up to 2
        carry = one >> (fmt.element.mantissa_bits + 1)
    elif fmt.rule is ScaleRule.RCEIL:
        carry, zero = one - 1 - bits(fmt.element.max) % one, 1
    return ((emax + 1) << MANTISSA_BITS) - carry - 1 + zero, carry, emax
