"""The three runs of windows that a recommendation is made of: choose, refine, certify.

Each is a study in a folder of its own, which goes on where it was stopped. All have one
calibration, so that a recipe's static scales are those that it was measured with. The first may be
any run that is there already.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from fp4scope.conductor.prepare import load, windows_of
from fp4scope.conductor.run import run_study
from fp4scope.conductor.workers import device_of
from fp4scope.data import (
    WindowSet,
    calibration_text,
    calibration_windows,
)
from fp4scope.diagnosis import Diagnosis
from fp4scope.diagnosis import load as load_results
from fp4scope.errors import StudyError
from fp4scope.files import named, replace_file, text_bytes
from fp4scope.ledger import check_folder
from fp4scope.models import LoadedModel
from fp4scope.preflight import check
from fp4scope.report.labels import windows_are
from fp4scope.stats import MIN_WINDOWS
from fp4scope.study import PLACES, Data, Scales, Study, read_options
from fp4scope.sweep import Listener, Progress

CHOOSE = "choose"
_OF_MEASURING = ("text", "dataset", "windows")
"""Options that say what recipes are measured on, where effects are there already."""


@dataclass(frozen=True)
class Parts:
    """Runs studies of one model on parts of a text.

    Attributes:
        study: What they have in common; its text is what recipes are measured on.
        folder: Where theirs are.
        loaded: The model.
        calibration: Of all of them.
        refine: Windows that one of several recipes is taken on.
        certify: Windows that nothing is chosen on.
        tell: Hears how the work goes on.
    """

    study: Study
    folder: Path
    loaded: LoadedModel
    calibration: WindowSet
    refine: range
    certify: range
    tell: Listener

    def choose(self, study: Study, folder: Path) -> Diagnosis:
        """A designed sweep."""
        designed = study.but(method="designed", sweep=(), patterns=(), recipes=())
        return self._run(CHOOSE, designed, folder, self.calibration)

    def measure(self, name: str, windows: range, recipes: Mapping[str, Any]) -> Diagnosis:
        """What recipes cost as wholes on some windows, in a folder of this name.

        With the tensor scales that an export stores: one for all weights that engines fuse.
        """
        study = self.study.but(
            windows=len(windows),
            first_window=windows.start,
            method="exact",
            sweep=(),
            patterns=(),
            all_quantized=(),
            scales=Scales.SERVED,
            recipes=recipes,
        )
        self._require_same(name, study)
        # Windows of the choice, if there were no others: not these.
        calibration = replace(self.calibration, evaluated=False)
        return self._run(name, study, self.folder / name, calibration)

    def _require_same(self, name: str, study: Study) -> None:
        """Refuse a folder that has other recipes: chosen under another bound, or from a palette.

        Raises:
            StudyError: It does.
        """
        held = self.folder / name / "study.yaml"
        if not held.is_file():
            return
        if Study.build(**read_options(held)).question.recipes != study.question.recipes:
            raise StudyError(
                f"{named(self.folder)} has a recommendation of other recipes: under another bound, "
                "or with other options; its effects are used again with another folder: "
                f"fp4scope recommend {named(self.folder)} -o ANOTHER"
            )

    def _run(self, name: str, study: Study, folder: Path, calibration: WindowSet) -> Diagnosis:
        first, count = study.data.first_window, study.data.windows or 0
        note = f"{name}: windows {first} to {first + count - 1}" if count else name
        self.tell(Progress("loading", note=note))
        return run_study(
            study,
            output_dir=folder,
            progress=self.tell,
            loaded=self.loaded,
            calibration=calibration,
        )


@dataclass(frozen=True)
class Begun:
    """A run that is there, finished or stopped.

    Attributes:
        folder: Where it is.
        study: What it measures.
        cut: Whether it is a recommendation's, whose windows are cut into three.
    """

    folder: Path
    study: Study
    cut: bool

    @classmethod
    def of(cls, folder: Path) -> "Begun":
        """The run in a folder.

        Raises:
            StudyError: Its study.yaml cannot be read.
        """
        study = Study.build(**read_options(folder / "study.yaml"))
        return cls(folder, study, (folder / CHOOSE).is_dir())

    def but(self, options: Mapping[str, Any]) -> Study:
        """Its study, run as these options say.

        Raises:
            StudyError: One of them is the run's own.
        """
        free = ("device",) if self.cut else ("device", *_OF_MEASURING)
        for name in options:
            if name not in free and PLACES[name][0] != "run":
                raise StudyError(
                    f"{name} is the run's own in {named(self.folder)}; leave it out, or give the "
                    "model instead of the folder"
                )
        return self.study.but(**{k: v for k, v in options.items() if k not in _OF_MEASURING})


def of_model(
    study: Study, folder: Path, tell: Listener, effects: Path | None = None
) -> tuple[Parts, Diagnosis]:
    """The windows of a study cut into three; effects are measured on the first of them.

    Args:
        study: Its model, text and formats.
        folder: Where all is measured.
        tell: Hears how the work goes on.
        effects: Another folder, where effects are.

    Raises:
        Fp4ScopeError: Something about the request, the model or the text; too few windows.
    """
    _require_thirds(study.data.windows, study.data)
    check(study, folder)
    device_of(study)
    parts, first = cut(study, folder, load(study, tell), tell)
    if effects is None:
        # So that the folder says what it is of.
        replace_file(folder / "study.yaml", text_bytes(study.to_yaml()), "choose another folder")
    return parts, parts.choose(first, (effects or folder) / CHOOSE)


def _require_thirds(count: int | None, data: Data) -> None:
    """Refuse windows that are too few for three parts; None is as many as there are."""
    fewest = 3 * MIN_WINDOWS
    if count is None or count >= fewest:
        return
    few = f"--windows {fewest} or more"
    more = few if data.windows is not None else "a longer text, or a smaller --seq-len"
    raise StudyError(
        f"{windows_are(count)} too few to be cut into three of {MIN_WINDOWS} or more, which "
        f"choosing, refining and certifying need; give {more}"
    )


def cut(study: Study, folder: Path, loaded: LoadedModel, tell: Listener) -> tuple[Parts, Study]:
    """The windows of a study cut into three, and the study of the first of them.

    Args:
        study: Its text and formats.
        folder: Where all is measured.
        loaded: Its model.
        tell: Hears how the work goes on.

    Raises:
        StudyError: Too few windows.
        DataError: Something about the text.
    """
    data, windows = windows_of(study.data, loaded)
    count, first = len(windows), data.first_window
    _require_thirds(count, data)
    ends = [first + count * part // 3 for part in range(4)]
    choose, refine, certify = (range(a, b) for a, b in pairwise(ends))
    seen = replace(windows, ids=windows.ids[: len(choose)])
    calibration = calibration_windows(data, calibration_text(data), loaded.tokenizer, seen)
    parts = Parts(study, folder, loaded, calibration, refine, certify, tell)
    return parts, study.but(windows=len(choose), first_window=choose.start)


def of_run(
    begun: Begun, folder: Path, tell: Listener, options: Mapping[str, Any]
) -> tuple[Parts, Diagnosis]:
    """What a run measured, gone on with if it was stopped, and windows that it has not used.

    Args:
        begun: The run.
        folder: Where what is missing is measured.
        tell: Hears how the work goes on.
        options: Where and how to measure: `text`, `windows`, and those of `run`.

    Raises:
        Fp4ScopeError: Something about the request, the model or the text; no windows are left.
    """
    study = begun.but(options)
    check(study, folder)
    check_folder(begun.folder, study.identity)
    device_of(study)
    loaded = load(study, tell)
    data, used = windows_of(study.data, loaded)
    calibration = calibration_windows(data, calibration_text(data), loaded.tokenizer, used)
    given = {name: options[name] for name in _OF_MEASURING if name in options}
    text = {"text": None, "dataset": None} if given.keys() & {"text", "dataset"} else {}
    measuring = study.but(**{"windows": 2 * len(used), **text, **given})
    rest = _unused(begun, measuring, loaded, used, calibration)
    half = rest.start + len(rest) // 2
    parts = Parts(
        measuring,
        folder,
        loaded,
        calibration,
        range(rest.start, half),
        range(half, rest.stop),
        tell,
    )
    if (begun.folder / "results.json").exists():
        return parts, load_results(begun.folder)
    return parts, run_study(study, output_dir=begun.folder, progress=tell, loaded=loaded)


def _unused(
    begun: Begun, measuring: Study, loaded: LoadedModel, used: WindowSet, calibration: WindowSet
) -> range:
    """Windows that a run has neither measured on nor calibrated with.

    Raises:
        StudyError: There are too few.
    """
    everything = measuring.data.model_copy(update={"windows": None, "first_window": 0})
    data, whole = windows_of(everything, loaded)
    first = 0
    if whole.text_sha256 == used.text_sha256:
        first = begun.study.data.first_window + len(used)
        if calibration.text_sha256 == used.text_sha256 and not calibration.evaluated:
            first += -(-calibration.ids.numel() // (data.seq_len - whole.bos))
    asked, fewest = measuring.data.windows or 0, 2 * MIN_WINDOWS
    if asked < fewest:
        raise StudyError(
            f"{windows_are(asked)} too few for refining and certifying, which take {MIN_WINDOWS} "
            f"or more each; give --windows {fewest} or more"
        )
    rest = range(first, min(len(whole), first + asked))
    if len(rest) < fewest:
        raise StudyError(
            f"{len(rest)} windows of {whole.source} are there for measuring that the run in "
            f"{named(begun.folder)} has not used, and it takes {fewest} or more; give "
            "another text with --text, or repeat the run in another folder with fewer --windows"
        )
    return rest
