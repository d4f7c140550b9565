"""Train a small mixture of experts whose router means something, and leave it as a checkpoint.

    python benchmarks/small_moe.py OUT    # a minute on a GPU
    fp4scope run OUT/small-moe --text OUT/held_out.txt --calibration-text OUT/trained_on.txt

Qwen3-MoE's architecture: 8 blocks, each with 32 experts of which a token meets 4, and a byte-level
BPE tokenizer of 4096 tokens. The text is the source code of Python's own standard library; every
twentieth module is held out. Random batches, as many tokens as five times the text has: with more
the held-out loss rises. The load-balancing loss is the architecture's own. Prints both losses as it
goes, and how evenly tokens are spread over experts.
"""

import argparse
import hashlib
import math
import sysconfig
import time
from pathlib import Path

import torch
import transformers
from shared import machine
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn.functional import cross_entropy

VOCABULARY = 4096
LENGTH = 512
BATCH = 32
RATE = 1e-3
WARM_UP = 0.05
HELD_OUT = 20
"""One module in so many."""
END = "<|end|>"


def config() -> transformers.Qwen3MoeConfig:
    return transformers.Qwen3MoeConfig(
        vocab_size=VOCABULARY,
        hidden_size=512,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
        num_experts=32,
        num_experts_per_tok=4,
        moe_intermediate_size=128,
        norm_topk_prob=True,
        output_router_logits=True,
        router_aux_loss_coef=0.05,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=0,
    )


def library_texts() -> tuple[list[str], list[str]]:
    """Modules of the standard library: to train on, and held out."""
    root = Path(sysconfig.get_path("stdlib"))
    parts: tuple[list[str], list[str]] = [], []
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if "site-packages" in name or "dist-packages" in name:
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:  # some modules test other encodings
            continue
        number = int(hashlib.sha256(name.encode()).hexdigest(), 16)
        parts[number % HELD_OUT == 0].append(text)
    return parts


def tokenizer_of(texts: list[str]) -> transformers.PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END)


def tokens_of(
    texts: list[str], tokenizer: transformers.PreTrainedTokenizerFast, device: str
) -> Tensor:
    ids: list[int] = []
    for encoded in tokenizer(texts)["input_ids"]:
        ids += [*encoded, tokenizer.eos_token_id]
    return torch.tensor(ids, device=device)


def batch_of(ids: Tensor, generator: torch.Generator) -> Tensor:
    """Random windows (batch, length)."""
    starts = torch.randint(len(ids) - LENGTH, (BATCH,), generator=generator)
    return ids[starts.to(ids.device)[:, None] + torch.arange(LENGTH, device=ids.device)]


def step_size(share: float) -> float:
    """A rise, and half a cosine to a twentieth, by the share of the steps that are done."""
    if share < WARM_UP:
        return share / WARM_UP
    falling = (share - WARM_UP) / (1 - WARM_UP)
    return 0.05 + 0.95 * (1 + math.cos(math.pi * min(1.0, falling))) / 2


class Masters:
    """FP32 copies of a BF16 model's weights, which small steps do not vanish in."""

    def __init__(self, model: transformers.PreTrainedModel) -> None:
        self._own = list(model.parameters())
        self._copies = [p.detach().float().requires_grad_() for p in self._own]
        decayed = [p for p in self._copies if p.ndim > 1]
        others = [p for p in self._copies if p.ndim < 2]
        groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
        fused = self._copies[0].is_cuda
        self._optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.95), fused=fused)

    def step(self, share: float) -> None:
        """With the gradients that the model has, which are gone afterwards."""
        for group in self._optimizer.param_groups:
            group["lr"] = RATE * step_size(share)
        for copy, own in zip(self._copies, self._own, strict=True):
            copy.grad, own.grad = None if own.grad is None else own.grad.float(), None
        torch.nn.utils.clip_grad_norm_(self._copies, 1.0)
        self._optimizer.step()
        with torch.no_grad():
            torch._foreach_copy_(self._own, self._copies)


def train(model: transformers.PreTrainedModel, ids: Tensor, held: Tensor, epochs: float) -> None:
    masters, generator = Masters(model), torch.Generator().manual_seed(0)
    steps, begun = round(epochs * len(ids) / (BATCH * LENGTH)), time.monotonic()
    for step in range(steps):
        batch = batch_of(ids, generator)
        loss = model(batch, labels=batch, use_cache=False).loss
        loss.backward()
        masters.step(step / steps)
        if step % (steps // 10) == 0 or step == steps - 1:
            print(
                f"  step {step}, {step * BATCH * LENGTH / 1e6:.1f} M tokens: loss "
                f"{float(loss.detach()):.3f}, held out {evaluate(model, held):.3f}",
                flush=True,
            )
    print(f"  {steps} steps took {time.monotonic() - begun:.0f} s")


@torch.no_grad()
def evaluate(model: transformers.PreTrainedModel, held: Tensor) -> float:
    """Mean NLL in nats a token, without the load-balancing loss."""
    total = targets = 0
    for rows in held[: len(held) // LENGTH * LENGTH].view(-1, LENGTH).split(BATCH)[:8]:
        logits = model(rows, use_cache=False).logits[:, :-1].float().flatten(0, 1)
        total += float(cross_entropy(logits, rows[:, 1:].flatten(), reduction="sum"))
        targets += rows[:, 1:].numel()
    return total / targets


@torch.no_grad()
def loads(model: transformers.PreTrainedModel, held: Tensor) -> list[tuple[float, float]]:
    """By block: the share of choices of the least and of the most used expert, of even ones."""
    rows = held[: 32 * LENGTH].view(-1, LENGTH)
    routers = model(rows, use_cache=False, output_router_logits=True).router_logits
    experts, chosen = model.config.num_experts, model.config.num_experts_per_tok
    found: list[tuple[float, float]] = []
    for logits in routers:
        counts = logits.topk(chosen).indices.flatten().bincount(minlength=experts)
        shares = counts / counts.sum() * experts
        found.append((float(shares.min()), float(shares.max())))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--epochs", type=float, default=5.0)
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    print(machine(options.device))
    trained_on, held_out = library_texts()
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "trained_on.txt").write_text("\n".join(trained_on[::10]), encoding="utf-8")
    (options.out / "held_out.txt").write_text("\n".join(held_out), encoding="utf-8")
    tokenizer = tokenizer_of(trained_on)
    ids, held = (tokens_of(texts, tokenizer, options.device) for texts in (trained_on, held_out))
    print(f"{len(trained_on)} modules, {len(ids)} tokens; held out {len(held_out)}, {len(held)}")
    torch.manual_seed(0)
    with torch.device(options.device):
        model = transformers.Qwen3MoeForCausalLM(config()).to(torch.bfloat16)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters")
    train(model, ids, held, options.epochs)
    print(f"held out: {evaluate(model, held):.4f} nats a token")
    for block, (least, most) in enumerate(loads(model, held)):
        print(f"  block {block}: experts have {least:.2f} to {most:.2f} of an even load")
    model.config.output_router_logits = False
    model.save_pretrained(options.out / "small-moe")
    tokenizer.save_pretrained(options.out / "small-moe")


if __name__ == "__main__":
    main()
