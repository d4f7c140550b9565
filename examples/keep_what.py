"""Which units to keep in full precision, then that choice measured as a whole.

    python examples/keep_what.py Qwen/Qwen2.5-0.5B my.txt

Single units are measured on the first windows of the text, and the recipe on the windows behind
them, which the choice has not seen.
"""

import sys
from pathlib import Path
from typing import Any

import fp4scope


def main(
    model: str, text: str, out: str = "keep-what", windows: int = 16, seq_len: int = 512
) -> None:
    """Diagnose, keep the unit that saves most for each byte, and measure what is left.

    Args:
        model: Hub id, local folder or GGUF file.
        text: A UTF-8 file.
        out: A folder for both runs.
        windows: For each of them.
        seq_len: Tokens in a window.
    """
    common: dict[str, Any] = {
        "text": text, "windows": windows, "seq_len": seq_len,
        "calibration_windows": 8, "calibration_seq_len": seq_len,
    }  # fmt: skip
    found = fp4scope.diagnose(
        model, formats="nvfp4", sweep="projections:keep", output_dir=Path(out) / "units", **common
    )
    for row in found.all_quantized:
        print(
            f"{row['format']:>20} {row['precision']:>6}  PPL {row['ppl']:.2f}  KL {row['kl']:.4f}"
        )

    best = max(found.savings, key=lambda row: row["kl_per_mb"] or 0.0)
    print(f"keep {best['unit']}: {1e3 * best['delta_kl']:.2f} millinats of KL less,")
    print(f"for {best['bytes_kept'] / 1e6:.2f} MB more")

    members = best["unit"].split(".")[-1].split("+")
    recipe = {
        "base": "nvfp4",
        "edits": [{"sites": [f"*.{name}" for name in members], "setting": None}],
    }
    whole = fp4scope.measure(
        model,
        {f"nvfp4, {best['unit']} kept": recipe},
        formats="nvfp4",
        first_window=windows,
        output_dir=Path(out) / "recipe",
        **common,
    )
    for row in whole.given:
        low, high = (1e3 * row[f"delta_nll_{end}"] for end in ("low", "high"))
        print(f"{row['recipe']}: +{1e3 * row['delta_nll']:.2f} [{low:.2f}, {high:.2f}] millinats,")
        print(f"{row['bits']:.2f} bits for each weight")


if __name__ == "__main__":
    main(*sys.argv[1:4])
