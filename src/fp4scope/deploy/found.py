"""From a finished study to a decision: which effects it has, and what the recipe's file says."""

from collections.abc import Mapping
from typing import Any

from fp4scope.deploy.decide import Decider, Decision, Effects, numbers
from fp4scope.deploy.palette import FULL_PRECISION, choices, default_formats
from fp4scope.deploy.written import RecipeModel, Scales, WrittenRecipe
from fp4scope.errors import FormatError, StudyError, nearest, shown
from fp4scope.ledger import Results
from fp4scope.recipes import Recipe, Sites
from fp4scope.stats import MIN_WINDOWS, effects, given_table, single_effects, size


def decider(
    results: Results,
    palette: str | None = None,
    serve_on: str | None = None,
    engine: str | None = None,
) -> Decider:
    """What chooses recipes from a study's effects.

    Args:
        results: Of a study with a designed sweep, or one of layers.
        palette: What to choose from (`deploy.palette.choices`).
        serve_on: A GPU, on which engines may quantize weights alone.
        engine: What has to load each layer (`deploy.palette.choices`).

    Raises:
        FormatError: An unknown format in the palette.
        StudyError: The study has no effects of groups, too few windows, or not this palette.
    """
    if not any(site.is_linear for site in results.sites):
        raise StudyError(
            "the results do not know how large the model's linears are, as those of fp4scope 0.1; "
            "repeat the run: fp4scope run MODEL -o ANOTHER"
        )
    kl, nll = (_effects(results, measure) for measure in ("kl", "nll"))
    if kl is None or nll is None:
        raise StudyError(
            "the study has no effects of what engines have as one, which a recipe is chosen from; "
            "measure them: the same `fp4scope run` with --method designed -o ANOTHER"
        )
    if len(kl.by_window) < MIN_WINDOWS:
        raise StudyError(
            f"the study has {len(kl.by_window)} windows; a choice needs {MIN_WINDOWS} or more: "
            "let the run go on, or ask for more with --windows"
        )
    return Decider(results, kl, nll, choices(palette, kl.settings, serve_on, engine))


def unmeasured(
    results: Results,
    palette: str | None = None,
    serve_on: str | None = None,
    engine: str | None = None,
) -> tuple[str, ...]:
    """Formats that have to be measured before a palette can be chosen from.

    Args:
        results: What is there.
        palette: What to choose from; None: what was measured, or else what the engine loads.
        serve_on: A GPU, on which engines may quantize weights alone.
        engine: What has to load each layer.

    Returns:
        Nothing where the results have effects in all of them.

    Raises:
        FormatError: An unknown format in the palette.
    """
    asked = [name.strip().lower() for name in (palette or "").split(",")]
    names = tuple(name for name in asked if name and name not in FULL_PRECISION)
    found = _effects(results, "kl")
    if found is None:
        return names or default_formats(engine, serve_on)
    if not names:
        return ()
    try:
        choices(palette, found.settings, serve_on)
    except FormatError:
        raise
    except StudyError:
        return names
    return ()


def _effects(results: Results, measure: str) -> Effects | None:
    """Those of a designed sweep, where there was one; else of layers one at a time."""
    return effects(results, measure) or single_effects(results, measure)


def written(results: Results, found: Decider, decision: Decision) -> WrittenRecipe:
    """What the file of a recipe holds."""
    return _written(results, decision.recipe, numbers(found, decision))


def measured_recipe(results: Results, name: str) -> WrittenRecipe:
    """A recipe that a study measured as a whole, as a file that an export takes.

    Args:
        results: Of the study.
        name: What the study calls it.

    Raises:
        StudyError: The study measured no such recipe.
    """
    if name not in results.given:
        known = nearest(name, results.given) if results.given else "give a run with --recipe"
        raise StudyError(f"the study measured no recipe {shown(name)}; {known}")
    recipe, rows = results.given[name], given_table(results)
    row = next((row for row in rows if row["recipe"] == name), None)
    numbers: dict[str, Any] = {"bits": size(results, recipe).bits}
    if row is not None:
        numbers |= {"model_bits": row["model_bits"], "bytes": row["bytes"]}
        numbers["measured"] = {
            "text": results.data.get("source"),
            "windows": row["windows"],
            "nll": {"mean": row["delta_nll"], "low": row["delta_nll_low"]}
            | {"high": row["delta_nll_high"]},
            "kl": {"mean": row["delta_kl"], "low": row["delta_kl_low"]}
            | {"high": row["delta_kl_high"]},
            "top1": {"mean": row["top1"]},
        }
    return _written(results, recipe, numbers)


def _written(results: Results, recipe: Recipe, numbers: Mapping[str, Any]) -> WrittenRecipe:
    """A recipe with what an export needs of the study that measured it."""
    model, asked = results.model, results.study.get("model", {})
    return WrittenRecipe(
        recipe=_explicit(recipe, results.sites),
        model=RecipeModel(
            name=str(asked.get("name") or model["name"]),
            revision=asked.get("revision"),
            fingerprint=model.get("fingerprint"),
        ),
        scales=tensor_scales(results),
        input_amax=input_amax(results, recipe),
        numbers=numbers,
    )


def _explicit(recipe: Recipe, sites: Sites) -> Recipe:
    """The same with every site named: a base would mean what the study left out, too."""
    if recipe.base is None:
        return recipe
    edits = [(frozenset({site.name}), recipe.at(site.name)) for site in sites]
    return Recipe(None, tuple(edits), recipe.replay)


def tensor_scales(results: Results) -> Scales:
    """Whether weights had tensor scales of their own."""
    return results.study.get("numerics", {}).get("scales", "own")


def input_amax(results: Results, recipe: Recipe) -> dict[str, float]:
    """The largest magnitude that calibration saw enter each site, where a scale comes from it."""
    layers: Mapping[Any, float] = {(a.block, a.projection): a.max for a in results.activations}
    found: dict[str, float] = {}
    for site in results.sites:
        setting = recipe.at(site.name)
        if setting is None or setting.input is None or setting.input.tensor_scale is None:
            continue
        amax = layers.get((site.block, site.projection))
        if amax is not None:
            found[site.name] = amax
    return found
