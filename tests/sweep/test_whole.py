"""What the wavefront cannot sweep is measured by the model's own forward, one recipe at a time."""

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from fp4scope.errors import ModelError, StudyError
from fp4scope.models import adopt
from fp4scope.sweep import memory_for, self_check, worker
from fp4scope.sweep.naive import forwards


class _Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.up, self.down = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, hidden):
        return hidden + self.down(self.up(hidden).tanh())


class Looped(PreTrainedModel):
    """Goes through its blocks twice, as recurrent transformers do."""

    config_class = LlamaConfig

    def __init__(self, config):
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(_Block(config.hidden_size) for _ in range(2))
        self.head = nn.Linear(config.hidden_size, config.vocab_size)
        self.forwards, self.drifts_after = 0, None
        self.post_init()

    def forward(self, input_ids, use_cache=None):
        self.forwards += 1
        hidden = self.embed(input_ids)
        for block in [*self.blocks, *self.blocks]:
            hidden = block(hidden)
        drifts = self.drifts_after is not None and self.forwards > self.drifts_after
        return CausalLMOutput(logits=self.head(hidden) * (1 + drifts * 1e-3 * self.forwards))


@pytest.fixture
def looped():
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=96, hidden_size=32, num_hidden_layers=2)
    return adopt(Looped(config), None, name="looped", allow_partial=True)


STUDY = {"formats": "nvfp4,mxfp4", "sweep": "blocks", "replicas": 2}


def test_a_looped_model_is_measured_by_its_own_forward(
    looped, ids, planned, calibrated, open_sweep, numbers_of, naive_numbers, unchanged
):
    injector = calibrated(looped, ids)
    runs = planned(looped, **STUDY)
    sweep = open_sweep(looped, ids, runs, injector)
    assert sweep.worker.check.reason is not None
    assert "does not run its 2 blocks once each and in order" in sweep.worker.check.reason
    assert sweep.shape.whole
    count = forwards(runs)
    assert f"one at a time: {count} forwards of each window" in sweep.notes[0]
    told, before = [], looped.model.forwards
    with unchanged(looped.model):
        sweep.run(lambda event: told.append((event.done, event.total)))
    assert looped.model.forwards - before == count * len(ids)
    # After every forward and every window, to the end, which stays where it is.
    done = [share for share, _ in told]
    assert done == sorted(done)
    assert len(set(done)) == count * len(ids) + 1
    assert {total for _, total in told} == {done[-1]} == {sweep.work * len(ids)}
    assert numbers_of(sweep) == naive_numbers(looped, ids, runs, injector)
    assert all(shape["whole"] for shape in sweep.log.shapes)


def test_the_images_of_one_recipe_are_held_at_a_time(
    looped, ids, planned, calibrated, open_sweep, monkeypatch
):
    injector = calibrated(looped, ids)
    sweep = open_sweep(looped, ids, planned(looped, **STUDY), injector)
    held = []
    own = looped.logits
    monkeypatch.setattr(looped, "logits", lambda row: held.append(len(injector.held)) or own(row))
    sweep.run()
    assert max(held) == len(looped.layout.sites)


def test_a_sweep_goes_on_where_it_stopped(looped, ids, planned, calibrated, open_sweep, numbers_of):
    injector = calibrated(looped, ids)
    runs = planned(looped, **STUDY)
    whole = open_sweep(looped, ids, runs, injector)
    whole.run()
    stopped = open_sweep(looped, ids, runs, injector)

    def stop(event):
        if event.windows == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped.run(stop)
    assert len(stopped.log.windows) == 1
    again = open_sweep(looped, ids, runs, injector, log=stopped.log)
    before = looped.model.forwards
    again.run()
    assert looped.model.forwards - before == forwards(runs)
    assert numbers_of(again) == numbers_of(whole)


def test_a_forward_that_drifts_is_noticed(
    looped, ids, planned, calibrated, open_sweep, monkeypatch
):
    sweep = open_sweep(looped, ids, planned(looped, **STUDY), calibrated(looped, ids))
    monkeypatch.setattr(worker, "FORWARDS_BETWEEN_CHECKS", 2)
    looped.model.drifts_after = looped.model.forwards
    with pytest.raises(ModelError, match="forwards are not always the same"):
        sweep.run()


def test_memory_counts_the_images_of_a_recipe_and_the_logits(looped, ids, planned):
    check = self_check(looped, ids)
    runs = planned(looped, **STUDY)
    few, many = (memory_for(check, looped, runs, tokens, 10**10) for tokens in (64, 4096))
    weights = sum(site.parameters for site in looped.layout.sites)
    assert many.needed(many.shape(2)) - few.needed(few.shape(2)) > 4032 * 96 * 4
    alone = memory_for(check, looped, runs[:1], 64, 10**10)
    assert few.needed(few.shape(2)) - alone.needed(alone.shape(2)) == weights * 4
    with pytest.raises(StudyError, match="one window of 64 tokens at a time takes"):
        memory_for(check, looped, runs, 64, 1000).shape(2)
