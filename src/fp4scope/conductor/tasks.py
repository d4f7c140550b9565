"""Recipes on tasks: a model, its tasks and its recipes in, scores of documents out.

The model is loaded once. lm-eval runs it for each recipe, task and replica, and after each the
scores are on disk, so that a stopped command goes on.
"""

import importlib.metadata
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from fp4scope.conductor.calibrate import inputs_note, observe
from fp4scope.conductor.prepare import load, say, without_silent
from fp4scope.conductor.provenance import environment_of
from fp4scope.data import (
    Text,
    WindowSet,
    calibration_text,
    dataset,
    evaluation_text,
    evaluation_windows,
)
from fp4scope.deploy.bar import parse_bar
from fp4scope.deploy.configs import is_published
from fp4scope.deploy.given import read_recipe
from fp4scope.deploy.published import published_recipes
from fp4scope.design import NOTHING
from fp4scope.diagnosis import load as load_results
from fp4scope.errors import StudyError
from fp4scope.files import named, replace_file, text_bytes
from fp4scope.groups import scale_partners
from fp4scope.ledger import TASKS, TaskResults, read_tasks
from fp4scope.ledger.claim import Claim
from fp4scope.models import LoadedModel, resolve_device
from fp4scope.operands import Injector
from fp4scope.preflight import check
from fp4scope.recipes import Recipe, Sites
from fp4scope.report.files import write_texts
from fp4scope.stats import task_table
from fp4scope.study import Dataset, Given, Scales, Study
from fp4scope.sweep import NUMERICS_VERSION, Listener
from fp4scope.tasks import Asked, Harness, Wish, cuts_network, open_tasks, parse_recipes
from fp4scope.treatments import Amax

_TABLE = "tasks.csv"
_CALIBRATION_WINDOWS = 64
_PROBE = 64
"""Tokens that show which linears run at all."""


def run_tasks(study: Study, wish: Wish, folder: Path, tell: Listener) -> TaskResults:
    """Score recipes on tasks.

    Args:
        study: Its model, what it is calibrated on, and its numerics.
        wish: What is asked.
        folder: Where `tasks.json` and `tasks.csv` are written; a stopped command goes on there. If
            it has results of a run of the same model, their reports show tasks too.
        tell: Hears how the work goes on.

    Raises:
        Fp4ScopeError: Something about the request, the tasks' data, the model or the folder.
    """
    asked = parse_recipes(wish.recipes)
    bars = [parse_bar(text) for text in wish.accept]
    check(study, folder)
    opened = open_tasks(wish)
    for bar in bars:
        if bar.task not in opened:
            raise StudyError(
                f"accept is {bar.text}, which is on no task that is run; write it as "
                f"task:{next(iter(opened))}<2"
            )
    text = _calibration_text(study, asked)
    resolve_device(study.numerics.device)
    loaded = load(study, tell)
    windows = None if text is None else _windows(study, text, loaded)
    probe = _windows(study, dataset(Dataset.PYDOC_TOPICS), loaded) if windows is None else windows
    loaded = without_silent(study, loaded, probe.ids[0][:_PROBE])
    recipes = recipes_of(asked, loaded.layout.sites)
    calibration = windows if any(map(_is_static, recipes.values())) else None
    folder.mkdir(parents=True, exist_ok=True)
    with closing(Claim(folder / "tasks.lock")):
        results = _begun(folder, loaded, study, wish, calibration)
        results.accept = [bar.text for bar in bars] or results.accept
        return _scored(results, study, loaded, opened, recipes, calibration, wish, folder, tell)


def _scored(
    results: TaskResults,
    study: Study,
    loaded: LoadedModel,
    tasks: Mapping[str, Any],
    recipes: Mapping[str, Recipe],
    calibration: WindowSet | None,
    wish: Wish,
    folder: Path,
    tell: Listener,
) -> TaskResults:
    """Score what the folder lacks, and write."""
    _add_recipes(results, recipes, folder)
    more = {"batch_size": wish.batch_size, "network_cut": cuts_network() if wish.run_code else None}
    results.environment = environment_of(loaded) | more
    if more["network_cut"] is False:
        say(tell, "warning: this system lets the programs that the model writes use the network")
    injector = _injector(study, loaded, calibration, tell)
    harness = Harness(loaded, tasks, wish, injector, study.numerics.seed)
    for _ in harness.score(results, recipes, tell):
        _write(results, folder)
    _write(results, folder)
    if _is_run(folder):
        write_texts(load_results(folder), folder)
    return results


def _calibration_text(study: Study, asked: Mapping[str, Asked]) -> Text | None:
    """What is calibrated on, where anything may need it."""
    settings = [one for one in asked.values() if one is not None]
    if not any(isinstance(one, Given) or _is_static(Recipe(one)) for one in settings):
        return None
    return calibration_text(study.data) or evaluation_text(study.data)


def _is_static(recipe: Recipe) -> bool:
    """Whether it has tensor scales that come from calibration."""
    inputs = [setting.input for setting in recipe.settings if setting.input is not None]
    return any(own.tensor_scale in (Amax.CALIBRATED, Amax.EXPERT) for own in inputs)


def _windows(study: Study, text: Text, loaded: LoadedModel) -> WindowSet:
    longest = loaded.max_seq_len or study.data.calibration_seq_len
    length = min(study.data.calibration_seq_len, longest)
    own = {"seq_len": length, "windows": None, "first_window": 0}
    data = study.data.model_copy(update=own)
    found = evaluation_windows(data, text, loaded.tokenizer, loaded.config.model_type)
    wanted = study.data.calibration_windows
    most = _CALIBRATION_WINDOWS if wanted == "auto" else wanted
    found = replace(found, ids=found.ids[:most])
    loaded.require_known(found.ids, found.source)
    return found


def recipes_of(asked: Mapping[str, Asked], sites: Sites) -> dict[str, Recipe]:
    """For this model; of a published configuration that alone, not without its exceptions."""
    found: dict[str, Recipe] = {}
    for name, one in asked.items():
        if one is None:
            found[name] = NOTHING
        elif not isinstance(one, Given):
            found[name] = Recipe(one)
        elif is_published(one.data):
            found[name] = next(iter(published_recipes(name, one.data, sites).values()))
        else:
            found[name] = read_recipe(one.data, sites, f"recipe {name}")
    return found


def _begun(
    folder: Path, loaded: LoadedModel, study: Study, wish: Wish, calibration: WindowSet | None
) -> TaskResults:
    """What the folder has of these scores, or nothing yet.

    Raises:
        StudyError: It has others.
    """
    identity = {
        "model": loaded.fingerprint,
        "dtype": loaded.dtype_name,
        "device": loaded.device.type,
        "numerics": NUMERICS_VERSION,
        "excluded": [f"{e.projection}: {len(e.linears)}" for e in loaded.layout.excluded],
        "head": study.model.lm_head,
        "limit": wish.limit,
        "fewshot": wish.fewshot,
        "chat": wish.chat,
        "problem": wish.problem,
        "seed": study.numerics.seed,
        "scales": study.numerics.scales.value,
        "lm_eval": importlib.metadata.version("lm_eval"),
        "calibration": None if calibration is None else calibration.sha256,
    }
    if _is_run(folder):
        of = load_results(folder).results.model.get("fingerprint")
        _require_same(folder, {"model": of}, {"model": identity["model"]})
    path = folder / TASKS
    if not path.exists():
        return TaskResults(identity)
    known = read_tasks(path)
    if known.identity.get("calibration") is None or identity["calibration"] is None:
        # Recipes that need none may stand beside those that do.
        both = known.identity.get("calibration") or identity["calibration"]
        known.identity["calibration"] = identity["calibration"] = both
    _require_same(folder, known.identity, identity)
    return known


def _require_same(folder: Path, known: Mapping[str, object], own: Mapping[str, object]) -> None:
    for name, value in own.items():
        if known.get(name) != value:
            raise StudyError(
                f"{named(folder)} has results of another {name} ({known.get(name)}, and here it is "
                f"{value}), which are not comparable; use another folder with -o"
            )


def _injector(
    study: Study, loaded: LoadedModel, calibration: WindowSet | None, tell: Listener
) -> Injector:
    amax, by_expert = {}, None
    if calibration is not None:
        say(tell, f"calibration: {calibration.source}, {len(calibration)} windows")
        note = inputs_note(loaded, observe(loaded, calibration, tell, "calibrating"))
        amax, by_expert = note["amax"], note["by_expert"]
    served = study.numerics.scales is Scales.SERVED
    fused = scale_partners(loaded.layout.sites) if served else {}
    return Injector(loaded.model, amax, by_expert, loaded.layout.parts, fused)


def _add_recipes(results: TaskResults, recipes: Mapping[str, Recipe], folder: Path) -> None:
    for name, recipe in recipes.items():
        if results.recipes.setdefault(name, recipe) != recipe:
            raise StudyError(
                f"{named(folder)} has results of another recipe called {name}; rename the file, or "
                "use another folder with -o"
            )


def _write(results: TaskResults, folder: Path) -> None:
    results.write(folder / TASKS)
    table = text_bytes(task_table(results).to_csv())
    replace_file(folder / _TABLE, table, "choose another folder with -o")


def task_files(folder: Path) -> list[Path]:
    """What `run_tasks` has left in a folder: the reports with it, where there are any."""
    names = (TASKS, _TABLE, *(("report.html", "report.md") if _is_run(folder) else ()))
    return [folder / name for name in names]


def _is_run(folder: Path) -> bool:
    return (folder / "results.json").exists()
