"""FP32 numbers as the integers that their bits are, and what that makes of an element format.

With the sign cleared, FP32 orders like int32, NaN and Inf last.
"""

import struct

from fp4scope.formats.spec import ElementFormat

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
