"""What is said of a unit's error and gain, on known numbers."""

from unittest.mock import Mock

import pytest

from fp4scope.report.explained import explained
from fp4scope.report.findings import Findings
from fp4scope.table import Table

UNIT = {"level": "projections", "unit": "k_proj", "block": None}
ROW = UNIT | {"format": "mxfp4:floor", "precision": "W4A4", "measure": "kl"}
RATIOS = {
    "against_noise": (1.0, 0.9, 1.1),
    "over_predicted": (1.0, 0.9, 1.1),
    "gain": (1000.0, 800.0, 1200.0),
    "kl": (0.08, 0.07, 0.09),
}


def said(**ratios: tuple[float, float, float]) -> str:
    """All sentences of one unit whose numbers are known."""
    gains = ROW | {"error": 0.01, "error_db": -20.0, "linear": 0.25}
    for name, values in (RATIOS | ratios).items():
        gains |= dict(zip((name, f"{name}_low", f"{name}_high"), values, strict=True))
    names = ("both", "weights", "inputs", "interaction")
    split = ROW | {f"{n}{end}": 0.0 for n in names for end in ("", "_low", "_high")}
    found = Mock(
        spec=Findings,
        gains=Table([*gains], [gains]),
        split=Table([*split], [split]),
        errors=Table(["projection", "operand"], []),
        remedies=Table([*ROW], []),
    )
    [sentences] = explained(found, "k_proj").values()
    return " ".join(sentences)


def test_noise_is_said_at_the_energies_that_were_measured():
    assert "Noise of 0.1% of the output's energy costs +1000 [+800.0, +1200]" in said()
    assert "noise of 1% costs 2.50 times as much" in said()


@pytest.mark.parametrize(
    ("over", "much"),
    [((0.3, 0.2, 0.4), "much less"), ((3.0, 2.5, 3.5), "much more"), ((0.5, 0.3, 0.7), None)],
)
def test_a_product_that_is_far_off_is_told(over, much):
    text = said(over_predicted=over)
    assert (f"Rounding does {much} here than noise" in text) if much else "Rounding" not in text


@pytest.mark.parametrize(
    ("against", "words", "matters"),
    [
        ((1.07, 1.02, 1.12), "worse than chance", False),
        ((1.5, 1.4, 1.6), "worse than chance", True),
        ((0.6, 0.5, 0.7), "better than chance", True),
        ((1.0, 0.9, 1.1), "no worse and no better than chance", False),
    ],
)
def test_a_small_difference_from_chance_is_no_direction(against, words, matters):
    text = said(against_noise=against)
    assert words in text
    assert ("the direction of the error matters" in text) == matters
