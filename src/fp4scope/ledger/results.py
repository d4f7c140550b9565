"""Everything a study found."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fp4scope.design import Contrast
from fp4scope.ledger.rows import Ledger
from fp4scope.ledger.schema import ActivationRecord, Conditions, ErrorRecord, LocalError
from fp4scope.recipes import Recipe, Sites


@dataclass(kw_only=True)
class Results:
    """Everything a study measured, and under what conditions.

    Attributes:
        sites: What could be quantized.
        contrasts: What was asked, in the order of the study.
        ledger: What was found on the evaluated text.
        given: Recipes that were measured as wholes, by name.
        causes: What was measured to tell why units cost what they do.
        errors: Of operands, by layer and format.
        local: Errors of what leaves layers.
        remedies: What else was tried on the most costly units.
        remedied: What that gave, on windows that did not choose these units.
    """

    study: dict[str, Any]
    model: dict[str, Any]
    data: dict[str, Any]
    protocol: dict[str, Any]
    environment: dict[str, Any]
    sites: Sites = field(default_factory=lambda: Sites((), 0))
    contrasts: Sequence[Contrast] = ()
    ledger: Ledger = field(default_factory=Ledger)
    given: Mapping[str, Recipe] = field(default_factory=dict)
    causes: Sequence[Contrast] = ()
    errors: Sequence[ErrorRecord] = ()
    local: Sequence[LocalError] = ()
    remedies: Sequence[Contrast] = ()
    remedied: Ledger = field(default_factory=Ledger)
    activations: list[ActivationRecord] = field(default_factory=list)

    @classmethod
    def under(cls, conditions: Conditions, **found: Any) -> "Results":  # noqa: ANN401
        """Of a file of any version: what it says of the conditions, and what was found."""
        return cls(
            study=conditions["study"],
            model=dict(conditions["model"]),
            data=dict(conditions["data"]),
            protocol=dict(conditions["protocol"]),
            environment=dict(conditions["environment"]),
            activations=conditions["activations"],
            **found,
        )

    @property
    def anytime(self) -> bool:
        """Whether how many windows a contrast has depended on what was measured."""
        return bool((self.protocol.get("stopping") or {}).get("anytime"))

    @property
    def estimated(self) -> bool:
        """Whether there are first-order estimates."""
        return any("gradient" in self.ledger[subject].values for subject in self.ledger)
