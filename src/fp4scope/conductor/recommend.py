"""From a model to a recipe that was measured as a whole, on text that the choice has not seen.

The text is cut into three runs of windows. The first measures effects, which recipes are chosen
from. The second measures the choice and others on its front as wholes, and one of them is taken.
The third is used once: it says what that one costs. Each is a study in a folder of its own, which
goes on where it was stopped.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from fp4scope.conductor.prepare import fitted, load
from fp4scope.conductor.run import run_study
from fp4scope.data import evaluation_text, evaluation_windows
from fp4scope.deploy.bar import Verdict
from fp4scope.deploy.bound import Bound
from fp4scope.deploy.decide import Decider, Decision
from fp4scope.deploy.found import decider, written
from fp4scope.deploy.palette import choices
from fp4scope.deploy.proof import Measured, measured
from fp4scope.deploy.written import WrittenRecipe
from fp4scope.design import swept_settings
from fp4scope.diagnosis import Diagnosis
from fp4scope.errors import StudyError
from fp4scope.models import LoadedModel, resolve_device
from fp4scope.preflight import check
from fp4scope.stats import MIN_WINDOWS
from fp4scope.study import Study
from fp4scope.sweep import Listener, Progress

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
    output_dir: str | Path,
    bound: Bound,
    *,
    palette: str | None = None,
    serve_on: str | None = None,
    progress: Listener | None = None,
) -> Recommendation:
    """Measure effects, choose a recipe, measure it as a whole, and write it.

    Args:
        study: Model, text, formats and numerics; its windows are cut into three.
        output_dir: Folder for the studies `choose`, `refine` and `certify`, and for `recipe.yaml`.
        bound: What the recipe may cost or store.
        palette: What it may choose from; None: every format of the study, and full precision.
        serve_on: A GPU on which engines quantize weights alone.
        progress: Called as the work goes on.

    Raises:
        Fp4ScopeError: Something about the request, the model or the text.
    """
    tell, folder = progress or (lambda event: None), Path(output_dir)
    bound.require(choices(palette, swept_settings(study), serve_on))
    check(study, folder)
    resolve_device(study.numerics.device)
    loaded = load(study, tell)
    thirds = _thirds(study, loaded)
    parts = Parts(study, loaded, folder, tell)
    choose = parts.run("choose", thirds[0], method="designed", sweep=(), recipes=())
    found = decider(choose.results, palette, serve_on)
    first = bound.choose(found)
    candidates = list(_candidates(found, first, bound))
    refine = parts.run("refine", thirds[1], method="exact", sweep=(), recipes=_named(candidates))
    refined = measured(refine.results, candidates)
    taken = _taken(refined, first, bound)
    beside = [d for d in candidates if abs(candidates.index(d) - candidates.index(taken)) <= 1]
    certify = parts.run("certify", thirds[2], method="exact", sweep=(), recipes=_named(beside))
    certified = measured(certify.results, beside, among=len(beside))
    chosen = replace(certified[beside.index(taken)], decision=found.sure(taken))
    verdict = chosen.verdict(bound.bars) if bound.bars else None
    recipe = _with_proof(written(choose.results, found, chosen.decision), chosen, verdict, certify)
    recipe.write(folder / "recipe.yaml")
    return Recommendation(found, chosen, verdict, refined, certified, recipe)


@dataclass(frozen=True)
class Parts:
    """Runs studies of one model, one after the other."""

    study: Study
    loaded: LoadedModel
    folder: Path
    tell: Listener

    def run(self, name: str, windows: range, **options: Any) -> Diagnosis:  # noqa: ANN401
        """A study of its own, on these windows, in a folder of this name."""
        part = self.study.but(windows=len(windows), first_window=windows.start, **options)
        self.tell(
            Progress("loading", note=f"{name}: windows {windows.start} to {windows.stop - 1}")
        )
        return run_study(
            part, output_dir=self.folder / name, progress=self.tell, loaded=self.loaded
        )


def _thirds(study: Study, loaded: LoadedModel) -> list[range]:
    """Three runs of windows, one after the other.

    Raises:
        StudyError: There are too few windows for three.
    """
    data = fitted(study.data, loaded)
    text = evaluation_text(study.data)
    windows = evaluation_windows(data, text, loaded.tokenizer, loaded.config.model_type)
    count, first = len(windows), study.data.first_window
    if count < 3 * MIN_WINDOWS:
        raise StudyError(
            f"{count} windows of {data.seq_len} tokens cannot be cut into three of {MIN_WINDOWS} "
            "or more, which choosing, refining and certifying need; give a longer text, or a "
            "smaller --seq-len"
        )
    ends = [first + count * part // 3 for part in range(4)]
    return [range(a, b) for a, b in pairwise(ends)]


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
