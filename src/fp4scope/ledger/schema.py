"""What a results file and a journal may hold: types, closed sets and bounds, field by field.

What is one thing in both files is described once. A new optional field is one line of its section.
The sections that say under what conditions a study ran may leave fields out: results that say less
are still compared. A report needs those in `REPORTED`.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    TypeAdapter,
    with_config,
)
from typing_extensions import NotRequired, TypedDict

from fp4scope.study import in_sections
from fp4scope.treatments import Setting

RESULTS_VERSION = 5

Text = Annotated[str, Field(max_length=100_000)]
Name = Annotated[str, Field(min_length=1, max_length=10_000)]
Count = Annotated[int, Field(ge=0, le=2**53)]
Positive = Annotated[int, Field(ge=1, le=2**53)]
Replica = Annotated[int, Field(ge=0, le=10_000)]
Block = Annotated[int, Field(ge=0, lt=100_000)]
Number = Annotated[float, Field(allow_inf_nan=False, ge=-1e30, le=1e30)]
Magnitude = Annotated[float, Field(allow_inf_nan=False, ge=0, le=1e100)]
Share = Annotated[float, Field(allow_inf_nan=False, ge=0, le=1)]
Scalar = Annotated[int, Field(ge=-(2**64), le=2**64)] | bool | Number | Text | None
ByRouter = list[Number | None]
Options = dict[Text, Scalar | list[Scalar]]
StudySections = dict[Text, Scalar | list[Scalar] | Options]

STRICT = with_config(ConfigDict(strict=True, extra="forbid"))
"""Of what is read as a whole; what stands inside it takes it over."""

# What was asked, and what was found.

Treated = Annotated[Setting, PlainValidator(Setting.from_json)]
SiteRow = (
    tuple[Name, Block | None, Name, Count, Count]
    | tuple[Name, Block, Name, Count, Count, Positive]
    | tuple[Name, Block, Name, Count, Count, Positive, Count]
    | tuple[Name, Block, Name, Count, Count, Positive, None, Name]
)
"""Name, block, projection, rows and columns: those of 0.1 are 0, for they were not kept.

What is behind the blocks has no block. Of experts in one tensor also how many there are; of a
single one of them 1, and its number. Of a part of a product its name, behind no number.
"""


class EditFields(TypedDict):
    sites: Annotated[list[Count], Field(min_length=1)]
    setting: Treated | None


class RecipeFields(TypedDict):
    """As `Recipe.to_json`, with places in `sites` for names."""

    base: Treated | None
    edits: list[EditFields]
    replay: NotRequired[bool]


class UnitFields(TypedDict):
    name: Text
    block: Block | None
    sites: Annotated[list[Count], Field(min_length=1)]


class ContrastFields(TypedDict):
    level: Literal[
        "model", "projections", "blocks", "layers", "patterns", "experts", "causes", "remedies"
    ]
    setting: Treated
    direction: Literal["keep", "only"] | None
    unit: UnitFields | None
    terms: Annotated[list[tuple[Name, Literal[1, -1]]], Field(min_length=2)]


class Place(TypedDict):
    """Samples and replicas, row by row: most subjects have the same."""

    indices: list[Count]
    replicas: list[Replica]
    tokens: list[Positive]


class Values(TypedDict, total=False):
    """The columns of `MEASURES`; empty where a row lacks one."""

    nll: list[Number | None]
    kl: list[Number | None]
    top1: list[Count | None]
    kl_max: list[Number | None]
    kl_bins: list[list[Count] | None]
    strata_tokens: list[list[list[Count]] | None]
    strata_nll: list[list[list[Number]] | None]
    strata_kl: list[list[list[Number]] | None]
    strata_reference: list[list[list[Number]] | None]
    rerun_kl: list[Number | None]
    rerun_top1: list[Count | None]
    routing_kept: list[Magnitude | None]
    routing_same: list[Magnitude | None]
    routing_weight: list[Magnitude | None]
    routing_load: list[Magnitude | None]
    routing_kl: list[Number | None]
    router_kept: list[ByRouter | None]
    router_same: list[ByRouter | None]
    router_weight: list[ByRouter | None]
    router_load: list[ByRouter | None]
    router_kl: list[ByRouter | None]
    gradient: list[Number | None]


class RowFields(TypedDict):
    recipe: Name
    place: Count
    values: Values


class LedgerFields(TypedDict):
    counted: Positive
    places: list[Place]
    rows: list[RowFields]


@dataclass(frozen=True, kw_only=True)
class ActivationRecord:
    """Input statistics of one layer: `max` and the 99.9% quantile `p999` of |x|.

    `ratio` is max / p999, None where p999 is zero. `tokens`: of a layer of experts, how many tokens
    each of them saw.
    """

    block: Block
    projection: Name
    max: Magnitude
    p999: Magnitude
    ratio: Magnitude | None
    elements: Count
    nonfinite: Count = 0
    tokens: list[Count] | None = None

    def to_json(self) -> dict[str, Any]:
        """Its fields, `tokens` only where there are some."""
        return {k: v for k, v in vars(self).items() if k != "tokens" or v is not None}


@dataclass(frozen=True, kw_only=True)
class ErrorRecord:
    """The error of one operand of a layer in a format, taken apart (`operands.errors`).

    `error` is its energy, of the operand's; `rounding`, `clipping` and `flushing` are shares of it
    that sum to 1; `scale` the share that scales without rounding would save. `clipped` and
    `flushed` are shares of the elements. `kurtosis` is 3 for normal elements, `block_ratio` the
    mean of a block's amax over its median, `top` the energy in the largest 0.1%. `outliers` are the
    first of `outlier_count` channels that are outliers in every window, `outliers_stable` their
    share of those that are in some. Headroom is in powers of two.
    """

    block: Block
    projection: Name
    operand: Literal["weights", "inputs"]
    format: Name
    error: Magnitude | None
    rounding: Number | None
    clipping: Share | None
    flushing: Share | None
    scale: Number | None
    clipped: Share | None
    flushed: Share | None
    kurtosis: Magnitude | None
    block_ratio: Magnitude | None
    top: Share | None
    outliers: list[Count]
    outlier_count: Count
    outliers_stable: Share | None
    headroom_above: Number | None = None
    headroom_below: Number | None = None


@dataclass(frozen=True, kw_only=True)
class LocalError:
    """Energy of the error of a layer's output, of the output's own: the mean over tokens."""

    block: Block
    projection: Name
    format: Name
    precision: Name
    error: Magnitude


@STRICT
class Errors(TypedDict):
    """What a journal keeps of the errors inside: of operands, and of what leaves layers."""

    operands: list[ErrorRecord]
    outputs: list[LocalError]


@STRICT
class Inputs(TypedDict):
    """What a journal keeps of the calibration: the amax of every linear's input, and its layers.

    Of those that hold experts also the amax of each.
    """

    amax: dict[Name, Magnitude]
    layers: list[ActivationRecord]
    by_expert: NotRequired[dict[Name, list[Magnitude]]]


# The conditions, and what is said of the course of a study.


class Excluded(TypedDict):
    projection: Name
    linears: Positive
    reason: Text
    share: Share


class TowerFields(TypedDict):
    name: Name
    linears: Positive


class ModelSection(TypedDict, total=False):
    name: Text
    architecture: Text
    fingerprint: Text
    parameters: Positive
    blocks: Annotated[int, Field(ge=1, lt=100_000)]
    projections: list[Name]
    kinds: dict[Name, Text | None]
    layer_types: list[Text]
    coverage: Share
    not_quantized: list[list[Text | Number]]
    excluded: list[Excluded]
    towers: list[TowerFields]
    routers: list[Text]
    routed_experts: list[tuple[Block, Name]]
    prior_quantization: Text | None
    dtype: Text
    tokenizer: Text
    tokenizer_sha256: Text
    device: Text
    attention: Text | None
    warnings: list[Text]


class _Windows(TypedDict, total=False):
    source: Text
    text_sha256: Text
    tokens_in_text: Count
    windows: Positive
    seq_len: Annotated[int, Field(ge=2, le=2**53)]
    bos: bool
    sha256: Text


class Calibration(_Windows, total=False):
    evaluated: bool


class DataSection(_Windows, total=False):
    calibration: Calibration


class ShapeFields(TypedDict):
    windows: Positive
    groups: Positive
    block: Positive
    head: Positive
    rows: Positive
    spill: bool
    whole: NotRequired[bool]


@STRICT
class SelfCheckFields(TypedDict):
    difference: Number
    allowed: Number
    batches: bool
    flattens: bool
    captured_bytes: Count
    reason: NotRequired[Text | None]


class _Fate(TypedDict):
    unit: Text
    block: Block | None
    fate: Name
    windows: Count


class _Search(TypedDict):
    level: Name
    format: Name
    precision: Name
    direction: Name
    k: Positive
    by: NotRequired[Literal["nll", "kl"]]  # was NLL, unsaid
    within_nats: Number
    error: Share
    decided: bool
    windows: Count
    units: Annotated[list[_Fate], Field(min_length=1)]


class Stopping(TypedDict):
    goal: Name
    reached: bool
    anytime: bool
    windows: Count
    available: Positive
    widest_nats: Number | None
    families: list[_Search]


@STRICT
class Session(TypedDict, total=False):
    torch: Text
    transformers: Text
    processor: Text
    threads: Count


class ProtocolSection(TypedDict, total=False):
    activation_scale: Literal["calibrated", "by-expert", "dynamic"]
    identity: Options
    also_quantized: list[Text]
    sessions: list[Session]
    shapes: list[ShapeFields]
    stopping: Stopping | None
    accept: list[Text]
    self_check: SelfCheckFields | None
    notes: list[Text]


class EnvironmentSection(TypedDict, total=False):
    fp4scope: Text
    numerics: Count
    python: Text
    torch: Text
    transformers: Text
    numpy: Text
    platform: Text
    processor: Text
    threads: Count
    command: Annotated[list[Text], Field(min_length=1)] | None
    started: Text
    wall_s: Magnitude


@with_config(ConfigDict(strict=True))
class _Question(TypedDict, total=False):
    operands: list[Text]


@with_config(ConfigDict(strict=True))
class _Numerics(TypedDict, total=False):
    replicas: Positive


@with_config(ConfigDict(strict=True))
class _StudyRead(TypedDict, total=False):
    """Of a study's options those that results are read by; the others may be any."""

    question: _Question
    numerics: _Numerics


_STUDY_READ = TypeAdapter(_StudyRead)


def _study(sections: StudySections) -> StudySections:
    _STUDY_READ.validate_python(sections)
    return sections


class Conditions(TypedDict):
    """What every version has; `summary` is derived from the rest and never read."""

    study: Annotated[StudySections, BeforeValidator(in_sections), AfterValidator(_study)]
    model: ModelSection
    data: DataSection
    protocol: ProtocolSection
    environment: EnvironmentSection
    summary: Any
    activations: list[ActivationRecord]


class LedgersFields(TypedDict):
    """What was found on the evaluated text, and of remedies."""

    text: LedgerFields
    remedies: NotRequired[LedgerFields]


@STRICT
class ResultsFields(Conditions):
    """A results file."""

    version: Literal[5]
    sites: list[SiteRow]
    recipes: dict[Name, RecipeFields]
    contrasts: list[ContrastFields]
    given: NotRequired[dict[Name, Name]]
    causes: NotRequired[list[ContrastFields]]
    errors: NotRequired[Errors]
    remedies: NotRequired[list[ContrastFields]]
    ledgers: LedgersFields


REPORTED = (
    "study.numerics.replicas",
    "model.name", "model.architecture", "model.fingerprint", "model.blocks", "model.coverage",
    "model.prior_quantization", "model.dtype", "model.device", "model.warnings",
    "data.source", "data.text_sha256", "data.tokens_in_text", "data.windows", "data.seq_len",
    "data.bos", "data.sha256", "data.calibration.source", "data.calibration.windows",
    "data.calibration.seq_len", "data.calibration.evaluated", "protocol.activation_scale",
    "protocol.shapes", "protocol.self_check", "protocol.notes", "environment.fp4scope",
    "environment.python", "environment.torch", "environment.transformers", "environment.platform",
    "environment.wall_s",
)  # fmt: skip
"""Without these there is no report."""
