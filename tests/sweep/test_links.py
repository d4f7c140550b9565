"""What blocks hand each other beside the hidden state is part of every state of a sweep."""

from collections import UserDict
from dataclasses import replace

import pytest
import torch

from fp4scope.errors import ModelError
from fp4scope.models.links import Axes, Shared, Tracer
from fp4scope.sweep import self_check


def test_linked_blocks_are_equal_to_the_bit(
    linked,
    adopted,
    ids,
    planned,
    calibrated,
    open_sweep,
    numbers_of,
    naive_numbers,
    unchanged,
):
    """Recipes, windows and replicas in one batch, each with what its own earlier blocks left."""
    loaded = adopted(linked)
    injector = calibrated(loaded, ids)
    variants = planned(loaded, formats="nvfp4", sweep="blocks", replicas=2)
    sweep = open_sweep(loaded, ids, variants, injector)
    assert sweep.worker.check.batches
    assert sweep.shape.block > 2
    with unchanged(loaded.model):
        sweep.run()
    found, expected = numbers_of(sweep), naive_numbers(loaded, ids, variants, injector)
    assert found.keys() == expected.keys()
    assert {k: (found[k], expected[k]) for k in expected if found[k] != expected[k]} == {}


def test_parts_of_a_state_that_has_more_windows_than_fit(
    adopted, ids, planned, calibrated, open_sweep, numbers_of
):
    loaded = adopted("gemma4")
    injector = calibrated(loaded, ids)
    variants = planned(loaded, formats="nvfp4", sweep="blocks")
    found = []
    for block in (1, 42):
        shape = replace(open_sweep(loaded, ids, variants, injector).shape, block=block)
        sweep = open_sweep(loaded, ids, variants, injector, shape=shape)
        sweep.run()
        found.append(numbers_of(sweep))
    assert found[0] == found[1]


def test_what_is_carried_lives_until_its_last_reader(adopted, ids):
    """Of Gemma 4's four blocks the third has the keys and values of the first, so on."""
    loaded = adopted("gemma4")
    loaded.stack.capture(ids[:1])
    links = loaded.stack.links
    assert [len(found) for found in links.reads] == [0, 0, 2, 2]
    assert [len(found) for found in links.alive] == [2, 4, 2, 0]
    plain, keys_and_values = 64 * 4, 2 * 2 * 16 * 4
    assert list(links.bytes_per_token) == [
        plain + carried * keys_and_values for carried in (0, 1, 2, 1, 0)
    ]
    assert list(loaded.bytes_per_token) == list(links.bytes_per_token)


def test_plain_blocks_carry_nothing(adopted, ids):
    loaded = adopted("llama")
    loaded.stack.capture(ids)
    links = loaded.stack.links
    assert links.stream == Axes(0)
    assert not any((links.axes, *links.places, *links.reads, *links.writes, *links.alive))
    assert set(links.bytes_per_token) == {64 * 4.0}


@pytest.mark.parametrize("family", ["gemma4", "gemma3n"])
def test_the_self_check_sees_a_mapping_that_batches_share(family, adopted, ids, monkeypatch):
    """As if every call were handed the model's one mapping: what ran last is in it."""
    loaded = adopted(family)
    one = {}
    monkeypatch.setattr(Shared, "fresh", lambda self, _: one.setdefault(0, self.empty))
    reason = self_check(loaded, ids).reason
    assert reason is not None
    assert "pass something on in a way that cannot be seen" in reason


@pytest.mark.parametrize("family", ["glm-dsa", "zaya"])
def test_the_self_check_sees_what_is_not_carried(family, adopted, ids, monkeypatch):
    """As if a block found what the batch before left."""
    loaded = adopted(family)
    own = type(loaded.stack).run
    last = {}

    def run(self, block, state, *rest):
        mixed = {slot: last[slot][:1].expand_as(x) for slot, x in state.carried.items()}
        left = own(self, block, replace(state, carried=mixed), *rest)
        last.update(left.carried)
        return left

    monkeypatch.setattr(type(loaded.stack), "run", run)
    reason = self_check(loaded, ids).reason
    assert reason is not None
    assert "pass something on in a way that cannot be seen" in reason


def traced(*blocks, tokens=5):
    """Links of blocks given as functions of the hidden state, a mapping and what came before."""
    tracer, shared = Tracer(tokens), UserDict()
    hidden, before = torch.ones(1, tokens, 4), None
    with tracer:
        for block in blocks:
            tracer.enter(hidden, ((None, before), {"shared": shared}))
            output = block(hidden, before, shared)
            tracer.leave(output)
            hidden, before = output
    return tracer.links()


def test_what_nobody_looks_at_is_not_carried():
    made = traced(
        lambda x, before, shared: (x + 1, x * 2), lambda x, before, shared: (x + 1, before)
    )
    assert made.axes == ()


def test_what_is_passed_on_unseen_is_carried_from_where_it_was_made():
    made = traced(
        lambda x, before, shared: (x + 1, x * 2),
        lambda x, before, shared: (x + 1, before),
        lambda x, before, shared: (x + before, before),
    )
    assert [tuple(found) for found in made.writes] == [(0,), (), ()]
    assert made.reads == ((), (), (0,))
    assert made.alive == (frozenset([0]), frozenset([0]), frozenset())


def test_an_entry_that_is_made_anew_is_another_tensor():
    def writes(x, before, shared):
        shared["kv"] = (x * 2, x * 3)
        return x + 1, None

    def reads(x, before, shared):
        return x + shared["kv"][0], None

    made = traced(writes, reads, writes, reads)
    # Both of an entry, though one alone is looked at: a block unpacks it.
    assert made.reads == ((), (0, 1), (), (2, 3))
    assert made.alive == (frozenset([0, 1]), frozenset(), frozenset([2, 3]), frozenset())


def test_a_tensor_in_which_windows_cannot_be_told_apart_is_refused():
    with pytest.raises(ModelError, match=r"tensor of shape \(3, 4\) in which windows of 5 tokens"):
        traced(
            lambda x, before, shared: (x + 1, torch.ones(3, 4)),
            lambda x, before, shared: (x + before.sum(), None),
        )


@pytest.mark.parametrize(
    ("shape", "axes"),
    [((1, 5, 8), Axes(0)), ((1, 5, 4, 8), Axes(0)), ((4, 1, 5, 8), Axes(1)), ((5, 8), None)],
)
def test_where_a_hidden_state_has_its_windows(shape, axes):
    x = torch.arange(torch.Size(shape).numel()).view(shape)
    assert Axes.of_stream(x, 5) == axes
    if axes is not None:
        first = axes.first(x, 1)
        assert first.shape[:2] == (1, 5)
        assert torch.equal(axes.back(first), x)


@pytest.mark.parametrize("shape", [(1, 5, 8), (2, 1, 5), (3, 1), (5, 8)])
def test_windows_of_what_is_carried_come_apart(shape):
    one = torch.arange(torch.Size(shape).numel()).view(shape)
    axes = Axes.of_carried(one, 5)
    assert axes is not None
    both = torch.cat([one, -one], dim=axes.windows)
    first = axes.first(both, 2)
    assert len(first) == 2
    assert torch.equal(first[1], -axes.first(one, 1)[0])
    assert torch.equal(axes.back(first), both)
