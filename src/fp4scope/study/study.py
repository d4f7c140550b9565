"""The study: what is measured, as validated data that a file or a command line can hold.

A study plus a model plus a text decides every number in the results. It is frozen once
built, refuses unknown keys, and is written to `study.yaml` beside what it produced.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from fp4scope.errors import Fp4ScopeError, StudyError, nearest, shown
from fp4scope.study.beside import beside
from fp4scope.study.goals import BestGoal
from fp4scope.study.sections import Data, Model, Numerics, Question, Run, Section
from fp4scope.study.words import Causes, Experts, Level, Method, More, Operands, Parts
from fp4scope.treatments import Configuration, Setting

STUDY_VERSION = 2

PRESETS: dict[str, dict[str, Any]] = {
    # arXiv 2603.08747 in FP16 on all of WikiText-2. It leaves the windows' length, MXFP4's scale
    # rule and the operands open: 2048 is what papers mean, the others are measured side by side.
    "paper": {
        "seq_len": 2048,
        "dtype": "float16",
        "formats": "mxfp4:floor,nvfp4",
        "all_quantized": "mxfp4:floor/w4a16,mxfp4:rceil,mxfp4:rceil/w4a16,mxfp4:even,"
        "mxfp4:even/w4a16,nvfp4/w4a16,nvfp4:4over6,nvfp4:4over6/w4a16",
        "sweep": "projections,layers",
        "direction": "keep,only",
    },
}
"""Options under a name; whatever else is given wins."""

SECTIONS: dict[str, type[Section]] = {
    "model": Model,
    "data": Data,
    "question": Question,
    "numerics": Numerics,
    "run": Run,
}
PLACES: dict[str, tuple[str, str]] = {
    "model" if (section, field) == ("model", "name") else field: (section, field)
    for section, kind in SECTIONS.items()
    for field in kind.model_fields
}
"""Section and field of every option by its flat name, which is the field's; `model` is the name."""
_ALSO = {
    other: name
    for name, (section, field) in PLACES.items()
    for other in SECTIONS[section].option(field).also
}
_FLAT = {place: name for name, place in PLACES.items()}


class Study(BaseModel):
    """Everything the user decides. Defaults are the protocol that papers mean by WikiText-2 PPL."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[2] = STUDY_VERSION
    model: Model
    data: Data
    question: Question
    numerics: Numerics
    run: Run

    @classmethod
    def build(cls, /, **options: Any) -> "Study":  # noqa: ANN401
        """A study from options as a user writes them.

        Args:
            options: Fields by name, sections as mappings, or both; and `preset`: one of
                `PRESETS`, for what is not given.

        Raises:
            StudyError: An unknown key (with the nearest names) or a value that makes no sense.
            FormatError: An unknown number format.
        """
        given = flatten(options)
        if (preset := given.pop("preset", None)) is not None:
            if not isinstance(preset, str) or preset not in PRESETS:
                raise StudyError(f"unknown preset {shown(preset)}; {nearest(preset, PRESETS)}")
            given = PRESETS[preset] | given
        version = given.pop("version", STUDY_VERSION)
        if isinstance(version, bool) or version not in (1, 2, "1", "2"):
            raise StudyError(f"version is {shown(version)}; this fp4scope reads versions 1 and 2")
        if "model" not in given:
            raise StudyError("model is missing")
        nested: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
        for name, value in given.items():
            section, field = PLACES[name]
            nested[section][field] = str(value) if _is_named(value) else value
        try:
            return cls.model_validate(nested)
        except ValidationError as error:
            cause = error.errors()[0].get("ctx", {}).get("error")
            if isinstance(cause, Fp4ScopeError):
                raise cause from None
            raise StudyError(_first_problem(error)) from None

    @property
    def single_experts(self) -> bool:
        """Whether experts in one tensor are switched one by one."""
        swept = any(item.level is Level.EXPERTS for item in self.question.sweep)
        return swept or self.model.experts is Experts.SINGLE

    @property
    def swept(self) -> list[Setting]:
        """The settings in which units are measured."""
        return self._settings(self.question.formats)

    @property
    def settings(self) -> list[Setting]:
        """Those whose all-quantized model is measured: the swept ones first."""
        return self._settings((*self.question.formats, *self.all_quantized))

    @property
    def asked(self) -> list[Setting]:
        """The same without those that nobody has named."""
        named = self.question.all_quantized
        return self._settings((*self.question.formats, *(() if named == "auto" else named)))

    @property
    def all_quantized(self) -> tuple[Configuration, ...]:
        """What is measured beside the swept formats: as asked, else a few that go with them."""
        question = self.question
        if question.all_quantized != "auto":
            return question.all_quantized
        return beside(question.formats, both=Operands.BOTH in question.operands)

    def _settings(self, named: Iterable[Configuration]) -> list[Setting]:
        operands = [own.treated for own in self.question.operands]
        amax = self.numerics.activation_scale.amax
        return list(dict.fromkeys(s for one in named for s in one.settings(operands, amax)))

    @model_validator(mode="after")
    def _causes_of_whole_linears(self) -> "Study":
        if self.question.causes is not Causes.NONE and self.single_experts:
            raise StudyError(
                f"causes is {self.question.causes.value}, which does not go with --experts single; "
                "ask for both in studies of their own"
            )
        return self

    @model_validator(mode="after")
    def _remedies_of_causes(self) -> "Study":
        question = self.question
        if not question.remedies:
            return self
        asked = f"remedies is {question.remedies}"
        if question.causes is Causes.NONE:
            raise StudyError(f"{asked}, but of which units? Add --causes projections, or layers")
        if Method.EXACT not in self.run.method:
            raise StudyError(f"{asked}, which takes measured units; add exact to --method")
        if question.stop_when is not None:
            raise StudyError(
                f"{asked}, which takes half of all windows and does not go with --stop-when; leave "
                "that out, or give fewer --windows"
            )
        return self

    @model_validator(mode="after")
    def _parts_alone(self) -> "Study":
        if self.model.parts is Parts.NONE:
            return self
        other = "--experts single" if self.single_experts else ""
        other = "--method gradient" if Method.GRADIENT in self.run.method else other
        other = "--causes" if self.question.causes is not Causes.NONE else other
        if other:
            raise StudyError(
                f"parts is {self.model.parts.value}, which does not go with {other}; ask for both "
                "in studies of their own"
            )
        return self

    @property
    def more_sites(self) -> tuple[More, ...]:
        """What is quantized beside the linears of the blocks."""
        asked = {
            More.LM_HEAD: self.model.lm_head,
            More.KV_CACHE: self.question.kv_cache,
            More.ATTENTION: self.question.attention,
        }
        return tuple(site for site, wanted in asked.items() if wanted)

    def but(self, **options: Any) -> "Study":  # noqa: ANN401
        """The same study with other values for some options."""
        return Study.build(**self.flat() | flatten(options))

    def flat(self) -> dict[str, Any]:
        """Every option by its flat name, as a file has it."""
        written = self.model_dump(mode="json")
        return {name: written[section][field] for name, (section, field) in PLACES.items()}

    @property
    def identity(self) -> dict[str, Any]:
        """What can be said of a study's identity before anything is loaded.

        All options but those of `run`, and those whose meaning only loading tells. A decision drops
        units, so it is part of the identity. A time or a half-width only says how far to go: a
        folder can be gone on with under another one.
        """
        goal = self.question.stop_when
        return {
            name: value
            for name, value in self.flat().items()
            if PLACES[name][0] != "run" and not _is_resolved(name) and not _is_news(name, value)
        } | {
            "stop_when": str(goal) if isinstance(goal, BestGoal) else None,
            # What it means, which may be more in another version.
            "all_quantized": list(dict.fromkeys(map(str, self.all_quantized))),
        }

    def to_yaml(self) -> str:
        """The study as YAML that `read_options` reads back."""
        import yaml

        data = self.model_dump(mode="json")
        text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
        # Written as they are, these would be read back as line feeds.
        breaks = any(c in text for c in "\x85\u2028\u2029")
        return yaml.safe_dump(data, sort_keys=False) if breaks else text


def flatten(options: Mapping[Any, Any]) -> dict[str, Any]:
    """Options by flat name, whether they come in sections, flat, or under another name.

    Raises:
        StudyError: An option that there is not.
    """
    found: dict[str, Any] = {}
    for key, value in options.items():
        key = str(key).replace("-", "_")
        if key in SECTIONS and isinstance(value, Mapping):
            found |= {_in_section(key, name): inner for name, inner in value.items()}
        elif key in SECTIONS and key != "model":
            first = next(iter(SECTIONS[key].model_fields))
            raise StudyError(
                f"{key} is {shown(value)}; it is a section: give a mapping of options, as {first}"
            )
        elif (name := _ALSO.get(key, key)) in (*PLACES, "preset", "version"):
            found[name] = value
        else:
            raise StudyError(f"unknown option {shown(key)}; {nearest(key, PLACES)}")
    return found


def _in_section(section: str, key: Any) -> str:  # noqa: ANN401
    """The flat name of a section's field."""
    key = str(key).replace("-", "_")
    name = _FLAT.get((section, key)) or _ALSO.get(key)
    if name is None or PLACES[name][0] != section:
        fields = SECTIONS[section].model_fields
        raise StudyError(f"unknown option {shown(key)} in {section}; {nearest(key, fields)}")
    return name


def _is_resolved(name: str) -> bool:
    section, field = PLACES[name]
    return SECTIONS[section].option(field).resolved


def _is_news(name: str, value: Any) -> bool:  # noqa: ANN401
    """Whether a study that says nothing of an option means this."""
    section, field = PLACES[name]
    default = SECTIONS[section].model_fields[field].default
    default = list(default) if isinstance(default, tuple) else default  # as it is written
    return SECTIONS[section].option(field).later and value == default


def _is_named(value: Any) -> bool:  # noqa: ANN401
    """Whether `str` gives what a user would have written: a path, torch's device or dtype."""
    return isinstance(value, Path) or type(value).__module__ == "torch"


def _first_problem(error: ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    section, field = problem["loc"][:2]
    name, value = _FLAT[str(section), str(field)], problem["input"]
    if problem["type"] == "word":
        return f"{name}: {problem['msg']}"
    if problem["type"] == "none":
        return f"{name} is empty; {problem['msg']}"
    if name == "device" and isinstance(value, str):
        return f"device is {shown(value)}; give auto, cpu, or one such as cuda or cuda:1"
    return f"{name} is {shown(value)}: {problem['msg'].removeprefix('Value error, ').lower()}"
