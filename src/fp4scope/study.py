"""The study: what is measured, as validated data that a file or a command line can hold.

A study plus a model plus a text decides every number in the results. It is frozen once
built, refuses unknown keys, and is written to `study.yaml` beside what it produced.
"""

import re
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
)

from fp4scope.errors import Fp4ScopeError, StudyError, nearest, shown
from fp4scope.formats import FORMATS, get_format
from fp4scope.goals import Goal, parse_goal
from fp4scope.paths import read_bytes

STUDY_VERSION = 1

PRESETS: dict[str, dict[str, Any]] = {
    # arXiv 2603.08747 in FP16 on all of WikiText-2. It leaves the windows' length, MXFP4's scale
    # rule and the operands open: 2048 is what papers mean, the others are measured side by side.
    "paper": {
        "seq_len": 2048,
        "dtype": "float16",
        "formats": "mxfp4:floor,nvfp4",
        "baselines": "mxfp4:floor/weights,mxfp4:rceil,mxfp4:rceil/weights,mxfp4:even,"
        "mxfp4:even/weights,nvfp4/weights,nvfp4:4over6,nvfp4:4over6/weights",
        "sweep": "components,cells",
        "direction": "restore,isolate",
    },
}
"""Options under a name; whatever else is given wins."""


class Operands(str, Enum):
    """What of a linear is quantized."""

    BOTH = "weights+activations"
    WEIGHTS = "weights"
    ACTIVATIONS = "activations"

    @property
    def weights(self) -> bool:
        return self is not Operands.ACTIVATIONS

    @property
    def activations(self) -> bool:
        return self is not Operands.WEIGHTS


class Direction(str, Enum):
    """How a unit's effect is asked for."""

    RESTORE = "restore"
    """Everything quantized but the unit: what keeping it in full precision saves."""
    ISOLATE = "isolate"
    """Only the unit quantized: what quantizing it alone costs."""


class Method(str, Enum):
    """How a unit's effect is found."""

    EXACT = "exact"
    """Measured: the model runs with the unit quantized, or restored."""
    GRADIENT = "gradient"
    """Estimated to first order, from one forward and backward for all units."""


class Level(str, Enum):
    """The units that a sweep goes through."""

    COMPONENTS = "components"
    BLOCKS = "blocks"
    CELLS = "cells"


_DTYPES = {
    "fp32": "float32",
    "float": "float32",
    "bf16": "bfloat16",
    "fp16": "float16",
    "half": "float16",
}
_DIRECTIONS = {"keep": Direction.RESTORE.value, "only": Direction.ISOLATE.value}
"""Other names of what the ecosystem and the next version call so."""

_MOST = 2**64 - 1
"""The largest seed that torch takes, and more than there is of anything else."""
_MOST_REALISATIONS = 1000
_MOST_MEMORY = 2**63 - 1

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY = {"k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


def parse_memory(text: str) -> int:
    """`8GB`, `1.5 GiB` or a number of bytes, in bytes.

    Raises:
        StudyError: It is none of these.

    Example:
        >>> parse_memory("1.5GB"), parse_memory("2GiB")
        (1500000000, 2147483648)
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?\s*", text.lower())
    if match is None or (match[3] and not match[2]):
        raise StudyError(f"memory is {shown(text)}; give a size such as 8GB, 1.5GiB or 500MB")
    size = float(match[1]) * (_BINARY if match[3] else _UNITS)[match[2]]
    if size > _MOST_MEMORY:
        raise StudyError(
            f"memory is {shown(text)}, more than any machine has; give one such as 8GB"
        )
    return int(size)


def _words(value: Any) -> Any:  # noqa: ANN401
    """`a,b` and a list mean the same."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    if isinstance(value, list | tuple) and all(isinstance(word, str) for word in value):
        return tuple(value)
    raise ValueError("give names with commas between them, or a list of names")


def _number(value: Any) -> Any:  # noqa: ANN401
    """A truth is not taken for 0 or 1."""
    if isinstance(value, bool):
        raise ValueError("give a number")
    return value


def _yes_or_no(value: Any) -> Any:  # noqa: ANN401
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else value


def _name_of_dtype(value: Any) -> Any:  # noqa: ANN401
    name = value.strip().lower().removeprefix("torch.") if isinstance(value, str) else value
    return _DTYPES.get(name, name) if isinstance(name, str) else name


def _some(value: str) -> str:
    if not value:
        raise ValueError("give a name")
    return value


Name = Annotated[str, AfterValidator(_some)]  # pydantic's own length wants UTF-8, paths need not be
Number = Annotated[int, BeforeValidator(_number), Field(le=_MOST)]
Jitter = Annotated[Number, Field(ge=1, le=_MOST_REALISATIONS)] | Literal["auto"]
Names = Annotated[tuple[Name, ...], BeforeValidator(_words)]
Choice = Annotated[Literal["auto", "yes", "no"], BeforeValidator(_yes_or_no)]


class Study(BaseModel):
    """Everything the user decides. Defaults are the protocol that papers mean by WikiText-2 PPL."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Annotated[Literal[1], BeforeValidator(lambda v: 1 if v == "1" else v)] = STUDY_VERSION
    model: Name = Field(description="hub id, local folder or GGUF file")
    revision: Name | None = Field(None, description="branch, tag or commit of a hub id")
    text: Name | None = Field(None, description="evaluation text: a UTF-8 file, read as it is")
    dataset: Literal["wikitext2", "pydoc-topics"] | None = Field(
        None, description="evaluation text by name; wikitext2 where there is no text"
    )
    seq_len: Number = Field(2048, ge=2, description="tokens in a window")
    windows: Number | None = Field(None, ge=1, description="the first N windows of the text; all")
    bos: Choice = Field(
        "auto", description="put the BOS token before every window; auto: for models that need it"
    )
    formats: Names = ("mxfp4:floor", "nvfp4")
    operands: Annotated[tuple[Operands, ...], BeforeValidator(_words)] = (Operands.BOTH,)
    baselines: Names = Field(
        (),
        description="more configurations, of which only what they cost the whole model is "
        "measured: formats, with operands of their own if written as nvfp4/weights",
    )
    sweep: Names = Field(
        ("components", "cells"),
        description="levels; one with a direction of its own is written cells:isolate",
    )
    cells: Names = Field((), description="patterns of the linears whose cells are swept; all")
    direction: Annotated[tuple[Direction, ...], BeforeValidator(_words)] = (
        Direction.RESTORE,
        Direction.ISOLATE,
    )
    patterns: Names = Field((), description="more units: shell patterns of linear names")
    exclude: Names = Field(
        (),
        description="linears that stay in full precision beside the defaults: shell patterns or "
        "re:REGEX; none: no defaults",
    )
    method: Annotated[tuple[Method, ...], BeforeValidator(_words)] = Field(
        (Method.EXACT,),
        description="units are measured (exact), estimated to first order (gradient), or both; "
        "reference and baselines are always measured",
    )
    activation_scale: Literal["calibrated", "dynamic"] = Field(
        "calibrated", description="NVFP4's tensor scale of activations: static, or per window"
    )
    calibration_text: Name | None = Field(None, description="a UTF-8 file that is not evaluated")
    calibration_windows: Annotated[Number, Field(ge=1)] | Literal["auto"] = Field(
        "auto",
        description="at most so many; auto: about as many tokens as are evaluated, in 8 to 256 "
        "windows",
    )
    calibration_seq_len: Number = Field(512, ge=2)
    replicas: Number = Field(
        1,
        ge=1,
        le=_MOST_REALISATIONS,
        description="realisations of every variant, all but the first perturbed by one unit in "
        "the last place at every block; their mean is what counts",
    )
    jitter: Jitter = Field(
        "auto",
        description="perturbed realisations of the reference and the baselines, at least; auto: "
        "one, and of baselines whose units are restored as many as cost 8% of a sweep, up to 8",
    )
    memory: str | None = Field(
        None, description="what a sweep may take beside the model, such as 8GB; else what is free"
    )
    offload: Choice = Field(
        "auto", description="keep the blocks in host memory; auto: if the device cannot hold them"
    )
    stop_when: str | None = Field(
        None, description="a time, a half-width or a decision after which nothing is measured"
    )
    device: Name = Field("auto", pattern=r"^[A-Za-z_]+(:\d+)?$")
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"], BeforeValidator(_name_of_dtype)
    ] = "auto"
    seed: Number = Field(0, ge=0, description="order in which windows are measured")
    allow_partial: bool = Field(False, description="go on when under 95% can be quantized")
    trust_remote_code: bool = Field(False, description="run Python code that the model brings")
    allow_pickle: bool = Field(False, description="load weights that are not safetensors")

    @field_validator("direction", mode="before")
    @classmethod
    def _own_names(cls, value: Any) -> Any:  # noqa: ANN401
        words = _words(value)
        return tuple(_DIRECTIONS.get(w, w) if isinstance(w, str) else w for w in words)

    @field_validator(
        "formats", "operands", "sweep", "cells", "direction", "patterns", "exclude", "method"
    )
    @classmethod
    def _once(cls, value: tuple[Any, ...], info: Any) -> tuple[Any, ...]:  # noqa: ANN401
        """A name given twice is one; what must not be empty names its choices."""
        if not value and info.field_name in _CHOICES:
            choices = ", ".join(_CHOICES[info.field_name])
            raise StudyError(f"{info.field_name} is empty; give one or more of {choices}")
        return tuple(dict.fromkeys(value))

    @field_validator("exclude", "cells", "patterns")
    @classmethod
    def _expressions(cls, value: tuple[str, ...], info: Any) -> tuple[str, ...]:  # noqa: ANN401
        for pattern in value:
            if pattern.startswith("re:"):
                try:
                    re.compile(pattern.removeprefix("re:"))
                except re.error as error:
                    raise StudyError(
                        f"{info.field_name}: {shown(pattern)} is no regular expression: {error}"
                    ) from None
        return value

    @field_validator("formats")
    @classmethod
    def _full_names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(get_format(name).name for name in value))

    @field_validator("baselines")
    @classmethod
    def _full_baselines(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        pairs = [_format_and_operands(item) for item in value]
        return tuple(dict.fromkeys(f"{name}/{own.value}" if own else name for name, own in pairs))

    @property
    def swept(self) -> list[tuple[str, Operands]]:
        """Formats and operands in which units are measured."""
        return [(name, operands) for name in self.formats for operands in self.operands]

    @property
    def configurations(self) -> list[tuple[str, Operands]]:
        """Formats and operands that have a baseline: the swept ones first."""
        found = self.swept
        for item in self.baselines:
            name, own = _format_and_operands(item)
            found += [(name, operands) for operands in ([own] if own else self.operands)]
        return list(dict.fromkeys(found))

    @field_validator("sweep")
    @classmethod
    def _known_levels(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        levels, directions = ([member.value for member in kind] for kind in (Level, Direction))
        found = []
        for item in value:
            level, colon, direction = item.partition(":")
            direction = _DIRECTIONS.get(direction, direction)
            if level not in levels:
                raise StudyError(f"sweep: unknown {shown(level)}; {nearest(level, levels)}")
            if colon and direction not in directions:
                hint = nearest(direction, directions)
                raise StudyError(
                    f"sweep: unknown direction {shown(direction)} in {shown(item)}; {hint}"
                )
            found.append(level + colon + direction)
        return tuple(dict.fromkeys(found))

    def directions(self, level: Level | None) -> tuple[Direction, ...]:
        """The directions in which a level is swept: its own, or the study's; None: patterns."""
        if level is None:
            return self.direction
        found: list[Direction] = []
        for item in self.sweep:
            name, _, own = item.partition(":")
            if name == level.value:
                found += [Direction(own)] if own else self.direction
        return tuple(dict.fromkeys(found))

    @field_validator("stop_when")
    @classmethod
    def _a_goal(cls, value: str | None) -> str | None:
        if value is not None:
            parse_goal(value)
        return value

    @property
    def goal(self) -> Goal | None:
        """What `stop_when` says."""
        return None if self.stop_when is None else parse_goal(self.stop_when)

    @field_validator("memory", mode="before")
    @classmethod
    def _a_size(cls, value: Any) -> str | None:  # noqa: ANN401
        """In YAML and Python a number of bytes is a number."""
        if value is not None:
            parse_memory(value := value if isinstance(value, str) else shown(value))
        return value

    @field_validator("dataset")
    @classmethod
    def _one_text(cls, value: str | None, info: Any) -> str | None:  # noqa: ANN401
        if value is not None and info.data.get("text") is not None:
            raise ValueError("text and dataset both name the evaluation text; give one of them")
        return value

    @classmethod
    def build(cls, /, **options: Any) -> "Study":  # noqa: ANN401
        """A study from options as a user writes them.

        Args:
            options: Any field, and `preset`: one of `PRESETS`, for what is not given.

        Raises:
            StudyError: An unknown key (with the nearest names) or a value that makes no sense.
            FormatError: An unknown number format.
        """
        if (preset := options.pop("preset", None)) is not None:
            if not isinstance(preset, str) or preset not in PRESETS:
                raise StudyError(f"unknown preset {shown(preset)}; {nearest(preset, PRESETS)}")
            options = PRESETS[preset] | options
        unknown = [key for key in options if key not in cls.model_fields]
        if unknown:
            raise StudyError(
                f"unknown option {shown(unknown[0])}; {nearest(unknown[0], cls.model_fields)}"
            )
        options = {k: str(v) if _is_named(v) else v for k, v in options.items()}
        try:
            return cls(**options)
        except ValidationError as error:
            cause = error.errors()[0].get("ctx", {}).get("error")
            if isinstance(cause, Fp4ScopeError):
                raise cause from None
            raise StudyError(_first_problem(error)) from None

    def to_yaml(self) -> str:
        """The study as YAML that `read_options` reads back."""
        import yaml

        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _is_named(value: Any) -> bool:  # noqa: ANN401
    """Whether `str` gives what a user would have written: a path, torch's device or dtype."""
    return isinstance(value, Path) or type(value).__module__ == "torch"


def read_options(path: Path | str) -> dict[str, Any]:
    """The options in a YAML file, not yet validated.

    Values are words as they stand there: the field that a word is for says what it means, so
    that a commit of digits is no number, a date no date, and `bos: yes` is not a truth.

    Raises:
        StudyError: It cannot be read, or holds no options.
    """
    import yaml

    content = read_bytes(path, "study", StudyError)
    try:
        options = yaml.load(content.decode("utf-8-sig"), _loader())
    except (yaml.YAMLError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise StudyError(f"{path} is not valid YAML: {reason}") from None
    except RecursionError:
        raise StudyError(f"{path} is nested too deeply; a study is a flat mapping") from None
    if not isinstance(options, dict):
        raise StudyError(f"{path} holds no options; a study is a mapping such as `model: NAME`")
    return {str(key).replace("-", "_"): value for key, value in options.items()}


def _loader() -> Any:  # noqa: ANN401
    """A YAML loader that knows words and nothing else, but for `null`."""
    import yaml

    class Words(yaml.BaseLoader):
        pass

    null = "tag:yaml.org,2002:null"
    Words.add_implicit_resolver(null, re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
    Words.add_constructor(null, lambda loader, node: None)
    return Words


def _format_and_operands(item: str) -> tuple[str, Operands | None]:
    """What `nvfp4/weights` and `nvfp4` say."""
    name, slash, own = item.partition("/")
    if slash and own not in _CHOICES["operands"]:
        hint = nearest(own, _CHOICES["operands"])
        raise StudyError(f"baselines: unknown operands {shown(own)} in {shown(item)}; {hint}")
    return get_format(name).name, Operands(own) if own else None


_CHOICES: dict[str, list[str]] = {
    "formats": list(FORMATS),
    "operands": [member.value for member in Operands],
    "direction": [member.value for member in Direction],
    "method": [member.value for member in Method],
}
"""What the lists that must not be empty are chosen from."""


def _first_problem(error: ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    field = str(problem["loc"][0]) if problem["loc"] else "study"
    value = problem["input"]
    if problem["type"] == "missing":
        return f"{field} is missing"
    if problem["type"] == "enum" and isinstance(value, str):
        return f"{field}: unknown {shown(value)}; {nearest(value, _CHOICES[field])}"
    if field == "device" and isinstance(value, str):
        return f"device is {shown(value)}; give auto, cpu, or one such as cuda or cuda:1"
    return f"{field} is {shown(value)}: {problem['msg'].removeprefix('Value error, ').lower()}"
