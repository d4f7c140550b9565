"""A recipe that was measured as a whole, and what was measured of it and of its neighbours."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fp4scope.deploy.bar import Bar, Verdict
from fp4scope.deploy.decide import Decider
from fp4scope.deploy.joint import of_text
from fp4scope.deploy.moves import Search
from fp4scope.deploy.proof import Measured
from fp4scope.deploy.written import WrittenRecipe


@dataclass(frozen=True)
class Recommendation:
    """A recipe, and what was measured of it and of its neighbours.

    Of several texts the worst stands for all.

    Attributes:
        decider: What chose.
        bars: What the recipe has to meet, if anything.
        chosen: The recipe, on windows that nothing was chosen on.
        searched: How it was changed as measured, where the prediction of the choice failed.
        refined: Recipes on the windows that one of them was taken on, the smallest first.
        certified: Recipes on the last windows, intervals for all of them at once.
        written: What its file holds.
        texts: Names of the texts, if there are several.
        runs: Folders of the studies that all of it is from: effects first, certify last.
    """

    decider: Decider
    bars: Sequence[Bar]
    chosen: Measured
    searched: Search | None
    refined: Sequence[Measured]
    certified: Sequence[Measured]
    written: WrittenRecipe
    texts: tuple[str, ...] = ()
    runs: tuple[Path, ...] = ()

    @property
    def parts(self) -> Mapping[str, Sequence[Measured]]:
        """Recipes by the windows that they were measured on: `refine`, or `refine: prose`."""
        parts = {"refine": self.refined, "certify": self.certified}
        if not self.texts:
            return parts
        return {
            f"{part}: {name}": [of_text(one, place) for one in rows]
            for part, rows in parts.items()
            for place, name in enumerate(self.texts)
        }

    @property
    def verdict(self) -> Verdict | None:
        """Whether the recipe meets its bars; None where there are none."""
        return self.chosen.verdict(self.bars) if self.bars else None

    @property
    def outcome(self) -> Verdict:
        """The verdict, but missed where what was expected of the recipe failed."""
        if not self.chosen.is_as_predicted:
            return Verdict.MISSED
        return self.verdict or Verdict.MET

    @property
    def is_recommended(self) -> bool:
        """Whether what was expected of it held, and no bar was missed or left undecided."""
        return self.outcome is Verdict.MET
