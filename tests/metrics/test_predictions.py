"""NLL, KL and top-1 against PyTorch in FP64; a reference that no comparison touches."""

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from fp4scope.metrics import WindowMetrics, compare, reference_metrics

# One row, around a tile of 128, several tiles with and without a rest.
ROWS = (1, 127, 128, 129, 256, 300)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def predictions(rows, dtype=torch.float32, noise=0.3, vocab=211):
    """Reference logits, those of a variant, and targets."""
    generator = torch.Generator().manual_seed(rows)
    reference = 3 * torch.randn(rows, vocab, generator=generator)
    variant = reference + noise * torch.randn(rows, vocab, generator=generator)
    targets = torch.randint(0, vocab, (rows,), generator=generator)
    return reference.to(dtype), variant.to(dtype), targets


def nll_fp64(logits, targets):
    return F.cross_entropy(logits.double(), targets, reduction="sum").item()


def kl_fp64(logits, reference):
    log_p, log_q = (x.double().log_softmax(-1) for x in (reference, logits))
    return F.kl_div(log_q, log_p, log_target=True, reduction="sum").item()


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_against_pytorch_in_fp64(dtype, rows):
    reference, variant, targets = predictions(rows, dtype)
    own, stored = reference_metrics(reference, targets)
    assert own == WindowMetrics(rows, own.nll, 0.0, rows)
    assert own.nll == pytest.approx(nll_fp64(reference, targets), rel=1e-6)

    metrics = compare(variant, targets, stored)
    assert metrics.tokens == rows
    assert metrics.nll == pytest.approx(nll_fp64(variant, targets), rel=1e-6)
    assert metrics.kl == pytest.approx(kl_fp64(variant, reference), rel=1e-4)
    assert metrics.top1 == int((variant.argmax(-1) == reference.argmax(-1)).sum())
    assert rows == 1 or 0 < metrics.top1 < rows


@pytest.mark.parametrize("noise", [1e-4, 1e-3, 1e-2, 3.0])
def test_kl_is_within_2e_6_nats_of_a_token(noise):
    """The rounding of FP32 logits and log-sum-exps, whatever the size of the KL."""
    reference, variant, targets = predictions(300, noise=noise)
    _, stored = reference_metrics(reference, targets)
    error = compare(variant, targets, stored).kl - kl_fp64(variant, reference)
    assert abs(error) / 300 < 2e-6


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_identical_logits_have_a_kl_of_exactly_zero(dtype, rows):
    reference, _, targets = predictions(rows, dtype)
    own, stored = reference_metrics(reference, targets)
    assert compare(reference.clone(), targets, stored) == own
    assert own.kl == 0.0


@pytest.mark.parametrize("dtype", DTYPES)
def test_comparing_changes_neither_side(dtype):
    reference, variant, targets = predictions(300, dtype)
    kept = reference.clone(), variant.clone()
    own, stored = reference_metrics(reference, targets)
    parts = stored.logsumexp.clone(), stored.best.clone()
    first = compare(variant, targets, stored)
    assert compare(variant, targets, stored) == first
    assert compare(reference, targets, stored) == own
    assert torch.equal(reference, kept[0])
    assert torch.equal(variant, kept[1])
    assert torch.equal(stored.logits, kept[0])
    assert torch.equal(stored.logsumexp, parts[0])
    assert torch.equal(stored.best, parts[1])


def test_tiles_do_not_show():
    """A sum over rows is the sum of the rows, each alone."""
    reference, variant, targets = predictions(260)
    whole = compare(variant, targets, reference_metrics(reference, targets)[1])
    rows = [slice(i, i + 1) for i in range(260)]
    alone = [
        compare(variant[r], targets[r], reference_metrics(reference[r], targets[r])[1])
        for r in rows
    ]
    assert whole.top1 == sum(m.top1 for m in alone)
    assert whole.nll == pytest.approx(sum(m.nll for m in alone), rel=1e-12)
    assert whole.kl == pytest.approx(sum(m.kl for m in alone), rel=1e-6)


def test_kl_has_its_direction():
    """KL(reference || variant): what the reference finds likely weighs."""
    reference = torch.tensor([[8.0, 0.0, 0.0]])
    variant = torch.tensor([[0.0, 0.0, 0.0]])
    targets = torch.tensor([0])
    forward, backward = (
        compare(b, targets, reference_metrics(a, targets)[1]).kl
        for a, b in ((reference, variant), (variant, reference))
    )
    assert forward == pytest.approx(kl_fp64(variant, reference), rel=1e-5)
    assert backward > 3 * forward


@pytest.mark.parametrize("shift", [-1e4, 1e4])
def test_large_logits_do_not_overflow(shift):
    reference, variant, targets = predictions(130)
    reference, variant = reference + shift, variant + shift
    own, stored = reference_metrics(reference, targets)
    assert own.nll == pytest.approx(nll_fp64(reference, targets), rel=1e-3)
    assert compare(variant, targets, stored).kl == pytest.approx(
        kl_fp64(variant, reference), rel=0.02
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nonfinite_logits_show_in_the_metrics(bad):
    reference, variant, targets = predictions(130)
    variant[129, 5] = bad
    metrics = compare(variant, targets, reference_metrics(reference, targets)[1])
    assert not torch.tensor([metrics.nll, metrics.kl]).isfinite().all()
