"""What is left of the full-precision model's routing, counted by hand and along the tree."""

from dataclasses import replace

import pytest
import torch

from fp4scope.design import NOTHING, Run
from fp4scope.ledger import ROUTERS, ROUTING
from fp4scope.operands import Choice, choices, experts_in, routed
from fp4scope.recipes import Recipe
from fp4scope.sweep.routing import Seen, alike


def choice(tokens, weights=None, scores=None):
    index = torch.tensor(tokens)
    given = torch.ones(index.shape) if weights is None else torch.tensor(weights)
    logs = None if scores is None else torch.tensor(scores).log_softmax(-1)
    return Choice(index, given, 4, logs)


def compared(one, other):
    *counted, kl = alike(Seen.of(one), Seen.of(other)).tolist()
    assert (kl != kl) == (one.logs is None)
    return tuple(counted)


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


def test_the_kl_is_that_of_the_other_choices_distribution():
    one, other = torch.randn(3, 4), torch.randn(3, 4)
    sums = alike(
        *(Seen.of(choice([[0, 1]] * 3, scores=scores.tolist())) for scores in (one, other))
    )
    p, q = (scores.double().softmax(-1)[:2] for scores in (other, one))
    assert float(sums[-1]) == pytest.approx(float((p * (p / q).log()).sum()), rel=1e-5)


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
    routers = {"mixtral": 2, "deepseek-v3": 1}[family]
    counted = [kind for kind in ROUTING if kind != "kl"]
    by_router = {run.recipe for run in variants if run.is_whole}
    assert len(by_router) == 5 < len(ledger)
    for recipe in ledger:
        rows = ledger[recipe]
        # Sigmoid scores are no distribution.
        assert ("routing_kl" in rows.values) == (family == "mixtral")
        assert (ROUTERS["kept"] in rows.values) == (recipe in by_router)
        for kind in counted if ROUTERS["kept"] in rows.values else ():
            for values, mean in zip(
                rows.values[ROUTERS[kind]], rows.values[ROUTING[kind]], strict=True
            ):
                assert len(values) == routers
                assert mean == pytest.approx(sum(values) / routers)
        for row in range(len(rows.indices)):
            kept, same, weight, load = (rows.values[ROUTING[kind]][row] for kind in counted)
            if family == "mixtral":
                kl = rows.values["routing_kl"][row]
                assert kl == 0 if recipe == NOTHING and not rows.replicas[row] else kl > 0
            if recipe == NOTHING and rows.replicas[row] == 0:
                assert (kept, same, weight, load) == pytest.approx((targets, targets, targets, 0))
            assert 0 <= same <= kept <= targets
            assert 0 <= weight <= targets * (1 + 1e-6)
            assert 0 <= load <= targets - kept + 1e-6
    whole = next(r.recipe for r in variants if r.recipe.base and not r.recipe.edits)
    assert ledger[whole].values["routing_kept"][0] < targets


def test_replay_forces_the_full_precision_models_routing(
    adopted, ids, planned, calibrated, open_sweep
):
    """Without anything quantized it changes nothing; else it changes what comes out."""
    loaded = adopted("mixtral")
    variants = planned(loaded, formats="mxfp4", sweep="")
    replays = [run.recipe for run in variants if run.recipe.replay]
    assert [bool(recipe.base) for recipe in replays] == [True, False]
    every, experts = replays
    assert {name.rpartition(".")[2] for name in experts.edited} == {"gate_up_proj", "down_proj"}
    nothing = Recipe(replay=True)
    sweep = open_sweep(loaded, ids, [*variants, Run(nothing)], calibrated(loaded, ids))
    sweep.run()

    def found(recipe, measure):
        rows = sweep.log.ledger[recipe]
        chosen = zip(rows.indices, rows.replicas, rows.values[measure], strict=True)
        return [value for _, replica, value in sorted(chosen) if replica == 0]

    for measure in ("nll", "kl", *ROUTERS.values()):
        assert found(nothing, measure) == found(NOTHING, measure)
    for recipe in (every, experts):
        own = replace(recipe, replay=False)
        assert found(recipe, "nll") != found(own, "nll")
        # What routers would choose is told, not what is forced upon them.
        assert all(kl > 0 for kl in found(recipe, "routing_kl"))
    targets = ids.shape[1] - 1
    for recipe in (experts, replace(experts, replay=False)):
        kept = found(recipe, "router_kept")
        assert all(first == targets and second < targets for first, second in kept)


def test_a_model_without_routers_has_no_replays(adopted, planned):
    for family in ("llama", "llama4"):
        assert not any(run.recipe.replay for run in planned(adopted(family), formats="mxfp4"))


def test_a_listener_may_send_tokens_elsewhere(tiny_model, ids, unchanged):
    """Experts that are forced to be those of another forward make its outputs."""
    model = tiny_model("mixtral")
    chosen = []
    with choices(model, {}, lambda module, own: chosen.append(own)):
        plain = model(ids, use_cache=False).logits
    assert [c.experts for c in chosen] == [4, 4]
    replay = iter([Choice(c.index.flip(0), c.weights.flip(0), c.experts) for c in chosen])
    with unchanged(model), routed(experts_in(model), lambda module, own: next(replay)):
        assert not torch.equal(model(ids, use_cache=False).logits, plain)
    replay = iter(chosen)
    with routed(experts_in(model), lambda module, own: next(replay)):
        again = model(ids, use_cache=False).logits
    torch.testing.assert_close(again, plain, atol=1e-5, rtol=1e-5)
