"""Results as JSON, version 5. Sites, recipes and rows stand once; everything else points there."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from fp4scope.design import Contrast, Family, Unit
from fp4scope.errors import OutputError, shown
from fp4scope.files import named, read_bytes
from fp4scope.ledger import legacy
from fp4scope.ledger.checks import first_problem, require_consistent
from fp4scope.ledger.results import Results
from fp4scope.ledger.rows import Ledger, Rows
from fp4scope.ledger.schema import (
    RESULTS_VERSION,
    ContrastFields,
    LedgerFields,
    RecipeFields,
    ResultsFields,
)
from fp4scope.recipes import Recipe, Site, Sites
from fp4scope.study import Direction

_EVALUATED = "text"
_REMEDIED = "remedies"
_FILE = TypeAdapter(ResultsFields)
_VERSION = f"version {RESULTS_VERSION}, and version {legacy.VERSION} of 0.1"


def results_to_json(results: Results, summary: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """As JSON; `summary` is written for readers, and never read."""
    calibration = (results.data.get("calibration") or {}).get("sha256") or ""
    contrasts = (*results.contrasts, *results.causes, *results.remedies)
    terms = (recipe for contrast in contrasts for recipe, _ in contrast.terms)
    measured = (*results.ledger, *results.remedied)
    known = dict.fromkeys([*terms, *results.given.values(), *measured])
    ids = {recipe: recipe.id(calibration) for recipe in known}
    places = {site.name: place for place, site in enumerate(results.sites)}
    given = {name: ids[recipe] for name, recipe in results.given.items()}
    causes = [_contrast_fields(contrast, ids, places) for contrast in results.causes]
    remedies = [_contrast_fields(contrast, ids, places) for contrast in results.remedies]
    ledgers = {_EVALUATED: _ledger_fields(results.ledger, ids)}
    if remedies:
        ledgers[_REMEDIED] = _ledger_fields(results.remedied, ids)
    return {
        "version": RESULTS_VERSION,
        "study": results.study,
        "model": results.model,
        "data": results.data,
        "protocol": results.protocol,
        "environment": results.environment,
        "summary": dict(summary or {}),
        "activations": [a.to_json() for a in results.activations],
        "sites": [_row(site) for site in results.sites],
        "recipes": {name: _recipe_fields(recipe, places) for recipe, name in ids.items()},
        "contrasts": [_contrast_fields(contrast, ids, places) for contrast in results.contrasts],
        **({"given": given} if given else {}),
        **({"causes": causes} if causes else {}),
        **({"errors": _errors(results)} if results.errors or results.local else {}),
        **({"remedies": remedies} if remedies else {}),
        "ledgers": ledgers,
    }


def read_results(path: Path) -> Results:
    """What a results file holds; also one of version 4, which 0.1 wrote.

    Raises:
        OutputError: It cannot be read, is of another version, or damaged: the message names the
            place.
    """
    return results_from_json(read_bytes(path, "results", OutputError), named(path))


def results_from_json(data: bytes | Mapping[str, Any], source: str = "results") -> Results:
    """What a file's bytes hold, or the same decoded.

    Args:
        data: The file.
        source: What messages call it.

    Raises:
        OutputError: It is no results file, of another version, or damaged.
    """
    try:
        results = _parsed(data, source)
        require_consistent(results)
    except ValidationError as error:
        raise _damaged(source, first_problem(error.errors(include_url=False))) from None
    except RecursionError:
        raise _damaged(source, "it is nested too deeply") from None
    except ValueError as error:
        raise _damaged(source, str(error)) from None
    return results


def _parsed(data: bytes | Mapping[str, Any], source: str) -> Results:
    try:
        return _results(_validated(_FILE, data))
    except ValidationError as error:
        problems = error.errors(include_url=False)
        versions = [problem for problem in problems if problem["loc"] == ("version",)]
        if not versions or problems[0]["type"] == "json_invalid":
            raise
        version = None if versions[0]["type"] == "missing" else versions[0]["input"]
    if version == legacy.VERSION:
        return legacy.results(_validated(legacy.FILE, data))
    raise OutputError(
        f"{source} has version {shown(version)}; this fp4scope reads {_VERSION}: use the fp4scope "
        "that wrote it"
    )


def _validated(adapter: Any, data: bytes | Mapping[str, Any]) -> Any:  # noqa: ANN401
    # Decoded JSON has lists for tuples, which only the strict reading of JSON itself takes.
    return adapter.validate_json(data if isinstance(data, bytes) else json.dumps(data))


def _damaged(source: str, problem: str) -> OutputError:
    return OutputError(
        f"{source} is not a results file of fp4scope, or it is damaged: {problem}; take it from "
        "a backup, or repeat the run in its folder, which writes it again from the journal"
    )


def _recipe_fields(recipe: Recipe, places: Mapping[str, int]) -> dict[str, Any]:
    fields = recipe.to_json()
    for edit in fields["edits"]:
        edit["sites"] = _at(edit["sites"], places)
    return fields


def _contrast_fields(
    contrast: Contrast, ids: Mapping[Recipe, str], places: Mapping[str, int]
) -> dict[str, Any]:
    unit, family = contrast.unit, contrast.family
    return {
        "level": family.level,
        "setting": family.setting.to_json(),
        "direction": None if family.direction is None else family.direction.value,
        "unit": unit and {"name": unit.name, "block": unit.block, "sites": _at(unit.sites, places)},
        "terms": [[ids[recipe], sign] for recipe, sign in contrast.terms],
    }


def _ledger_fields(ledger: Ledger, ids: Mapping[Recipe, str]) -> dict[str, Any]:
    places: dict[Any, int] = {}
    rows = []
    for subject in ledger:
        found = ledger[subject]
        where = tuple(found.indices), tuple(found.replicas), tuple(found.tokens)
        place = places.setdefault(where, len(places))
        rows.append({"recipe": ids[subject], "place": place, "values": found.values})
    names = "indices", "replicas", "tokens"
    listed = [dict(zip(names, map(list, where), strict=True)) for where in places]
    return {"counted": ledger.counted, "places": listed, "rows": rows}


def _at(names: Iterable[str], places: Mapping[str, int]) -> list[int]:
    return sorted(places[name] for name in names)


def _results(data: ResultsFields) -> Results:
    sites = _sites(data)
    recipes = {name: _recipe(fields, sites) for name, fields in data["recipes"].items()}
    if len(set(recipes.values())) < len(recipes):
        raise ValueError("recipes: one comes twice")
    return Results.under(
        data,
        sites=sites,
        contrasts=[_contrast(fields, recipes, sites) for fields in data["contrasts"]],
        ledger=_ledger(data["ledgers"][_EVALUATED], recipes),
        given={name: _known(recipes, own) for name, own in data.get("given", {}).items()},
        causes=[_contrast(fields, recipes, sites) for fields in data.get("causes", [])],
        errors=data["errors"]["operands"] if "errors" in data else (),
        local=data["errors"]["outputs"] if "errors" in data else (),
        remedies=[_contrast(fields, recipes, sites) for fields in data.get("remedies", [])],
        remedied=_ledger(data["ledgers"][_REMEDIED], recipes)
        if _REMEDIED in data["ledgers"]
        else Ledger(),
    )


def _errors(results: Results) -> dict[str, Any]:
    return {
        "operands": [vars(record) for record in results.errors],
        "outputs": [vars(record) for record in results.local],
    }


def _row(site: Site) -> list[Any]:
    """What `_sites` reads."""
    row = [site.name, site.block, site.projection, site.rows, site.cols]
    if site.part is not None:
        return [*row, site.experts, None, site.part]
    if site.expert is not None:
        return [*row, 1, site.expert]
    return [*row, site.experts] if site.experts > 1 else row


def _sites(data: ResultsFields) -> Sites:
    names = ("name", "block", "projection", "rows", "cols", "experts", "expert", "part")
    sites = [Site(**dict(zip(names, row, strict=False))) for row in data["sites"]]  # type: ignore
    if len({site.name for site in sites}) < len(sites):
        raise ValueError("sites: a name comes twice")
    most = max((site.block for site in sites if site.block is not None), default=-1) + 1
    return Sites(sites, max(most, data["model"].get("blocks", 0)))


def _recipe(fields: RecipeFields, sites: Sites) -> Recipe:
    edits = [(_names(edit["sites"], sites), edit["setting"]) for edit in fields["edits"]]
    return Recipe(fields["base"], tuple(edits), fields.get("replay", False))


def _contrast(fields: ContrastFields, recipes: Mapping[str, Recipe], sites: Sites) -> Contrast:
    unit, level, direction = fields["unit"], fields["level"], fields["direction"]
    if (unit is None) != (level == "model") or (unit is None) != (direction is None):
        raise ValueError(f"contrasts: level {level!r} with unit {unit} and direction {direction}")
    signs = [sign for _, sign in fields["terms"]]
    if sorted(signs) != [-1, 1]:
        raise ValueError(f"contrasts: one has terms with signs {signs}, not with 1 and -1")
    return Contrast(
        tuple((_known(recipes, name), sign) for name, sign in fields["terms"]),
        unit and Unit(level, unit["name"], unit["block"], _names(unit["sites"], sites)),
        Family(level, fields["setting"], None if direction is None else Direction(direction)),
    )


def _ledger(fields: LedgerFields, recipes: Mapping[str, Recipe]) -> Ledger:
    found: dict[Recipe, Rows] = {}
    for row in fields["rows"]:
        subject = _known(recipes, row["recipe"])
        if subject in found:
            raise ValueError(f"ledgers: {row['recipe']} has rows twice")
        if row["place"] >= len(fields["places"]):
            raise ValueError(f"ledgers: there is no place {row['place']}")
        values: Any = row["values"]
        found[subject] = Rows(**fields["places"][row["place"]], values=values)
    return Ledger(found, counted=fields["counted"])


def _known(recipes: Mapping[str, Recipe], name: str) -> Recipe:
    if name not in recipes:
        raise ValueError(f"there is no recipe {shown(name)}")
    return recipes[name]


def _names(places: list[int], sites: Sites) -> frozenset[str]:
    if max(places) >= len(sites):
        raise ValueError(f"there is no site {max(places)} among {len(sites)}")
    return frozenset(sites[place].name for place in places)
