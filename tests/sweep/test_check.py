"""The self-check: who passes, who is run in batches of one, who is refused."""

import re
from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    CodeGenConfig,
    FalconMambaConfig,
    Gemma4TextConfig,
    LlamaConfig,
    Mamba2Config,
    PreTrainedModel,
)
from transformers.modeling_outputs import CausalLMOutput

from fp4scope.errors import ModelError, NonFiniteError
from fp4scope.models import BlockStack, adopt
from fp4scope.operands import Injector, experts
from fp4scope.sweep import check as check_module
from fp4scope.sweep import worker
from fp4scope.sweep.check import self_check
from fp4scope.sweep.perturb import perturbation, perturbed
from fp4scope.sweep.shape import Shape

GEMMA4 = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "global_head_dim": 16, "sliding_window": 8,
    "vocab_size_per_layer_input": 96, "hidden_size_per_layer_input": 16, "pad_token_id": 0,
    "layer_types": ["full_attention", "sliding_attention"] * 2,
}  # fmt: skip


class _Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.up, self.down = nn.Linear(width, width), nn.Linear(width, width)
        self.calls, self.fault, self.first = 0, "", False

    def forward(self, hidden, shift=1, kept=None):
        self.calls += 1
        if self.fault == "breaks":
            raise KeyError("a traceback of its own")
        if kept is not None:  # as Gemma 4's blocks share keys and values
            kept.state = hidden if self.first else kept.state
            return hidden + self.down(self.up(hidden).tanh() * kept.state)
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


class _Kept:
    state = None


class Toy(PreTrainedModel):
    """A model of three blocks with a fault to choose."""

    config_class = LlamaConfig

    def __init__(self, config):
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(_Block(config.hidden_size) for _ in range(3))
        self.head = nn.Linear(config.hidden_size, config.vocab_size)
        self.fault, self.forwards, self.limit, self.scale = "", 0, 0, 1.0
        self.looks = 0
        self.post_init()

    def forward(self, input_ids, use_cache=None):
        if self.fault == "takes one window" and len(input_ids) > 1:
            raise ValueError(f"{len(input_ids)} windows")
        hidden = self.embed(input_ids)
        self.kept = _Kept() if self.fault == "shares" else None
        shift = 1 + input_ids[..., None] / 96
        if self.looks and hidden.shape[1] > 16:  # at the token so many places later
            ahead = hidden.roll(-self.looks, 1)
            ahead[:, -self.looks :] = 0
            hidden = hidden + ahead
        for block in self.blocks:
            if self.fault == "shares":
                hidden = block(hidden, kept=self.kept)
                continue
            hidden = block(hidden, shift) if self.fault == "per window" else block(hidden)
        if self.fault == "looks back":
            count = torch.arange(1, hidden.shape[1] + 1)[:, None]
            hidden = hidden + hidden.cumsum(1) / count
        if self.fault == "knows places":
            hidden = hidden * torch.linspace(1, 2, hidden.shape[1])[:, None]
        if self.fault == "skips":
            hidden = hidden + self.embed(input_ids)
        logits = self.head(hidden)
        self.forwards += 1
        if self.fault == "counts":
            logits = logits * self.forwards
        if self.fault == "fails later" and self.forwards > self.limit:
            logits = logits * 1.01
        if self.fault == "masked":
            logits[..., 5] = -torch.inf
        if self.fault == "NaN":
            logits[..., 5] = torch.nan
        return CausalLMOutput(logits=logits * self.scale)


@pytest.fixture
def toy():
    def build(fault):
        torch.manual_seed(0)
        config = LlamaConfig(vocab_size=96, hidden_size=32, num_hidden_layers=3)
        loaded = adopt(Toy(config), None, name="toy", allow_partial=True)
        loaded.model.blocks[0].first = True
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


def elsewhere(move):
    """`BlockStack.run` with what it gives moved."""
    run = BlockStack.run

    def moved(self, block, *rest):
        left = run(self, block, *rest)
        return replace(left, hidden=move(left.hidden, block))

    return moved


def test_a_router_may_send_tokens_elsewhere_by_rounding(adopted, ids, monkeypatch):
    """Then what rounding does is measured; without a router the bound stands, here at nearly 0."""

    def last_place(hidden, block):
        steps = perturbation(hidden.shape[1:], seed=1, replica=1, window=1, block=block)
        return perturbed(hidden, steps[None].expand_as(hidden))

    monkeypatch.setattr(check_module, "allowed_difference", lambda dtype: 1e-6)
    monkeypatch.setattr(BlockStack, "run", elsewhere(last_place))
    check = self_check(adopted("mixtral", torch.bfloat16), ids)
    assert 1e-6 < check.difference <= check.allowed < 0.5
    reason = self_check(adopted("llama", torch.bfloat16), ids).reason
    assert reason is not None
    assert "differs from its own forward" in reason


def test_a_router_explains_no_wrong_block(adopted, ids, monkeypatch):
    monkeypatch.setattr(BlockStack, "run", elsewhere(lambda hidden, block: hidden.flip(-1)))
    reason = self_check(adopted("mixtral"), ids).reason
    assert reason is not None
    assert "differs from its own forward" in reason


def test_experts_that_run_otherwise_while_they_are_watched_are_refused(adopted, ids, monkeypatch):
    """What is measured by whole forwards has no other comparison that shows it."""
    monkeypatch.setattr(experts._Chosen, "between", lambda self, x: 0 * x.chunk(2, dim=-1)[0])
    with pytest.raises(ModelError, match="compute something else"):
        self_check(adopted("mixtral"), ids)


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
    injector = Injector(loaded.model)
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
    injector = calibrated(loaded, long_ids) if calibrate else Injector(loaded.model)
    scale = "calibrated" if calibrate else "dynamic"
    variants = planned(loaded, formats="nvfp4", sweep="blocks", activation_scale=scale)
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


@pytest.mark.parametrize("fault", ["looks back", "knows places", "skips"])
def test_what_the_wavefront_would_get_wrong_is_not_swept(fault, toy, long_ids, unchanged):
    loaded = toy(fault)
    with unchanged(loaded.model):
        reason = self_check(loaded, long_ids).reason
    assert reason is not None
    assert re.match(r"run block by block, toy differs from its own forward by \d", reason)


def test_running_out_of_memory_is_not_taken_for_a_fault(toy, long_ids, monkeypatch):
    loaded = toy("")

    def run(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(type(loaded.stack), "run", run)
    with pytest.raises(torch.OutOfMemoryError):
        self_check(loaded, long_ids)


# What cannot be believed, or cannot be run at all.


@pytest.mark.parametrize("fault", ["counts", "keeps state"])
def test_a_forward_that_is_not_the_same_twice_is_refused(fault, toy, long_ids, unchanged):
    loaded = toy(fault)
    with (
        unchanged(loaded.model),
        pytest.raises(ModelError, match=r"not deterministic: two forwards .* differ by"),
    ):
        self_check(loaded, long_ids)


def test_a_forward_that_changes_while_a_sweep_goes_on_is_refused(
    toy, long_ids, planned, open_sweep, monkeypatch
):
    loaded = toy("fails later")
    loaded.model.limit = 10**9
    variants = planned(loaded, formats="mxfp4", sweep="blocks")
    shape = Shape(windows=1, groups=1, block=2, head=9)
    sweep = open_sweep(loaded, long_ids, variants, Injector(loaded.model), shape=shape)
    monkeypatch.setattr(worker, "FORWARDS_BETWEEN_CHECKS", 2)
    # Every other forward from now on: the tail's is one, the own forward another.
    loaded.model.limit = loaded.model.forwards
    own = type(loaded.model).forward

    def sometimes(self, *args, **kwargs):
        logits = own(self, *args, **kwargs).logits
        return CausalLMOutput(logits=logits * (1 + 1e-3 * torch.rand(())))

    monkeypatch.setattr(type(loaded.model), "forward", sometimes)
    with pytest.raises(ModelError, match="forwards are not always the same"):
        sweep.run()
    assert sweep.log.windows == []


@pytest.mark.parametrize("looks", [1, 5, 40])
def test_a_look_at_later_tokens_in_long_windows_is_refused(looks, toy, long_ids, unchanged):
    loaded = toy("")
    loaded.model.looks = looks
    with unchanged(loaded.model), pytest.raises(ModelError, match="toy is not causal"):
        self_check(loaded, long_ids)


@pytest.mark.parametrize("causal", [True, False])
def test_a_family_with_and_without_a_causal_mask(causal, ids):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=96,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        is_decoder=causal,
        initializer_range=0.5,
    )
    loaded = adopt(AutoModelForCausalLM.from_config(config), None, name="bert")
    if causal:
        assert self_check(loaded, ids).batches
    else:
        with pytest.raises(ModelError, match="bert is not causal"):
            self_check(loaded, ids)


def test_what_blocks_pass_on_unseen_is_not_swept(toy, long_ids, unchanged):
    """Two batches taking turns; one after the other they would be right."""
    loaded = toy("shares")
    for ids in (long_ids, long_ids[:1], long_ids[[0, 0]]):
        with unchanged(loaded.model):
            reason = self_check(loaded, ids).reason
        assert reason is not None
        assert "toy (Toy) pass something on in a way that cannot be seen" in reason


def test_what_fails_block_by_block_alone_is_not_swept(toy, long_ids, monkeypatch):
    def run(*_):
        raise KeyError("in a block")

    loaded = toy("")
    monkeypatch.setattr(type(loaded.stack), "run", run)
    assert self_check(loaded, long_ids).reason == "KeyError: 'in a block'"


@pytest.mark.parametrize("looks", [1, 40])
def test_what_is_not_swept_must_be_causal_too(looks, toy, long_ids):
    loaded = toy("skips")
    loaded.model.looks = looks
    with pytest.raises(ModelError, match="toy is not causal"):
        self_check(loaded, long_ids)


def test_what_a_model_raises_names_the_model(toy, long_ids, unchanged):
    loaded = toy("breaks")
    with (
        unchanged(loaded.model),
        pytest.raises(ModelError, match=r"toy \(Toy\) fails .*KeyError: 'a traceback of its own'"),
    ):
        self_check(loaded, long_ids)


@pytest.mark.parametrize("scale", [0.0, 1e20, 1e-30])
def test_logits_of_any_size_pass(scale, toy, long_ids):
    loaded = toy("")
    loaded.model.scale = scale
    assert self_check(loaded, long_ids).difference == 0


@pytest.mark.parametrize("fault", ["masked", "NaN"])
def test_logits_that_are_not_finite_are_for_the_measurement_to_judge(fault, toy, long_ids):
    check = self_check(toy(fault), long_ids)
    assert (check.difference == 0) == (fault == "masked")


def test_a_masked_token_of_the_vocabulary_is_measured(
    toy, long_ids, planned, open_sweep, numbers_of, naive_numbers
):
    """A logit of -inf in reference and variant is no difference."""
    loaded = toy("masked")
    ids = torch.where(long_ids == 5, 6, long_ids)
    injector = Injector(loaded.model)
    variants = planned(loaded, formats="mxfp4", sweep="blocks")
    sweep = open_sweep(loaded, ids, variants, injector)
    sweep.run()
    assert numbers_of(sweep) == naive_numbers(loaded, ids, variants, injector)
    kls = [value for key, (_, value) in numbers_of(sweep).items() if key[2] in ("kl", "rerun_kl")]
    assert all(-1e-3 < kl < 1e3 for kl in kls)


def test_a_token_of_probability_zero_is_named(toy, long_ids, planned, open_sweep):
    loaded = toy("masked")
    ids = torch.where(long_ids == 6, 5, long_ids)
    variants = planned(loaded, formats="mxfp4", sweep="blocks")
    with pytest.raises(NonFiniteError, match="probability zero"):
        open_sweep(loaded, ids, variants, Injector(loaded.model)).run()


@pytest.mark.parametrize("name", ["head.weight", "embed.weight", "blocks.1.up.bias"])
def test_a_damaged_weight_is_named(name, toy, long_ids, planned, open_sweep):
    loaded = toy("")
    loaded.model.get_parameter(name).data.view(-1)[3] = torch.nan
    variants = planned(loaded, formats="mxfp4", sweep="blocks")
    ids = long_ids.clone()
    ids[:, 0] = 0
    with pytest.raises(NonFiniteError, match=f"{name} has NaN or Inf; the checkpoint") as error:
        open_sweep(loaded, ids, variants, Injector(loaded.model)).run()
    assert "dtype float" not in str(error.value)
    assert "--dtype" not in str(error.value)


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (CodeGenConfig, {"n_embd": 64, "n_layer": 2, "n_head": 4, "rotary_dim": 8}),
        (FalconMambaConfig, {"hidden_size": 64, "num_hidden_layers": 2, "state_size": 4}),
        (Mamba2Config, {"hidden_size": 64, "num_hidden_layers": 2, "num_heads": 8, "head_dim": 16}),
        (Gemma4TextConfig, GEMMA4 | {"num_kv_shared_layers": 0}),
    ],
)
def test_families_of_other_kinds_pass(kind, config, ids):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(kind(vocab_size=96, **config))
    loaded = adopt(model, None, name="other", allow_partial=True)
    check = self_check(loaded, ids)
    assert check.difference <= check.allowed


def test_inference_mode_takes_blocks_too(tiny_model, tiny_tokenizer, ids):
    """Its tensors count no versions; the model is not run whole for that."""
    loaded = adopt(tiny_model("llama"), tiny_tokenizer())
    with torch.inference_mode():
        found = self_check(loaded, ids)
    assert (found.reason, found.batches) == (None, True)
