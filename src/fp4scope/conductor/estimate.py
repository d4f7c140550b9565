"""First-order estimates of a study's units, window by window and into the log."""

from fp4scope.conductor.prepare import Prepared, say
from fp4scope.ledger import Found, Log
from fp4scope.operands import Injector
from fp4scope.sweep import Listener, Progress, estimate_window


def estimate(prepared: Prepared, injector: Injector, log: Log, tell: Listener) -> None:
    """Estimate what the log lacks.

    Raises:
        ModelError: No gradient comes through the model.
        NonFiniteError: An input or an estimate is not finite.
        OutputError: The log cannot be written.
    """
    ids = prepared.windows.ids
    keys = [(contrast.own, 0, "gradient") for contrast in prepared.estimated]
    known = set(log.done(keys))
    left = [w for w in range(len(ids)) if w not in known]
    if left and known:
        say(tell, f"{len(known)} of {len(ids)} windows were estimated before")
    for done, window in enumerate(left, len(known)):
        tell(Progress("estimating", done, len(ids), f"{done} of {len(ids)} windows"))
        found = estimate_window(prepared.loaded, ids[window], prepared.estimated, injector)
        rows = [Found(c.own, 0, {"gradient": [nats]}) for c, nats in found.nats.items()]
        log.add([window], [found.tokens], rows)
    if left:
        tell(Progress("estimating", len(ids), len(ids), f"{len(ids)} windows"))
