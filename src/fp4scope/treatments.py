"""What is done to the operands of one matrix product. Pure data, hashable, with a JSON form.

A treatment turns an operand into its image, of the same shape and dtype. A setting names the
treatments of both operands; without any, a product runs in full precision, and has no setting. A
configuration is a setting by name.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from fp4scope.errors import FormatError, StudyError, nearest, shown
from fp4scope.formats import (
    FORMATS,
    WEIGHT_FORMATS,
    BlockFormat,
    get_format,
    get_treatment_format,
)

FULL_PRECISION_BITS = 16.0
HADAMARD_BLOCKS = (16, 32, 64, 128)
OPERANDS = {
    "WA": ("w4a4", "w6a6", "w8a8", "weights+activations"),
    "W": ("w4a16", "w6a16", "w8a16", "weights"),
    "A": ("w16a4", "w16a6", "w16a8", "activations"),
}
"""Words for which operands are quantized, whatever bits the format has."""


def operands_of(precision: str) -> str:
    """Which operands are quantized: `WA`, `W` or `A`; nothing of the full-precision model.

    Example:
        >>> operands_of("W4A4"), operands_of("W8A16"), operands_of("")
        ('WA', 'W', '')
    """
    found = re.findall(r"([WA])(\d+)", precision)
    return "".join(side for side, bits in found if int(bits) < FULL_PRECISION_BITS)


class Amax(str, Enum):
    """Where the tensor scale of an input comes from. A weight's is always its own."""

    CALIBRATED = "calibrated"
    """One number for a site, from text that is not evaluated, as engines have it."""
    EXPERT = "expert"
    """The same for each expert of a site that holds several."""
    WINDOW = "window"
    """Each window's own."""


class Fault(str, Enum):
    """What is changed in an image's error on purpose, to find causes. No engine serves it."""

    NOISE = "noise"
    """Each block's error becomes noise of the same energy in a random direction."""
    EXACT_SCALE = "exact-scale"
    """Scales of blocks are not rounded."""


class Fit(str, Enum):
    """What of an image is fitted to the inputs of a calibration text (`operands/fitted.py`)."""

    GPTQ = "gptq"
    """A weight is rounded column by column; each makes up for the error of those before it."""
    SMOOTH = "smooth"
    """Channels of the input are divided by factors that the weight's columns are multiplied by."""


FEWEST_TOKENS = 64
"""An expert that fewer tokens reached is not calibrated by them alone."""


@dataclass(frozen=True)
class Treatment:
    """How one operand is quantized and dequantized.

    Attributes:
        format: Number format of the image.
        amax: Of an input whose format has a tensor scale: where its amax comes from.
        hadamard: Blocks of so many numbers are turned by a Hadamard matrix before it is quantized,
            and back afterwards; 0 for none. Nothing is calibrated behind it.
        fault: What is changed in its error on purpose.
        fit: What is fitted to inputs; of both operands where it is smoothing, else of weights.
    """

    format: BlockFormat
    amax: Amax = Amax.CALIBRATED
    hadamard: int = 0
    fault: Fault | None = None
    fit: Fit | None = None

    @property
    def name(self) -> str:
        """Its format's, and what else is done: `nvfp4+hadamard32+noise`."""
        more = [f"hadamard{self.hadamard}"] if self.hadamard else []
        more += [own.value for own in (self.fit, self.fault) if own]
        return "+".join([self.format.name, *more])

    @property
    def is_plain(self) -> bool:
        """Whether it is quantized and nothing else."""
        return not self.hadamard and self.fault is None and self.fit is None

    @property
    def tensor_scale(self) -> Amax | None:
        """Where the amax of an input's tensor scale comes from; None for a format without one."""
        if not self.format.uses_tensor_amax or self.fault is Fault.EXACT_SCALE:
            return None
        return Amax.WINDOW if self.hadamard or self.fit is Fit.SMOOTH else self.amax

    @classmethod
    def named(cls, name: str, amax: Amax = Amax.CALIBRATED) -> "Treatment":
        """What a name says.

        Raises:
            FormatError: An unknown format.
            StudyError: Unknown is what stands behind it.

        Example:
            >>> Treatment.named("mxfp4+hadamard32").name
            'mxfp4:floor+hadamard32'
        """
        own, *more = name.split("+")
        found = cls(get_treatment_format(own), amax)
        for word in more:
            size = word.removeprefix("hadamard")
            if size != word and size.isdecimal() and int(size) in HADAMARD_BLOCKS:
                found = replace(found, hadamard=int(size))
            elif word in [fault.value for fault in Fault]:
                found = replace(found, fault=Fault(word))
            elif word in [fit.value for fit in Fit]:
                found = replace(found, fit=Fit(word))
            else:
                known = [f"hadamard{n}" for n in HADAMARD_BLOCKS]
                known += [own.value for own in (*Fit, *Fault)]
                raise StudyError(f"unknown {shown(word)} in {shown(name)}; {nearest(word, known)}")
        if more and found.format.is_for_weights:
            raise StudyError(f"{shown(name)}: {own} is measured as it is; leave out what follows +")
        return found

    def to_json(self) -> Any:  # noqa: ANN401
        """Its name, or a mapping where more has to be said."""
        if self.amax is Amax.CALIBRATED:
            return self.name
        return {"format": self.name, "amax": self.amax.value}

    @classmethod
    def from_json(cls, data: object) -> "Treatment":
        """From what `to_json` gives.

        Raises:
            FormatError: An unknown format.
            StudyError: Anything else that is no treatment.

        Example:
            >>> Treatment.from_json({"format": "nvfp4", "amax": "window"}).to_json()
            {'format': 'nvfp4', 'amax': 'window'}
        """
        if isinstance(data, str):
            return cls.named(data)
        found = _mapping(data, {"format", "amax"}, "a treatment", "nvfp4")
        if not isinstance(found.get("format"), str):
            raise StudyError(f"treatment {data!r} names no format; write it as `format: nvfp4`")
        amax = found.get("amax", Amax.CALIBRATED.value)
        known = [member.value for member in Amax]
        if amax not in known:
            raise StudyError(f"amax: unknown {amax!r}; {nearest(str(amax), known)}")
        return cls.named(found["format"], Amax(amax))


@dataclass(frozen=True)
class Setting:
    """The treatments of one site's operands; None leaves an operand in full precision.

    Attributes:
        weight: Of its weight.
        input: Of what enters it.
        noise: Of what leaves it, to find causes: energy of noise in a random direction that each
            row gets, of the row's own, in decibels.

    Raises:
        StudyError: Nothing is treated.
    """

    weight: Treatment | None = None
    input: Treatment | None = None
    noise: float | None = None

    def __post_init__(self) -> None:
        if self.weight is None and self.input is None and self.noise is None:
            raise StudyError(
                "a setting treats neither operand; use null for a site in full precision"
            )
        if self.input is not None and self.input.format.is_for_weights:
            name = self.input.format.name
            raise StudyError(
                f"{name} is for weights alone, and inputs are to have it; write it as {name}, or "
                f"name the format of inputs behind it: {name}/fp8"
            )

    @property
    def is_fitted(self) -> bool:
        """Whether an operand's image is fitted to inputs of a calibration text."""
        return any(t is not None and t.fit is not None for t in (self.weight, self.input))

    @property
    def formats(self) -> tuple[BlockFormat, ...]:
        """Of the operands that it treats, weight first."""
        return tuple(t.format for t in (self.weight, self.input) if t is not None)

    @property
    def format(self) -> str:
        """The name of its format; both where weight and input have different ones."""
        operands = (self.weight, self.input)
        names = dict.fromkeys(t.name for t in operands if t is not None)
        return "/".join(names) or f"noise of {self.noise:g} dB"

    def weight_bits(self, cols: int) -> float:
        """Stored bits for each weight in rows of so many, scales of blocks and rows included.

        Example:
            >>> [Setting.from_json(name).weight_bits(512) for name in ("nvfp4", "fp8")]
            [4.5, 8.0625]
        """
        return FULL_PRECISION_BITS if self.weight is None else self.weight.format.bits_in(cols)

    @property
    def name(self) -> str:
        """As options, palettes and recipes write it (`Configuration`).

        Example:
            >>> [Setting.from_json(name).name for name in ("nvfp4", "nvfp4/w4a16", "q4_0")]
            ['nvfp4', 'nvfp4/w4a16', 'q4_0']
        """
        plain = self.operands == "WA" or (self.operands == "W" and self.format in WEIGHT_FORMATS)
        return self.format if plain else f"{self.format}/{self.precision.lower()}"

    @property
    def operands(self) -> str:
        """Which operands it treats: `WA`, `W` or `A`."""
        treated = {"W": self.weight, "A": self.input}
        return "".join(side for side, treatment in treated.items() if treatment is not None)

    @property
    def precision(self) -> str:
        """Element bits of both operands, as the field writes them.

        Example:
            >>> Setting.from_json({"weight": "nvfp4"}).precision
            'W4A16'
        """
        bits = [
            FULL_PRECISION_BITS if operand is None else operand.format.element.bits
            for operand in (self.weight, self.input)
        ]
        return "W{:.0f}A{:.0f}".format(*bits)

    def to_json(self) -> dict[str, Any]:
        """The treated operands."""
        operands = {"weight": self.weight, "input": self.input}
        found = {name: t.to_json() for name, t in operands.items() if t is not None}
        return found if self.noise is None else found | {"noise": self.noise}

    @classmethod
    def from_json(cls, data: object) -> "Setting":
        """From what `to_json` gives, or a name as `Configuration` reads it.

        Raises:
            FormatError: An unknown format.
            StudyError: Anything else that is no setting.

        Example:
            >>> Setting.from_json("nvfp4").to_json()
            {'weight': 'nvfp4', 'input': 'nvfp4'}
        """
        if isinstance(data, str):
            if "+" in data:
                return cls._of_treatments(data)
            return Configuration.parse(data, get_treatment_format).setting()
        known = {"weight", "input", "noise"}
        found = {**_mapping(data, known, "a setting", "{weight: nvfp4, input: nvfp4}")}
        noise = found.pop("noise", None)
        if noise is not None and (isinstance(noise, bool) or not isinstance(noise, int | float)):
            raise StudyError(f"noise is {shown(noise)}; give decibels, such as -20")
        operands = {k: Treatment.from_json(v) for k, v in found.items() if v is not None}
        return cls(**operands, noise=None if noise is None else float(noise))

    @classmethod
    def _of_treatments(cls, name: str) -> "Setting":
        """What a name says that is of more than formats: `nvfp4+hadamard32`, also with operands."""
        weight, operands, behind = _split(name)
        own = Treatment.named(weight)
        if operands:
            return cls(own if "W" in operands else None, own if "A" in operands else None)
        return cls(own, own if behind is None else Treatment.named(behind))


@dataclass(frozen=True)
class Configuration:
    """A setting as options, palettes and recipes name it.

    A format alone is that of weights and inputs: `nvfp4`. `WEIGHT/INPUT` names one for each:
    `nvfp4:4over6/nvfp4`. `FORMAT/w4a16` quantizes weights alone, `FORMAT/w16a4` inputs alone.
    What is a format of weights alone, such as `q4_0`, quantizes these without saying so.

    Attributes:
        weight: Format of weights.
        input: Format of inputs.
        operands: Which are quantized, `WA`, `W` or `A`; empty where the name leaves that open.
    """

    weight: BlockFormat
    input: BlockFormat
    operands: str = ""

    def __str__(self) -> str:
        if self.operands and not (self.operands == "W" and self.weight.is_for_weights):
            own = self.input if self.operands == "A" else self.weight
            return f"{own.name}/{OPERANDS[self.operands][0]}"
        return "/".join(dict.fromkeys((self.weight.name, self.input.name)))

    @classmethod
    def parse(
        cls, text: str, find: Callable[[object], BlockFormat] = get_format
    ) -> "Configuration":
        """What a name says.

        Args:
            text: It.
            find: The format of a name.

        Raises:
            FormatError: An unknown format.
            StudyError: What stands behind the slash is neither operands nor a format.

        Example:
            >>> str(Configuration.parse("nvfp4:4over6/NVFP4")), str(Configuration.parse("mxfp4"))
            ('nvfp4:4over6/nvfp4', 'mxfp4:floor')
        """
        name, operands, behind = _split(text)
        weight = find(name)
        if behind is None:
            if weight.is_for_weights and operands not in ("", "W"):
                raise StudyError(
                    f"{shown(text)}: {weight.name} is for weights alone; write it as {weight.name}"
                )
            return cls(weight, weight, "W" if weight.is_for_weights else operands)
        try:
            entering = find(behind)
        except FormatError:
            words = [own[0] for own in OPERANDS.values()]
            raise StudyError(
                f"unknown {shown(behind)} in {shown(text)}; a format's name is followed by "
                f"operands or the format of inputs; {nearest(behind, [*words, *FORMATS])}"
            ) from None
        if entering.is_for_weights:
            raise StudyError(f"{shown(text)}: inputs are to have {behind}, which only weights have")
        return cls(weight, entering)

    def setting(self, operands: str = "WA", amax: Amax = Amax.CALIBRATED) -> Setting:
        """The setting that it means.

        Args:
            operands: Which are quantized, where its name leaves that open.
            amax: Where tensor scales of inputs come from.
        """
        treated = self.operands or operands
        # Without a tensor scale no amax is asked for, so that both spellings are one setting.
        own = amax if self.input.uses_tensor_amax else Amax.CALIBRATED
        return Setting(
            weight=Treatment(self.weight) if "W" in treated else None,
            input=Treatment(self.input, own) if "A" in treated else None,
        )

    def settings(self, operands: Iterable[str], amax: Amax = Amax.CALIBRATED) -> list[Setting]:
        """One for each of these operands, or the one that its name says."""
        return [self.setting(own, amax) for own in ([self.operands] if self.operands else operands)]


def _split(name: str) -> tuple[str, str, str | None]:
    """What stands before the slash, the operands behind it, or else what stands behind it."""
    own, slash, behind = (part.strip().lower() for part in name.partition("/"))
    operands = next((known for known, words in OPERANDS.items() if behind in words), "")
    return own, operands, behind if slash and not operands else None


def stored_bits(setting: Setting | None, cols: int) -> float:
    """Stored bits for each weight of a site with rows this long; None is full precision."""
    return FULL_PRECISION_BITS if setting is None else setting.weight_bits(cols)


def _mapping(data: object, known: set[str], what: str, example: str) -> Mapping[str, Any]:
    if not isinstance(data, Mapping):
        raise StudyError(f"{data!r} is not {what}; write it as `{example}`")
    for key in data:
        if key not in known:
            raise StudyError(f"{what} has no {key!r}; {nearest(str(key), sorted(known))}")
    return data
