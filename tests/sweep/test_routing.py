"""What is left of the full-precision model's routing, counted by hand and along the tree."""

import pytest
import torch

from fp4scope.design import NOTHING
from fp4scope.ledger import ROUTING
from fp4scope.metrics import Routing
from fp4scope.operands import Choice
from fp4scope.sweep.routing import alike, listening


def choice(tokens, weights=None):
    index = torch.tensor(tokens)
    given = torch.ones(index.shape) if weights is None else torch.tensor(weights)
    return Choice(index, given, 4)


def compared(one, other):
    return Routing(*alike(one, other).tolist())


def test_all_but_the_last_token_count():
    one = choice([[0, 1], [2, 3], [0, 3]])
    assert compared(one, one) == (2, 2, 2, 0)
    assert compared(choice([[0, 1], [2, 3], [1, 2]]), one) == (2, 2, 2, 0)


def test_experts_are_a_set_and_weights_are_shares():
    one = choice([[0, 1], [2, 3], [0, 1]], [[3.0, 1.0], [1.0, 1.0], [1.0, 1.0]])
    turned = choice([[1, 0], [3, 2], [0, 1]], [[0.5, 1.5], [2.0, 2.0], [1.0, 1.0]])
    assert compared(one, turned) == (2, 2, 2, 0)
    other = choice([[0, 1], [2, 0], [0, 1]], [[1.0, 1.0], [1.0, 3.0], [1.0, 1.0]])
    # The first token: shares 3/4 and 1/4 against halves. The second shares expert 2: 1/2 and 1/4.
    assert compared(one, other) == (1.5, 1, 0.75 + 0.25, 0.5)


def test_loads_may_be_the_same_though_tokens_are_elsewhere():
    one, other = choice([[0, 1], [2, 3], [0, 1]]), choice([[2, 3], [0, 1], [0, 1]])
    assert compared(one, other) == (0, 0, 0, 0)
    all_at_one = choice([[0, 1], [0, 1], [0, 1]])
    assert compared(all_at_one, one) == (1, 1, 1, 1)


@pytest.mark.parametrize("family", ["mixtral", "deepseek-v3", "llama4"])
def test_every_run_has_its_routing(family, adopted, ids, planned, calibrated, open_sweep):
    """Full precision keeps all; its perturbed realisation is the ceiling of the others."""
    loaded = adopted(family)
    variants = planned(loaded, formats="mxfp4", sweep="blocks")
    sweep = open_sweep(loaded, ids, variants, calibrated(loaded, ids))
    sweep.run()
    ledger = sweep.log.ledger
    if family == "llama4":  # whose experts are not told where tokens go
        assert not ROUTING.values() & ledger[NOTHING].values.keys()
        return
    targets = ids.shape[1] - 1
    for recipe in ledger:
        rows = ledger[recipe]
        for row in range(len(rows.indices)):
            kept, same, weight, load = (rows.values[name][row] for name in ROUTING.values())
            if recipe == NOTHING and rows.replicas[row] == 0:
                assert (kept, same, weight, load) == pytest.approx((targets, targets, targets, 0))
            assert 0 <= same <= kept <= targets
            assert 0 <= weight <= targets * (1 + 1e-6)
            assert 0 <= load <= targets - kept + 1e-6
    whole = next(r.recipe for r in variants if r.recipe.base and not r.recipe.edits)
    assert ledger[whole].values["routing_kept"][0] < targets


def test_a_listener_may_send_tokens_elsewhere(tiny_model, ids, unchanged):
    """Experts that are forced to be those of another forward make its outputs."""
    from fp4scope.operands import experts_in, routed

    model = tiny_model("mixtral")
    with listening(model) as chosen:
        plain = model(ids, use_cache=False).logits
    assert [c.experts for c in chosen] == [4, 4]
    replay = iter([Choice(c.index.flip(0), c.weights.flip(0), c.experts) for c in chosen])
    with unchanged(model), routed(experts_in(model), lambda module, own: next(replay)):
        assert not torch.equal(model(ids, use_cache=False).logits, plain)
    replay = iter(chosen)
    with routed(experts_in(model), lambda module, own: next(replay)):
        again = model(ids, use_cache=False).logits
    torch.testing.assert_close(again, plain, atol=1e-5, rtol=1e-5)
