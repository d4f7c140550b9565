"""A block of experts quantized, against its own forward.

    python benchmarks/experts.py    # BF16, on a GPU, as wide as in Qwen3-30B-A3B and gpt-oss-20b

Milliseconds, the median of rounds in which all take turns: the block as `transformers` runs it, the
code that watches its products without watching any, and both products quantized (weights once,
before). Then what making the images of a block's weights takes. It also compares bits: unquantized
outputs, and images with those of each expert for itself.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn
from transformers import GptOssConfig, Qwen3MoeConfig
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

from fp4scope import fake_quantize
from fp4scope.operands import Injector, products
from fp4scope.treatments import Setting

CHOSEN = {"qwen3-30b-a3b": 8, "gpt-oss-20b": 4}


def experts(name: str) -> nn.Module:
    if name == "qwen3-30b-a3b":
        config = Qwen3MoeConfig(hidden_size=2048, moe_intermediate_size=768, num_experts=128)
        return Qwen3MoeExperts(config)
    config = GptOssConfig(hidden_size=2880, intermediate_size=2880, num_local_experts=32)
    return GptOssExperts(config)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tokens", type=int, default=8 * 2048)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    for name in CHOSEN:
        measure(name, options.device, options.tokens, options.rounds)


@torch.no_grad()
def measure(name: str, device: str, tokens: int, rounds: int) -> None:
    torch.manual_seed(0)
    with torch.device(device):
        module = experts(name).to(torch.bfloat16).requires_grad_(False)
        for parameter in module.parameters():
            parameter.normal_(std=0.02)
        model = nn.ModuleDict({"experts": module})
        x = torch.randn(tokens, module.hidden_size if name != "qwen3-30b-a3b" else 2048)
        scores = torch.randn(tokens, len(module.down_proj))
    x = x.to(torch.bfloat16)
    weights, index = scores.softmax(-1).topk(CHOSEN[name])
    module.config._experts_implementation = "grouped_mm"
    names = [path for path, _ in products(model)]
    injector = Injector(model, dict.fromkeys(names, 8.0))

    def forward(settings: dict[str, Setting] | None) -> torch.Tensor:
        if settings is None:
            return module(x, index, weights.to(x.dtype))
        with injector.applied(settings, check=False):
            return module(x, index, weights.to(x.dtype))

    kinds: dict[str, dict[str, Setting] | None] = {"own": None, "watched": {}}
    for fmt in ("mxfp4:floor", "nvfp4"):
        kinds[fmt] = dict.fromkeys(names, Setting.from_json(fmt))
    own, watched = forward(None), forward({})
    print(
        f"{name}: {tokens} tokens, unquantized bits {'equal' if own.equal(watched) else 'DIFFER'}"
    )
    times: dict[str, list[float]] = {}
    for number in range(rounds + 1):
        for kind, settings in kinds.items():
            took = timed(lambda settings=settings: forward(settings), device)
            if number:
                times.setdefault(kind, []).append(took)
    base = statistics.median(times["own"])
    for kind, each in times.items():
        median = statistics.median(each)
        print(f"  {kind:12} {median:7.2f} ms  {median / base:.3f}")
    for fmt in ("mxfp4:floor", "nvfp4"):
        treatment = Setting.from_json(fmt).weight
        assert treatment is not None

        def images(treatment=treatment) -> None:  # noqa: ANN001
            injector.forget()
            for path in names:
                injector.quantized_weight(path, treatment)

        each = [timed(images, device) for _ in range(rounds)]
        same = all(
            injector.quantized_weight(path, treatment)[e].equal(
                fake_quantize(injector.product(path).weight[e], fmt)
            )
            for path in names
            for e in (0, 7)
        )
        word = "equal" if same else "DIFFER"
        print(f"  images {fmt:12} {statistics.median(each):7.2f} ms, bits of single experts {word}")
    if device == "cuda":
        print(f"  peak {torch.cuda.max_memory_allocated() / 1e9:.2f} GB")


def timed(function: Callable[[], object], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    begun = time.perf_counter()
    function()
    if device == "cuda":
        torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - begun)


if __name__ == "__main__":
    main()
