"""Whether neighbouring windows are alike."""

import numpy as np
import pytest

from asking import REFERENCE, asked
from fp4scope.stats import neighbour_correlation

UNIT = asked(format="nvfp4", direction="only", level="projections", unit="q")


@pytest.fixture
def found(observe, results):
    """`found(windows, reference, unit=None)`: how alike neighbours are in such a study."""

    def build(windows, reference, unit=None):
        given = ((REFERENCE, reference), (UNIT, unit))
        windows = [int(window) for window in windows]
        study = [observe(of, nll, windows=windows) for of, nll in given if nll is not None]
        return neighbour_correlation(results(*study))

    return build


def test_what_neighbours_share_is_found_in_any_order_of_measuring(alike, found):
    rng = np.random.default_rng(0)
    nll = alike(rng, 4000, share=0.6)
    effect = rng.normal(0, 0.1, 4000)
    order = rng.permutation(4000)
    like = found(order, nll[order], (nll + effect)[order])
    assert like.pairs == 3999
    assert like.nll == pytest.approx(0.6, abs=0.05)
    assert like.difference == pytest.approx(0.0, abs=0.05)
    assert like.large == like.difference  # the one unit is a projection


def test_costs_that_neighbours_share_are_found_and_what_they_do_to_an_interval(alike, found):
    rng = np.random.default_rng(0)
    cost = alike(rng, 4000, share=0.5)
    text = rng.normal(size=4000)
    like = found(range(4000), text, text + cost)
    assert like.large == pytest.approx(0.5, abs=0.05)
    assert like.widened == pytest.approx(3**0.5, rel=0.1)


def test_only_neighbours_in_the_text_are_pairs(found):
    # Alternating windows 0, 1, 3, 4, 6, 7: opposite inside a pair, the same across the gap.
    windows = [3 * i + j for i in range(20) for j in (0, 1)]
    like = found(windows, [1.0, -1.0] * 20)
    assert like.pairs == 20
    assert like.nll == pytest.approx(-1.0)
    assert like.difference is None


@pytest.mark.parametrize(("windows", "pairs"), [(8, None), (9, 8)])
def test_a_few_pairs_say_nothing(windows, pairs, found):
    like = found(range(windows), np.arange(float(windows)))
    assert (like and like.pairs) == pairs


def test_without_a_reference_there_is_none(found):
    assert found(range(20), None, np.arange(20.0)) is None


def test_pairing_takes_out_what_neighbours_share_in_the_recorded_study(study):
    found = neighbour_correlation(study)
    assert found.pairs == 44
    assert found.nll > 0.6
    assert abs(found.difference) < 0.15
