"""Sums over strata of the targets of one window (`ledger.strata`)."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8

from fp4scope.ledger.strata import EDGES


@dataclass(frozen=True)
class Strata:
    """Of one window: for each stratification its strata's targets, and sums over these in nats.

    Attributes:
        tokens: Targets in each stratum, up to the last that holds any.
        nll: Their NLL.
        kl: Their KL.
        reference: NLL of the reference on the same targets. Its own row may be of another
            computation, which a GPU rounds otherwise, so that a target's confidence is beside an
            edge here and beyond it there.
    """

    tokens: list[list[int]]
    nll: list[list[float]]
    kl: list[list[float]]
    reference: list[list[float]]


def sums_over(
    strata: UInt8[np.ndarray, "kinds rows"],
    confidence: Float[np.ndarray, " rows"],
    nll: Float[np.ndarray, " rows"],
    kl: Float[np.ndarray, " rows"],
    reference: Float[np.ndarray, " rows"],
) -> Strata:
    """The sums of a window's rows, FP64 and in the order of the rows, whatever made them.

    Args:
        strata: Of each row, by what the text tells.
        confidence: Of the full-precision model: the last stratification.
        nll: Of each row.
        kl: Of each row.
        reference: NLL of the reference, of each row.
    """
    sure = np.searchsorted(np.asarray(EDGES, np.float32), confidence, side="right")
    every = [*strata, sure]
    values = (nll, kl, reference)
    return Strata(
        [np.bincount(own).tolist() for own in every],
        *([np.bincount(own, each.astype(np.float64)).tolist() for own in every] for each in values),
    )
