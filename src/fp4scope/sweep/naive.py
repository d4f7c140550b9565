"""The plain way to measure variants: the model's own forward, once for each and every window.

It is simple enough to be right by reading: put the variant's settings on the model, run
`model(ids)`, compare the logits with the reference's. One window is one forward, so no
result can depend on what shares a batch.

Windows go in chunks, and inside a chunk variant by variant, so that the reference's logits
are computed once a chunk and a format's quantized weights serve all its variants.
"""

from collections.abc import Callable, Iterator, Sequence
from math import isfinite

from torch import Tensor

from fp4scope.errors import NonFiniteError
from fp4scope.inject import Injector
from fp4scope.metrics import ReferencePredictions, WindowMetrics, compare, reference_metrics
from fp4scope.models import LoadedModel
from fp4scope.observe import observe_inputs
from fp4scope.records import REFERENCE
from fp4scope.sweep.journal import Journal
from fp4scope.sweep.plan import PlannedVariant

REFERENCE_LOGITS_BYTES = 1 << 29
"""How much memory the reference's logits of one chunk may take, at least one window's."""


def measure(
    loaded: LoadedModel,
    ids: Tensor,
    order: Sequence[int],
    variants: Sequence[PlannedVariant],
    injector: Injector,
    journal: Journal,
    progress: Callable[[PlannedVariant, int], None] = lambda variant, windows: None,
) -> None:
    """Measure every variant on every window that the journal lacks.

    Args:
        loaded: The model.
        ids: Token ids, (windows, seq_len).
        order: Window indices in the order to measure them.
        variants: What to measure; the reference first.
        injector: Of the same model.
        journal: Where each variant's numbers go, chunk by chunk.
        progress: Told of every variant measured and on how many windows.

    Raises:
        NonFiniteError: The NLL of the reference or of a variant, or a quantized input.
        OutputError: The journal cannot be written.
    """
    size = _chunk_windows(loaded, ids.shape[1])
    for start in range(0, len(order), size):
        chunk = list(order[start : start + size])
        todo = [(v, journal.missing(v.variant, chunk)) for v in variants]
        needed = sorted({w for _, windows in todo for w in windows}, key=chunk.index)
        if not needed:
            continue
        reference, measured = _reference(loaded, ids, needed)
        for variant, windows in todo:
            if not windows:
                continue
            if variant.variant == REFERENCE:
                rows = {w: measured[w] for w in windows}
            else:
                rows = _variant(loaded, ids, windows, variant, injector, reference)
            journal.add(variant.variant, rows)
            progress(variant, len(windows))
        del reference  # before the next chunk's is made beside it


def _reference(
    loaded: LoadedModel, ids: Tensor, windows: list[int]
) -> tuple[dict[int, ReferencePredictions], dict[int, WindowMetrics]]:
    predictions, measured = {}, {}
    for w in windows:
        logits = loaded.logits(ids[w])[:-1]
        measured[w], predictions[w] = reference_metrics(logits, ids[w, 1:].to(logits.device))
        _require_finite(measured[w], "the reference", ids[w], w, loaded)
    return predictions, measured


def _variant(
    loaded: LoadedModel,
    ids: Tensor,
    windows: list[int],
    variant: PlannedVariant,
    injector: Injector,
    reference: dict[int, ReferencePredictions],
) -> dict[int, WindowMetrics]:
    measured = {}
    with injector.applied(variant.settings):
        for w in windows:
            logits = loaded.logits(ids[w])[:-1]
            injector.check()
            measured[w] = compare(logits, ids[w, 1:].to(logits.device), reference[w])
            _require_finite(measured[w], variant.variant.key, ids[w], w, loaded)
    return measured


def _require_finite(
    metrics: WindowMetrics, who: str, ids: Tensor, window: int, loaded: LoadedModel
) -> None:
    for name, value in (("NLL", metrics.nll), ("KL", metrics.kl)):
        if isfinite(value):
            continue
        # Once more, to see where it begins: the model still has the variant's settings.
        seen = observe_inputs(loaded.model, loaded.layout.linears, _once(loaded, ids))
        broken = [linear for linear, statistics in seen.items() if statistics.nonfinite]
        cell = loaded.layout.cell_of[broken[0]] if broken else None
        where = (
            f"the first input that is NaN or Inf is that of {broken[0]} (block {cell.block}, "
            f"component {cell.component})"
            if cell
            else "every input of the blocks' linears is finite, so the overflow is behind them"
        )
        raise NonFiniteError(
            f"the {name} of {who} is {value} on window {window} in {loaded.dtype}: {where}; use a "
            "dtype with more range (--dtype bfloat16 or float32)"
        )


def _once(loaded: LoadedModel, ids: Tensor) -> Iterator[None]:
    loaded.logits(ids)
    yield


def _chunk_windows(loaded: LoadedModel, seq_len: int) -> int:
    row_bytes = loaded.config.vocab_size * loaded.dtype.itemsize
    return max(1, REFERENCE_LOGITS_BYTES // (seq_len * row_bytes))
