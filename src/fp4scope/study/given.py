"""Recipes that a user gives: read from their files at once, so that a study holds all of them."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fp4scope.errors import StudyError, shown
from fp4scope.files import named, read_bytes, refusing

MOST_BYTES = 32 * 2**20
"""Of a file that holds a recipe."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_CONFIGS = ("config.json", "hf_quant_config.json")
_QUANTIZED = ("quantization_config", "compression_config", "quantization")
_UNNAMED = ("recipe", "config", "hf_quant_config")


@dataclass(frozen=True)
class Given:
    """A recipe, or a quantization config that somebody has published, under a name.

    Attributes:
        name: What tables call it.
        content: What its file holds, as canonical JSON.
    """

    name: str
    content: str

    def __str__(self) -> str:
        return json.dumps({"name": self.name, "recipe": json.loads(self.content)}, sort_keys=True)

    @property
    def data(self) -> Any:  # noqa: ANN401
        """What its file holds."""
        return json.loads(self.content)

    @classmethod
    def of(cls, name: str, data: Any) -> "Given":  # noqa: ANN401
        """Of what JSON or YAML holds, or what has a `to_json` of that.

        Raises:
            StudyError: It is neither.
        """
        held = data.to_json() if hasattr(data, "to_json") else data
        if not isinstance(held, Mapping):
            raise StudyError(f"recipe {named(name)} is {shown(data)}; give a mapping, or a Recipe")
        try:
            return cls(name, json.dumps(held, sort_keys=True, allow_nan=False))
        except (TypeError, ValueError, RecursionError) as error:
            reason = " ".join(str(error).split())[:200]
            raise StudyError(f"recipe {named(name)} holds what JSON cannot: {reason}") from None

    @classmethod
    def parse(cls, item: Any) -> "Given":  # noqa: ANN401
        """What a file holds, or what `str` of one says.

        Raises:
            StudyError: There is no such file, or it holds no recipe.
        """
        if not isinstance(item, str | Path):
            raise StudyError(f"recipes holds {shown(item)}; give files that hold recipes")
        text = str(item).strip()
        if not text.startswith("{"):
            return cls.read(text)
        try:
            said = json.loads(text)
            return cls.of(said["name"], said["recipe"])
        except (ValueError, KeyError, TypeError, RecursionError):
            raise StudyError(f"recipes is {shown(text)}; give files that hold recipes") from None

    @classmethod
    def read(cls, name: str | Path) -> "Given":
        """From YAML or JSON; it is called as its file, or as its folder if all files are called so.

        Raises:
            StudyError: It cannot be read, is too large, or holds no mapping.
        """
        import yaml

        with refusing(f"cannot read the recipe {named(name)}", StudyError):
            path = Path(name).expanduser()
            path = _in_folder(path) if path.is_dir() else path
        if (hub := _hub_id(name)) and not path.exists():
            return cls.of(hub.rpartition("/")[2], _on_hub(hub))
        content = read_bytes(path, "recipe", StudyError)
        if len(content) > MOST_BYTES:
            raise StudyError(
                f"the recipe {named(path)} has {len(content) / 1e6:.0f} MB; a recipe has less than "
                f"{MOST_BYTES / 1e6:.0f}"
            )
        try:
            text = content.decode("utf-8-sig")
            data = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            reason = " ".join(str(error).split())[:300]
            raise StudyError(f"the recipe {named(path)} cannot be read: {reason}") from None
        if not isinstance(data, Mapping):
            raise StudyError(f"{named(path)} holds no recipe: {shown(data)}")
        return cls.of(path.resolve().parent.name if path.stem in _UNNAMED else path.stem, data)


def _hub_id(name: str | Path) -> str | None:
    """A name that may be of a model on the Hub: `ORG/NAME`, and no file of YAML or JSON."""
    text = str(name)
    known = Path(text).suffix.lower() in (".yaml", ".yml", ".json")
    return text if _HUB_ID.fullmatch(text) and not known else None


def _on_hub(name: str) -> Any:  # noqa: ANN401
    """What a model on the Hub says of its quantization: configurations alone are fetched.

    Raises:
        StudyError: There is no such model or file, or it says nothing of a quantization.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    for file in _CONFIGS:
        try:
            path = hf_hub_download(name, file)
        except EntryNotFoundError:
            continue
        except (HfHubHTTPError, OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise StudyError(
                f"{named(name)} is no file or folder here, and {file} cannot be had from the Hub "
                f"({reason}); check the name and the network, or give a file"
            ) from None
        data = json.loads(read_bytes(Path(path), "recipe", StudyError))
        if isinstance(data, Mapping) and any(key in data for key in _QUANTIZED):
            return data
    raise StudyError(
        f"{named(name)} says nothing of a quantization in {' or '.join(_CONFIGS)}; give a "
        "quantized model, or a file that holds a recipe"
    )


def _in_folder(path: Path) -> Path:
    """The file of a folder that says how its model is, or was, quantized."""
    for name in ("recipe.yaml", "config.json", "hf_quant_config.json"):
        if (path / name).is_file():
            return path / name
    raise StudyError(f"{named(path)} has no recipe.yaml, config.json or hf_quant_config.json")


def listed(value: Any) -> Any:  # noqa: ANN401
    """What recipes a user gives: by name, or files.

    Raises:
        ValueError: It is neither.
    """
    if isinstance(value, Mapping):
        return tuple(
            Given.read(one) if isinstance(one, str | Path) else Given.of(str(name), one)
            for name, one in value.items()
        )
    if isinstance(value, str | Path | Given):
        return (value,)
    if isinstance(value, list | tuple):
        return tuple(value)
    raise ValueError("give files that hold recipes, or a mapping of recipes by name")


def apart(value: tuple[Given, ...]) -> tuple[Given, ...]:
    """Recipes of one name are told apart by a number behind it; what is given twice is one."""
    found: dict[str, Given] = {}
    for given in dict.fromkeys(value):
        name, number = given.name, 2
        while name in found:
            name, number = f"{given.name} ({number})", number + 1
        found[name] = Given(name, given.content)
    return tuple(found.values())
