"""A model that is run beside the likeliest tokens which somebody serves at each place."""

import numpy as np
import torch

from fp4scope.deploy.served import Served
from fp4scope.deploy.verify import Losses
from fp4scope.models import LoadedModel
from fp4scope.stats.inference.consistency import coarse_kl
from fp4scope.stats.inference.sharpness import slopes


class Likeliest:
    """How far one way of running a model is from what was served there, and from a second run.

    Args:
        loaded: The model.
        served: What was served; without its likeliest tokens nothing is known.

    Raises:
        DataError: Its likeliest tokens are others than the model has.

    Attributes:
        kl: At least so much KL is from it to what was served, by window, nats per token.
        rerun: The same to its second run.
        slopes: Of its log-probabilities on the served ones, and of these on its own, by window.
    """

    def __init__(self, loaded: LoadedModel, served: Served) -> None:
        self._served = served
        self._own: dict[int, Losses] = {}
        self.kl, self.rerun = np.zeros((2, len(served.ids)))
        self.slopes = np.ones((2, len(served.ids)))
        if served.top_ids is not None:
            loaded.require_known(torch.from_numpy(served.top_ids), "top_ids")

    def first(self, window: int, logits: torch.Tensor) -> None:
        """Look at the run."""
        if self._served.top_logprobs is not None:
            own, their = self._at(window, logits), self._served.top_logprobs[window]
            self._own[window] = own
            self.kl[window] = coarse_kl(own, their).mean()
            self.slopes[:, window] = slopes(own, their)

    def second(self, window: int, logits: torch.Tensor) -> None:
        """Look at a second run."""
        if window in self._own:
            self.rerun[window] = coarse_kl(self._own[window], self._at(window, logits)).mean()

    def _at(self, window: int, logits: torch.Tensor) -> Losses:
        assert self._served.top_ids is not None
        at = torch.from_numpy(self._served.top_ids[window]).to(logits.device)
        return logits.log_softmax(-1).gather(-1, at).double().cpu().numpy()
