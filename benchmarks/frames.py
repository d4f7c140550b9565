r"""What mixtures of experts of the sizes that people ship take on one GPU: planned, then measured.

    python benchmarks/frames.py                     # Qwen3-30B-A3B's and gpt-oss-20b's shapes
    python benchmarks/frames.py --shapes gpt-oss-20b --windows 16 --seq-len 2048

A folder with the shape's config.json and a tokenizer is all there is; weights are drawn
(`--random-weights`). First `fp4scope plan`, then `fp4scope run` of all projections in both
directions, MXFP4 and NVFP4, W4A4. Prints what was planned, the seconds of each part of the run, and
the peak of the device memory that PyTorch had. Losses of random weights mean nothing; that the
sweep equals the model's own forward is what its self-check says.
"""

import argparse
import gc
import sys
import tempfile
import time
from pathlib import Path

import torch
import transformers
from shared import machine
from tokenizers import Tokenizer, models, pre_tokenizers

from fp4scope.conductor import forecast, run_study
from fp4scope.study import Study
from fp4scope.sweep import Progress

SHAPES = {
    "qwen3-30b-a3b": transformers.Qwen3MoeConfig(
        vocab_size=151_936,
        hidden_size=2048,
        num_hidden_layers=48,
        num_attention_heads=32,
        num_key_value_heads=4,
        head_dim=128,
        num_experts=128,
        num_experts_per_tok=8,
        moe_intermediate_size=768,
        norm_topk_prob=True,
        max_position_embeddings=40_960,
        tie_word_embeddings=False,
    ),
    "gpt-oss-20b": transformers.GptOssConfig(
        vocab_size=201_088,
        hidden_size=2880,
        num_hidden_layers=24,
        num_attention_heads=64,
        num_key_value_heads=8,
        head_dim=64,
        num_local_experts=32,
        num_experts_per_tok=4,
        intermediate_size=2880,
        tie_word_embeddings=False,
    ),
}


def folder_of(name: str, parent: Path) -> Path:
    """A model folder without weights: a configuration, and a tokenizer of numbers as words."""
    folder = parent / name
    SHAPES[name].save_pretrained(folder)
    words(folder)
    return folder


def words(folder: Path) -> None:
    """A tokenizer of numbers as words, for a model's folder."""
    numbers = Tokenizer(models.WordLevel({f"{n}": n for n in range(10_000)}, unk_token="0"))
    numbers.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=numbers, unk_token="0")
    tokenizer.save_pretrained(folder)


def random_words(path: Path, count: int) -> Path:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(10_000, (count,), generator=generator).tolist()
    path.write_text(" ".join(map(str, ids)), encoding="utf-8")
    return path


class Clock:
    """Seconds of each phase, as its first event comes."""

    def __init__(self) -> None:
        self.begun: list[tuple[str, float]] = []
        self.notes: list[str] = []

    def __call__(self, event: Progress) -> None:
        if event.note:
            self.notes.append(event.note)
        if not self.begun or self.begun[-1][0] != event.phase:
            self.begun.append((event.phase, time.monotonic()))

    def phases(self) -> str:
        ends = [at for _, at in self.begun[1:]] + [time.monotonic()]
        took = zip(self.begun, ends, strict=True)
        return ", ".join(f"{name} {end - at:.0f} s" for (name, at), end in took)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--seq-len", type=int, default=2048)
    parser.add_argument("--formats", default="mxfp4:floor,nvfp4")
    options = parser.parse_args()
    print(f"{machine(options.device)}, bfloat16")
    with tempfile.TemporaryDirectory() as parent:
        for name in options.shapes.split(","):
            measure(name, Path(parent), options)
    return 0


def measure(name: str, parent: Path, options: argparse.Namespace) -> None:
    seq_len, windows = options.seq_len, options.windows
    study = Study.build(
        model=str(folder_of(name, parent)),
        random_weights=True,
        text=str(random_words(parent / "text", seq_len * windows)),
        calibration_text=str(random_words(parent / "calibration", 16 * 512)),
        seq_len=seq_len,
        windows=windows,
        sweep="projections",
        formats=options.formats,
        dtype="bfloat16",
        device=options.device,
    )
    print(f"\n{name}: {windows} windows of {seq_len}, projections, {options.formats}", flush=True)
    begun = time.monotonic()
    planned = forecast(study)
    print(
        f"  planned in {time.monotonic() - begun:.0f} s: {planned.variants} variants, "
        f"{planned.sweep_s:.0f} s and {planned.calibration_s:.0f} s of calibration, "
        f"{planned.memory_bytes / 1e9:.1f} GB beside the model (of "
        f"{planned.budget_bytes / 1e9:.1f}), {planned.shape}",
        flush=True,
    )
    gc.collect()  # the planned model, before the next one is made
    cuda = options.device.startswith("cuda")
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    clock, begun = Clock(), time.monotonic()
    found = run_study(study, progress=clock)
    print(f"  {clock.notes[0]}")
    print(f"  ran in {time.monotonic() - begun:.0f} s: {clock.phases()}")
    print(f"  self-check {found.results.protocol['self_check']}")
    if cuda:
        print(f"  peak of PyTorch on the device {torch.cuda.max_memory_allocated() / 1e9:.1f} GB")
        torch.cuda.empty_cache()


if __name__ == "__main__":
    sys.exit(main())
