"""Confidence sequences: the formula against integrals, and coverage at all n together."""

import numpy as np
import pytest
from scipy import integrate, stats

from fp4scope.stats import MIN_WINDOWS, anytime_p_values, critical, log_evidence, mean, p_value
from fp4scope.stats.inference.sequences import EFFECT

CASES = [(n, t) for n in (2, 5, 16, 146) for t in (-3.0, 0.0, 0.7, 2.3, 6.0)]


def by_integration(n, t, one_sided):
    """The ratio of t's densities: effects drawn from the prior, against no effect."""

    def density(effect):
        scale = 2.0 if one_sided else 1.0
        return (
            stats.nct.pdf(t, n - 1, np.sqrt(n) * effect) * scale * stats.norm.pdf(effect, 0, EFFECT)
        )

    middle = t / np.sqrt(n)
    low = 0.0 if one_sided else -8 * EFFECT
    points = [p for p in (middle, 0.0) if p > low]
    value, _ = integrate.quad(density, low, 8 * EFFECT, points=points, limit=400)
    return value / stats.t.pdf(t, n - 1)


@pytest.mark.parametrize("one_sided", [False, True])
@pytest.mark.parametrize(("n", "t"), [c for c in CASES if c[0] < 100])
def test_evidence_is_the_ratio_of_marginal_likelihoods(n, t, one_sided):
    found = np.exp(log_evidence(t, n, one_sided=one_sided))
    assert found == pytest.approx(by_integration(n, t, one_sided), rel=1e-6)


@pytest.mark.parametrize("one_sided", [False, True])
@pytest.mark.parametrize("n", [2, 5, 16, 146])
def test_evidence_has_expectation_one_without_an_effect(n, one_sided):
    def weighted(t):
        return float(np.exp(log_evidence(t, n, one_sided=one_sided)) * stats.t.pdf(t, n - 1))

    total = sum(integrate.quad(weighted, *side)[0] for side in ((-np.inf, 0), (0, np.inf)))
    assert total == pytest.approx(1, abs=1e-6)


def test_evidence_is_a_martingale_in_the_values():
    """Given any past, the next value changes the evidence by nothing on average.

    The predictive distribution under no effect is a scaled t with as many degrees of freedom as
    there are values, since the mean is known.
    """
    past = np.array([0.3, -1.2, 2.0, 0.9])
    scale = np.sqrt(np.mean(past**2))

    def at(values):
        t = np.sqrt(len(values)) * values.mean() / values.std(ddof=1)
        return float(np.exp(log_evidence(t, len(values))))

    def weighted(x):
        return at(np.append(past, x)) * stats.t.pdf(x / scale, len(past)) / scale

    total = sum(integrate.quad(weighted, *side)[0] for side in ((-np.inf, 0), (0, np.inf)))
    assert total == pytest.approx(at(past), rel=1e-6)


@pytest.mark.parametrize("alpha", [0.05, 2.5e-5])
@pytest.mark.parametrize("one_sided", [False, True])
@pytest.mark.parametrize("n", [24, 96, 1000])
def test_the_critical_t_is_where_the_evidence_is_one_over_alpha(n, alpha, one_sided):
    t = critical(n, alpha, one_sided=one_sided)
    assert np.exp(log_evidence(t, n, one_sided=one_sided)) == pytest.approx(1 / alpha, rel=1e-8)
    assert np.all(np.diff(log_evidence(np.linspace(0, 2 * t, 99), n, one_sided=one_sided)) > 0)


def test_one_side_is_tighter_than_two_and_no_tighter_than_twice_the_level():
    for n in (24, 96, 400):
        one = critical(n, 1e-3, one_sided=True)
        assert critical(n, 2e-3) <= one < critical(n, 1e-3)


def test_too_few_values_bound_nothing():
    assert critical(1, 0.05) == critical(2, 0.05) == critical(8, 2.5e-5) == np.inf
    assert np.isfinite(critical(MIN_WINDOWS, 0.05))
    with pytest.raises(ValueError, match=r"alpha is 0\.5"):
        critical(8, 0.5)


def test_the_effect_of_the_prior_is_near_the_best():
    """As the module says: for c over two orders of magnitude nothing is much tighter."""
    others = np.geomspace(0.05, 5, 40)
    for alpha, sizes, slack in ((0.05, (24, 48, 96, 146), 1.07), (2.5e-5, (32, 96, 146), 1.02)):
        for n in sizes:
            best = min(critical(n, alpha, effect=float(c)) for c in others)
            assert critical(n, alpha) <= slack * best, (alpha, n)


def ever_outside(draws, alpha, one_sided=False):
    """The share of rows whose mean of zero is outside the sequence at any n."""
    n = np.arange(1, draws.shape[1] + 1)
    means = np.cumsum(draws, axis=1) / n
    with np.errstate(divide="ignore", invalid="ignore"):
        s = np.sqrt((np.cumsum(draws**2, axis=1) - n * means**2) / (n - 1))
        t = (np.sqrt(n) * means / s)[:, MIN_WINDOWS - 1 :]
    bound = np.array([critical(int(k), alpha, one_sided=one_sided) for k in n[MIN_WINDOWS - 1 :]])
    return np.mean(((t if one_sided else np.abs(t)) > bound).any(axis=1))


@pytest.mark.parametrize(("one_sided", "alpha"), [(False, 0.05), (True, 0.05), (True, 0.005)])
def test_it_covers_at_all_sample_sizes_together(one_sided, alpha):
    rng = np.random.default_rng(0)
    draws = 7.0 * rng.standard_normal((8000, 400))
    missed = ever_outside(draws, alpha, one_sided)
    assert stats.binomtest(round(missed * 8000), 8000, alpha, "greater").pvalue > 0.01
    assert missed > alpha / 5  # nor is it so wide that it says nothing


def test_the_t_interval_does_not():
    """Looked at after every value it misses far more than 5%: what sequences are for."""
    rng = np.random.default_rng(0)
    draws = rng.standard_normal((2000, 400))
    n = np.arange(1, 401)
    means = np.cumsum(draws, axis=1) / n
    with np.errstate(divide="ignore", invalid="ignore"):
        s = np.sqrt((np.cumsum(draws**2, axis=1) - n * means**2) / (n - 1))
        t = (np.sqrt(n) * means / s)[:, MIN_WINDOWS - 1 :]
    bound = stats.t.ppf(0.975, n[MIN_WINDOWS - 1 :] - 1)
    assert np.mean((np.abs(t) > bound).any(axis=1)) > 0.3


def test_it_covers_on_recorded_differences(families):
    """Real windows drawn with replacement, each unit for itself, up to 300 of them."""
    rng = np.random.default_rng(1)
    for (level, fmt, direction), (more, less) in families.items():
        if level == "layers":
            centred = (more - less) - (more - less).mean(axis=0)
            unit = rng.integers(centred.shape[1], size=1500)
            window = rng.integers(len(centred), size=(1500, 300))
            missed = ever_outside(centred[window, unit[:, None]], 0.05)
            assert missed < 0.06, (fmt, direction)


def test_the_p_value_belongs_to_the_interval():
    rng = np.random.default_rng(2)
    for shift in (0.0, 0.3, 0.6, 0.9):
        x = rng.standard_normal(24) + shift
        estimate = mean(x, anytime=True)
        fixed = mean(x)
        assert estimate.low < fixed.low < fixed.high < estimate.high
        p = p_value(estimate, anytime=True)
        assert (p <= 0.05) == (not estimate.low <= 0 <= estimate.high)
        assert p >= p_value(fixed)


def test_p_values_without_spread():
    found = anytime_p_values(np.array([0.0, 1.0]), np.array([0.0, 0.0]), 16)
    assert found[0] == 1
    assert found[1] == pytest.approx((1 + 16 * EFFECT**2) ** -7.5)
