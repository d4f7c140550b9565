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

from fp4scope.conductor.domains import calibration_of_all, domain_studies
from fp4scope.conductor.parts import CHOOSE, Begun, Parts, cut, of_model, of_run
from fp4scope.conductor.prepare import say
from fp4scope.deploy.bar import Verdict
from fp4scope.deploy.bound import Bound
from fp4scope.deploy.decide import Decider, Decision
from fp4scope.deploy.found import decider, unmeasured, written
from fp4scope.deploy.joint import joint, of_text, on_all
from fp4scope.deploy.moves import Moves, search
from fp4scope.deploy.palette import choices
from fp4scope.deploy.proof import Measured, measured
from fp4scope.deploy.recommendation import Recommendation
from fp4scope.deploy.written import WrittenRecipe
from fp4scope.diagnosis import Diagnosis
from fp4scope.ledger import Results
from fp4scope.report.recommendation_page import write_recommendation
from fp4scope.study import Study
from fp4scope.sweep import Listener

LARGER = 5
"""How many larger recipes than the chosen one are measured beside it, where there is a bar."""


@dataclass(frozen=True)
class Text:
    """A text that a recipe is chosen for.

    Attributes:
        name: Of its domain; empty where it is the only one.
        parts: Its windows.
        effects: What was measured on the first of them.
        decider: What these predict.
    """

    name: str
    parts: Parts
    effects: Diagnosis
    decider: Decider

    def expects(self, decision: Decision) -> Decision:
        """A recipe with what this text's effects predict of it."""
        return replace(decision, predicted=self.decider.of(decision.options).predicted)


def begin(
    study: Study,
    folder: Path,
    bound: Bound,
    *,
    texts: Mapping[str, Path] | None = None,
    palette: str | None = None,
    serve_on: str | None = None,
    engine: str | None = None,
    progress: Listener | None = None,
) -> Recommendation:
    """Measure effects, choose a recipe, measure it as a whole, and write it.

    Args:
        study: Model, text, formats and numerics; its windows are cut into three.
        folder: For the studies `choose`, `refine` and `certify`, and for `recipe.yaml`.
        bound: What the recipe may cost, on every text, or store.
        texts: Several instead of the study's, by domain, as `run_domains` takes them: one recipe
            for all, and a folder for each.
        palette: What it may choose from; None: every format of the study, and full precision.
        serve_on: A GPU on which engines quantize weights alone.
        engine: What has to load each layer (`deploy.palette.choices`).
        progress: Called as the work goes on.

    Raises:
        Fp4ScopeError: Something about the request, the model or a text.
    """
    tell = progress or _quiet
    bound.require(choices(palette, study.swept, serve_on, engine))
    if texts is None:
        measured_on = {"": of_model(study, folder, tell)}
    else:
        measured_on = dict(_on_texts(study, texts, folder, tell))
    found = [
        Text(name, parts, effects, decider(effects.results, palette, serve_on, engine))
        for name, (parts, effects) in measured_on.items()
    ]
    return _recommended(found, folder, bound)


def _on_texts(
    study: Study, texts: Mapping[str, Path], folder: Path, tell: Listener
) -> Iterator[tuple[str, tuple[Parts, Diagnosis]]]:
    """The windows and effects of each text; all have one calibration."""
    loaded, studies = domain_studies(study, texts, folder, tell)
    cuts = {name: cut(own, folder / name, loaded, tell) for name, own in studies.items()}
    calibration = calibration_of_all([parts.calibration for parts, _ in cuts.values()])
    for name, (parts, first) in cuts.items():
        say(tell, f"domain {name}: {texts[name]}")
        own = replace(parts, calibration=calibration)
        yield name, (own, own.choose(first, own.folder / CHOOSE))


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
    found = decider(effects.results, palette, serve_on, engine)
    return _recommended([Text("", parts, effects, found)], folder, bound)


def _quiet(event: object) -> None:
    """For who does not listen."""


def _recommended(texts: Sequence[Text], folder: Path, bound: Bound) -> Recommendation:
    """Choose from effects, refine, certify, write."""
    found = joint([text.decider for text in texts])
    first = bound.choose(found)
    candidates = list(_candidates(found, first, bound))

    def on_refine(number: int, decisions: Sequence[Decision]) -> list[Measured]:
        name = f"refine-{number}" if number else "refine"
        expected = [[text.expects(one) for one in decisions] for text in texts]
        return _on_all(name, texts, decisions, expected)[0]

    refined = on_refine(0, candidates)
    taken, searched = _taken(refined, first, bound), None
    if not next(one for one in refined if one.decision is first).is_as_predicted:
        searched = search(Moves(found, bound), taken, on_refine)
        taken = searched.end
    beside = [*_beside(candidates, taken.decision), taken.decision]
    beside.sort(key=lambda decision: decision.size.bits)
    expected = [
        [_as_refined(taken, place) if one is taken.decision and searched else text.expects(one)
         for one in beside]
        for place, text in enumerate(texts)
    ]  # fmt: skip
    certified, certify = _on_all("certify", texts, beside, expected, len(beside) * len(texts))
    chosen = next(one for one in certified if one.decision is taken.decision)
    if searched is None:
        chosen = replace(chosen, decision=found.sure(chosen.decision))
    recipe = written(texts[0].effects.results, found, chosen.decision)
    names = tuple(text.name for text in texts) if len(texts) > 1 else ()
    recommended = Recommendation(
        found, bound.bars, chosen, searched, refined, certified, recipe, names,
        tuple(_runs(texts, searched.passes if searched else 0)),
    )  # fmt: skip
    recommended = replace(recommended, written=_with_proof(recommended, certify))
    recommended.written.write(folder / "recipe.yaml")
    write_recommendation(recommended, folder)
    return recommended


def _on_all(
    name: str,
    texts: Sequence[Text],
    decisions: Sequence[Decision],
    expected: Sequence[Sequence[Decision]],
    among: int = 1,
) -> tuple[list[Measured], list[Results]]:
    """Recipes measured on a part of every text, and the results of each.

    Args:
        name: Of the part.
        texts: All of them.
        decisions: As they were chosen.
        expected: By text, what is predicted of them there.
        among: How many comparisons the intervals hold for at once.
    """
    results: list[Results] = []
    for text in texts:
        windows = text.parts.certify if name == "certify" else text.parts.refine
        results.append(text.parts.measure(name, windows, _named(decisions)).results)
    rows = [measured(own, of, among) for own, of in zip(results, expected, strict=True)]
    return [
        on_all(d, of) for d, of in zip(decisions, zip(*rows, strict=True), strict=True)
    ], results


def _runs(texts: Sequence[Text], passes: int) -> Iterator[Path]:
    """Folders of all studies, text by text."""
    names = ["refine", *(f"refine-{number}" for number in range(1, passes + 1)), "certify"]
    for text in texts:
        if text.effects.folder is not None:
            yield text.effects.folder
        yield from (text.parts.folder / name for name in names)


def _as_refined(taken: Measured, place: int) -> Decision:
    """A recipe that was found by measuring, with what was measured of it on one text."""
    of = of_text(taken, place)
    return replace(taken.decision, predicted={name: of.found[name] for name in ("kl", "nll")})


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


def _with_proof(made: Recommendation, certify: Sequence[Results]) -> WrittenRecipe:
    """The recipe's file with what was measured of it."""
    chosen = made.chosen
    proof: dict[str, Any] = {
        "text": " + ".join(results.data["source"] for results in certify),
        "windows": sum(results.data["windows"] for results in certify),
        "seq_len": certify[0].data["seq_len"],
        "as_predicted": chosen.is_as_predicted,
        "recommended": made.is_recommended,
        **_numbers(chosen),
    }
    if made.texts:
        proof["texts"] = {
            name: _numbers(of_text(chosen, place)) for place, name in enumerate(made.texts)
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


def _numbers(found: Measured) -> dict[str, Any]:
    return {name: {"mean": f.mean, "low": f.low, "high": f.high} for name, f in found.found.items()}
