"""The study: what is measured, as validated data that a file or a command line can hold.

A study plus a model plus a text decides every number in the results. It is frozen once
built, refuses unknown keys, and is written to `study.yaml` beside what it produced.
"""

import re
from enum import Enum
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from fp4scope.errors import Fp4ScopeError, StudyError, nearest
from fp4scope.formats import get_format
from fp4scope.goals import Goal, parse_goal

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
        raise StudyError(f"memory is {text!r}; give a size such as 8GB, 1.5GiB or 500MB")
    return int(float(match[1]) * (_BINARY if match[3] else _UNITS)[match[2]])


class Study(BaseModel):
    """Everything the user decides. Defaults are the protocol that papers mean by WikiText-2 PPL."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = STUDY_VERSION
    model: str = Field(description="hub id, local folder or GGUF file")
    revision: str | None = Field(None, description="branch, tag or commit of a hub id")
    text: str | None = Field(None, description="evaluation text: a UTF-8 file, read as it is")
    dataset: Literal["wikitext2", "pydoc-topics"] | None = Field(
        None, description="evaluation text by name; wikitext2 where there is no text"
    )
    seq_len: int = Field(2048, ge=2, description="tokens in a window")
    windows: int | None = Field(None, ge=1, description="the first N windows of the text; all")
    bos: Literal["auto", "yes", "no"] = Field(
        "auto", description="put the BOS token before every window; auto: for models that need it"
    )
    formats: tuple[str, ...] = Field(("mxfp4:floor", "nvfp4"), min_length=1)
    operands: tuple[Operands, ...] = Field((Operands.BOTH,), min_length=1)
    baselines: tuple[str, ...] = Field(
        (),
        description="more configurations, of which only what they cost the whole model is "
        "measured: formats, with operands of their own if written as nvfp4/weights",
    )
    sweep: tuple[str, ...] = Field(
        ("components", "cells"),
        description="levels; one with a direction of its own is written cells:isolate",
    )
    cells: tuple[str, ...] = Field(
        (), description="patterns of the linears whose cells are swept; all"
    )
    direction: tuple[Direction, ...] = Field((Direction.RESTORE, Direction.ISOLATE), min_length=1)
    patterns: tuple[str, ...] = Field((), description="more units: shell patterns of linear names")
    method: tuple[Method, ...] = Field(
        (Method.EXACT,),
        min_length=1,
        description="units are measured (exact), estimated to first order (gradient), or both; "
        "reference and baselines are always measured",
    )
    activation_scale: Literal["calibrated", "dynamic"] = Field(
        "calibrated", description="NVFP4's tensor scale of activations: static, or per window"
    )
    calibration_text: str | None = Field(None, description="a UTF-8 file that is not evaluated")
    calibration_windows: int = Field(256, ge=1)
    calibration_seq_len: int = Field(512, ge=2)
    replicas: int = Field(
        1,
        ge=1,
        description="realisations of every variant, all but the first perturbed by one unit in "
        "the last place at every block; their mean is what counts",
    )
    jitter: int = Field(
        1, ge=1, description="perturbed realisations of the reference and the baselines, at least"
    )
    memory: str | None = Field(
        None, description="what a sweep may take beside the model, such as 8GB; else what is free"
    )
    offload: Literal["auto", "yes", "no"] = Field(
        "auto", description="keep the blocks in host memory; auto: if the device cannot hold them"
    )
    stop_when: str | None = Field(
        None, description="a time, a half-width or a decision after which nothing is measured"
    )
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    seed: int = Field(0, ge=0, description="order in which windows are measured")
    allow_partial: bool = Field(False, description="go on when under 95% can be quantized")
    trust_remote_code: bool = Field(False, description="run Python code that the model brings")
    allow_pickle: bool = Field(False, description="load weights that are not safetensors")

    @field_validator(
        "formats", "operands", "baselines", "sweep", "cells", "direction", "patterns", "method",
        mode="before",
    )  # fmt: skip
    @classmethod
    def _split(cls, value: Any) -> Any:  # noqa: ANN401
        """`a,b` and a list mean the same; a name given twice is one."""
        if isinstance(value, str):
            value = [part.strip() for part in value.split(",") if part.strip()]
        return tuple(dict.fromkeys(value)) if isinstance(value, list | tuple) else value

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
        for item in value:
            level, _, direction = item.partition(":")
            if level not in levels:
                raise StudyError(f"sweep: unknown {level!r}; {nearest(level, levels)}")
            if direction and direction not in directions:
                hint = nearest(direction, directions)
                raise StudyError(f"sweep: unknown direction {direction!r} in {item!r}; {hint}")
        return value

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
            parse_memory(value := str(value))
        return value

    @field_validator("dataset")
    @classmethod
    def _one_text(cls, value: str | None, info: Any) -> str | None:  # noqa: ANN401
        if value is not None and info.data.get("text") is not None:
            raise ValueError("text and dataset both name the evaluation text; give one of them")
        return value

    @classmethod
    def build(cls, **options: Any) -> "Study":  # noqa: ANN401
        """A study from options as a user writes them.

        Args:
            options: Any field, and `preset`: one of `PRESETS`, for what is not given.

        Raises:
            StudyError: An unknown key (with the nearest names) or a value that makes no sense.
            FormatError: An unknown number format.
        """
        if (preset := options.pop("preset", None)) is not None:
            if preset not in PRESETS:
                raise StudyError(f"unknown preset {preset!r}; {nearest(preset, PRESETS)}")
            options = PRESETS[preset] | options
        unknown = [key for key in options if key not in cls.model_fields]
        if unknown:
            raise StudyError(
                f"unknown option {unknown[0]!r}; {nearest(unknown[0], cls.model_fields)}"
            )
        options = {k: str(v) if isinstance(v, Path) else v for k, v in options.items()}
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


def read_options(path: Path | str) -> dict[str, Any]:
    """The options in a YAML file, not yet validated."""
    import yaml

    try:
        options = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise StudyError(f"cannot read the study {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise StudyError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(options, dict):
        raise StudyError(f"{path} holds no options; a study is a mapping such as `model: NAME`")
    return {str(key).replace("-", "_"): value for key, value in options.items()}


def _format_and_operands(item: str) -> tuple[str, Operands | None]:
    """What `nvfp4/weights` and `nvfp4` say."""
    name, _, own = item.partition("/")
    known = [member.value for member in Operands]
    if own and own not in known:
        raise StudyError(f"baselines: unknown operands {own!r} in {item!r}; {nearest(own, known)}")
    return get_format(name).name, Operands(own) if own else None


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    field = str(problem["loc"][0]) if problem["loc"] else "study"
    value = problem["input"]
    kind = {"direction": Direction, "operands": Operands, "method": Method}.get(field)
    if problem["type"] == "missing":
        return f"{field} is missing"
    if kind is not None and isinstance(value, str):
        return f"{field}: unknown {value!r}; {nearest(value, [member.value for member in kind])}"
    return f"{field} is {value!r}: {problem['msg'].removeprefix('Value error, ').lower()}"
