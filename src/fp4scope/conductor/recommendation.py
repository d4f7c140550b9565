"""From a model to a recipe that was measured as a whole, on text that the choice has not seen.

Three runs of windows, none of which is in another. The first measures effects, which recipes are
chosen from. The second measures the choice and others on its front as wholes, and one of them is
taken. The third is used once: it says what that one costs.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fp4scope.conductor.parts import CHOOSE, Begun, Parts, of_model, of_run
from fp4scope.deploy.bar import Verdict
from fp4scope.deploy.bound import Bound
from fp4scope.deploy.decide import Decider, Decision
from fp4scope.deploy.found import decider, unmeasured, written
from fp4scope.deploy.palette import choices
from fp4scope.deploy.proof import Measured, measured
from fp4scope.deploy.written import WrittenRecipe
from fp4scope.diagnosis import Diagnosis
from fp4scope.study import Study
from fp4scope.sweep import Listener

LARGER = 5
"""How many larger recipes than the chosen one are measured beside it, where there is a bar."""


@dataclass(frozen=True)
class Recommendation:
    """A recipe, and what was measured of it and of its neighbours.

    Attributes:
        decider: What chose.
        chosen: The recipe that is recommended, on windows that nothing was chosen on.
        verdict: Whether it meets its bars; None where there are none.
        refined: Recipes on the windows that one of them was taken on, the smallest first.
        certified: Recipes on the last windows, intervals for all of them at once.
        written: What its file holds.
    """

    decider: Decider
    chosen: Measured
    verdict: Verdict | None
    refined: Sequence[Measured]
    certified: Sequence[Measured]
    written: WrittenRecipe


def recommend(
    study: Study,
    folder: Path,
    bound: Bound,
    *,
    palette: str | None = None,
    serve_on: str | None = None,
    progress: Listener | None = None,
) -> Recommendation:
    """Measure effects, choose a recipe, measure it as a whole, and write it.

    Args:
        study: Model, text, formats and numerics; its windows are cut into three.
        folder: For the studies `choose`, `refine` and `certify`, and for `recipe.yaml`.
        bound: What the recipe may cost or store.
        palette: What it may choose from; None: every format of the study, and full precision.
        serve_on: A GPU on which engines quantize weights alone.
        progress: Called as the work goes on.

    Raises:
        Fp4ScopeError: Something about the request, the model or the text.
    """
    bound.require(choices(palette, study.swept, serve_on))
    parts, effects = of_model(study, folder, progress or _quiet)
    return _recommended(parts, effects, bound, decider(effects.results, palette, serve_on))


def go_on(
    begun: Path,
    folder: Path,
    bound: Bound,
    *,
    palette: str | None = None,
    serve_on: str | None = None,
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
    if formats := unmeasured(effects.results, palette, serve_on):
        study = run.but(given).but(formats=formats)
        bound.require(choices(palette, study.swept, serve_on))
        effects = parts.choose(study, folder / CHOOSE)
    return _recommended(parts, effects, bound, decider(effects.results, palette, serve_on))


def _quiet(event: object) -> None:
    """For who does not listen."""


def _recommended(parts: Parts, effects: Diagnosis, bound: Bound, found: Decider) -> Recommendation:
    """Choose from effects, refine, certify, write."""
    first = bound.choose(found)
    candidates = list(_candidates(found, first, bound))
    refine = parts.measure("refine", parts.refine, _named(candidates))
    refined = measured(refine.results, candidates)
    taken = _taken(refined, first, bound)
    beside = [d for d in candidates if abs(candidates.index(d) - candidates.index(taken)) <= 1]
    certify = parts.measure("certify", parts.certify, _named(beside))
    certified = measured(certify.results, beside, among=len(beside))
    chosen = replace(certified[beside.index(taken)], decision=found.sure(taken))
    verdict = chosen.verdict(bound.bars) if bound.bars else None
    recipe = written(effects.results, found, chosen.decision)
    recipe = _with_proof(recipe, chosen, verdict, certify)
    recipe.write(parts.folder / "recipe.yaml")
    return Recommendation(found, chosen, verdict, refined, certified, recipe)


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
    return {f"{d.size.bits:.2f} bits": d.recipe for d in decisions}


def _taken(refined: Sequence[Measured], first: Decision, bound: Bound) -> Decision:
    """The smallest recipe that meets the bars as measured; without bars the one first chosen.

    Where none does, the one that comes closest is certified, and the verdict says so.
    """
    if not bound.bars:
        return first
    for one in refined:
        if one.verdict(bound.bars) is Verdict.MET:
            return one.decision
    return min(refined, key=lambda one: one.found["kl"].mean).decision


def _with_proof(
    recipe: WrittenRecipe, chosen: Measured, verdict: Verdict | None, certify: Diagnosis
) -> WrittenRecipe:
    """The same with what was measured of it."""
    data = certify.results.data
    proof: dict[str, Any] = {
        "text": data["source"],
        "windows": data["windows"],
        "seq_len": data["seq_len"],
        "as_predicted": chosen.is_as_predicted,
    }
    proof |= {
        name: {"mean": f.mean, "low": f.low, "high": f.high} for name, f in chosen.found.items()
    }
    if verdict is not None:
        proof["verdict"] = verdict.value
    numbers = {**recipe.numbers, "measured": proof}
    return WrittenRecipe(recipe.recipe, recipe.model, recipe.scales, recipe.input_amax, numbers)
