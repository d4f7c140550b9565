"""Moves: recipes changed group by group, on models whose effects do not add."""

from itertools import product

import numpy as np
import pytest

from fp4scope.deploy.bar import Verdict, parse_bar
from fp4scope.deploy.bound import Bound
from fp4scope.deploy.moves import PASSES, Moves, search
from fp4scope.deploy.proof import Measured
from fp4scope.stats import Estimate

from .decided import known

COSTS = [0.05, 0.001, 0.02, 0.001, 0.003, 0.002]
TOGETHER = 0.1
"""What groups 1 and 3 cost together in NVFP4 beside their effects."""


class Model:
    """Measures recipes of a model in which two groups interact."""

    def __init__(self, found):
        self.found, self.passes = found, []

    def cost(self, options):
        own = sum((0, c, 0.1 * c)[o] for c, o in zip(COSTS, options, strict=True))
        return own + TOGETHER * (options[1] == options[3] == 1)

    def measured(self, decision):
        cost = self.cost(decision.options)
        found = Estimate(cost, 1e-5, cost - 1e-5, cost + 1e-5, 16)
        return Measured(decision, {"kl": found, "nll": found, "top1": found})

    def __call__(self, number, decisions):
        self.passes.append((number, len(decisions)))
        return [self.measured(one) for one in decisions]


def start(bound):
    found = known(COSTS)
    model = Model(found)
    first = model.measured(bound.choose(found))
    assert not first.is_as_predicted
    return found, model, first


def test_under_a_size_the_pair_is_taken_apart_for_the_least_that_can_be_had():
    bound = Bound(bits=6.0)
    found, model, first = start(bound)
    done = search(Moves(found, bound), first, model)
    assert done.end.decision.size.bits <= 6.0
    every = (found.of(np.array(options)) for options in product(range(3), repeat=6))
    least = min(model.cost(one.options) for one in every if one.size.bits <= 6.0)
    assert done.end.found["kl"].mean == pytest.approx(least)
    assert least < first.found["kl"].mean / 2
    assert done.end.is_as_predicted
    assert done.moves == sum(count for _, count in model.passes)
    assert [number for number, _ in model.passes] == list(range(1, done.passes + 1))
    # Nothing under the bound is better than what one move further would be.
    assert Moves(found, bound).best(done.end, [first]) is None


def test_under_a_bar_that_is_missed_bits_are_added_until_it_is_met():
    bound = Bound((parse_bar("kl<0.06"),))
    found, model, first = start(bound)
    assert first.verdict(bound.bars) is Verdict.MISSED
    done = search(Moves(found, bound), first, model)
    assert done.end.verdict(bound.bars) is Verdict.MET
    # One of the two gets the next format, and nothing else.
    assert done.passes == 1
    assert (done.end.decision.options != first.decision.options).sum() == 1
    assert done.end.decision.options[[1, 3]].tolist() in ([1, 2], [2, 1])


def test_under_a_bar_that_is_met_bits_are_taken_away_while_it_is():
    bound = Bound((parse_bar("kl<0.03"),))
    found, model = known(COSTS), Model(known(COSTS))
    full = model.measured(found.of(np.full(6, 2)))
    done = search(Moves(found, bound), full, model)
    assert done.end.verdict(bound.bars) is Verdict.MET
    assert done.end.decision.size.bits < full.decision.size.bits
    smaller = Moves(found, bound).next(done.end, ())
    assert done.passes == PASSES or not any(
        model.measured(one).verdict(bound.bars) is Verdict.MET for one in smaller
    )


def test_what_was_tried_is_not_tried_again():
    bound = Bound(bits=6.0)
    found, _, first = start(bound)
    moves = Moves(found, bound)
    tried = {first.decision.recipe}
    asked = moves.next(first, tried)
    assert asked
    assert all(one.size.bits <= 6.0 + 1e-9 for one in asked)
    assert not {one.recipe for one in moves.next(first, tried | {a.recipe for a in asked})} & {
        one.recipe for one in asked
    }


@pytest.mark.parametrize("bound", [Bound(bits=4.5), Bound((parse_bar("kl<1"),))])
def test_where_there_is_nothing_to_try_the_recipe_stays(bound):
    found, model, first = start(bound)
    done = search(Moves(found, bound), first, model)
    assert done.end.decision.recipe == first.decision.recipe
    assert (done.passes, done.moves) == (0, 0)
