"""A published configuration as a recipe of this model, and its exceptions one by one."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from fp4scope.deploy.configs import Config, read_config
from fp4scope.deploy.engines import Form
from fp4scope.deploy.schemes import SERVED_RULE
from fp4scope.errors import FormatError, Fp4ScopeError, StudyError, UnitError
from fp4scope.recipes import Recipe, Site, Sites, expert_name
from fp4scope.stats import WITHOUT
from fp4scope.treatments import Setting, Treatment

MOST_EXCEPTIONS = 24
"""More are taken together by projection."""
_PARTS = {"gate_up_proj": "gate_proj"}


def recipe_of(config: Config, sites: Sites) -> Recipe:
    """What a configuration does to a model, as vLLM resolves it.

    Args:
        config: It.
        sites: Of the model.

    Raises:
        StudyError: It has a format that cannot be measured.
        UnitError: None of its rules means a linear of the model.
    """
    forms = _forms(config, sites)
    by_form: dict[Form, set[str]] = {}
    for name, form in forms.items():
        if form is not None:
            by_form.setdefault(form, set()).add(name)
    if not by_form:
        raise UnitError(
            f"the {config.dialect} configuration quantizes none of the {len(sites)} linears; is it "
            f"of another model? Its first rule is {config.rules[0].text!r}, and the first linear "
            f"{sites[0].name}"
            if config.rules
            else f"the {config.dialect} configuration has no rules"
        )
    edits = ((frozenset(names), setting_of(form)) for form, names in by_form.items())
    return Recipe(None, tuple(edits))


def setting_of(form: Form) -> Setting:
    """The setting that a form means; inputs and weights with the rule of kernels.

    Raises:
        StudyError: It has a format that cannot be measured.
    """
    try:
        return Setting(_treatment(form.weight), _treatment(form.input) if form.input else None)
    except FormatError as error:
        raise StudyError(f"the configuration has {form.label}: {error}") from None


def _treatment(name: str) -> Treatment:
    return Treatment.from_json(SERVED_RULE.get(name, name))


def without_exceptions(config: Config, sites: Sites) -> Mapping[str, Recipe]:
    """The recipe without each of its exceptions: what differs from the format of most weights.

    Where it has many, those of one projection and format are one.

    Returns:
        Recipes by what the exception is, such as `down_proj in bf16`.

    Raises:
        StudyError: It has a format that cannot be measured.
        UnitError: None of its rules means a linear of the model.
    """
    whole = recipe_of(config, sites)
    forms = _forms(config, sites)
    weights = Counter[Form]()
    for site in sites:
        if (form := forms.get(site.key)) is not None:
            weights[form] += site.parameters
    most, _ = weights.most_common(1)[0]
    found: dict[str, set[str]] = {}
    for by_rule in (True, False):
        found = {}
        for site in sites:
            if site.key in forms and forms[site.key] != most:
                found.setdefault(_said(config, site, forms[site.key], by_rule), set()).add(site.key)
        if len(found) <= MOST_EXCEPTIONS:
            break
    edit = setting_of(most)
    return {
        said: replace(whole, edits=(*whole.edits, (frozenset(names), edit)))
        for said, names in found.items()
    }


def published_recipes(name: str, data: Mapping[str, Any], sites: Sites) -> dict[str, Recipe]:
    """What to measure of a published configuration: itself, and it without each exception.

    Raises:
        Fp4ScopeError: It cannot be read, or is of another model.
    """
    try:
        config = read_config(data)
        whole, exceptions = recipe_of(config, sites), without_exceptions(config, sites)
    except Fp4ScopeError as error:
        raise type(error)(f"recipe {name}: {error}") from None
    return {name: whole} | {f"{name}{WITHOUT}{said}": recipe for said, recipe in exceptions.items()}


def _forms(config: Config, sites: Sites) -> dict[str, Form | None]:
    """Of every linear; of a stack of experts, that of the first."""
    return {
        site.key: next(
            (f for name in _names(site) if (f := config.form(name)) is not None), None
        )
        for site in sites
        if site.is_linear
    }  # fmt: skip


def _names(site: Site) -> Iterator[str]:
    """What configurations call a site: its experts have names of their own there."""
    yield site.name
    if site.experts > 1:
        first = expert_name(site.product, 0)
        holder, _, leaf = first.rpartition(".")
        yield first
        if leaf in _PARTS:
            yield f"{holder}.{_PARTS[leaf]}"


def _said(config: Config, site: Site, form: Form | None, by_rule: bool) -> str:
    kept = "bf16" if form is None else form.label
    rule = config.rule_of(site.name) if by_rule else None
    return f"{site.projection if rule is None else rule.pattern} in {kept}"
