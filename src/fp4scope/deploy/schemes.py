"""Schemes: the ways to store and serve a linear that engines have, and which one a setting means.

A scheme fixes what is stored. How a weight's scales were chosen is no part of it: any rule gives
scales that it can hold. How a kernel chooses the scales of inputs is not stored, so that a setting
whose inputs have another rule is served with the kernel's.
"""

from dataclasses import dataclass
from typing import Literal

from fp4scope.errors import StudyError
from fp4scope.formats import BlockFormat
from fp4scope.treatments import Amax, Setting, Treatment

Kind = Literal["nvfp4", "mxfp4", "mxfp8", "fp8"]
SERVED_RULE = {"nvfp4": "nvfp4", "mxfp4": "mxfp4:even", "mxfp8": "mxfp8:e4m3:even", "fp8": "fp8"}
"""What kernels quantize inputs to."""


@dataclass(frozen=True)
class Scheme:
    """How a linear is stored and served.

    Attributes:
        kind: Elements and scales.
        inputs: Whether what enters it is quantized as well.
    """

    kind: Kind
    inputs: bool

    @property
    def label(self) -> str:
        """As tables have it.

        Example:
            >>> Scheme("nvfp4", True).label, Scheme("nvfp4", False).label, Scheme("fp8", True).label
            ('NVFP4 W4A4', 'NVFP4 W4A16', 'FP8 W8A8')
        """
        bits = 4 if self.kind in ("nvfp4", "mxfp4") else 8
        return f"{self.kind.upper()} W{bits}A{bits if self.inputs else 16}"

    @property
    def static(self) -> bool:
        """Whether the scale of inputs is stored."""
        return self.kind == "nvfp4" and self.inputs


def kind_of(fmt: BlockFormat) -> Kind | None:
    """What a format's bytes are to an engine; None where no engine loads them."""
    places = (fmt.element.name, fmt.block_size, fmt.scale)
    known: dict[tuple[str, int, str], Kind] = {
        ("E2M1", 16, "E4M3 x FP32"): "nvfp4",
        ("E2M1", 32, "E8M0"): "mxfp4",
        ("E4M3", 32, "E8M0"): "mxfp8",
    }
    return "fp8" if fmt.name == "fp8" else known.get(places)


def scheme_of(setting: Setting, site: str) -> Scheme:
    """The scheme that a site's setting means.

    Raises:
        StudyError: No engine has it; says what engines have.
    """
    treatments = [t for t in (setting.weight, setting.input) if t is not None]
    if setting.noise is not None or not all(t.is_plain for t in treatments):
        raise StudyError(
            f"{site} is treated with {setting.format}, which is for measuring alone; name the "
            "formats without what stands behind +"
        )
    if setting.weight is None:
        raise StudyError(
            f"{site} has {setting.format} inputs and a weight in full precision, which no engine "
            "runs; quantize its weight too, or neither"
        )
    kind = kind_of(setting.weight.format)
    if kind is None and setting.weight.format.is_for_weights:
        raise StudyError(
            f"{site} has a weight in {setting.weight.format.name}, a yardstick that export does "
            f"not write; it knows {', '.join(SERVED_RULE)}, and full precision"
        )
    if kind is None:
        raise StudyError(
            f"{site} has a weight in {setting.weight.format.name}, which no engine loads; export "
            f"knows {', '.join(SERVED_RULE)}, and full precision"
        )
    if setting.input is None:
        return Scheme(kind, False)
    if kind_of(setting.input.format) != kind:
        raise StudyError(
            f"{site} has a weight in {setting.weight.format.name} and inputs in "
            f"{setting.input.format.name}; export knows both alike, or the weight alone"
        )
    return Scheme(kind, True)


def served_otherwise(treatment: Treatment, kind: Kind) -> str | None:
    """How engines treat an input otherwise than it was measured; None where they do not."""
    name, served = treatment.format.name, SERVED_RULE[kind]
    if name != served:
        return f"inputs measured in {name} are served in {served}"
    if treatment.tensor_scale in (Amax.WINDOW, Amax.EXPERT):
        return f"inputs measured with scales by {treatment.amax.value} are served with one number"
    return None
