"""The CUDA kernel for predictions, run by Triton's interpreter, against plain torch."""

import os

import pytest
import torch

from fp4scope.metrics import compare, reference_predictions

pytest.importorskip("triton", reason="Triton is not installed")
if not os.environ.get("TRITON_INTERPRET"):
    pytest.skip("needs TRITON_INTERPRET=1, which scripts/test sets", allow_module_level=True)

from fp4scope.metrics import fused

# In lanes behind the vocabulary's end, whose values are dropped.
pytestmark = [
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning"),
]


@pytest.fixture(params=[torch.float32, torch.float16], ids=str)
def logits(request):
    """Three variants and a reference; the vocabulary is two tiles and a bit."""
    generator = torch.Generator().manual_seed(0)
    reference = 3 * torch.randn(5, 2 * fused._TILE + 33, generator=generator)
    noise = torch.randn(3, *reference.shape, generator=generator)
    variants = reference + torch.tensor([0.0, 0.3, 3.0])[:, None, None] * noise
    return variants.to(request.param), reference.to(request.param)


def test_equals_plain_torch(logits):
    variants, reference = logits
    targets = torch.tensor([0, 1, fused._TILE, 2 * fused._TILE, reference.shape[1] - 1])
    stored = reference_predictions(reference)
    most = reference.argmax(-1)
    *_, logsumexp = fused.compare_rows(reference[None], most, reference, None, most)
    torch.testing.assert_close(logsumexp[0], stored.logsumexp, rtol=1e-6, atol=1e-5)

    # A cut that is not contiguous, as the head's last tile is.
    padded = torch.cat([variants, torch.zeros_like(variants[:, :1])], dim=1)[:, :5]
    assert not padded.is_contiguous()
    nll, kl, top1, _ = fused.compare_rows(padded, targets, reference, logsumexp[0], most)
    expected = compare(variants, targets, stored)
    torch.testing.assert_close(nll, expected.nll, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(kl, expected.kl, rtol=1e-4, atol=2e-6)
    assert torch.equal(top1, expected.top1)
    assert expected.top1.any()
    assert not expected.top1.all()
    assert (kl[0] == 0).all(), "what is the reference's to the bit has a KL of exactly zero"


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nonfinite_logits_show_in_the_metrics(logits, bad):
    variants, reference = logits
    most = reference.argmax(-1)
    *_, logsumexp = fused.compare_rows(reference[None], most, reference, None, most)
    variants[1, 2, 7] = bad
    nll, kl, _, _ = fused.compare_rows(variants, most, reference, logsumexp[0], most)
    assert not (nll[1, 2].isfinite() and kl[1, 2].isfinite())
    assert nll[0].isfinite().all()


def test_a_tie_with_the_references_best_token_agrees():
    reference = torch.tensor([[1.0, 3.0, 2.0], [4.0, 0.0, 4.0]])
    variants = torch.tensor(
        [[[5.0, 5.0, 5.0], [2.0, 2.0, 2.0]], [[0.0, 7.0, 7.0], [2.0, 1.0, 3.0]]]
    )
    best, zero = torch.tensor([1, 0]), torch.tensor([0, 0])
    *_, top1, _ = fused.compare_rows(variants, zero, reference, None, best)
    assert top1.tolist() == [[True, True], [True, False]]


@pytest.mark.parametrize("by", [-200.0, -70.0, 70.0, 200.0])
def test_logits_far_from_the_references(logits, by):
    """Beyond what exponentials relative to the reference's largest logit can hold."""
    variants, reference = logits
    variants = (variants.float() + by).to(variants.dtype)
    most = reference.argmax(-1)
    *_, logsumexp = fused.compare_rows(reference[None], most, reference, None, most)
    nll, kl, top1, _ = fused.compare_rows(variants, most, reference, logsumexp[0], most)
    expected = compare(variants, most, reference_predictions(reference))
    torch.testing.assert_close(nll, expected.nll, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(kl, expected.kl, rtol=1e-4, atol=5e-4)
    assert torch.equal(top1, expected.top1)
