"""Blocks that wait on the host: the same bits, each copied once a pass."""

import pytest
import torch

from fp4scope.errors import NonFiniteError
from fp4scope.models import State, adopt
from fp4scope.operands import Injector
from fp4scope.sweep import task_windows
from fp4scope.treatments import Setting

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# More blocks than fit on the device at a time.
FAMILIES = {
    "llama": "num_hidden_layers",
    "gemma3": "num_hidden_layers",
    "qwen3-moe": "num_hidden_layers",
    "gpt2": "n_layer",
}
DEPTH = 4


@pytest.fixture(params=[(f, where) for f in FAMILIES for where in ("yes", "disk")], ids="-".join)
def both(request, tiny_model, tmp_path, monkeypatch):
    """The same model as it is, and with its blocks on the host."""
    monkeypatch.setenv("FP4SCOPE_CACHE", str(tmp_path))
    family, where = request.param

    def build():
        return tiny_model(family, **{FAMILIES[family]: DEPTH})

    waiting = adopt(build(), None, device=DEVICE, offload=where, allow_partial=True)
    return adopt(build(), None, device=DEVICE, allow_partial=True), waiting


def test_the_same_logits_and_fingerprint(both, ids):
    whole, waiting = both
    assert waiting.offloaded is not None
    assert waiting.offloaded.kind in ("yes", "disk")
    assert whole.offloaded is None
    assert whole.fingerprint == waiting.fingerprint
    for row in ids:
        for _ in range(2):
            assert torch.equal(waiting.logits(row), whole.logits(row))


def test_a_forward_reads_each_block_once(both, ids):
    _, waiting = both
    waiting.logits(ids[0])
    before = waiting.offloaded.copies
    for passes in range(1, 4):
        waiting.logits(ids[0])
        assert waiting.offloaded.copies == before + passes * DEPTH


def test_workers_copy_blocks_in_as_few_tasks_as_can_be(both):
    whole, waiting = both
    # 24 windows of 65,536 tokens for two workers: three tasks each, or one, or what memory takes.
    for most, plain, few in [(100, 4, 12), (12, 4, 12), (6, 4, 6), (5, 4, 4), (3, 3, 3)]:
        assert task_windows(24, most, 65_536, whole, 2) == plain
        assert task_windows(24, most, 65_536, waiting, 2) == few


def test_stepping_aside_reads_nothing(both, ids):
    _, waiting = both
    inputs = waiting.stack.capture(ids)
    before = waiting.offloaded.copies
    waiting.stack.capture(ids)
    with waiting.stack.tail() as tail:
        tail(inputs.embedded)
    assert waiting.offloaded.copies == before


@pytest.mark.parametrize("order", [[0, 1, 0, 0, 1], [3, 3, 0, 2], [2, 1, 0, 1, 2]], ids=str)
def test_blocks_in_any_order(both, ids, order):
    whole, waiting = both
    inputs = whole.stack.capture(ids), waiting.stack.capture(ids)
    for block in order:
        results = [
            loaded.stack.run(block, State(given.embedded), given, [0, 1]).hidden
            for loaded, given in zip(both, inputs, strict=True)
        ]
        assert torch.equal(*results)


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 0, 1], [0, 1, 0], [3, 1, 2, 1, 3]], ids=str)
def test_a_block_is_on_the_device_and_the_next_on_its_way(both, order):
    """On a CPU a block that stays on the host has the right values too, so places are compared."""
    offloaded = both[1].offloaded
    slots = [slot.untyped_storage().data_ptr() for slot in offloaded._slots]
    for block in order:
        offloaded.bring(block)
        places = {t.untyped_storage().data_ptr() for t in offloaded._tensors[block]}
        assert len(places) == 1
        assert places < set(slots)
        assert set(offloaded._inside) == {block, (block + 1) % DEPTH}
        for other in set(range(DEPTH)) - {block}:
            elsewhere = {t.untyped_storage().data_ptr() for t in offloaded._tensors[other]}
            assert not elsewhere & places


def test_parameters_stay_the_same_objects(tiny_model, ids):
    model = tiny_model("llama")
    before = dict(model.named_parameters())
    values = {name: p.detach().clone() for name, p in before.items()}
    waiting = adopt(model, None, device=DEVICE, offload="yes")
    waiting.logits(ids[0])
    for name, parameter in model.named_parameters():
        assert parameter is before[name]
        assert torch.equal(parameter.cpu(), values[name])


def test_quantized_weights_survive_another_block(both, ids):
    whole, waiting = both
    name = waiting.layout.linears[0]
    settings = {name: Setting.from_json({"weight": "nvfp4"})}
    results = []
    for loaded in both:
        injector = Injector(loaded.model)
        loaded.stack.bring(0)
        with injector.applied(settings):
            results += [loaded.logits(ids[0])]
        loaded.stack.bring(1)
        loaded.stack.bring(0)
        with injector.applied(settings):
            results += [loaded.logits(ids[0])]
    assert all(torch.equal(result, results[0]) for result in results)
    assert not torch.equal(results[0], whole.logits(ids[0]))


def test_a_damaged_weight_is_still_named(tiny_model, ids):
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = torch.nan
    injector = Injector(model)
    name = "model.layers.1.mlp.up_proj"
    with (
        pytest.raises(NonFiniteError, match=f"the weight of {name} has NaN or Inf"),
        injector.applied({name: Setting.from_json({"weight": "mxfp4"})}),
    ):
        pass
