"""The sections of a study. Each field is described here once, for files, Python and commands.

One rule places a field. What decides the numbers is in `model`, `data`, `question` or `numerics`,
and so is part of a study's identity. What only decides how a run gets to them is in `run`: another
run may go on in the same folder with other values.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from fp4scope.study.places import Place
from fp4scope.study.values import (
    Bytes,
    CacheFormat,
    Configurations,
    Directions,
    Formats,
    GoalText,
    Levels,
    Methods,
    Name,
    Number,
    Patterns,
    Recipes,
    SomeOperands,
    Swept,
    Workers,
)
from fp4scope.study.words import (
    ActivationScale,
    Causes,
    Dataset,
    Direction,
    Dtype,
    Experts,
    Level,
    Method,
    Offload,
    Operands,
    Parts,
    Scales,
    Switch,
)
from fp4scope.treatments import Configuration

_MOST_REALISATIONS = 1000


@dataclass(frozen=True)
class Option:
    """What a field is besides its type, default and description.

    Attributes:
        also: Other names that options may give it.
        resolved: Whether what it means is known only with the model or the text loaded, as a path
            is; then what it was found to mean is in the identity, and not what it says.
        repeated: Whether a command takes it several times, a value each.
        later: Whether studies were begun before there was such an option: the identity says it only
            where it is not its default.
        value: What its value is called in the help of a command; without it, by its type.
        absent: What its default means, where that is not given.
    """

    also: tuple[str, ...] = ()
    resolved: bool = False
    repeated: bool = False
    later: bool = False
    value: str = ""
    absent: str = ""


_FILE = Option(resolved=True, value="FILE")


class Section(BaseModel):
    """Frozen, and refuses what it does not know. Its docstring heads its options in help."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def title(cls) -> str:
        """What heads its options."""
        return (cls.__doc__ or "").partition("\n")[0].rstrip(".:")

    @classmethod
    def option(cls, field: str) -> Option:
        """What a field says of itself."""
        found = [m for m in cls.model_fields[field].metadata if isinstance(m, Option)]
        return found[0] if found else Option()


class Model(Section):
    """Model: what is measured."""

    name: Annotated[Name, Option(resolved=True, value="MODEL")] = Field(
        description="hub id, local folder or GGUF file"
    )
    revision: Annotated[Name | None, Option(resolved=True, value="NAME")] = Field(
        None, description="branch, tag or commit of a hub id"
    )
    exclude: Annotated[Patterns, Option(repeated=True, value="PATTERN")] = Field(
        (),
        description="linears to leave in full precision beside routers and the like: shell "
        "patterns of names, or re:REGEX; repeatable; none: not even those",
        examples=["*.self_attn.*"],
    )
    experts: Experts = Field(
        Experts.TOGETHER,
        description="experts that lie in one tensor: one linear for all of a block (together), or "
        "each for itself (single), so that patterns can tell them apart",
    )
    parts: Parts = Field(
        Parts.NONE,
        description="parts of linears, each for itself: q, k and v, gate and up, or q and its gate "
        "where they are fused (projections), or groups of attention heads (heads)",
    )
    random_weights: Annotated[bool, Option(resolved=True)] = Field(
        False,
        description="read config.json and the tokenizer alone, and draw the weights: for what a "
        "study of this size takes, before anything is fetched; its losses mean nothing",
    )
    lm_head: Annotated[bool, Option(later=True)] = Field(
        False,
        description="quantize the head too, as the linears of the blocks; tied embeddings stay",
    )


class Data(Section):
    """Data: on what text."""

    text: Annotated[Name | None, _FILE] = Field(
        None, description="evaluation text: a UTF-8 file, read as it is"
    )
    dataset: Annotated[Dataset | None, Option(resolved=True, absent="wikitext2")] = Field(
        None, description="evaluation text by name, where there is no file"
    )
    seq_len: Annotated[Number, Option(also=("max_length",))] = Field(
        2048, ge=2, description="tokens in a window"
    )
    windows: Annotated[
        Annotated[Number, Field(ge=1)] | None, Option(also=("limit",), resolved=True, absent="all")
    ] = Field(None, description="how many windows of the text, from its beginning")
    first_window: Annotated[Number, Option(resolved=True)] = Field(
        0, ge=0, description="number of the first window that is evaluated, from 0"
    )
    bos: Switch = Field(
        Switch.AUTO, description="BOS token before every window; auto: for models that need it"
    )
    calibration_text: Annotated[Name | None, _FILE] = Field(
        None, description="text to calibrate on: a UTF-8 file that is not evaluated"
    )
    calibration_windows: Annotated[
        Annotated[Number, Field(ge=1)] | Literal["auto"], Option(resolved=True)
    ] = Field(
        "auto",
        description="at most so many calibration windows; auto: about as many tokens as are "
        "evaluated, in 8 to 256 windows",
    )
    calibration_seq_len: Number = Field(512, ge=2, description="tokens in a calibration window")

    @field_validator("dataset")
    @classmethod
    def _one_text(cls, value: Dataset | None, info: Any) -> Dataset | None:  # noqa: ANN401
        if value is not None and info.data.get("text") is not None:
            raise ValueError("text and dataset both name the evaluation text; give one of them")
        return value


class Question(Section):
    """Question: which formats, and which units."""

    formats: Annotated[Formats, Option(value="FORMATS")] = Field(
        (Configuration.parse("mxfp4:floor"), Configuration.parse("nvfp4")),
        description="number formats, as `fp4scope formats` lists them; WEIGHT/INPUT for two, such "
        "as nvfp4:4over6/nvfp4; FORMAT/w4a16 for weights alone",
    )
    operands: SomeOperands = Field(
        (Operands.BOTH,),
        description="weights and activations (w4a4), only weights (w4a16), only activations "
        "(w16a4); the bits are those of the format",
    )
    all_quantized: Annotated[
        Configurations | Literal["auto"], Option(also=("baselines",), value="FORMATS")
    ] = Field(
        "auto",
        description="more formats, written so too, of which only the all-quantized model is "
        "measured, those of weights alone too (q8_0, q4_0, int4:g128, nf4); auto: the scale rules "
        'of engines, weights alone, and fp8; "": none',
        examples=["mxfp4:even,nvfp4/w4a16,q4_0"],
    )
    kv_cache: Annotated[CacheFormat | None, Option(later=True, value="FORMAT", absent="none")] = (
        Field(
            None,
            description="quantize keys and values too, where they are written: nvfp4, mxfp8, fp8 "
            "(scale 1), fp8:tensor (calibrated), or any other format",
        )
    )
    attention: Annotated[CacheFormat | None, Option(later=True, value="FORMAT", absent="none")] = (
        Field(
            None,
            description="quantize both operands of attention's two products too (queries and keys, "
            "probabilities and values); the model then runs eager attention",
        )
    )
    sweep: Annotated[Levels, Option(value=",".join(Level.words()))] = Field(
        (Swept(Level.PROJECTIONS), Swept(Level.LAYERS)),
        description="units to switch: projections (one kind of linear in all blocks), blocks, "
        "layers (one linear in one block), experts (one routed expert of one block, which makes "
        "them single); a direction of its own is written layers:only",
    )
    direction: Directions = Field(
        (Direction.KEEP, Direction.ONLY),
        description="quantize all but the unit (keep), or nothing but the unit (only)",
    )
    layers: Annotated[Patterns, Option(also=("cells",), value="PATTERNS", absent="all")] = Field(
        (),
        description="sweep only layers that match, patterns as for --exclude",
        examples=["down_proj,*.0.*"],
    )
    patterns: Annotated[Patterns, Option(also=("pattern",), repeated=True, value="PATTERN")] = (
        Field(
            (),
            description="one more unit: all linears that match a pattern; repeatable",
            examples=["*.0.mlp.*"],
        )
    )
    causes: Annotated[Causes, Option(later=True)] = Field(
        Causes.NONE,
        description="why projections, or layers too, cost what they do: by operand, with noise in "
        "the place of rounding, by error and gain; about 3 to 5 more runs for each",
    )
    remedies: Annotated[Number, Option(later=True)] = Field(
        0,
        ge=0,
        description="try remedies on so many of the most costly projections of each format, and of "
        "layers with --causes layers: the first half of the windows chooses them, the other half "
        "measures; 0: none",
        examples=["5"],
    )
    keep: Annotated[Patterns, Option(repeated=True, later=True, value="PATTERN")] = Field(
        (),
        description="one more unit, of all linears that match any of these, and what keeping it in "
        "full precision saves; repeatable",
        examples=["*.[qkv]_proj"],
    )
    recipes: Annotated[
        Recipes, Option(also=("recipe",), repeated=True, later=True, value="FILE")
    ] = Field(
        (),
        description="measure this recipe as a whole too: a recipe.yaml, as `fp4scope recommend` "
        "writes it or with patterns for sites; repeatable",
    )
    design_runs: Annotated[Annotated[Number, Field(ge=2)] | Literal["auto"], Option(later=True)] = (
        Field(
            "auto",
            description="about so many runs of a designed sweep (--method designed), fewer than "
            "groups too; auto: the fewest in which no effects are confounded",
        )
    )
    stop_when: Annotated[GoalText | None, Option(value="GOAL")] = Field(
        None,
        description="stop before a time is over, when intervals are narrow, or when the most "
        "costly units are known",
        examples=["10m", "half-width=2mnat", "best=10,by=kl,within=1mnat,error=5%"],
    )

    def directions(self, level: Level | None) -> tuple[Direction, ...]:
        """The directions in which a level is swept: its own, or the study's; None: patterns."""
        if level is None:
            return self.direction
        found: list[Direction] = []
        for item in self.sweep:
            if item.level is level:
                found += [item.direction] if item.direction else self.direction
        return tuple(dict.fromkeys(found))


class Numerics(Section):
    """Numerics: in which arithmetic, and with which dice."""

    dtype: Annotated[Dtype, Option(resolved=True)] = Field(
        Dtype.AUTO,
        description="what the full-precision model runs in; auto: the checkpoint's 16 bits, on a "
        "CPU float32; also fp32, bf16, fp16",
    )
    device: Annotated[
        Name, Field(pattern=r"^[A-Za-z_]+(:\d+)?$"), Option(resolved=True, value="DEVICE")
    ] = Field("auto", description="a torch device; auto: CUDA if there is one", examples=["cuda:1"])
    activation_scale: ActivationScale = Field(
        ActivationScale.CALIBRATED,
        description="NVFP4's tensor scale of activations: from calibration text, of every expert "
        "for itself (by-expert), or each window's own (dynamic)",
    )
    scales: Annotated[Scales, Option(later=True)] = Field(
        Scales.OWN,
        description="NVFP4's tensor scales of weights: each linear's own, or one for all that "
        "engines fuse, as q, k and v (served)",
    )
    replicas: Number = Field(
        1,
        ge=1,
        le=_MOST_REALISATIONS,
        description="realisations of every measurement, averaged; all but the first are "
        "perturbed by one unit in the last place at every block",
    )
    jitter: Annotated[Number, Field(ge=1, le=_MOST_REALISATIONS)] | Literal["auto"] = Field(
        "auto",
        description="perturbed realisations of the full-precision and all-quantized models, "
        "which tell the noise; auto: 1, or up to 8 where they cost 8% of a sweep and sharpen keep",
    )
    seed: Number = Field(0, ge=0, description="seed of the order of windows and of perturbations")


class Run(Section):
    """Run: how to get there; no number depends on it."""

    method: Methods = Field(
        (Method.EXACT,),
        description="measure units (exact), estimate them to first order (gradient), measure "
        "designed mixtures of the groups that engines have (designed), or several of these",
    )
    workers: Annotated[Workers, Option(value="WORKERS")] = Field(
        Place(),
        description="how many share the windows, this process among them; ray: one for each GPU, "
        "which Ray starts on this host; ray:N: so many; or the address of a Ray cluster",
        examples=["ray", "HOST:6379"],
    )
    memory: Annotated[Bytes | None, Option(value="SIZE", absent="what is free")] = Field(
        None,
        description="what a sweep may take beside the model",
        examples=["8GB"],
    )
    offload: Offload = Field(
        Offload.AUTO,
        description="where blocks wait: on the device (no), in host memory (yes), or in their "
        "files (disk); auto: the first of these that has room",
    )
    allow_partial: bool = Field(
        False, description="go on when under 95% of the blocks' parameters can be quantized"
    )
    trust_remote_code: bool = Field(False, description="run Python code that the model brings")
    allow_pickle: bool = Field(False, description="load pickled weights")
