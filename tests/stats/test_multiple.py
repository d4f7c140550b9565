"""P-values against scipy, and Holm's adjustment against its definition."""

import numpy as np
import pytest
from scipy import stats as scipy_stats

from fp4scope.stats import MIN_WINDOWS, SIGNIFICANCE, holm, mean, p_value, paired, significant


def test_the_p_value_is_that_of_the_paired_t_test(opposed):
    rng = np.random.default_rng(0)
    less, difference = rng.normal(0, 1, 20), opposed(rng.normal(0.3, 1, 20))
    expected = scipy_stats.ttest_1samp(difference, 0).pvalue
    assert p_value(paired(less + difference, less)) == pytest.approx(expected, rel=1e-10)


def test_p_is_at_most_5_percent_just_where_the_interval_leaves_zero_out():
    rng = np.random.default_rng(1)
    decided = 0
    for _ in range(400):
        estimate = mean(rng.normal(0.6, 1, 12))
        leaves_out = not estimate.low <= 0 <= estimate.high
        assert (p_value(estimate) <= SIGNIFICANCE) == leaves_out
        decided += leaves_out
    assert 100 < decided < 300


def test_too_few_windows_have_no_p_value():
    assert p_value(mean(range(1, MIN_WINDOWS))) is None
    assert p_value(mean(range(1, MIN_WINDOWS + 1))) < 0.05


@pytest.mark.parametrize(("value", "p"), [(0.0, 1.0), (0.5, 0.0), (-0.5, 0.0)])
def test_without_spread_only_zero_is_undecided(value, p):
    assert p_value(mean([value] * MIN_WINDOWS)) == p


def test_holm_by_hand():
    # Sorted 0.005, 0.01, 0.03, 0.04, times 4, 3, 2, 1: 0.02, 0.03, 0.06, and 0.04 raised to 0.06.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.5]) == [1.0, 1.0]
    assert holm([0.0, 0.02, 0.03]) == pytest.approx([0.0, 0.04, 0.04])
    assert holm([]) == []


def test_holm_leaves_out_what_has_no_p():
    assert holm([None, 0.02, None, 0.01]) == pytest.approx([None, 0.02, None, 0.02])


def test_holm_rejects_what_the_step_down_procedure_rejects():
    rng = np.random.default_rng(2)
    for _ in range(200):
        p = rng.beta(0.3, 3, 9)
        rejected = set()
        for step, i in enumerate(np.argsort(p)):
            if p[i] > 0.05 / (9 - step):
                break
            rejected.add(i)
        adjusted = holm(p.tolist())
        assert {i for i in range(9) if adjusted[i] <= 0.05} == rejected


@pytest.mark.parametrize("n", [8, 24])
def test_holm_keeps_false_discoveries_rare_on_real_data(families, n):
    """All hypotheses true: the windows of a real family, each unit's mean taken out."""
    rng = np.random.default_rng(n)
    for (level, *_), (more, less) in families.items():
        costs = more - less - (more - less).mean(axis=0)
        counts = rng.multinomial(n, np.full(len(costs), 1 / len(costs)), 4000)
        means = counts @ costs / n
        stderrs = np.sqrt((counts @ costs**2 / n - means**2) / (n - 1))
        t = np.abs(means / stderrs).max(axis=1)
        smallest = 2 * scipy_stats.t.sf(t, n - 1)  # Holm's first step decides the family's error
        wrong = np.mean(smallest * costs.shape[1] <= 0.05)
        # Tails are heavier than normal, so with few windows it is not quite kept.
        assert wrong <= (0.1 if n < 16 else 0.08), level


@pytest.mark.parametrize(("p_holm", "expected"), [(None, False), (0.05, True), (0.051, False)])
def test_significant(p_holm, expected):
    assert significant({"p_holm": p_holm}) is expected
