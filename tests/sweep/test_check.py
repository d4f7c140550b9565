"""The self-check: who passes, who is run in batches of one, who is refused."""

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from fp4scope.errors import ModelError
from fp4scope.inject import Injector
from fp4scope.models import adopt
from fp4scope.sweep.check import self_check
from fp4scope.sweep.memory import Shape


class _Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.up, self.down = nn.Linear(width, width), nn.Linear(width, width)
        self.calls, self.fault = 0, ""

    def forward(self, hidden, shift=1):
        self.calls += 1
        if self.fault == "raises in a batch" and len(hidden) > 1:
            raise ValueError(f"a batch of {len(hidden)}")
        mixed = self.up(hidden).tanh() * shift
        if self.fault == "mixes a batch":
            mixed = mixed + hidden.mean(0)
        if self.fault == "flat":
            mixed = self.up(hidden.flatten(0, 1)).tanh().view_as(hidden)
        if self.fault == "keeps state":
            mixed = mixed * self.calls
        return hidden + self.down(mixed)


class Toy(PreTrainedModel):
    """A model of three blocks with a fault to choose."""

    config_class = LlamaConfig

    def __init__(self, config):
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(_Block(config.hidden_size) for _ in range(3))
        self.head = nn.Linear(config.hidden_size, config.vocab_size)
        self.fault = ""
        self.post_init()

    def forward(self, input_ids, use_cache=None):
        if self.fault == "takes one window" and len(input_ids) > 1:
            raise ValueError(f"{len(input_ids)} windows")
        hidden = self.embed(input_ids)
        shift = 1 + input_ids[..., None] / 96
        for block in self.blocks:
            hidden = block(hidden, shift) if self.fault == "per window" else block(hidden)
        if self.fault == "looks back":
            count = torch.arange(1, hidden.shape[1] + 1)[:, None]
            hidden = hidden + hidden.cumsum(1) / count
        if self.fault == "knows places":
            hidden = hidden * torch.linspace(1, 2, hidden.shape[1])[:, None]
        if self.fault == "skips":
            hidden = hidden + self.embed(input_ids)
        return CausalLMOutput(logits=self.head(hidden))


@pytest.fixture
def toy():
    def build(fault):
        torch.manual_seed(0)
        config = LlamaConfig(vocab_size=96, hidden_size=32, num_hidden_layers=3)
        loaded = adopt(Toy(config), None, name="toy", allow_partial=True)
        for module in (loaded.model, *loaded.model.blocks):
            module.fault = fault
        return loaded

    return build


@pytest.fixture(scope="module")
def long_ids():
    """More rows than the check compares: what looks at other rows looks beyond them."""
    return torch.randint(0, 96, (3, 96), generator=torch.Generator().manual_seed(0))


def test_every_family_passes(family, adopted, ids, unchanged):
    loaded = adopted(family)
    with unchanged(loaded.model):
        check = self_check(loaded, ids)
    assert check.difference == 0
    assert check.batches
    assert not check.flattens
    assert check.captured_bytes >= 2 * 24 * loaded.config.hidden_size * 4


@pytest.mark.parametrize("family", ["llama", "gemma3", "mixtral"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_dtypes_and_experts_pass_within_rounding(family, dtype, adopted, ids):
    check = self_check(adopted(family, dtype), ids)
    assert check.difference <= check.allowed < 0.2


def test_a_plain_model_passes(toy, long_ids):
    check = self_check(toy(""), long_ids)
    assert (check.batches, check.flattens) == (True, False)


def test_one_window_is_enough(toy, long_ids):
    assert self_check(toy(""), long_ids[:1]).batches


FAULTS = ["raises in a batch", "mixes a batch", "takes one window"]


@pytest.mark.parametrize("fault", FAULTS)
def test_what_breaks_in_a_batch_runs_in_batches_of_one(
    fault, toy, long_ids, planned, open_sweep, numbers_of, naive_numbers, unchanged
):
    loaded = toy(fault)
    with unchanged(loaded.model):
        assert not self_check(loaded, long_ids).batches
    injector = Injector(loaded.model, None)
    variants = planned(loaded, formats="mxfp4", sweep="blocks", replicas=2)
    sweep = open_sweep(loaded, long_ids, variants, injector)
    assert (sweep.shape.windows, sweep.shape.block) == (1, 1)
    sweep.run()
    assert numbers_of(sweep) == naive_numbers(loaded, long_ids, variants, injector)


@pytest.mark.parametrize("calibrate", [True, False])
def test_a_linear_that_sees_a_flat_batch(
    calibrate, toy, long_ids, planned, calibrated, open_sweep, numbers_of, naive_numbers
):
    """Such a linear cannot tell windows apart, so a dynamic scale needs batches of one."""
    loaded = toy("flat")
    check = self_check(loaded, long_ids)
    assert (check.batches, check.flattens) == (True, True)
    injector = calibrated(loaded, long_ids) if calibrate else Injector(loaded.model, None)
    variants = planned(loaded, formats="nvfp4", sweep="blocks")
    sweep = open_sweep(loaded, long_ids, variants, injector)
    assert (sweep.shape.block == 1) == (not calibrate)
    sweep.run()
    assert numbers_of(sweep) == naive_numbers(loaded, long_ids, variants, injector)


@pytest.mark.parametrize("block", [2, 7])
def test_what_differs_by_window_goes_with_it(
    block, toy, long_ids, planned, calibrated, open_sweep, numbers_of, naive_numbers
):
    """Blocks that are handed something of each window's own, several windows in a batch."""
    loaded = toy("per window")
    assert self_check(loaded, long_ids).batches
    injector = calibrated(loaded, long_ids)
    variants = planned(loaded, formats="nvfp4", sweep="blocks", replicas=2)
    shape = Shape(windows=3, groups=1, block=block, head=9)
    sweep = open_sweep(loaded, long_ids, variants, injector, shape=shape)
    sweep.run()
    assert numbers_of(sweep) == naive_numbers(loaded, long_ids, variants, injector)


@pytest.mark.parametrize("fault", ["keeps state", "looks back", "knows places", "skips"])
def test_what_the_wavefront_would_get_wrong_is_refused(fault, toy, long_ids, unchanged):
    loaded = toy(fault)
    with (
        unchanged(loaded.model),
        pytest.raises(
            ModelError,
            match=r"block by block, toy differs from its own forward by .*cannot be swept",
        ),
    ):
        self_check(loaded, long_ids)


def test_running_out_of_memory_is_not_taken_for_a_fault(toy, long_ids, monkeypatch):
    loaded = toy("")

    def run(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(type(loaded.stack), "run", run)
    with pytest.raises(torch.OutOfMemoryError):
        self_check(loaded, long_ids)
