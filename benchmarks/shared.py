"""What several benchmarks need: models with random weights, a sweep without a study."""

import platform
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import torch
import transformers

from fp4scope.design import Run, design
from fp4scope.ledger import Log
from fp4scope.models import LoadedModel, Shelf, adopt, load_model
from fp4scope.operands import Injector, observe_inputs
from fp4scope.study import Study
from fp4scope.sweep import Crew, Memory, Worker, schedule, self_check
from fp4scope.sweep.scheduler import Scheduler

_SIZES = "hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads"


def _config(kind: type, vocabulary: int, *sizes: int, tied: bool = False) -> object:
    named = dict(zip(_SIZES.split(), sizes, strict=True))
    return kind(vocab_size=vocabulary, tie_word_embeddings=tied, **named)


_LLAMA, _QWEN2 = transformers.LlamaConfig, transformers.Qwen2Config
CONFIGS = {
    # Blocks of SmolLM2-135M; a head as large beside them as Qwen2.5-7B's (2.3 blocks).
    "small": _config(_LLAMA, 14_400, 576, 1536, 30, 9, 3),
    "smollm2-135m": _config(_LLAMA, 49_152, 576, 1536, 30, 9, 3, tied=True),
    "qwen2.5-0.5b": _config(_QWEN2, 151_936, 896, 4864, 24, 14, 2, tied=True),
    "qwen2.5-7b": _config(_QWEN2, 152_064, 3584, 18_944, 28, 28, 4),
    "qwen2.5-14b": _config(_QWEN2, 152_064, 5120, 13_824, 48, 40, 8),
    "qwen2.5-32b": _config(_QWEN2, 152_064, 5120, 27_648, 64, 40, 8),
}


def machine(device: str | torch.device = "cpu") -> str:
    """The day, versions and the processor, as a benchmark's first line has them."""
    cuda = torch.device(device).type == "cuda"
    return (
        f"{time.strftime('%Y-%m-%d')}, python {platform.python_version()}, torch "
        f"{torch.__version__}, transformers {transformers.__version__}, "
        f"{torch.cuda.get_device_name() if cuda else _processor()}, "
        f"{torch.get_num_threads()} threads"
    )


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(": ")[1].strip() for line in file if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def model_of(
    name: str | None,
    config: str,
    device: str = "cpu",
    offload: str = "auto",
    sharing: int = 1,
    shelf: Shelf | None = None,
) -> LoadedModel:
    """A model by its name, or one with random weights: in BF16 on a GPU, else in FP32."""
    if name is not None:
        return load_model(name, device=device, offload=offload, sharing=sharing, shelf=shelf)
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(CONFIGS[config], dtype=dtype)
    return adopt(model.to(device), None, name=f"random {config}")


def random_text(loaded: LoadedModel, windows: int, seq_len: int) -> torch.Tensor:
    """Token ids (windows, seq_len), the same each time."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(5, loaded.config.vocab_size, (windows, seq_len), generator=generator)


def layer_runs(loaded: LoadedModel, fmt: str, layers: str, sweep: str = "layers") -> list[Run]:
    """`keep` of these layers and two whole models, with nothing perturbed, as a rival has it."""
    asked = {"formats": fmt, "all_quantized": fmt, "sweep": sweep, "layers": layers}
    study = Study.build(model="-", direction="keep", **asked)
    return [run for run in design(study, loaded.layout.sites).runs if not run.replica]


def calibrated(loaded: LoadedModel, ids: torch.Tensor) -> dict[str, float]:
    """Amax of every linear's input on the first windows."""

    def forwards() -> Iterator[None]:
        for row in ids[:4]:
            loaded.logits(row, last=1)
            yield

    observed = observe_inputs(loaded.model, loaded.layout.linears, forwards())
    return {name: statistics.max for name, statistics in observed.items()}


@contextmanager
def opened(
    loaded: LoadedModel,
    ids: torch.Tensor,
    runs: Sequence[Run],
    injector: Injector,
    budget: int | None = None,
    crew: Crew | None = None,
) -> Iterator[Scheduler]:
    """A sweep that has passed its self-check, with its log in a folder that goes afterwards."""
    with (
        tempfile.TemporaryDirectory() as folder,
        closing(Log(Path(folder) / "journal.jsonl", {})) as log,
    ):
        check = self_check(loaded, ids)
        memory = Memory(loaded, runs, ids.shape[1], check.captured_bytes, budget)
        yield schedule(Worker(loaded, ids, injector, check=check), memory, log, check, crew=crew)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
