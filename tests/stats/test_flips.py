"""Paired score intervals of tasks: against closed forms, a likelihood search, and by coverage."""

import numpy as np
import pytest
from scipy import optimize, stats

from fp4scope.stats import MIN_WINDOWS
from fp4scope.stats.inference.flips import flips, score_interval

Z = 1.96


def test_where_nothing_flips_the_interval_is_not_nothing():
    low, high = score_interval(0.0, 0.0, 164.0, Z)
    assert high == pytest.approx(Z**2 / (164 + Z**2))
    assert low == -high


def test_where_all_are_lost():
    low, high = score_interval(43.0, 0.0, 43.0, Z)
    assert low == pytest.approx((43 - Z**2) / (43 + Z**2))
    assert high == pytest.approx(1)


@pytest.mark.parametrize(
    ("lost", "gained", "n"), [(12.0, 2.0, 44.0), (3.0, 9.0, 164.0), (0.0, 5.0, 60.0)]
)
def test_the_ends_are_where_the_score_test_rejects(lost, gained, n):
    def statistic(difference):
        """The score, with the likeliest share of gained documents found by search."""

        def unlikely(q):
            shares = np.array([q + difference, q, 1 - 2 * q - difference])
            counts = np.array([lost, gained, n - lost - gained])
            return -float(stats.multinomial.logpmf(counts, n, shares / shares.sum()))

        bounds = max(0.0, -difference) + 1e-12, (1 - difference) / 2 - 1e-12
        q = optimize.minimize_scalar(
            unlikely, bounds=bounds, method="bounded", options={"xatol": 1e-10}
        ).x
        variance = 2 * q + difference * (1 - difference)
        return (lost - gained - n * difference) / np.sqrt(n * variance)

    low, high = score_interval(lost, gained, n, Z)
    assert statistic(low) == pytest.approx(Z, abs=1e-3)
    assert statistic(high) == pytest.approx(-Z, abs=1e-3)
    swapped = score_interval(gained, lost, n, Z)
    assert swapped == pytest.approx((-high, -low))


def test_flips_are_counted_both_ways():
    found = flips([1, 1, 1, 0, 0, 1, 0, 1, 1], [0, 1, 1, 1, 0, 0, 0, 1, 1], range(9))
    assert (found.lost, found.gained, found.loss.n, found.problems) == (2, 1, 9, 9)
    assert found.share == pytest.approx(3 / 9)
    assert found.loss.mean == pytest.approx(1 / 9)
    assert found.loss.low < 1 / 9 < found.loss.high


def test_too_few_problems_have_no_interval():
    found = flips([1] * 20, [0] * 20, [i % (MIN_WINDOWS - 1) for i in range(20)])
    assert (found.loss.low, found.loss.high) == (None, None)


def test_graded_scores_count_as_parts():
    halves = flips([0.5] * 16, [0.0] * 8 + [0.5] * 8, range(16))
    assert (halves.lost, halves.loss.mean) == (8, 0.25)
    assert halves.loss.low == flips([1] * 16, [0] * 4 + [1] * 12, range(16)).loss.low


def test_documents_of_one_problem_are_worth_less():
    """Every problem asked four times, answered alike each time, is worth no more than once."""
    lost = [1] * 8 + [0] * 32
    once = flips(lost, [0] * 40, range(40))
    four = flips(np.repeat(lost, 4), [0] * 160, np.repeat(range(40), 4).tolist())
    assert four.design == pytest.approx(4, rel=0.05)
    assert four.loss.low == pytest.approx(once.loss.low, abs=0.005)
    apart = flips(np.repeat(lost, 4), [0] * 160, range(160))
    assert apart.loss.low > four.loss.low
    # Where nothing flips it is not known how alike they are.
    none = flips([1] * 160, [1] * 160, np.repeat(range(40), 4).tolist())
    assert none.loss.high == pytest.approx(flips([1] * 40, [1] * 40, range(40)).loss.high)


def test_how_many_documents_a_point_takes():
    """At 10% flips without a difference an interval of one point to either side takes 3,842."""
    found = flips([1, 0] * 50 + [1] * 900, [0, 1] * 50 + [1] * 900, range(1000))
    assert found.share == 0.1
    assert found.documents_for(0.01) == 3842
    assert flips([1] * 9, [1] * 9, range(9)).documents_for(0.01) is None


@pytest.mark.parametrize(
    ("documents", "lost", "gained"), [(164, 0.06, 0.04), (164, 0.02, 0.0), (40, 0.1, 0.1)]
)
def test_intervals_cover(documents, lost, gained):
    rng = np.random.default_rng(documents)
    covered = 0
    for _ in range(400):
        draw = rng.random(documents)
        first, second = draw < lost, (draw >= lost) & (draw < lost + gained)
        loss = flips(first, second, range(documents)).loss
        covered += loss.low <= lost - gained <= loss.high
    assert covered / 400 >= 0.93


@pytest.mark.parametrize(("problems", "each"), [(50, 5), (164, 3)])
def test_intervals_cover_where_problems_differ(problems, each):
    rng = np.random.default_rng(problems)
    member = np.repeat(range(problems), each)
    covered = plain = 0
    for _ in range(400):
        lost = rng.beta(0.5, 4.5, problems)[member]
        gained = rng.beta(0.5, 9.5, problems)[member]
        draw = rng.random(len(member))
        first, second = draw < lost, (draw >= lost) & (draw < lost + gained)
        for names, counts in ((member, 0), (range(len(member)), 1)):
            loss = flips(first, second, list(names)).loss
            held = loss.low <= 0.05 <= loss.high
            covered, plain = (covered + held, plain) if counts == 0 else (covered, plain + held)
    assert covered / 400 >= 0.93
    assert plain < covered


def test_two_runs_of_a_document_are_of_one_problem():
    """Chances differ by document, so its runs go together; taken apart they would cover less."""
    rng = np.random.default_rng(3)

    def chances(n):
        first = rng.beta(0.3, 0.4, n)
        return first, np.clip(first - 0.05 + 0.25 * rng.standard_normal(n), 0, 1)

    first, second = chances(1_000_000)
    truth = (first - second).mean()
    covered = np.zeros(2)
    for _ in range(500):
        scores = [(rng.random((2, 164)) < p).ravel().astype(float) for p in chances(164)]
        for place, problems in enumerate(([*range(164)] * 2, range(328))):
            loss = flips(*scores, problems).loss
            covered[place] += loss.low <= truth <= loss.high
    assert 0.925 <= covered[0] / 500 <= 0.985
    assert covered[1] < covered[0]
