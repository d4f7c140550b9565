"""How much memory a sweep takes beside the model, against what it was given.

    python benchmarks/memory.py                    # the Qwen2.5-0.5B architecture, 1.5 GB
    python benchmarks/memory.py --model model.gguf --memory 500MB

Runs one window of 2048 tokens on the CPU in a sweep of projections (or of the layers of some
linears: --layers) and prints the peak of the resident set above what it was with the model
loaded. Exits with 1 if it is more than --memory. Linux only.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch
import transformers

from fp4scope.design import design
from fp4scope.ledger import Log
from fp4scope.models import adopt, load_model
from fp4scope.operands import Injector
from fp4scope.study import Study, parse_memory
from sweep import opened

CONFIG = {
    "vocab_size": 151_936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a GGUF file, folder or hub id; default: random weights")
    parser.add_argument("--memory", default="1.5GB")
    parser.add_argument("--seq-len", type=int, default=2048)
    parser.add_argument("--sweep", default="projections")
    parser.add_argument("--layers", default="")
    parser.add_argument("--direction", default="keep")
    parser.add_argument("--formats", default="nvfp4")
    options = parser.parse_args()
    allowed = parse_memory(options.memory)

    if options.model is not None:
        loaded = load_model(options.model, device="cpu")
    else:
        torch.manual_seed(0)
        config = transformers.Qwen2Config(**CONFIG)
        loaded = adopt(transformers.AutoModelForCausalLM.from_config(config), None, name="random")
    study = Study.build(
        model="-",
        formats=options.formats,
        sweep=options.sweep,
        layers=options.layers,
        direction=options.direction,
    )
    runs = design(study, loaded.layout.sites).runs
    ids = torch.randint(5, loaded.config.vocab_size, (1, options.seq_len))
    injector = Injector(loaded.model, dict.fromkeys(loaded.layout.linears, 10.0))

    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far was that of loading
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        log = Log(Path(folder) / "journal.jsonl", {})
        sweep = opened(loaded, ids, runs, injector, log, allowed)
        sweep.run()
        log.close()
        seconds = time.perf_counter() - begun
    taken = _status("VmHWM") - before
    weights = sum(p.numel() * p.element_size() for p in loaded.model.parameters())
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads; {loaded.name}, "
        f"{loaded.dtype_name}, weights {weights / 1e9:.2f} GB; {len(runs)} runs, one "
        f"window of {options.seq_len} tokens, {seconds:.0f} s\n{sweep.shape}\n"
        f"allowed {allowed / 1e9:.2f} GB, planned {sweep.memory_bytes / 1e9:.2f} GB, "
        f"taken {taken / 1e9:.2f} GB beside the model"
    )
    return int(taken > allowed)


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) * 1024


if __name__ == "__main__":
    sys.exit(main())
