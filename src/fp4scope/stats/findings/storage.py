"""What keeping a unit in full precision takes: bytes, and bits of the whole model."""

from collections.abc import Iterable
from dataclasses import dataclass

from fp4scope.ledger import Results
from fp4scope.treatments import FULL_PRECISION_BITS, Setting, stored_bits


@dataclass(frozen=True)
class Kept:
    """What a unit stores more in full precision than in a format.

    Attributes:
        bytes: More than quantized.
        bits: Of the whole model, for each parameter, if all else is quantized; None where the
            number of parameters is not known.
    """

    bytes: float
    bits: float | None

    def per_mb(self, saved: float | None) -> float | None:
        """What is saved for each million bytes; None of what stores nothing."""
        return saved / (self.bytes / 1e6) if saved is not None and self.bytes > 0 else None


class Storage:
    """How much a study's model stores with some of its sites kept."""

    def __init__(self, results: Results) -> None:
        self._linears = {site.key: site for site in results.sites if site.is_linear}
        self._parameters: int | None = results.model.get("parameters")
        self._all_quantized: dict[Setting, float] = {}

    def kept(self, setting: Setting, sites: Iterable[str]) -> Kept:
        """What keeping some sites takes, all others being in a setting.

        Args:
            setting: Of all sites.
            sites: Names; what is no linear stores nothing.
        """
        more = 0.0
        for name in self._linears.keys() & set(sites):
            site = self._linears[name]
            saved = FULL_PRECISION_BITS - stored_bits(setting, site.cols)
            more += saved * site.parameters
        if self._parameters is None:
            return Kept(more / 8, None)
        return Kept(more / 8, (self._whole(setting) + more) / self._parameters)

    def _whole(self, setting: Setting) -> float:
        """Bits of the model with all sites in a setting. What is no site has 16."""
        if setting not in self._all_quantized:
            own = [site.parameters for site in self._linears.values()]
            stored = [stored_bits(setting, s.cols) * s.parameters for s in self._linears.values()]
            rest = FULL_PRECISION_BITS * ((self._parameters or 0) - sum(own))
            self._all_quantized[setting] = sum(stored) + rest
        return self._all_quantized[setting]


def sizes_known(results: Results) -> bool:
    """Whether results say how large the linears are: those of version 0.1 do not."""
    return any(site.is_linear for site in results.sites)
