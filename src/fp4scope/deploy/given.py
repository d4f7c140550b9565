"""Recipes that come from elsewhere, for the sites of a model at hand."""

from collections.abc import Mapping
from typing import Any

from fp4scope.errors import Fp4ScopeError, StudyError, shown
from fp4scope.recipes import Recipe, Sites


def read_recipe(data: Mapping[str, Any], sites: Sites, name: str = "the recipe") -> Recipe:
    """The recipe that a file holds: a plain one, or one with what was measured beside it.

    Args:
        data: What YAML or JSON holds.
        sites: Of the model: names and patterns are looked up there.
        name: What messages call it.

    Raises:
        Fp4ScopeError: It is no recipe, or one of another model; says where.
    """
    held = data.get("recipe", data) if isinstance(data, Mapping) else data
    if not isinstance(held, Mapping):
        raise StudyError(f"{name} holds {shown(held)}; a recipe has `base` and `edits`")
    try:
        return Recipe.from_json(held, sites)
    except Fp4ScopeError as error:
        raise type(error)(f"{name}: {error}") from None
