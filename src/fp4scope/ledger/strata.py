"""Groups of targets by which sums over a window are kept: where, what, how common, how sure.

A *stratification* cuts the targets of every window into groups, its strata. There are four, and
each target is in one stratum of each:

- `position`: how many tokens of the window are in front of the target, in octaves from 16 on.
- `class`: what the target is as text (`data.strata`).
- `frequency`: quarters of all targets by how often their token comes in the evaluated text.
- `confidence`: the full-precision model's probability of its most likely token. It does not know
  the target, so that a group is not chosen by what the text says there.

What is kept of a window is a list for each stratification, with a value for each stratum, up to the
last that holds a target.
"""

from collections.abc import Sequence
from itertools import pairwise
from math import log2

POSITION, CLASS, FREQUENCY, CONFIDENCE = "position", "class", "frequency", "confidence"
_FIRST_OCTAVE = 4
"""Positions below 16 are few: they are two strata, the first target and all others."""
CLASSES = ("word", "word, continued", "digits", "punctuation", "white space", "other")
QUARTERS = ("most frequent", "frequent", "rare", "rarest")
EDGES = (0.1, 0.25, 0.5, 0.75, 0.9, 0.99)
"""Of confidence: a stratum begins at each, the first at 0."""
STRATIFICATIONS = (POSITION, CLASS, FREQUENCY, CONFIDENCE)
"""In the order in which they are kept."""
MOST_STRATA = 64
"""Of one stratification."""


def position_stratum(position: int) -> int:
    """The stratum of a target with so many tokens (from 1 on) in front of it.

    Example:
        >>> [position_stratum(p) for p in (1, 2, 15, 16, 31, 32, 1023, 1024)]
        [0, 1, 1, 2, 2, 3, 7, 8]
    """
    if position < 2**_FIRST_OCTAVE:
        return 0 if position == 1 else 1
    return position.bit_length() - _FIRST_OCTAVE + 1


def positions_of(stratum: int) -> range:
    """The positions of a stratum.

    Example:
        >>> [positions_of(s) for s in (0, 1, 2, 3)]
        [range(1, 2), range(2, 16), range(16, 32), range(32, 64)]
    """
    if stratum < 2:
        return (range(1, 2), range(2, 2**_FIRST_OCTAVE))[stratum]
    first = 2 ** (_FIRST_OCTAVE + stratum - 2)
    return range(first, 2 * first)


def names_of(stratification: str, targets: int) -> Sequence[str]:
    """The names of strata, in their order.

    Args:
        stratification: One of `STRATIFICATIONS`.
        targets: In a window, where positions end.

    Example:
        >>> names_of("position", 47), names_of("confidence", 47)[:2]
        (['1', '2-15', '16-31', '32-47'], ['0-10%', '10-25%'])
    """
    if stratification == POSITION:
        strata = map(positions_of, range(position_stratum(max(1, targets)) + 1))
        ends = [(own[0], min(own[-1], targets)) for own in strata]
        return [f"{low}-{high}" if high > low else f"{low}" for low, high in ends]
    if stratification == CONFIDENCE:
        edges = [f"{100 * edge:g}" for edge in (0, *EDGES, 1)]
        return [f"{low}-{high}%" for low, high in pairwise(edges)]
    return CLASSES if stratification == CLASS else QUARTERS


def octave_of(stratum: int, targets: int) -> float:
    """Mean binary logarithm of the positions of a stratum, up to the last of a window.

    Example:
        >>> octave_of(0, 2047), round(octave_of(8, 2047), 2)
        (0.0, 10.56)
    """
    own = [log2(position) for position in positions_of(stratum) if position <= targets]
    return sum(own) / len(own)
