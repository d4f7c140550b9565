"""One recipe for several texts: means choose, the worst is held to a bar."""

from dataclasses import replace

import numpy as np
import pytest

from fp4scope.deploy.bar import Verdict, parse_bar
from fp4scope.deploy.joint import MeasuredOnAll, joint, of_text, on_all, worst
from fp4scope.deploy.proof import Measured
from fp4scope.stats import Estimate

from .decided import WINDOWS, known

PROSE, CODE = [6.0, 0.1, 0.1, 0.1, 0.1, 0.1], [0.1, 3.0, 0.1, 0.1, 0.1, 0.1]


def of(mean, half=0.1):
    return Estimate(mean, half / 2, mean - half, mean + half, 16)


def test_effects_are_the_mean_and_predictions_the_worst():
    prose, code = known(PROSE), known(CODE)
    both = joint([prose, code])
    np.testing.assert_allclose(both.cost, (prose.cost + code.cost) / 2)
    assert len(both.kl.by_window) == 2 * WINDOWS
    decision = both.of(np.ones(6, np.int64))
    expected = [one.of(decision.options).predicted["kl"].mean for one in (prose, code)]
    assert decision.predicted["kl"].mean == max(expected) == pytest.approx(6.5)
    # Under a bound what either text cannot bear is spared.
    spared = both.under(6.0).options
    assert spared[0] != 1
    assert spared[1] != 1


def test_one_text_is_itself():
    alone = known(PROSE)
    assert joint([alone]) is alone
    one = Measured(alone.of(np.zeros(6, np.int64)), {"kl": of(1.0)})
    assert on_all(one.decision, [one]) == one
    assert of_text(one, 0) is one


def test_windows_that_are_drawn_are_those_of_each_text():
    noise = joint([known(PROSE, 0.1), known(CODE, 0.1)])
    first, second = noise.kl.texts
    drawn = np.array([0, 0, 3, WINDOWS + 5, WINDOWS + 5])
    expected = first.resampled(np.array([0, 0, 3])) + second.resampled(np.array([5, 5]))
    np.testing.assert_allclose(noise.kl.resampled(drawn), expected / 2)
    # A text none of whose windows was drawn keeps all of them.
    drawn = np.array([1, 2])
    expected = first.resampled(drawn) + second.resampled(np.arange(WINDOWS))
    np.testing.assert_allclose(noise.kl.resampled(drawn), expected / 2)


def test_the_worst_is_what_may_be_worst():
    assert worst("kl", [of(1.0, 0.1), of(0.9, 0.5)]).mean == 0.9
    assert worst("top1", [of(0.9, 0.01), of(0.92, 0.2)]).mean == 0.92
    assert worst("nll", [Estimate(1.0, None, None, None, 1), of(0.5)]).mean == 1.0


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ([of(0.2), of(0.3)], Verdict.MET),
        ([of(0.2), of(0.45)], Verdict.UNDECIDED),
        ([of(0.7, 0.05), of(0.5, 0.4)], Verdict.MISSED),  # the second may be worse, the first is
        ([of(0.4, 0.05), Estimate(0.1, None, None, None, 3)], Verdict.UNDECIDED),
    ],
)
def test_a_bar_is_met_where_it_is_on_each(texts, said):
    decision = joint([known(PROSE), known(CODE)]).of(np.ones(6, np.int64))
    found = on_all(decision, [Measured(decision, {"kl": each}) for each in texts])
    assert found.verdict([parse_bar("kl<0.5")]) is said


def test_what_was_measured_is_as_predicted_on_each():
    both = joint([known(PROSE), known(CODE)])
    decision = both.of(np.ones(6, np.int64))
    alone = both.of(np.zeros(6, np.int64))
    good = Measured(alone, {"kl": of(0.0), "nll": of(0.0)})
    bad = Measured(decision, {"kl": of(99.0), "nll": of(99.0)})
    found = on_all(decision, [good, bad])
    assert isinstance(found, MeasuredOnAll)
    assert found.found["kl"].mean == 99.0
    assert good.is_as_predicted
    assert not found.is_as_predicted
    assert [of_text(found, place) for place in (0, 1)] == [good, bad]


@pytest.mark.parametrize(
    ("predicted", "hardly"),
    [(of(0.3, 0.1), False), (of(0.3, 0.5), True), (Estimate(0.3, None, None, None, 1), False)],
)
def test_a_prediction_wider_than_what_was_measured_could_hardly_fail(predicted, hardly):
    decision = known(PROSE).of(np.ones(6, np.int64))
    found = Measured(replace(decision, predicted={"kl": predicted}), {"kl": of(0.4, 0.01)})
    assert found.is_as_predicted
    assert found.is_hardly_predicted is hardly
