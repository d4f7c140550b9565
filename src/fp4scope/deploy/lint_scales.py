"""What is wrong with the scales of a packed checkpoint: from its headers, and single numbers.

compressed-tensors divides by `weight_global_scale` = 448 * 6 / amax; ModelOpt multiplies by
`weight_scale_2` = amax / (448 * 6). A weight's amax lies far below 448 * 6, so that the number
itself tells the two apart.
"""

from collections.abc import Iterator, Mapping

from fp4scope.deploy.configs import Config
from fp4scope.deploy.engines import Form
from fp4scope.deploy.linears import Held
from fp4scope.deploy.lint import Finding
from fp4scope.groups import fused_groups, tensor_groups
from fp4scope.recipes import Sites, expert_of

_TENSOR_SCALES = {
    "compressed-tensors": ("weight_global_scale", "input_global_scale"),
    "modelopt": ("weight_scale_2", "input_scale"),
}


def lint_scales(config: Config, linears: Sites, tensors: Mapping[str, Held]) -> list[Finding]:
    """All findings about the tensors of a packed checkpoint; none of one that is not packed."""
    if config.dialect not in _TENSOR_SCALES:
        return []
    own = f".{_TENSOR_SCALES[config.dialect][0]}", ".weight_scale"
    if not any(name.endswith(own) for name in tensors):
        return []
    checks = (missing, unequal, inverted)
    return [finding for check in checks for finding in check(config, linears, tensors)]


def missing(config: Config, linears: Sites, tensors: Mapping[str, Held]) -> Iterator[Finding]:
    """Scales that a format needs and that are not there."""
    lacking: dict[tuple[str, bool], list[str]] = {}
    for site in linears:
        form = config.form(site.name)
        for role in () if form is None else _needed(config.dialect, form):
            if f"{site.name}.{role}" not in tensors:
                key = role, expert_of(site.name) is not None
                lacking.setdefault(key, []).append(site.name)
    for (role, experts), names in lacking.items():
        more = "; it loads as 0, and 1 / 0 makes NaN of some prompts" if experts else ""
        yield Finding(
            "missing-scale",
            True,
            f"{role} is missing{' of an expert' if experts else ''}{more}",
            "give it the largest of its layer" if experts else "export the checkpoint again",
            names=tuple(names),
        )


def _needed(dialect: str, form: Form) -> Iterator[str]:
    yield "weight_scale"
    weight, inputs = _TENSOR_SCALES[dialect]
    if form.weight == "nvfp4":
        yield weight
    if form.input == "nvfp4":
        yield inputs
    if form.input == "fp8:tensor" and dialect == "modelopt":
        yield "input_scale"


def unequal(config: Config, linears: Sites, tensors: Mapping[str, Held]) -> Iterator[Finding]:
    """Groups that engines hold as one, with several tensor scales."""
    for role in _TENSOR_SCALES[config.dialect]:
        for group in fused_groups(linears):
            for members in tensor_groups(group):
                numbers = _numbers(role, [site.name for site in members], tensors)
                if len(set(numbers.values())) > 1:
                    low, high = min(numbers.values()), max(numbers.values())
                    yield Finding(
                        "unequal-scale",
                        True,
                        f"{role} differs inside what engines hold as one ({low:.6g} to "
                        f"{high:.6g}); vLLM takes the largest for all",
                        "store one scale, from the largest magnitude of all",
                        names=tuple(numbers),
                    )


def inverted(config: Config, linears: Sites, tensors: Mapping[str, Held]) -> Iterator[Finding]:
    """Tensor scales of weights that are the reciprocals of what they should be."""
    role = _TENSOR_SCALES[config.dialect][0]
    numbers = _numbers(role, [site.name for site in linears], tensors)
    divides = config.dialect == "compressed-tensors"
    wrong = [name for name, scale in numbers.items() if (scale < 1) is divides]
    if wrong:
        formula = "448 * 6 / amax, which divides" if divides else "amax / (448 * 6)"
        yield Finding(
            "inverted-scale", True,
            f"{role} is {numbers[wrong[0]]:.6g}, but {config.dialect} stores {formula}",
            "store its reciprocal", names=tuple(wrong),
        )  # fmt: skip


def _numbers(role: str, names: list[str], tensors: Mapping[str, Held]) -> dict[str, float]:
    held = {name: tensors.get(f"{name}.{role}") for name in names}
    numbers = {name: each.number() for name, each in held.items() if each is not None}
    return {name: number for name, number in numbers.items() if number is not None}
