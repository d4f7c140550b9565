"""From a model to a recipe that was measured as a whole, on text that the choice has not seen.

Three runs of windows, none of which is in another. The first measures effects, which recipes are
chosen from. The second measures the choice and others on its front as wholes, and one of them is
taken; where the prediction failed, it is changed group by group, as measured on the same windows.
The third is used once: it says what the recipe costs.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fp4scope.conductor.parts import CHOOSE, Begun, Parts, of_model, of_run
from fp4scope.deploy.bar import Bar, Verdict
from fp4scope.deploy.bound import Bound
from fp4scope.deploy.decide import Decider, Decision
from fp4scope.deploy.found import decider, unmeasured, written
from fp4scope.deploy.moves import Moves, Search, search
from fp4scope.deploy.palette import choices
from fp4scope.deploy.proof import Measured, measured
from fp4scope.deploy.written import WrittenRecipe
from fp4scope.diagnosis import Diagnosis
from fp4scope.ledger import Results
from fp4scope.report.predicted import write_predicted
from fp4scope.study import Study
from fp4scope.sweep import Listener

LARGER = 5
"""How many larger recipes than the chosen one are measured beside it, where there is a bar."""


@dataclass(frozen=True)
class Recommendation:
    """A recipe, and what was measured of it and of its neighbours.

    Attributes:
        decider: What chose.
        bars: What the recipe has to meet, if anything.
        chosen: The recipe, on windows that nothing was chosen on.
        searched: How it was changed as measured, where the prediction of the choice failed.
        refined: Recipes on the windows that one of them was taken on, the smallest first.
        certified: Recipes on the last windows, intervals for all of them at once.
        written: What its file holds.
    """

    decider: Decider
    bars: Sequence[Bar]
    chosen: Measured
    searched: Search | None
    refined: Sequence[Measured]
    certified: Sequence[Measured]
    written: WrittenRecipe

    @property
    def parts(self) -> Mapping[str, Sequence[Measured]]:
        """Recipes by the windows that they were measured on."""
        return {"refine": self.refined, "certify": self.certified}

    @property
    def verdict(self) -> Verdict | None:
        """Whether the recipe meets its bars; None where there are none."""
        return self.chosen.verdict(self.bars) if self.bars else None

    @property
    def is_recommended(self) -> bool:
        """Whether what was expected of it held, and no bar was missed or left undecided."""
        return self.chosen.is_as_predicted and self.verdict in (None, Verdict.MET)


def begin(
    study: Study,
    folder: Path,
    bound: Bound,
    *,
    palette: str | None = None,
    serve_on: str | None = None,
    engine: str | None = None,
    progress: Listener | None = None,
) -> Recommendation:
    """Measure effects, choose a recipe, measure it as a whole, and write it.

    Args:
        study: Model, text, formats and numerics; its windows are cut into three.
        folder: For the studies `choose`, `refine` and `certify`, and for `recipe.yaml`.
        bound: What the recipe may cost or store.
        palette: What it may choose from; None: every format of the study, and full precision.
        serve_on: A GPU on which engines quantize weights alone.
        engine: What has to load each layer (`deploy.palette.choices`).
        progress: Called as the work goes on.

    Raises:
        Fp4ScopeError: Something about the request, the model or the text.
    """
    bound.require(choices(palette, study.swept, serve_on, engine))
    parts, effects = of_model(study, folder, progress or _quiet)
    return _recommended(parts, effects, bound, decider(effects.results, palette, serve_on, engine))


def go_on(
    begun: Path,
    folder: Path,
    bound: Bound,
    *,
    palette: str | None = None,
    serve_on: str | None = None,
    engine: str | None = None,
    progress: Listener | None = None,
    options: Mapping[str, Any] | None = None,
) -> Recommendation:
    """The same from a run that is there: what it measured is used, what is missing is run.

    Args:
        begun: Folder of the run; one that was stopped is finished first.
        folder: For `refine`, `certify` and `recipe.yaml`; and for `choose`, a designed sweep on the
            run's windows, where it has no effects or not all formats of the palette.
        bound: What the recipe may cost or store.
        palette: What it may choose from; None: all that the run measured, and full precision.
        serve_on: A GPU on which engines quantize weights alone.
        engine: What has to load each layer (`deploy.palette.choices`).
        progress: Called as the work goes on.
        options: Options of a study: where and how to measure.

    Raises:
        Fp4ScopeError: Something about the request, the model or the text; the run has used all
            windows of its text.
    """
    tell, given, run = progress or _quiet, options or {}, Begun.of(begun)
    if run.cut:
        parts, effects = of_model(
            run.but(given), folder, tell, None if folder == run.folder else run.folder
        )
    else:
        parts, effects = of_run(run, folder, tell, given)
    if formats := unmeasured(effects.results, palette, serve_on, engine):
        study = run.but(given).but(formats=formats)
        bound.require(choices(palette, study.swept, serve_on, engine))
        effects = parts.choose(study, folder / CHOOSE)
    return _recommended(parts, effects, bound, decider(effects.results, palette, serve_on, engine))


def _quiet(event: object) -> None:
    """For who does not listen."""


def _recommended(parts: Parts, effects: Diagnosis, bound: Bound, found: Decider) -> Recommendation:
    """Choose from effects, refine, certify, write."""
    first = bound.choose(found)
    candidates = list(_candidates(found, first, bound))

    def on_refine(number: int, decisions: Sequence[Decision]) -> list[Measured]:
        name = f"refine-{number}" if number else "refine"
        results = parts.measure(name, parts.refine, _named(decisions)).results
        return measured(results, decisions)

    refined = on_refine(0, candidates)
    taken, searched = _taken(refined, first, bound), None
    if not next(one for one in refined if one.decision is first).is_as_predicted:
        searched = search(Moves(found, bound), taken, on_refine)
        taken = searched.end
    beside = [*_beside(candidates, taken.decision), taken.decision]
    beside.sort(key=lambda decision: decision.size.bits)
    certify = parts.measure("certify", parts.certify, _named(beside)).results
    certified = measured(certify, beside, among=len(beside))
    chosen = next(one for one in certified if one.decision is taken.decision)
    if searched is None:
        chosen = replace(chosen, decision=found.sure(chosen.decision))
    recipe = written(effects.results, found, chosen.decision)
    recommended = Recommendation(found, bound.bars, chosen, searched, refined, certified, recipe)
    recommended = replace(recommended, written=_with_proof(recommended, certify))
    recommended.written.write(parts.folder / "recipe.yaml")
    write_predicted(parts.folder, recommended.parts, bound.bars)
    return recommended


def _candidates(found: Decider, first: Decision, bound: Bound) -> Iterator[Decision]:
    """The choice and its neighbours on the front, the smallest first.

    Where there is a bar, several larger ones too: predictions may be too good.
    """
    front = [d for d in found.front() if d.recipe.settings and d.recipe != first.recipe]
    smaller = [d for d in front if d.size.bits < first.size.bits]
    larger = [d for d in front if d.size.bits > first.size.bits]
    yield from smaller[-1:]
    yield first
    step = max(1, len(larger) // LARGER)
    yield from (larger[::step] if bound.bars else larger[:1])


def _named(decisions: Sequence[Decision]) -> dict[str, Any]:
    """By size; where several have one, by number too."""
    names = [f"{d.size.bits:.2f} bits" for d in decisions]
    return {
        name if names.count(name) == 1 else f"{name} ({number})": decision.recipe
        for number, (name, decision) in enumerate(zip(names, decisions, strict=True), 1)
    }


def _beside(candidates: Sequence[Decision], taken: Decision) -> Iterator[Decision]:
    """The next smaller and the next larger recipe of the front."""
    others = [d for d in candidates if d.recipe != taken.recipe]
    yield from [d for d in others if d.size.bits <= taken.size.bits][-1:]
    yield from [d for d in others if d.size.bits > taken.size.bits][:1]


def _taken(refined: Sequence[Measured], first: Decision, bound: Bound) -> Measured:
    """The smallest recipe that meets the bars as measured; without bars the one first chosen.

    Where none does, the one that comes closest, and the verdict says so.
    """
    if not bound.bars:
        return next(one for one in refined if one.decision is first)
    for one in refined:
        if one.verdict(bound.bars) is Verdict.MET:
            return one
    return min(refined, key=lambda one: one.found["kl"].mean)


def _with_proof(made: Recommendation, certify: Results) -> WrittenRecipe:
    """The recipe's file with what was measured of it."""
    chosen, data = made.chosen, certify.data
    proof: dict[str, Any] = {
        "text": data["source"],
        "windows": data["windows"],
        "seq_len": data["seq_len"],
        "as_predicted": chosen.is_as_predicted,
        "recommended": made.is_recommended,
    }
    proof |= {
        name: {"mean": f.mean, "low": f.low, "high": f.high} for name, f in chosen.found.items()
    }
    if made.verdict is not None:
        proof["verdict"] = made.verdict.value
    numbers = {**made.written.numbers, "measured": proof}
    if made.searched is not None:
        numbers["searched"] = {
            "passes": made.searched.passes,
            "moves": made.searched.moves,
            "kl_before": made.searched.start.found["kl"].mean,
            "kl_after": made.searched.end.found["kl"].mean,
        }
    return replace(made.written, scales="served", numbers=numbers)
