"""Where NaN or Inf begins, when a loss is not finite."""

from collections.abc import Iterator
from math import inf, isfinite

from jaxtyping import Int
from torch import Tensor

from fp4scope.design import Run
from fp4scope.errors import NonFiniteError
from fp4scope.ledger import MOST_NATS
from fp4scope.metrics import WindowMetrics
from fp4scope.models import LoadedModel
from fp4scope.operands import Injector, nonfinite_cause, observe_inputs


def require_finite(
    loaded: LoadedModel,
    injector: Injector,
    run: Run,
    metrics: WindowMetrics,
    ids: Int[Tensor, "windows tokens"],
    window: int,
) -> None:
    """Refuse an NLL or KL that is not finite, naming the first linear with such an input.

    One beyond `MOST_NATS` for each token is refused as well: its perplexity is no number.

    Raises:
        NonFiniteError: It is not.
    """
    for name, value in (("NLL", metrics.nll), ("KL", metrics.kl)):
        if isfinite(value) and abs(value) <= MOST_NATS * metrics.tokens:
            continue

        def once() -> Iterator[None]:
            loaded.logits(ids[window], last=1)
            yield

        with injector.applied(dict(run.recipe.in_block(loaded.layout.sites.everywhere))):
            seen = observe_inputs(loaded.model, loaded.layout.inputs, once())
        broken = [linear for linear, statistics in seen.items() if statistics.nonfinite]
        where = (
            f"the first input that is NaN or Inf is that of {loaded.layout.described(broken[0])}"
            if broken
            else "every input of the blocks' linears is finite, so the overflow is behind them"
        )
        masked = not broken and value == inf
        why = (
            "the model gives a token of the text the probability zero (a logit of -inf), so no "
            "perplexity can be had from this text"
            if masked
            else f"{where}; {nonfinite_cause(loaded.model)}"
        )
        raise NonFiniteError(
            f"the {name} of {run.name} is {value} on window {window} in {loaded.dtype}: {why}"
        )
