"""Our own recipes, as rules."""

from collections.abc import Mapping
from typing import Any

from fp4scope.deploy.configs.rules import Config, Rule, Way
from fp4scope.deploy.engines import Form, form_of
from fp4scope.recipes import Recipe
from fp4scope.treatments import Setting


def read(data: Mapping[str, Any]) -> Config:
    """What a recipe's file says.

    Raises:
        StudyError: It is no recipe, or no engine runs a setting of it.
    """
    held = data.get("recipe", data)
    recipe = Recipe.from_json(held)
    # In the order of the file: a recipe itself has none.
    rules = [
        Rule(pattern, _form(setting), Way.OWN, f"edits[{number}].sites")
        for number, edit in enumerate(held.get("edits") or [])
        for pattern in _sites(edit["sites"])
        for setting in [None if edit["setting"] is None else Setting.from_json(edit["setting"])]
    ]
    return Config("recipe", tuple(rules), _form(recipe.base), True)


def _sites(value: Any) -> list[str]:  # noqa: ANN401
    return [value] if isinstance(value, str) else list(value)


def _form(setting: Setting | None) -> Form | None:
    return None if setting is None else form_of(setting)
