"""The closed sets of words that options choose from, each with its other spellings."""

from enum import Enum
from typing import Any

from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from fp4scope.errors import nearest, shown
from fp4scope.treatments import OPERANDS, Amax


class Choice(str, Enum):
    """One of a closed set. A member is written as its word, and read under any spelling.

    `Direction("restore")` and `Direction("keep")` are the same member.
    """

    spellings: tuple[str, ...]

    def __new__(cls, word: str, *others: str) -> Any:  # noqa: ANN401
        member = str.__new__(cls, word)
        member._value_ = word
        member.spellings = (word, *others)
        return member

    @classmethod
    def words(cls) -> list[str]:
        """What a user may write, other spellings left out."""
        return [member.value for member in cls]

    @classmethod
    def find(cls, word: Any) -> Any:  # noqa: ANN401
        """The member that a word means, if it means one."""
        spelt = str(word).strip().lower() if isinstance(word, str | bool) else None
        return next((member for member in cls if spelt in member.spellings), None)

    @classmethod
    def read(cls, value: Any) -> Any:  # noqa: ANN401
        """The member that a user's word means.

        Raises:
            PydanticCustomError: None; the message names the nearest.
        """
        if (found := value if isinstance(value, cls) else cls.find(value)) is None:
            raise PydanticCustomError(
                "word",
                "unknown {value}; {hint}",
                {"value": shown(value), "hint": nearest(value, cls.words())},
            )
        return found

    @classmethod
    def _missing_(cls, value: object) -> Any:  # noqa: ANN401
        return cls.find(value)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> CoreSchema:  # noqa: ANN401
        written = core_schema.plain_serializer_function_ser_schema(lambda member: member.value)
        return core_schema.no_info_plain_validator_function(cls.read, serialization=written)


class Operands(Choice):
    """What of a linear is quantized. The bits in the words are those of a 4-bit format."""

    BOTH = OPERANDS["WA"]
    WEIGHTS = OPERANDS["W"]
    ACTIVATIONS = OPERANDS["A"]

    @property
    def treated(self) -> str:
        """As a setting names them: `WA`, `W` or `A`."""
        return next(sides for sides, words in OPERANDS.items() if self.value in words)


class Direction(Choice):
    """How a unit's effect is asked for."""

    KEEP = "keep", "restore"
    """Everything quantized but the unit: what keeping it in full precision saves."""
    ONLY = "only", "isolate"
    """Only the unit quantized: what quantizing it alone costs."""


class Method(Choice):
    """How a unit's effect is found."""

    EXACT = "exact"
    """Measured: the model runs with the unit quantized, or kept."""
    GRADIENT = "gradient"
    """Estimated to first order, from one forward and backward for all units."""
    DESIGNED = "designed"
    """Estimated from runs that quantize about half of the model each: groups that engines have."""


class Level(Choice):
    """The units that a sweep goes through."""

    PROJECTIONS = "projections", "components"
    """One kind of linear in all blocks."""
    BLOCKS = "blocks"
    LAYERS = "layers", "cells"
    """One kind of linear in one block."""
    EXPERTS = "experts"
    """One routed expert of one block."""


class Causes(Choice):
    """Of which units it is measured why they cost what they do."""

    NONE = "none"
    PROJECTIONS = "projections", "components"
    LAYERS = "layers", "cells"
    """Of projections too."""

    @property
    def levels(self) -> tuple[Level, ...]:
        """The units that are meant."""
        found = {Causes.NONE: 0, Causes.PROJECTIONS: 1, Causes.LAYERS: 2}[self]
        return (Level.PROJECTIONS, Level.LAYERS)[:found]


class Experts(Choice):
    """What of the experts of a block in one tensor is switched on its own."""

    TOGETHER = "together", "stacked"
    SINGLE = "single"


class Parts(Choice):
    """What of one linear is switched on its own."""

    NONE = "none"
    PROJECTIONS = "projections"
    """What is fused: q, k and v; gate and up; q and its gate."""
    HEADS = "heads"
    """Groups of attention heads that share k and v, in q, k, v and o."""


class More(Choice):
    """What is quantized beside the linears of the blocks."""

    LM_HEAD = "lm_head"
    KV_CACHE = "kv_cache"
    ATTENTION = "attention"


class Dataset(Choice):
    """Evaluation texts by name."""

    WIKITEXT2 = "wikitext2"
    PYDOC_TOPICS = "pydoc-topics"


class Dtype(Choice):
    """What the full-precision model runs in."""

    AUTO = "auto"
    FLOAT32 = "float32", "fp32", "float", "torch.float32"
    BFLOAT16 = "bfloat16", "bf16", "torch.bfloat16"
    FLOAT16 = "float16", "fp16", "half", "torch.float16"


class ActivationScale(Choice):
    """Where NVFP4's tensor scale of activations comes from."""

    CALIBRATED = "calibrated", "static"
    BY_EXPERT = "by-expert", "by_expert"
    DYNAMIC = "dynamic"

    @property
    def amax(self) -> Amax:
        """As a treatment names it."""
        named = {"calibrated": Amax.CALIBRATED, "by-expert": Amax.EXPERT, "dynamic": Amax.WINDOW}
        return named[self.value]


class Scales(Choice):
    """Which weights have one NVFP4 tensor scale."""

    OWN = "own"
    """Each linear for itself."""
    SERVED = "served"
    """All that engines hold as one matrix."""


class Switch(Choice):
    """On, off, or whatever the model needs."""

    AUTO = "auto"
    YES = "yes", "true"
    NO = "no", "false"


class Offload(Choice):
    """Where the blocks of the model wait."""

    AUTO = "auto"
    YES = "yes", "true", "memory", "host"
    """In host memory."""
    DISK = "disk"
    NO = "no", "false"
    """They are on the device."""
