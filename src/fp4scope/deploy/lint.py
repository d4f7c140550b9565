"""What is wrong with a quantization configuration, for a model and an engine.

A check is a function of a case; a case is a configuration, linears and one engine. Under `any`
a finding that does not hold for every engine is a warning: another engine serves the model.

Sources of what engines do: the versions in `engines.ENGINES`, and `configs.rules`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fp4scope.deploy.configs import Config, Rule, Way, is_head, is_router
from fp4scope.deploy.engines import CONTAINERS, ENGINES, SERVING, Form, loads_form
from fp4scope.errors import StudyError, nearest, shown
from fp4scope.groups import fused_groups
from fp4scope.recipes import Sites

_SHOWN = 3


@dataclass(frozen=True)
class Finding:
    """Something that a check found.

    Attributes:
        check: Its name.
        error: Whether the engine stops, or serves something else than is written.
        text: What is so.
        advice: What to write instead.
        rule: The text of the rule, if it is about one.
        names: Linears concerned.
        engines: Where it is so.
    """

    check: str
    error: bool
    text: str
    advice: str
    rule: str = ""
    names: tuple[str, ...] = ()
    engines: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            "check": self.check,
            "severity": "error" if self.error else "warning",
            "engines": list(self.engines),
            "rule": self.rule or None,
            "text": self.text,
            "advice": self.advice,
            "count": len(self.names),
            "names": list(self.names[:_SHOWN]),
        }


@dataclass(frozen=True)
class Case:
    """A configuration, the linears of its model, and an engine."""

    config: Config
    linears: Sites
    engine: str
    forms: Mapping[str, Form | None] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """Of all linears."""
        return [site.name for site in self.linears]


Check = Callable[[Case], Iterator[Finding]]


def lint(config: Config, linears: Sites, engine: str = "any") -> list[Finding]:
    """All findings, errors first.

    Args:
        config: It.
        linears: Of the model.
        engine: One of `ENGINES`, or `any`.

    Raises:
        StudyError: Such an engine is not known.
        UnitError: A rule holds a regular expression that is none.
    """
    if engine != "any" and engine not in ENGINES:
        raise StudyError(f"engine: unknown {shown(engine)}; {nearest(engine, (*ENGINES, 'any'))}")
    engines = SERVING if engine == "any" else (engine,)
    found: dict[Finding, list[str]] = {}
    for own in engines:
        forms = {site.name: config.form(site.name, own) for site in linears}
        for check in CHECKS:
            for finding in check(Case(config, linears, own, forms)):
                found.setdefault(finding, []).append(own)
    merged = [
        replace(finding, engines=tuple(where), error=finding.error and len(where) == len(engines))
        for finding, where in found.items()
    ]
    return sorted(merged, key=lambda finding: not finding.error)


def troubles(case: Case) -> Iterator[Finding]:
    """What is wrong whatever the model."""
    for each in case.config.troubles:
        yield Finding("config", each.refused, each.text, each.advice, each.place)


def unmatched(case: Case) -> Iterator[Finding]:
    """Rules that mean no linear: the name of another model, or a slip of the pen."""
    for rule in case.config.rules:
        # A tied head is no linear of its own, and its exception does no harm.
        if (rule.ignores and is_head(rule.pattern)) or any(map(rule.means, case.names)):
            continue
        close = nearest(rule.pattern, case.names).partition(" (")[0]
        advice = close if close.startswith("did") else f"names look like {case.names[0]}"
        yield Finding(
            "matches-nothing", not rule.ignores, "the pattern matches no linear", advice, rule.text
        )


def overlapping(case: Case) -> Iterator[Finding]:
    """Linears that several rules of different formats mean."""
    by_places: dict[tuple[tuple[str, Form | None], ...], list[tuple[str, tuple[Rule, ...]]]] = {}
    for name in case.names:
        rules = tuple(case.config.targeting(name, "vllm"))
        if len({rule.form for rule in rules}) > 1:
            others = {case.config.form(name, engine) for engine in SERVING}
            if len(others) > 1:
                key = tuple((rule.place, rule.form) for rule in rules)
                by_places.setdefault(key, []).append((name, rules))
    for found in by_places.values():
        rules = found[0][1]
        said = "; ".join(f"{rule.text} ({_label(rule.form)})" for rule in rules)
        yield Finding(
            "overlap",
            True,
            "engines resolve overlapping targets differently: vLLM takes the first of the "
            "configuration, TensorRT-LLM and compressed-tensors sort exact names before `re:`",
            "give each linear to one rule, by its full name",
            said,
            tuple(name for name, _ in found),
        )


def unnamed(case: Case) -> Iterator[Finding]:
    """Linears that no rule names."""
    if case.config.has_default:
        return
    lost = [n for n in case.names if case.config.rule_of(n, case.engine) is None]
    if not lost:
        return
    does = {
        "sglang": "SGLang stops: unable to find a matching target",
        "vllm": "vLLM leaves it in full precision without a word",
    }.get(case.engine, "it stays in full precision")
    yield Finding(
        "unnamed", case.engine == "sglang", f"no rule names the linear; {does}",
        "add it to a group of targets, or to `ignore`", names=tuple(lost),
    )  # fmt: skip


def split_groups(case: Case) -> Iterator[Finding]:
    """Groups that engines hold as one, whose linears have different formats."""
    found: dict[tuple[str, str], list[str]] = {}
    for group in fused_groups(case.linears):
        forms = {case.forms[site.name] for site in group.sites}
        if len(forms) > 1:
            said = ", ".join(sorted(map(_label, forms)))
            found.setdefault((group.name, said), []).extend(site.name for site in group.sites)
    for (name, said), names in found.items():
        yield Finding(
            "split-group",
            True,
            f"the engine holds {name} as one, which has {said}",
            "give all of them one format, or ignore all",
            names=tuple(names),
        )


def indivisible(case: Case) -> Iterator[Finding]:
    """Linears whose inputs are no whole number of blocks."""
    found: dict[Form, list[str]] = {}
    for site in case.linears:
        form = case.forms[site.name]
        if form is not None and site.cols % form.block:
            found.setdefault(form, []).append(site.name)
    for form, names in found.items():
        yield Finding(
            "indivisible",
            True,
            f"{form.label} has blocks of {form.block} inputs, which do not divide the inputs of "
            "the linear",
            "leave it in full precision, or use fp8",
            names=tuple(names),
        )


def unloadable(case: Case) -> Iterator[Finding]:
    """Formats that the engine does not load so; and remarks on those that it does."""
    container = case.config.dialect
    container = container if container in CONTAINERS else "compressed-tensors"
    found: dict[Form, list[str]] = {}
    for name, form in case.forms.items():
        if form is not None:
            found.setdefault(form, []).append(name)
    for form, names in found.items():
        verdict = loads_form(case.engine, form, container)
        if not verdict.loads:
            yield Finding(
                "not-loaded", True, f"{form.label} in {container}: {verdict.remark or 'no'}",
                "all engines load nvfp4 and fp8 (channel, token) as compressed-tensors",
                names=tuple(names),
            )  # fmt: skip
        elif "all the same" in verdict.remark or "of experts only" in verdict.remark:
            yield Finding(
                "served-otherwise", False, f"{form.label}: {verdict.remark}",
                "measure what is served", names=tuple(names),
            )  # fmt: skip
    classes = [rule.text for rule in case.config.rules if rule.is_class and not rule.ignores]
    if case.engine == "trtllm" and container == "compressed-tensors" and classes:
        yield Finding(
            "class-target", True, "TensorRT-LLM refuses targets that are classes",
            "write full names, or an expression behind `re:`", classes[0],
        )  # fmt: skip


def parts_of_names(case: Case) -> Iterator[Finding]:
    """Exceptions that are looked for inside names, where numbers continue: `layers.1`."""
    for rule in case.config.rules:
        part = rule.way is Way.PART and rule.pattern[-1:].isdigit()
        more = [n for n in case.names if part and _goes_on(rule.pattern, n)]
        if more:
            yield Finding(
                "part-of-name",
                True,
                "the pattern is looked for inside names, and takes blocks of more digits too",
                f"write {rule.pattern}.*",
                rule.text,
                tuple(more),
            )


def _goes_on(pattern: str, name: str) -> bool:
    _, found, rest = name.partition(pattern)
    return bool(found) and rest[:1].isdigit()


def unanchored(case: Case) -> Iterator[Finding]:
    """Regular expressions without an end."""
    for rule in case.config.rules:
        if not rule.pattern.startswith("re:") or rule.pattern.endswith(("$", ".*", "*")):
            continue
        ended = replace(rule, pattern=f"(?:{rule.pattern.removeprefix('re:')})$")
        ended = replace(ended, pattern=f"re:{ended.pattern}")
        more = [n for n in case.names if rule.means(n) and not ended.means(n)]
        yield Finding(
            "unanchored",
            False,
            "the expression has no `$`, so it also means longer names",
            f"write {rule.pattern}$",
            rule.text,
            tuple(more),
        )


def heads_and_routers(case: Case) -> Iterator[Finding]:
    """The head and routers, which engines' recipes leave in full precision."""
    for test, said in ((is_head, "the head"), (is_router, "a router")):
        names = tuple(n for n, form in case.forms.items() if form is not None and test(n))
        if names:
            yield Finding(
                "head-or-router", test is is_router, f"{said} is quantized",
                "add it to the list of exceptions", names=names,
            )  # fmt: skip


def _label(form: Form | None) -> str:
    return "full precision" if form is None else form.label


CHECKS: Sequence[Check] = (
    troubles, unmatched, overlapping, unnamed, split_groups, indivisible, unloadable,
    parts_of_names, unanchored, heads_and_routers,
)  # fmt: skip


def coverage(config: Config, linears: Sites, engine: str) -> list[tuple[str, str, int, float]]:
    """By projection: its format, how many linears, and their share of parameters."""
    total = sum(site.parameters for site in linears) or 1
    found: dict[tuple[str, str], list[int]] = {}
    for site in linears:
        key = site.projection, _label(config.form(site.name, "vllm" if engine == "any" else engine))
        found.setdefault(key, []).append(site.parameters)
    return [(*key, len(sizes), sum(sizes) / total) for key, sizes in found.items()]
