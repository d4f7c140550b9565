"""The rank correlation of estimates with the exact sweep, and which families have one."""

import numpy as np
import pytest
from scipy import stats as scipy_stats

from asking import REFERENCE, all_quantized, asked, estimated
from fp4scope.stats import MIN_WINDOWS, agreement, agreement_table, spearman, unit_table
from fp4scope.stats.inference.agreement import ceilings
from fp4scope.stats.inference.dependence import drawn_means


@pytest.mark.parametrize("ties", [False, True])
def test_spearman_is_scipys(ties):
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(2, 5, 40))
    if ties:
        one, other = one.round(), other.round()
    expected = [scipy_stats.spearmanr(a, b).statistic for a, b in zip(one, other, strict=True)]
    assert spearman(one, other).tolist() == pytest.approx(expected, rel=1e-12)


def test_spearman_of_a_constant_is_nothing():
    assert np.isnan(spearman(np.ones(4), np.arange(4.0)))
    assert agreement(np.ones((9, 4)), np.tile(np.arange(4.0), (9, 1))) is None


def noisy(rng, truth, noise, windows):
    return truth + noise * rng.normal(size=(windows, len(truth)))


def test_the_interval_is_reproducible_holds_rho_and_needs_windows():
    rng = np.random.default_rng(1)
    truth = rng.normal(size=30)
    exact = noisy(rng, truth, 2.0, 12)
    estimated = noisy(rng, truth, 2.0, 12)
    found = agreement(exact, estimated)
    assert found == agreement(exact.copy(), estimated.copy())
    expected = scipy_stats.spearmanr(exact.mean(0), estimated.mean(0)).statistic
    assert found.rho.value == pytest.approx(expected, rel=1e-12)
    assert -1 <= found.rho.low < found.rho.value < found.rho.high <= 1
    few = agreement(exact[: MIN_WINDOWS - 1], estimated[: MIN_WINDOWS - 1])
    assert few.rho[1:] == (None, None)
    certain = agreement(np.tile(truth, (12, 1)), np.tile(-truth, (12, 1)))
    assert certain.rho == pytest.approx((-1, -1, -1))


def test_windows_are_drawn_together():
    """What both lists share in a window does not widen the interval."""
    rng = np.random.default_rng(2)
    exact = noisy(rng, np.arange(20.0), 5.0, 16)
    same = agreement(exact, exact)
    assert same.rho == pytest.approx((1, 1, 1))
    apart = agreement(exact, exact[::-1])
    assert apart.rho.value == pytest.approx(1)
    assert apart.rho.low < 1
    assert agreement(exact, exact + rng.normal(0, 3, exact.shape)).rho.low < 1


def test_the_interval_holds_the_correlation_without_noise_more_often_than_the_draws_do():
    """Noise lowers rho, and the draws lie as far below rho again."""
    rng = np.random.default_rng(3)
    held = percentile = 0
    for _ in range(20):
        truth = rng.standard_t(3, size=100)
        other = 0.7 * truth + 0.7 * rng.standard_t(3, size=100)
        lists = noisy(rng, truth, 3.0, 32), noisy(rng, other, 1.0, 32)
        found = agreement(*lists)
        rho = float(spearman(truth, other))
        held += found.rho.low <= rho <= found.rho.high
        drawn = drawn_means(np.concatenate(lists, axis=1), 500)
        least, most = np.quantile(spearman(drawn[:, :100], drawn[:, 100:]), [0.025, 0.975])
        percentile += least <= rho <= most
    assert held >= 14
    assert percentile <= held - 5


def test_what_both_share_in_a_window_is_not_worth_much_elsewhere():
    """Units alike but for the luck of these windows: rho is high, and nearly none apart."""
    rng = np.random.default_rng(4)
    luck = noisy(rng, np.zeros(40), 1.0, 12)
    lucky = agreement(luck, luck + noisy(rng, np.zeros(40), 0.3, 12))
    assert lucky.rho.value > 0.8
    assert abs(lucky.apart) < 0.35
    truth = 3 * np.arange(40.0)
    real = agreement(noisy(rng, truth, 1.0, 12), noisy(rng, truth, 1.0, 12))
    assert real.apart > 0.98
    assert agreement(luck[:3], luck[:3]).apart is None


@pytest.mark.parametrize(("noise", "windows"), [(1.0, 16), (4.0, 16), (8.0, 64)])
def test_the_ceiling_is_what_knowing_the_truth_would_reach(noise, windows):
    rng = np.random.default_rng(5)
    said, reached = [], []
    for _ in range(20):
        truth = rng.standard_t(3, size=60)
        exact = noisy(rng, truth, noise, windows)
        said.append(ceilings(exact))
        halves = exact[: windows // 2]
        reached.append([float(spearman(truth, x.mean(axis=0))) for x in (exact, halves)])
    assert np.mean(said, axis=0) == pytest.approx(np.mean(reached, axis=0), abs=0.05)


def test_an_order_that_does_not_repeat_has_no_ceiling():
    rng = np.random.default_rng(6)
    exact = np.concatenate([noisy(rng, side * np.arange(30.0), 0.1, 1) for side in (1, -1) * 8])
    assert ceilings(exact) == (0, 0)
    assert ceilings(exact[:3]) is None


def layer(block, direction="only", fmt="nvfp4"):
    return asked(format=fmt, direction=direction, level="layers", unit="q_proj", block=block)


@pytest.fixture
def both(observe, results):
    """`both(direction)`: 20 layers that cost 0, 1, ... nats; the estimate turns the first five."""

    def build(direction, windows=9, only=()):
        text = np.random.default_rng(0).normal(3, 1, windows)
        base = text + 30
        found = [observe(REFERENCE, text), observe(all_quantized("nvfp4"), base)]
        order = [4, 3, 2, 1, 0, *range(5, 20)]
        for block in range(20):
            nll = text + block if direction == "only" else base - block
            if block not in only:
                found.append(observe(layer(block, direction), nll))
        backwards = [*reversed(range(windows))]
        for block in range(20):
            nats = [order[block]] * windows
            found.append(estimated(layer(block, direction), nats, windows=backwards))
        return results(*found)

    return build


@pytest.mark.parametrize("direction", ["keep", "only"])
def test_a_family_is_compared_in_the_sign_of_the_tables(both, direction):
    (row,) = agreement_table(both(direction))
    expected = scipy_stats.spearmanr(range(20), [4, 3, 2, 1, 0, *range(5, 20)]).statistic
    assert row["rho"] == pytest.approx(expected)
    assert (row["rho_low"], row["rho_high"]) == pytest.approx((expected, expected))
    names = ("direction", "units", "windows", "top", "top_shared")
    assert [row[n] for n in names] == [direction, 20, 9, 10, 10]
    # Every window has the same order.
    assert (row["ceiling"], row["ceiling_apart"]) == pytest.approx((1, 1))


def test_units_without_an_exact_measurement_are_in_the_tables_and_not_compared(both):
    study = both("only", only=(7, 19))
    (row,) = agreement_table(study)
    assert row["units"] == 18
    layers = unit_table(study, "layers")
    assert len(layers) == 20
    for one in layers:
        measured = one["block"] not in (7, 19)
        assert (one["delta_nll"] is not None) == (one["ppl"] is not None) == measured
        expected = [4, 3, 2, 1, 0, *range(5, 20)][one["block"]]
        values = [one[f"gradient_nll{end}"] for end in ("", "_stderr", "_low", "_high")]
        assert values == pytest.approx([expected, 0, expected, expected])
        assert (one["windows"], one["tokens"]) == (9, 90)


def test_two_units_have_no_rank_correlation(both):
    assert len(agreement_table(both("only", only=range(3, 20)))) == 1
    assert len(agreement_table(both("only", only=range(2, 20)))) == 0
