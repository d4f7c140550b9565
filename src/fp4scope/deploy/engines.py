"""What serving engines load: which format for a layer, through which container. Facts as data.

Engines: vLLM 0.33.0, SGLang 0.5.23 (read in their wheels), TensorRT-LLM's main branch (read in its
source), transformers 5.24 with compressed-tensors 0.20 (run on a CPU). Versions move: a verdict is
about these.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from fp4scope.errors import StudyError, nearest, shown
from fp4scope.treatments import Setting

ENGINES: Mapping[str, str] = {
    "vllm": "vLLM 0.33.0",
    "sglang": "SGLang 0.5.23",
    "trtllm": "TensorRT-LLM main, November 2026",
    "hf": "transformers 5.24 with compressed-tensors 0.20",
}
"""Engines, and the versions that the facts are about."""
SERVING = ("vllm", "sglang", "trtllm")
"""Those that `--engine any` means."""
DEFAULT_PALETTE = ("nvfp4", "fp8", "bf16")
"""What all engines load for each layer, through compressed-tensors with exact names."""
FULL = "bf16"


@dataclass(frozen=True)
class Form:
    """Formats of a linear's operands, by name; how the scales of a weight are chosen is left out.

    Attributes:
        weight: Such as `nvfp4`, `fp8` (by channel or token), `fp8:tensor`, `fp8:block128`, `int4`.
        input: None where it is not quantized.
    """

    weight: str
    input: str | None = None

    @property
    def label(self) -> str:
        """As palettes name it.

        Example:
            >>> Form("nvfp4", "nvfp4").label, Form("nvfp4").label, Form("mxfp4", "fp8").label
            ('nvfp4', 'nvfp4/w4a16', 'mxfp4/fp8')
        """
        if self.input is None:
            return f"{self.weight}/w{4 if '4' in self.weight[:6] else 8}a16"
        return self.weight if self.weight == self.input else f"{self.weight}/{self.input}"

    @property
    def block(self) -> int:
        """What the number of inputs must be a multiple of."""
        sizes = {"nvfp4": 16, "mxfp4": 32, "mxfp8": 32, "mxfp6": 32}
        return max(sizes.get(name, 1) for name in (self.weight, self.input or self.weight))


def form_of(setting: Setting) -> Form:
    """What engines know of a setting.

    Raises:
        StudyError: Its weight is in full precision, which no engine runs with quantized inputs.

    Example:
        >>> form_of(Setting.from_json("mxfp8"))
        Form(weight='mxfp8', input='mxfp8')
    """
    if setting.weight is None:
        raise StudyError(
            f"{setting.format} inputs with a weight in full precision: no engine runs that; "
            "quantize the weight too, or neither"
        )
    inputs = setting.input
    return Form(_plain(setting.weight.format.name), inputs and _plain(inputs.format.name))


def _plain(name: str) -> str:
    """A format's name without its scale rule.

    Example:
        >>> [_plain(name) for name in ("mxfp4:even", "nvfp4:4over6", "mxfp8:e4m3:floor", "fp8")]
        ['mxfp4', 'nvfp4', 'mxfp8', 'fp8']
    """
    family, _, rule = name.partition(":")
    if family in ("nvfp4", "mxfp4") or (family == "mxfp8" and rule.startswith("e4m3")):
        return family
    return name


class Verdict(NamedTuple):
    """Whether an engine loads something, and what to know of it.

    `gpus` are those on which it does what it loads, nothing else; all where that is empty.
    """

    loads: bool
    remark: str = ""
    gpus: str = ""


_YES = Verdict(True)
_HOPPER = Verdict(True, "below sm100 the weight alone is quantized (Marlin)", "sm100 on")
_NO_MODELOPT = Verdict(False, "transformers has no reader of ModelOpt's checkpoints")
_ONLY_NVFP4 = Verdict(False, "of dense FP4 linears only NVFP4 is loaded")
_NVFP4, _MXFP4, _MXFP8 = Form("nvfp4", "nvfp4"), Form("mxfp4", "mxfp4"), Form("mxfp8", "mxfp8")
_FP8, _TENSOR = Form("fp8", "fp8"), Form("fp8:tensor", "fp8:tensor")
_BLOCK = Form("fp8:block128", "fp8:block128")
_Facts = Mapping[Form, Mapping[str, Verdict]]

_COMPRESSED: _Facts = {
    _NVFP4: {"vllm": _HOPPER, "sglang": _HOPPER, "trtllm": _YES, "hf": _YES},
    Form("nvfp4"): {
        "vllm": _YES,
        "sglang": _YES,
        "trtllm": Verdict(False, "it asks for the strategy of inputs, which have none"),
        "hf": _YES,
    },
    _MXFP4: {
        "vllm": _HOPPER,
        "sglang": _ONLY_NVFP4,
        "trtllm": Verdict(False, "MXFP4 is loaded with inputs in full precision only"),
        "hf": _YES,
    },
    Form("mxfp4"): {
        "vllm": Verdict(
            True, "from sm100 on inputs are quantized to MXFP4 all the same", "below sm100"
        ),
        "sglang": _ONLY_NVFP4,
        "trtllm": _YES,
        "hf": _YES,
    },
    Form("mxfp4", "fp8"): {
        "vllm": _YES,
        "sglang": Verdict(False, "of experts only"),
        "trtllm": Verdict(False),
        "hf": _YES,
    },
    _MXFP8: {
        "vllm": _YES,
        "sglang": Verdict(False, "the strategy `group` is rejected"),
        "trtllm": Verdict(False, "only the strategies `channel` and `block` are loaded"),
        "hf": _YES,
    },
    _FP8: dict.fromkeys(ENGINES, _YES),
    _TENSOR: dict.fromkeys(ENGINES, _YES)
    | {"trtllm": Verdict(False, "only the strategies `channel` and `block` are loaded")},
    _BLOCK: dict.fromkeys(ENGINES, _YES) | {"sglang": Verdict(True, "not of lm_head")},
}
_MODELOPT: _Facts = {
    form: {"vllm": of_vllm, "sglang": of_sglang, "trtllm": _YES, "hf": _NO_MODELOPT}
    for form, of_vllm, of_sglang in (
        (_NVFP4, _HOPPER, _HOPPER),
        (Form("nvfp4"), _YES, _YES),
        (_MXFP8, _YES, _YES),
        (_TENSOR, _YES, _YES),
        (_FP8, _YES, Verdict(False, "it knows FP8 by tensor and by block")),
        (Form("fp8:block128"), _YES, _YES),
    )
} | {
    _MXFP4: {
        "vllm": Verdict(False, "the layer stays unquantized, without a word"),
        "sglang": Verdict(False, "ModelOpt's MXFP4 is not known"),
        "trtllm": Verdict(False, "ModelOpt's MXFP4 is not known"),
        "hf": _NO_MODELOPT,
    }
}
_ONLINE: _Facts = {form: {"vllm": _YES} for form in (_MXFP4, _MXFP8, _FP8, _TENSOR, _BLOCK)} | {
    _NVFP4: {"vllm": Verdict(True, "of experts only: other linears stay in full precision")}
}
_NOT_RUN = Verdict(True, "by its list of names; not run")
_QUARK: _Facts = {
    _MXFP4: {"vllm": _NOT_RUN, "sglang": _NOT_RUN},
    Form("mxfp4"): {"vllm": _NOT_RUN},
    Form("mxfp4", "fp8:tensor"): {"vllm": _NOT_RUN},
    _NVFP4: {"vllm": _NOT_RUN},
    _FP8: {"vllm": _NOT_RUN, "sglang": _NOT_RUN},
    _TENSOR: {"vllm": _NOT_RUN, "sglang": _NOT_RUN},
}
_AUTO_ROUND: _Facts = {
    form: {"vllm": _NOT_RUN, "sglang": _NOT_RUN}
    for form in (Form("int4"), Form("int8"), _MXFP4, _MXFP8, _NVFP4, _FP8)
}
CONTAINERS: Mapping[str, _Facts] = {
    "compressed-tensors": _COMPRESSED,
    "modelopt": _MODELOPT,
    "vllm-online": _ONLINE,
    "quark": _QUARK,
    "auto-round": _AUTO_ROUND,
}
"""What carries formats to engines: checkpoints' configurations, and vLLM's rounding at start."""


def loads(engine: str, setting: Setting | None, container: str = "compressed-tensors") -> Verdict:
    """Whether an engine loads a setting of one layer beside others; None is full precision.

    Raises:
        StudyError: Such an engine or container is not known.

    Example:
        >>> loads("sglang", Setting.from_json("mxfp4")).loads
        False
    """
    if setting is None or setting.weight is None:
        return Verdict(setting is None, "" if setting is None else "inputs alone: no engine")
    return loads_form(engine, form_of(setting), container)


def loads_form(engine: str, form: Form, container: str = "compressed-tensors") -> Verdict:
    """The same of names of formats.

    Raises:
        StudyError: Such an engine or container is not known.
    """
    if engine not in ENGINES:
        raise StudyError(f"engine: unknown {shown(engine)}; {nearest(engine, (*SERVING, 'any'))}")
    if container not in CONTAINERS:
        raise StudyError(f"container: unknown {shown(container)}; {nearest(container, CONTAINERS)}")
    nothing = Verdict(False, f"it does not load {form.label} through {container}")
    return CONTAINERS[container].get(form, {}).get(engine, nothing)
