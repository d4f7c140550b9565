"""What a recipe may choose from: full precision, and settings that a study has measured."""

from collections.abc import Sequence
from dataclasses import dataclass

from fp4scope.errors import StudyError, nearest, shown
from fp4scope.formats import FORMATS, get_format
from fp4scope.formats.spec import ALIASES
from fp4scope.study import Operands
from fp4scope.treatments import Setting, stored_bits

FULL_PRECISION = ("bf16", "bfloat16", "fp16", "float16")
"""Names of no quantization at all."""
WEIGHTS_ONLY_ON = {"sm90": 4.0}
"""GPUs on which engines quantize weights alone, of elements with so few bits.

Source: vLLM and SGLang serve NVFP4 and MXFP4 with Marlin kernels below sm100; FP8 stays W8A8.
"""


@dataclass(frozen=True)
class Choice:
    """One thing that a recipe may do to a group.

    Attributes:
        name: As a palette names it.
        setting: None is full precision.
    """

    name: str
    setting: Setting | None

    @property
    def least_bits(self) -> float:
        """Stored for each weight, block scales included, where rows are very long."""
        return stored_bits(self.setting, 1 << 20)


def choices(
    palette: str | None, measured: Sequence[Setting], serve_on: str | None = None
) -> tuple[Choice, ...]:
    """What a palette means among what was measured; full precision first.

    Args:
        palette: Names with commas between them, such as `nvfp4,fp8,bf16`; a format alone is both
            operands, `nvfp4/w4a16` the weights. None: all that was measured, and full precision.
        measured: The settings of a study.
        serve_on: A GPU, on which engines may quantize weights alone.

    Raises:
        FormatError: An unknown format.
        StudyError: Something that was not measured, or nothing to choose from.
    """
    if serve_on is not None and serve_on not in WEIGHTS_ONLY_ON:
        raise StudyError(
            f"serve_on: unknown {shown(serve_on)}; {nearest(serve_on, WEIGHTS_ONLY_ON)}"
        )
    served = [s for s in measured if serve_on is None or _as_served(s, serve_on)]
    full = Choice(FULL_PRECISION[0], None)
    if palette is None:
        found = [full, *(Choice(name_of(setting), setting) for setting in served)]
    else:
        names = [name.strip().lower() for name in palette.split(",") if name.strip()]
        found = [_choice(name, served, serve_on) for name in dict.fromkeys(names)]
        found = [full] * any(c.setting is None for c in found) + [c for c in found if c.setting]
    if len(found) < 2:
        raise StudyError(
            f"palette is {shown(palette or '')}; a recipe chooses between two or more of "
            f"{', '.join(map(name_of, served))} and {FULL_PRECISION[0]}"
        )
    return tuple(found)


def name_of(setting: Setting) -> str:
    """A setting as palettes name it.

    Example:
        >>> name_of(Setting.from_json("nvfp4")), name_of(Setting.from_json({"weight": "nvfp4"}))
        ('nvfp4', 'nvfp4/w4a16')
    """
    own = setting.format
    return own if setting.operands == "WA" else f"{own}/{setting.precision.lower()}"


def _as_served(setting: Setting, gpu: str) -> bool:
    """Whether engines do there what a setting says."""
    formats = [t.format for t in (setting.weight, setting.input) if t is not None]
    few = min(fmt.element.bits for fmt in formats) <= WEIGHTS_ONLY_ON[gpu]
    return setting.operands == "W" if few else True


def _choice(name: str, measured: Sequence[Setting], serve_on: str | None) -> Choice:
    if name in FULL_PRECISION:
        return Choice(FULL_PRECISION[0], None)
    own, slash, operands = name.partition("/")
    wanted = {name, own}
    if not slash or Operands.find(operands):
        fmt = get_format(own).name
        chosen = Operands.find(operands) if slash else Operands.BOTH
        sides = {Operands.BOTH: "WA", Operands.WEIGHTS: "W", Operands.ACTIVATIONS: "A"}
        # Where a GPU serves weights alone, a format alone means them.
        kinds = {sides[chosen]} | ({"W"} if serve_on and not slash else set())
        wanted = {name_of(s) for s in measured if s.format == fmt and s.operands in kinds}
    found = next((s for s in measured if name_of(s) in wanted), None)
    if found is None:
        raise StudyError(missing([name], measured, serve_on))
    return Choice(name_of(found), found)


def missing(names: Sequence[str], measured: Sequence[Setting], serve_on: str | None = None) -> str:
    """What to say of names in a palette that were not measured: how to measure them."""
    said = ", ".join(names)
    have = ", ".join(map(name_of, measured)) or "nothing that can be served so"
    where = f" on {serve_on}" if serve_on else ""
    own = [name.partition("/")[0] for name in names]
    formats = [one for one in own if ALIASES.get(one, one) in FORMATS]
    advice = f"measure it: fp4scope run MODEL --formats {','.join(formats)}" if formats else ""
    if serve_on and formats:
        advice += " --operands w4a16"
    return f"the palette has {said}, and the study measured {have}{where}" + (
        f"; {advice} -o ANOTHER" if advice else ""
    )
