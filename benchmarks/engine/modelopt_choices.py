r"""What ModelOpt's `auto_quantize` chooses at several sizes, for `benchmarks/fronts.py`.

    python benchmarks/fronts.py prepare MODEL DIR --text wikitext.txt
    python benchmarks/engine/modelopt_choices.py DIR        # where ModelOpt is, on a GPU
    python benchmarks/fronts.py compare MODEL DIR

Only ModelOpt and transformers are needed. NVFP4, FP8 and full precision are its search space, as
they are fp4scope's; q, k, v and gate, up get one format by its own rules; the head is left alone.
One run of scores for each of its methods, then a choice for each size.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import modelopt
import modelopt.torch.quantization as mtq
import torch
import transformers
from torch.nn.functional import cross_entropy

CONFIGS = {"nvfp4": "NVFP4_DEFAULT_CFG", "fp8": "FP8_DEFAULT_CFG", "int8": "INT8_DEFAULT_CFG"}
NAMES = {config: name for name, config in CONFIGS.items()}
HEAD = ["*lm_head*"]
BITS = {(2, 1): "nvfp4", (4, 3): "fp8", 8: "int8"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="of `fronts.py prepare`")
    parser.add_argument("--methods", default="gradient,kl_div")
    parser.add_argument("--formats", default="nvfp4,fp8")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--kl-windows", type=int, default=16, help="its KL method scores so many")
    parser.add_argument("--batch", type=int, default=1, help="windows that it scores at a time")
    options = parser.parse_args()
    asked = json.loads((options.folder / "asked.json").read_text())
    found: dict[str, Any] = {
        "versions": {"modelopt": modelopt.__version__, "transformers": transformers.__version__},
        "methods": {},
    }
    for method in options.methods.split(","):
        windows = asked["ids"] if method == "gradient" else asked["ids"][: options.kl_windows]
        chosen = _of_method(options, method, windows, asked["bits"])
        found["methods"][method] = chosen
        (options.folder / "modelopt.json").write_text(json.dumps(found, indent=1))
        print(f"{method}: {chosen['seconds']:.0f} s, {len(windows)} windows", flush=True)


def _of_method(
    options: argparse.Namespace, method: str, windows: list[list[int]], sizes: list[float]
) -> dict[str, Any]:
    model = transformers.AutoModelForCausalLM.from_pretrained(
        options.folder / "model", dtype=torch.bfloat16
    ).to(options.device)
    model.eval()
    size = options.batch if method == "kl_div" else 1
    batches = [
        torch.tensor(windows[start : start + size], device=options.device)
        for start in range(0, len(windows), size)
    ]
    begun = time.perf_counter()
    _, state = mtq.auto_quantize(
        model,
        constraints={"effective_bits": max(sizes), "cost": {"excluded_module_name_patterns": HEAD}},
        quantization_formats=[getattr(mtq, CONFIGS[one]) for one in options.formats.split(",")],
        data_loader=batches,
        forward_step=(lambda m, ids: m(ids).logits),
        loss_func=(
            None
            if method == "kl_div"
            else lambda logits, ids: cross_entropy(logits[0, :-1].float(), ids[0, 1:])
        ),
        num_calib_steps=len(batches),
        num_score_steps=len(batches),
        disabled_layers=HEAD,
        method=method,
    )
    if options.device == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - begun
    return {
        "seconds": seconds,
        "windows": len(windows),
        "scores": {
            "+".join(stats["module_names"]): {
                NAMES.get(str(fmt).partition("(")[0], "bf16"): float(score)
                for fmt, score in zip(stats["formats"], stats["scores"], strict=True)
            }
            for stats in state["candidate_stats"].values()
        },
        "choices": {str(size): _choice(state, size) for size in sizes},
    }


def _choice(state: Any, bits: float) -> dict[str, str]:  # noqa: ANN401
    """The format of each linear that gets one."""
    config = mtq.get_auto_quantize_config(state, {"effective_bits": bits})
    found = {}
    for entry in config["quant_cfg"]:
        module, _, which = entry["quantizer_name"].rpartition(".")
        if which == "weight_quantizer" and entry.get("enable") and module:
            number = entry["cfg"]["num_bits"]
            found[module] = BITS[tuple(number) if isinstance(number, list | tuple) else number]
    return found


if __name__ == "__main__":
    main()
