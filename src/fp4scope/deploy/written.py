"""A recipe on disk: YAML, with the model that it is of and what an export needs beside it."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fp4scope.errors import StudyError, nearest, shown
from fp4scope.files import named, read_bytes, replace_file
from fp4scope.recipes import Recipe, Sites

VERSION = 1
_LARGEST = 1 << 26
"""Bytes of a file: one of a hundred thousand experts, each named, has less."""
_KEYS = ("version", "recipe", "model", "scales", "input_amax", "numbers")
Scales = Literal["own", "served"]
"""Tensor scales of NVFP4 weights: each its own, or one for all that engines fuse."""
_SCALES: tuple[Scales, ...] = ("own", "served")


@dataclass(frozen=True)
class RecipeModel:
    """The model that a recipe is of.

    Attributes:
        name: Hub id, or the last part of its path.
        revision: Branch, tag or commit of a hub id.
        fingerprint: Hash of its weights, as results have it.
    """

    name: str
    revision: str | None = None
    fingerprint: str | None = None

    def to_json(self) -> dict[str, Any]:
        """What of it is known."""
        found = {"name": self.name, "revision": self.revision, "fingerprint": self.fingerprint}
        return {key: value for key, value in found.items() if value is not None}


@dataclass(frozen=True)
class WrittenRecipe:
    """A recipe, the model that it is of, and what was measured of it.

    Attributes:
        recipe: It.
        model: What it was made for.
        scales: Those that it was measured with.
        input_amax: Largest magnitude that enters a site, by site: what static scales come from.
        numbers: What is known of it, such as average bits, predicted and measured damage.
    """

    recipe: Recipe
    model: RecipeModel
    scales: Scales = "own"
    input_amax: Mapping[str, float] = field(default_factory=dict)
    numbers: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """What the file holds."""
        return {
            "version": VERSION,
            "model": self.model.to_json(),
            "scales": self.scales,
            "recipe": self.recipe.to_json(),
            "input_amax": dict(sorted(self.input_amax.items())),
            "numbers": dict(self.numbers),
        }

    def write(self, path: Path | str) -> None:
        """Write it, whole or not at all.

        Raises:
            OutputError: The file could not be written.
        """
        import yaml

        plain = json.loads(json.dumps(self.to_json()))  # YAML has references to what is shared
        text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=100)
        replace_file(Path(path), text.encode(), "choose another file")

    @classmethod
    def read(cls, path: Path | str, sites: Sites | None = None) -> "WrittenRecipe":
        """The recipe in a file.

        Args:
            path: Of a YAML file, as `write` leaves it or as a user writes it.
            sites: Of the model: patterns are looked up there, and names must be there. Without
                them every name is taken as it is.

        Raises:
            FormatError: An unknown format.
            StudyError: It cannot be read, is of another version, or holds something else; says what
                and where.
            UnitError: A name or pattern that matches no site.
        """
        data = _yaml(Path(path))
        try:
            return cls.from_json(data, sites)
        except StudyError as error:
            raise StudyError(f"{named(path)}: {error}") from None

    @classmethod
    def from_json(cls, data: Any, sites: Sites | None = None) -> "WrittenRecipe":  # noqa: ANN401
        """From what a file holds.

        Raises:
            FormatError: An unknown format.
            StudyError: It is no written recipe of this version.
            UnitError: A name or pattern that matches no site.
        """
        if not isinstance(data, Mapping):
            raise StudyError(f"{shown(data)} is no recipe; it needs the keys {', '.join(_KEYS)}")
        for key in data:
            if key not in _KEYS:
                raise StudyError(f"a recipe's file has no {shown(key)}; {nearest(key, _KEYS)}")
        if data.get("version") != VERSION:
            raise StudyError(
                f"version is {shown(data.get('version'))}, and this fp4scope reads {VERSION}; "
                "write the recipe again, or install the fp4scope that wrote it"
            )
        if "recipe" not in data:
            raise StudyError("it has no `recipe`; give a mapping of `base` and `edits`")
        scales = data.get("scales", "own")
        if scales not in _SCALES:
            raise StudyError(f"scales is {shown(scales)}; {nearest(scales, _SCALES)}")
        numbers = data.get("numbers") or {}
        if not isinstance(numbers, Mapping):
            raise StudyError(f"numbers is {shown(numbers)}; give a mapping")
        return cls(
            recipe=Recipe.from_json(data["recipe"], sites),
            model=_model(data.get("model")),
            scales=scales,
            input_amax=_amaxes(data.get("input_amax") or {}),
            numbers=dict(numbers),
        )

    def require_sites(self, sites: Sites) -> None:
        """Refuse a recipe of another model: one that names what this model has not.

        Raises:
            StudyError: It does.
        """
        absent = sorted((self.recipe.edited | self.input_amax.keys()) - sites.by_name.keys())
        if absent:
            raise StudyError(
                f"the recipe is of {self.model.name}, and {len(absent)} sites that it names are "
                f"not in this model, {absent[0]} first; names here look like {sites[0].name}: give "
                "the recipe's own model, or choose a recipe for this one"
            )


def _model(data: object) -> RecipeModel:
    if isinstance(data, str):
        return RecipeModel(data)
    known = ("name", "revision", "fingerprint")
    if not isinstance(data, Mapping) or not isinstance(data.get("name"), str):
        raise StudyError(f"model is {shown(data)}; write it as `model: {{name: ORG/MODEL}}`")
    for key, value in data.items():
        if key not in known:
            raise StudyError(f"model has no {shown(key)}; {nearest(key, known)}")
        if not isinstance(value, str | None):
            raise StudyError(f"model.{key} is {shown(value)}; give text, in quotes if need be")
    return RecipeModel(**data)


def _amaxes(data: object) -> dict[str, float]:
    if not isinstance(data, Mapping):
        raise StudyError(f"input_amax is {shown(data)}; give a mapping from sites to numbers")
    for site, amax in data.items():
        number = isinstance(amax, int | float) and not isinstance(amax, bool)
        if not isinstance(site, str) or not number or not 0 <= amax < math.inf:
            raise StudyError(
                f"input_amax of {shown(site)} is {shown(amax)}; give a finite number, not negative"
            )
    return {site: float(amax) for site, amax in data.items()}


def _yaml(path: Path) -> Any:  # noqa: ANN401
    """What a YAML file of plain data holds.

    Raises:
        StudyError: It is none, or has more in it than a recipe has.
    """
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    content = read_bytes(path, "recipe", StudyError)
    if len(content) > _LARGEST:
        raise StudyError(
            f"{named(path)} has {len(content) / 1e6:.0f} MB, more than any recipe; "
            "give a file that `fp4scope recipe` has written"
        )
    try:
        # References can make a few lines mean gigabytes.
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(content, loader)):
            raise StudyError(f"{named(path)} has YAML references (`*name`); write them out")
        return yaml.load(content, loader)
    except (yaml.YAMLError, ValueError) as error:
        if isinstance(error, StudyError):
            raise
        reason = " ".join(str(error).split())[:300]
        raise StudyError(f"{named(path)} is not valid YAML: {reason}") from None
    except RecursionError:
        raise StudyError(f"{named(path)} is nested too deeply to be a recipe") from None
