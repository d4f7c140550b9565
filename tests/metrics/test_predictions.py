"""NLL, KL and top-1 against PyTorch in FP64; a reference that no comparison touches."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from fp4scope.ledger.strata import EDGES
from fp4scope.metrics import RowMetrics, WindowMetrics, compare, reference_predictions

# One row, around the pieces of 16 that a CPU takes, several with and without a rest.
ROWS = (1, 15, 16, 17, 32, 300)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
NAMES = ("nll", "kl", "top1", "confidence", "reference")
PARTS = ("logits", "probabilities", "logsumexp", "best")


def predictions(rows, dtype=torch.float32, noise=0.3, vocab=211):
    """Reference logits, those of a variant, and targets."""
    generator = torch.Generator().manual_seed(rows)
    reference = 3 * torch.randn(rows, vocab, generator=generator)
    variant = reference + noise * torch.randn(rows, vocab, generator=generator)
    targets = torch.randint(0, vocab, (rows,), generator=generator)
    return reference.to(dtype), variant.to(dtype), targets


def against(variant, targets, reference):
    """Metrics of a window's logits against the reference's."""
    return rows_of(variant, targets, reference_predictions(reference)).windows()[0]


def rows_of(variant, targets, reference):
    """Metrics of one variant."""
    return compare(variant[None], targets, reference)


def assert_same_rows(first, second):
    """Bit for bit."""
    for name in NAMES:
        assert torch.equal(getattr(first, name), getattr(second, name)), name


def part(metrics, variants, rows):
    return RowMetrics(*(getattr(metrics, n)[variants, rows] for n in NAMES))


def nll_fp64(logits, targets):
    return F.cross_entropy(logits.double(), targets, reduction="sum").item()


def kl_fp64(logits, reference):
    log_p, log_q = (x.double().log_softmax(-1) for x in (reference, logits))
    return F.kl_div(log_q, log_p, log_target=True, reduction="sum").item()


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_against_pytorch_in_fp64(dtype, rows):
    reference, variant, targets = predictions(rows, dtype)
    own = against(reference, targets, reference)
    assert own == WindowMetrics(rows, own.nll, 0.0, rows)
    assert own.nll == pytest.approx(nll_fp64(reference, targets), rel=1e-6)

    metrics = against(variant, targets, reference)
    assert metrics.tokens == rows
    assert metrics.nll == pytest.approx(nll_fp64(variant, targets), rel=1e-6)
    assert metrics.kl == pytest.approx(kl_fp64(variant, reference), rel=1e-4)
    best = reference.argmax(-1, keepdim=True)
    agrees = variant.gather(-1, best)[:, 0] == variant.amax(-1)
    assert metrics.top1 == int(agrees.sum())
    assert rows < 300 or 0 < metrics.top1 < rows


@pytest.mark.parametrize("noise", [1e-4, 1e-3, 1e-2, 3.0])
def test_kl_is_within_2e_6_nats_of_a_token(noise):
    """The rounding of FP32 logits and log-sum-exps, whatever the size of the KL."""
    reference, variant, targets = predictions(300, noise=noise)
    error = against(variant, targets, reference).kl - kl_fp64(variant, reference)
    assert abs(error) / 300 < 2e-6


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_identical_logits_have_a_kl_of_exactly_zero(dtype, rows):
    reference, _, targets = predictions(rows, dtype)
    found = rows_of(reference.clone(), targets, reference_predictions(reference))
    assert (found.kl == 0).all()
    assert found.top1.all()
    assert found.windows()[0].kl == 0.0


@pytest.mark.parametrize("dtype", DTYPES)
def test_comparing_changes_neither_side(dtype):
    reference, variant, targets = predictions(300, dtype)
    kept = reference.clone(), variant.clone()
    stored = reference_predictions(reference)
    parts = [getattr(stored, name).clone() for name in PARTS]
    first = rows_of(variant, targets, stored)
    assert_same_rows(rows_of(variant, targets, stored), first)
    assert torch.equal(reference, kept[0])
    assert torch.equal(variant, kept[1])
    for name, part in zip(PARTS, parts, strict=True):
        assert torch.equal(getattr(stored, name), part)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", ROWS)
def test_several_at_once_are_each_alone(dtype, rows):
    """A variant's numbers do not depend on what shares its batch, to the bit."""
    reference, _, targets = predictions(rows, dtype)
    variants = torch.stack([predictions(rows, dtype, noise)[1] for noise in (0.01, 0.3, 0.0, 2.0)])
    stored = reference_predictions(reference)
    together = compare(variants, targets, stored)
    assert together.nll.shape == together.kl.shape == together.top1.shape == (4, rows)
    for i, variant in enumerate(variants):
        alone = rows_of(variant, targets, stored)
        assert_same_rows(alone, part(together, slice(i, i + 1), slice(None)))
        assert alone.windows() == together.windows()[i : i + 1]
    assert (together.kl[2] == 0).all()


def test_rows_are_each_alone():
    """Cutting rows into tiles does not show: a row's numbers are its own."""
    reference, variant, targets = predictions(260)
    whole = rows_of(variant, targets, reference_predictions(reference))
    filled = RowMetrics.empty(1, 260, variant.device)
    for start, stop in ((0, 128), (128, 245), (245, 260), (259, 260)):
        r = slice(start, stop)
        alone = rows_of(variant[r], targets[r], reference_predictions(reference[r]))
        assert_same_rows(alone, part(whole, slice(None), r))
        filled.put(slice(0, 1), r, alone)
    assert_same_rows(filled, whole)
    (window,) = whole.windows()
    assert window.tokens == 260
    assert window.nll == pytest.approx(whole.nll.double().sum().item(), rel=1e-14)
    assert window.kl == pytest.approx(whole.kl.double().sum().item(), rel=1e-14)
    assert window.top1 == int(whole.top1.sum())


def test_the_sum_of_a_window_is_fp64():
    """FP32 would lose the small row behind the large ones."""
    rows = RowMetrics(
        torch.tensor([[2.0**24, 1.0, 1.0]]),
        torch.tensor([[0.0, 2.0**-30, 1.0]]),
        torch.ones(1, 3) > 0,
        torch.ones(1, 3),
        torch.ones(1, 3),
    )
    assert rows.windows() == [WindowMetrics(3, 2.0**24 + 2, 1 + 2.0**-30, 3)]


def test_groups_by_confidence_and_what_the_reference_lost_there_are_of_one_reference():
    """Another batch may round it otherwise: then targets beside an edge change their group, and
    with them what the reference lost there.
    """
    reference, variant, targets = predictions(300)
    strata = np.zeros((1, 300), np.uint8)
    counts = set()
    for seed in range(3):
        noise = torch.randn(reference.shape, generator=torch.Generator().manual_seed(seed))
        own = reference + 2e-2 * noise
        rows = rows_of(variant, targets, reference_predictions(own))
        (found,) = rows.windows({0}, strata)
        log_p = own.double().log_softmax(-1)
        groups = np.digitize(log_p.exp().amax(-1).numpy(), EDGES)
        lost = -log_p.gather(-1, targets[:, None])[:, 0].numpy()
        assert found.strata.tokens[1] == np.bincount(groups).tolist()
        assert found.strata.reference[1] == pytest.approx(np.bincount(groups, lost), rel=1e-5)
        counts.add(tuple(found.strata.tokens[1]))
    assert len(counts) == 3


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_tie_with_the_references_best_token_agrees(dtype):
    reference = torch.tensor([[1.0, 3.0, 2.0], [4.0, 0.0, 4.0]], dtype=dtype)
    targets = torch.tensor([0, 0])
    stored = reference_predictions(reference)
    assert stored.best.tolist() == [1, 0]
    for logits, agrees in (
        ([[5.0, 5.0, 5.0], [2.0, 2.0, 2.0]], [True, True]),
        ([[5.0, 4.0, 5.0], [2.0, 1.0, 2.0]], [False, True]),
        ([[0.0, 7.0, 7.0], [2.0, 1.0, 3.0]], [True, False]),
    ):
        found = rows_of(torch.tensor(logits, dtype=dtype), targets, stored)
        assert found.top1[0].tolist() == agrees


def test_kl_has_its_direction():
    """KL(reference || variant): what the reference finds likely weighs."""
    reference = torch.tensor([[8.0, 0.0, 0.0]])
    variant = torch.tensor([[0.0, 0.0, 0.0]])
    targets = torch.tensor([0])
    forward, backward = (
        against(b, targets, a).kl for a, b in ((reference, variant), (variant, reference))
    )
    assert forward == pytest.approx(kl_fp64(variant, reference), rel=1e-5)
    assert backward > 3 * forward


@pytest.mark.parametrize("shift", [-1e4, 1e4])
def test_large_logits_do_not_overflow(shift):
    reference, variant, targets = predictions(130)
    reference, variant = reference + shift, variant + shift
    metrics = against(variant, targets, reference)
    assert metrics.nll == pytest.approx(nll_fp64(variant, targets), rel=1e-3)
    assert metrics.kl == pytest.approx(kl_fp64(variant, reference), rel=0.02)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nonfinite_logits_show_in_the_metrics(bad):
    reference, variant, targets = predictions(130)
    variant[129, 5] = bad
    metrics = against(variant, targets, reference)
    assert not torch.tensor([metrics.nll, metrics.kl]).isfinite().all()
