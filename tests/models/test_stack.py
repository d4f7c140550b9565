"""Block by block is the model's own forward, and leaves the model as it was."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput
from transformers.models.llama import modeling_llama

from fp4scope.errors import ModelError
from fp4scope.models import BlockStack, State, find_layout
from fp4scope.models import stack as models_stack
from fp4scope.models.stack import only_last_rows
from fp4scope.models.states import together

EXPERTS = ("mixtral", "qwen2-moe", "qwen3-moe")
FAMILIES = (
    "qwen2", "qwen2-sliding", "qwen3", "llama", "llama-biased", "smollm2", "mistral", "gemma3",
    "gpt2", *EXPERTS,
)  # fmt: skip


@torch.no_grad()
def own_logits(model, row):
    return model(row[None], use_cache=False).logits[0]


def stack_of(model):
    return BlockStack(model, find_layout(model))


def run_through(stack, inputs, windows):
    state = State(inputs.embedded[windows])
    for block in range(len(stack)):
        state = stack.passed_on(block, state, stack.run(block, state, inputs, windows))
    return state.hidden


@pytest.mark.parametrize("family", FAMILIES)
def test_capture_run_and_tail_are_the_models_own_forward(family, tiny_model, ids, unchanged):
    """To the bit, also in a batch that is no multiple of the windows; experts to rounding."""
    model = tiny_model(family)
    with unchanged(model):
        stack = stack_of(model)
        inputs = stack.capture(ids)
        assert inputs.embedded.shape == (2, 24, inputs.embedded.shape[-1])
        windows = [1, 0, 1]
        hidden = run_through(stack, inputs, windows)
        with stack.tail() as tail:
            logits = tail(hidden)
            some = tail(hidden[:2, 5:21])
    assert not any("forward" in vars(module) for module in model.modules())
    for found, window in zip(logits, windows, strict=True):
        expected = own_logits(model, ids[window])
        if family in EXPERTS:
            assert torch.allclose(found, expected, atol=1e-4)
        else:
            assert torch.equal(found, expected)
    assert torch.equal(some, logits[:2, 5:21])


@pytest.mark.parametrize("family", ["gemma3", "qwen2-sliding", "mistral"])
def test_every_block_has_its_own_mask(family, tiny_model, ids):
    """One block at a time against the hidden states that the model itself passes on."""
    model = tiny_model(family)
    stack = stack_of(model)
    inputs = stack.capture(ids)
    with torch.no_grad():
        states = model(ids[:1], use_cache=False, output_hidden_states=True).hidden_states
    assert torch.equal(inputs.embedded[:1], states[0])
    # The last of `states` is behind the final norm.
    for block in range(len(stack) - 1):
        left = stack.run(block, State(states[block]), inputs, [0])
        assert torch.equal(left.hidden, states[block + 1])


def test_sliding_windows_are_told_apart(tiny_model, ids):
    """A full and a sliding block are called with different masks, and it matters."""
    model = tiny_model("gemma3")
    stack = stack_of(model)
    inputs = stack.capture(ids[:1])
    kinds = model.config.layer_types
    full, sliding = kinds.index("full_attention"), kinds.index("sliding_attention")
    exchanged = list(inputs.calls)
    exchanged[full] = inputs.calls[sliding]
    wrong = type(inputs)(inputs.embedded, tuple(exchanged))
    right, other = (stack.run(full, State(i.embedded), i, [0]) for i in (inputs, wrong))
    assert not torch.equal(right.hidden, other.hidden)


def test_what_is_the_same_for_all_windows_is_kept_once(tiny_model, ids):
    stack = stack_of(tiny_model("gemma3"))
    one, two = stack.capture(ids[:1]), stack.capture(ids)
    assert two.size_bytes - one.size_bytes == one.embedded.numel() * 4


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_forwards_are_put_back_after_an_exception(family, tiny_model, ids, unchanged):
    model = tiny_model(family)
    stack = stack_of(model)
    with unchanged(model):
        with pytest.raises(KeyError, match="away"), stack.tail():
            raise KeyError("away")
        with pytest.raises(IndexError):
            stack.capture(torch.full_like(ids, 10**6))
    assert not any("forward" in vars(module) for module in model.modules())
    hidden = run_through(stack, stack.capture(ids), [0])
    with stack.tail() as tail:
        logits = tail(hidden)
    assert torch.equal(logits[0], own_logits(model, ids[0]))


def test_nothing_runs_inside_a_tail(tiny_model, ids):
    """There the blocks step aside, and what ran through them would be a wrong number."""
    model = tiny_model("llama")
    stack = stack_of(model)
    inputs = stack.capture(ids)
    with stack.tail() as tail:
        for _ in range(2):
            with pytest.raises(RuntimeError, match=r"inside `tail\(\)`; leave that `with`"):
                stack.run(0, State(inputs.embedded), inputs, [0, 1])
            with pytest.raises(RuntimeError, match="leave that `with`"):
                own_logits(model, ids[0])
            tail(inputs.embedded)


def test_a_tail_makes_a_mask_once_for_each_shape(tiny_model, ids, monkeypatch):
    """Making one waits for the GPU, and inside a tail no block looks at it."""
    model = tiny_model("llama")
    stack = stack_of(model)
    hidden = run_through(stack, stack.capture(ids), [0, 1])
    made = []

    def counted(*args, inputs_embeds, **kwargs):
        made.append(tuple(inputs_embeds.shape[:2]))
        return own(*args, inputs_embeds=inputs_embeds, **kwargs)

    own = modeling_llama.create_causal_mask
    monkeypatch.setattr(modeling_llama, "create_causal_mask", counted)
    with stack.tail() as tail:
        logits = [tail(hidden), tail(hidden[:, :20]), tail(hidden), tail(hidden[:, :20])]
    assert made == [(2, 24), (2, 20)]
    assert torch.equal(logits[0], logits[2])
    assert torch.equal(logits[1], logits[3])
    assert modeling_llama.create_causal_mask is counted
    assert torch.equal(logits[0][1], own_logits(model, ids[1]))
    assert made[2:] == [(1, 24)], "outside every forward makes its own"


def test_another_model_of_the_family_makes_its_own_masks_inside_a_tail(tiny_model, ids):
    stack, other = stack_of(tiny_model("llama")), tiny_model("llama")
    padded = [torch.ones_like(ids), torch.ones_like(ids).index_fill(1, torch.arange(5), 0)]
    own = [other(ids, attention_mask=mask, use_cache=False).logits for mask in padded]
    assert not torch.equal(*own)
    hidden = stack.capture(ids).embedded
    with stack.tail() as tail:
        for mask, logits in zip(padded, own, strict=True):
            tail(hidden)
            found = other(ids, attention_mask=mask, use_cache=False).logits
            assert torch.equal(found, logits)


def test_a_blocks_own_instance_forward_is_put_back(tiny_model, ids):
    """Libraries that patch `block.forward` find their patch again."""
    model = tiny_model("llama")
    block = model.model.layers[1]
    own = block.forward

    def patched(*args, **kwargs):
        return own(*args, **kwargs) * 2

    block.forward = patched
    stack = stack_of(model)
    hidden = run_through(stack, stack.capture(ids), [0, 1])
    with stack.tail() as tail:
        logits = tail(hidden)
    assert vars(block)["forward"] is patched
    assert "forward" not in vars(model.model.layers[0])
    assert torch.equal(logits[1], own_logits(model, ids[1]))


def test_a_hidden_state_is_not_changed(tiny_model, ids):
    for family in FAMILIES:
        stack = stack_of(tiny_model(family))
        inputs = stack.capture(ids)
        kept = inputs.embedded.clone()
        for block in range(len(stack)):
            stack.run(block, State(inputs.embedded), inputs, [0, 1])
        assert torch.equal(inputs.embedded, kept), family


def test_states_that_follow_each_other_are_taken_where_they_are():
    left = State(torch.arange(48.0).view(6, 4, 2)).apart(3)
    joined = together(left[1:], (), copy=False)
    assert joined.hidden.data_ptr() == left[1].hidden.data_ptr()
    assert together(left[1:], ()).hidden.data_ptr() != left[1].hidden.data_ptr()
    others = [State(torch.zeros(2, 4, 2)), left[0]]
    for states in (left[1:], left[::-1], left[::2], [left[1], left[1]], others, left[:1]):
        joined = together(states, (), copy=False)
        assert torch.equal(joined.hidden, torch.cat([state.hidden for state in states]))
    turned = [State(state.hidden.transpose(1, 2)) for state in left]
    joined = together(turned, (), copy=False)
    assert torch.equal(joined.hidden, torch.cat([state.hidden for state in turned]))
    whole = torch.arange(16.0).view(2, 4, 2)
    single = whole[:1].as_strided((1, 4, 2), (0, 2, 1))  # of one entry any stride is right
    joined = together([State(single), State(whole[1:])], (), copy=False)
    assert torch.equal(joined.hidden, whole)


@pytest.mark.parametrize(
    "write",
    [
        lambda x: x.add_(0),
        lambda x: x.data.mul_(0.5),
        lambda x: x.detach().numpy().__imul__(0.5),
    ],
    ids=["the same numbers", "past the version", "by another library"],
)
def test_blocks_that_write_into_what_they_get_are_told(write, tiny_model, ids):
    for family in FAMILIES:
        stack = stack_of(tiny_model(family))
        stack.capture(ids)
        assert not stack.overwrites, family
    model = tiny_model("llama")
    norm = model.model.layers[1].input_layernorm

    def before(_, args):
        write(args[0])

    norm.register_forward_pre_hook(before)
    stack = stack_of(model)
    stack.capture(ids)
    assert stack.overwrites


class _Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.up, self.down = nn.Linear(width, width), nn.Linear(width, width)
        self.gives_tuple = False

    def forward(self, hidden, shift=None, table=None):
        mixed = self.up(hidden).tanh()
        if shift is not None:
            mixed = mixed * shift
        if table is not None:
            mixed = mixed + table["rows"][0]
        out = hidden + self.down(mixed)
        return (out, "weights of the attention") if self.gives_tuple else out


class Toy(PreTrainedModel):
    """Blocks called as `order` says, with tensors that depend on the ids where `per_window`."""

    config_class = LlamaConfig

    def __init__(self, config):
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(_Block(config.hidden_size) for _ in range(3))
        self.head = nn.Linear(config.hidden_size, config.vocab_size)
        self.order, self.per_window = [0, 1, 2], False
        self.post_init()

    def forward(self, input_ids, use_cache=None):
        hidden = self.embed(input_ids)
        extra = {}
        if self.per_window:
            rows = input_ids[..., None].float() / 100
            extra = {"shift": 1 + rows, "table": {"rows": (rows.cos(),)}}
        for index in self.order:
            out = self.blocks[index](hidden, **extra)
            hidden = out[0] if self.blocks[index].gives_tuple else out
        return CausalLMOutput(logits=self.head(hidden))


@pytest.fixture
def toy():
    torch.manual_seed(0)
    return Toy(LlamaConfig(vocab_size=96, hidden_size=32)).eval().requires_grad_(False)


def test_tensors_of_each_window_go_with_it(toy, ids, unchanged):
    """A block whose arguments depend on the ids, in a batch of several windows."""
    toy.per_window = True
    with unchanged(toy):
        stack = stack_of(toy)
        inputs = stack.capture(ids)
        windows = [1, 0, 0, 1, 1]
        hidden = run_through(stack, inputs, windows)
        with stack.tail() as tail:
            logits = tail(hidden)
    for found, window in zip(logits, windows, strict=True):
        assert torch.equal(found, own_logits(toy, ids[window]))
    # The wrong window's arguments give something else, so the above says something.
    swapped = State(inputs.embedded)
    for block in range(len(stack)):
        swapped = stack.run(block, swapped, inputs, [1, 0])
    with stack.tail() as tail:
        assert not torch.equal(tail(swapped.hidden)[0], logits[1])


def test_blocks_share_the_tensors_of_each_window(toy, ids, monkeypatch):
    """Comparing them waits for the GPU: once, not once a block."""
    toy.per_window = True
    stack = stack_of(toy)
    stack.capture(ids)  # the first time states are compared too
    compared = []
    equal = torch.equal
    monkeypatch.setattr(torch, "equal", lambda a, b: compared.append(a.shape) or equal(a, b))
    first, *others = [kwargs for _, kwargs in stack.capture(ids).calls]
    assert len(compared) == 2
    assert [other["shift"] is first["shift"] for other in others] == [True, True]


def test_blocks_that_give_a_tuple(toy, ids):
    """As older families do; here all but the first."""
    toy.blocks[1].gives_tuple = toy.blocks[2].gives_tuple = True
    stack = stack_of(toy)
    hidden = run_through(stack, stack.capture(ids), [0, 1])
    with stack.tail() as tail:
        logits = tail(hidden)
    assert torch.equal(logits[1], own_logits(toy, ids[1]))


@pytest.mark.parametrize(
    "order", [[0, 1, 2, 2], [0, 2, 1], [0, 1], [], [0, 0, 1, 1, 2, 2]], ids=str
)
def test_blocks_that_do_not_run_once_in_order_are_refused(order, toy, ids, unchanged):
    toy.order = order
    with (
        unchanged(toy),
        pytest.raises(ModelError, match=r"Toy does not run its 3 blocks once each and in order"),
    ):
        stack_of(toy).capture(ids)


def test_blocks_without_a_hidden_state_are_refused(toy, ids, unchanged):
    toy.embed = nn.Sequential(toy.embed, nn.Flatten(0, 1))
    with unchanged(toy), pytest.raises(ModelError, match="take no hidden state"):
        stack_of(toy).capture(ids)


# What a block gives beside the state, and what a forward computes at its end.


@pytest.mark.parametrize("kind", [tuple, list])
@pytest.mark.parametrize("extra", [0, 1, 2, 3])
def test_blocks_that_give_tuples_of_any_length(extra, kind, toy, ids):
    """RWKV unpacks three items, the first GPT a list; blocks that step aside give as many."""

    class Unpacked(nn.Module):
        def __init__(self, block):
            super().__init__()
            self.block = block

        def forward(self, hidden):
            return kind([self.block(hidden), *["state"] * extra])

    toy.blocks = nn.ModuleList(Unpacked(block) for block in toy.blocks)

    def forward(input_ids, use_cache=None):
        hidden = toy.embed(input_ids)
        for block in toy.blocks:
            hidden, *beside = block(hidden)
            assert len(beside) == extra
        return CausalLMOutput(logits=toy.head(hidden))

    toy.forward = forward
    stack = stack_of(toy)
    hidden = run_through(stack, stack.capture(ids), [0, 1])
    with stack.tail() as tail:
        logits = tail(hidden)
    assert torch.equal(logits[1], own_logits(toy, ids[1]))


def test_blocks_that_give_no_state_are_refused(toy, ids, unchanged):
    toy.blocks[1].register_forward_hook(lambda *_: {"hidden": 0})
    with pytest.raises(ModelError, match="return a dict instead of a hidden state"):
        stack_of(toy).capture(ids)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_only_the_head_is_spared(family, tiny_model, ids, unchanged):
    """The blocks see every token; the last rows' logits are those of the whole forward."""
    model = tiny_model(family)
    whole = own_logits(model, ids[0])
    seen = []
    last = model.get_submodule(find_layout(model).blocks_path)[-1]
    with unchanged(model):
        hook = last.register_forward_hook(lambda _, __, out: seen.append(out))
        with only_last_rows(model, 20):
            logits = own_logits(model, ids[0])
        hook.remove()
    assert logits.shape == (20, whole.shape[1])
    assert torch.allclose(logits, whole[-20:], atol=1e-6)
    state = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
    assert state.shape[1] == ids.shape[1]


def test_a_head_that_cannot_be_told_sees_all(toy, ids):
    def own(self):
        raise NotImplementedError

    type(toy).get_output_embeddings = own
    with only_last_rows(toy, 1):
        assert len(own_logits(toy, ids[0])) == ids.shape[1]


@pytest.mark.parametrize("pad", [0, None, [0], "raises"])
def test_a_tail_takes_any_padding_token(pad, tiny_model, ids, monkeypatch):
    """Heterogeneous configurations raise RuntimeError, which `getattr` does not catch."""
    model = tiny_model("llama")
    stack = stack_of(model)
    hidden = run_through(stack, stack.capture(ids), [0, 1])
    own = own_logits(model, ids[1])

    class Raising:
        @property
        def pad_token_id(self):
            raise RuntimeError("it differs by layer")

    config = Raising() if pad == "raises" else SimpleNamespace(pad_token_id=pad)
    monkeypatch.setattr(models_stack, "text_config", lambda _: config)
    with stack.tail() as tail:
        assert torch.equal(tail(hidden)[1], own)
