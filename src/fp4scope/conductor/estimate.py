"""First-order estimates of a study's units, window by window and into the journal."""

from fp4scope.conductor.prepare import Prepared
from fp4scope.conductor.progress import Listener, Progress
from fp4scope.inject import Injector
from fp4scope.sweep import Journal, estimate_window


def estimate(prepared: Prepared, injector: Injector, journal: Journal, tell: Listener) -> None:
    """Estimate what the journal lacks.

    Raises:
        ModelError: No gradient comes through the model.
        NonFiniteError: An input or an estimate is not finite.
        OutputError: The journal cannot be written.
    """
    ids = prepared.windows.ids
    known = set(journal.estimates.windows)
    left = [w for w in range(len(ids)) if w not in known]
    if left and known:
        note = f"{len(known)} of {len(ids)} windows were estimated before"
        tell(Progress("estimating", note=note))
    for done, window in enumerate(left, len(known)):
        tell(Progress("estimating", done, len(ids), f"{done} of {len(ids)} windows"))
        found = estimate_window(prepared.loaded, ids[window], prepared.estimated, injector)
        journal.add_estimates(window, found.tokens, found.nats)
    if left:
        tell(Progress("estimating", len(ids), len(ids), f"{len(ids)} windows"))
