"""Where the softmax behind a router's choices is, found by its values."""

import pytest
import torch
from torch import nn

from fp4scope.operands import choices, find_scores, told

SOFTMAX = ["mixtral", "qwen2-moe", "qwen3-moe", "gpt-oss", "granite-hybrid", "qwen3-next"]
SIGMOID = ["deepseek-v3", "nemotron-h"]


def forward(model, ids):
    return lambda: model(ids, use_cache=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", SOFTMAX)
def test_a_softmax_is_found_and_gives_the_weights(family, dtype, tiny_model, ids, unchanged):
    model = tiny_model(family).to(dtype)
    with unchanged(model):
        scores = find_scores(model, forward(model, ids))
    assert set(scores) == {experts for _, experts in told(model)}
    seen = []
    with unchanged(model), choices(model, scores, lambda _, choice: seen.append(choice)):
        forward(model, ids)()
    assert len(seen) == len(scores) > 0
    for choice in seen:
        p = choice.logs.exp()
        torch.testing.assert_close(p.sum(1), torch.ones(len(p)))
        chosen = p.gather(1, choice.index)
        shares = choice.weights.float() / choice.weights.float().sum(1, keepdim=True)
        tolerance = 1e-5 if dtype == torch.float32 else 2e-2
        found = chosen / chosen.sum(1, keepdim=True)
        torch.testing.assert_close(found, shares, atol=tolerance, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", SIGMOID)
def test_sigmoid_scores_are_no_distribution(family, dtype, tiny_model, ids):
    model = tiny_model(family).to(dtype)
    assert told(model)
    assert find_scores(model, forward(model, ids)) == {}


@pytest.mark.parametrize("family", ["llama4", "jetmoe", "llama"])
def test_models_whose_experts_are_not_told(family, tiny_model, ids):
    model = tiny_model(family)
    assert told(model) == []
    assert find_scores(model, forward(model, ids)) == {}


class _Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.randn(4, 16, 8))
        self.down_proj = nn.Parameter(torch.randn(4, 8, 8))

    def _apply_gate(self, x):
        gate, up = x.chunk(2, -1)
        return gate * up

    def forward(self, hidden_states, top_k_index, top_k_weights):
        raise AssertionError


class _Switch(nn.Module):
    """One expert a token, weighted as `weigh` says; it shows probabilities, if at all."""

    def __init__(self, weigh, shows=False):
        super().__init__()
        self.gate, self.shown, self.experts = nn.Linear(8, 4), nn.Softmax(-1), _Experts()
        self.weigh, self.shows = weigh, shows

    def forward(self, x):
        logits = torch.nn.functional.linear(x, self.gate.weight) if self.shows else self.gate(x)
        if self.shows:
            self.shown(logits)
        weights, index = self.weigh(logits).topk(1)
        return self.experts(x, index, weights)


@pytest.mark.parametrize(
    ("weigh", "known"),
    [
        (lambda z: z.softmax(-1), True),
        (lambda z: 2.5 * z.softmax(-1), True),
        (lambda z: z.sigmoid(), False),
        (lambda z: z.softmax(-1) / z.softmax(-1).amax(-1, keepdim=True), False),  # all are 1
    ],
)
def test_of_one_expert_a_token_the_weights_tell(weigh, known):
    model = _Switch(weigh)
    scores = find_scores(model, lambda: model(torch.randn(40, 8)))
    assert [(s.module, s.logits) for s in scores.values()] == [(model.gate, True)] * known


def test_probabilities_are_taken_as_they_are():
    model = _Switch(lambda z: z.softmax(-1), shows=True)
    (found,) = find_scores(model, lambda: model(torch.randn(40, 8))).values()
    assert (found.module, found.logits) == (model.shown, False)
