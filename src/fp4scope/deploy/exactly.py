"""Which engines do exactly what was measured: the same formats, and the same scales of inputs.

A stored weight may have scales of any rule. Those of inputs are chosen by a kernel as it runs, so
that a setting is served exactly only where its inputs have the kernel's rule.
"""

from collections.abc import Mapping

from fp4scope.deploy.engines import SERVING, loads
from fp4scope.deploy.schemes import SERVED_RULE
from fp4scope.errors import StudyError
from fp4scope.recipes import Recipe
from fp4scope.treatments import Amax, Setting

CHECKPOINTS = ("compressed-tensors", "modelopt")
"""Containers that `fp4scope export` writes."""
NAMES = {"vllm": "vLLM", "sglang": "SGLang", "trtllm": "TensorRT-LLM"}
_INPUT_RULES = {*SERVED_RULE.values(), "fp8:tensor", "fp8:block128"}


def exactly(recipe: Recipe) -> Mapping[str, str]:
    """Engines that serve a recipe as it was measured, and on which GPUs; nothing there: on all.

    Nothing of the full-precision model, which all of them serve.

    Example:
        >>> exactly(Recipe(Setting.from_json("nvfp4")))["vllm"]
        'sm100 on'
        >>> exactly(Recipe(Setting.from_json("mxfp4:floor")))
        {}
    """
    settings = recipe.settings
    if not settings or not all(map(_as_kernels_do, settings)):
        return {}
    found: dict[str, str] = {}
    for engine in SERVING:
        for container in CHECKPOINTS:
            verdicts = [_loads(engine, setting, container) for setting in settings]
            if engine not in found and None not in verdicts:
                found[engine] = " and ".join(dict.fromkeys(v for v in verdicts if v))
    return found


def served(engines: Mapping[str, str]) -> str:
    """Engines, and the GPUs on which they do it.

    Example:
        >>> served({"vllm": "sm100 on", "sglang": "sm100 on", "trtllm": ""})
        'vLLM, SGLang (sm100 on); TensorRT-LLM'
    """
    by_gpus: dict[str, list[str]] = {}
    for engine, gpus in engines.items():
        by_gpus.setdefault(gpus, []).append(NAMES[engine])
    return "; ".join(
        f"{', '.join(names)}{f' ({gpus})' if gpus else ''}" for gpus, names in by_gpus.items()
    )


def _loads(engine: str, setting: Setting, container: str) -> str | None:
    """On which GPUs an engine does this; None where it does not load it."""
    try:
        verdict = loads(engine, setting, container)
    except StudyError:
        return None
    return verdict.gpus if verdict.loads else None


def _as_kernels_do(setting: Setting) -> bool:
    own = setting.input
    if any(not t.is_plain for t in (setting.weight, own) if t is not None):
        return False
    if own is None:
        return True
    dynamic = own.tensor_scale in (Amax.WINDOW, Amax.EXPERT)
    return own.format.name in _INPUT_RULES and not dynamic
