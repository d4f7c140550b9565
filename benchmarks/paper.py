r"""What a sweep of a model takes that is larger than a card, from rates that were measured.

    python benchmarks/paper.py --tflops 450 --card-gbps 50 --disk-gbps 3
    python benchmarks/paper.py --tflops 450 --card-gbps 50 --disk-gbps 3 \
        --models llama-70b,llama-405b --gpus 8 --host-gb 2000

No model is loaded: arithmetic on shapes. A pass goes over the blocks once with all recipes of some
windows. Computing on T tokens of states takes 2 * active * T / rate; copying takes 2 * all
parameters / rate, meanwhile. So copies are hidden from T = rate / rate on, whatever the size of a
dense model. Rates are measured with `written.py` (disk) and `workers.py` (the rest).
"""

import argparse
import sys
from dataclasses import dataclass
from math import ceil, inf

_WORKSPACE_GB = 6.0
"""Of a card: logits, images of a block's weights, what a block makes inside."""


@dataclass(frozen=True)
class Model:
    """A shape: parameters in billions, of all blocks and of what a token meets; hidden size."""

    blocks: int
    inside: float
    active: float
    rest: float
    hidden: int
    projections: int

    @property
    def gb(self) -> float:
        return 2 * (self.inside + self.rest)


# From the configurations of Qwen2.5-32B, Llama-3.1-70B and -405B, Qwen3-30B-A3B and -235B-A22B.
MODELS = {
    "qwen2.5-32b": Model(64, 31.2, 31.2, 1.56, 5120, 7),
    "llama-70b": Model(80, 68.5, 68.5, 2.1, 8192, 7),
    "llama-405b": Model(126, 401.5, 401.5, 4.2, 16384, 7),
    "qwen3-30b-a3b": Model(48, 29.9, 2.7, 0.62, 2048, 6),
    "qwen3-235b-a22b": Model(94, 233.8, 21.0, 1.24, 4096, 6),
}


@dataclass(frozen=True)
class Rates:
    """TFLOP/s of a sweep; GB/s to each card from pinned memory; of a disk that all share."""

    tflops: float
    card_gbps: float
    disk_gbps: float


@dataclass(frozen=True)
class Machine:
    """How many cards, GB of each, and GB of the host's memory."""

    gpus: int
    card_gb: float
    host_gb: float


@dataclass(frozen=True)
class Plan:
    """Of one sweep; a pass has so many `windows` and one of the `groups` of recipes.

    `tokens` are those of states that go through a block in a pass, `enough` those from where copies
    are hidden.
    """

    where: str
    windows: int
    groups: int
    tokens: float
    enough: float
    device_gb: float
    sweep_s: float


def plan(model: Model, sweep: str, windows: int, seq_len: int, rates: Rates, on: Machine) -> Plan:
    """What `--sweep layers` or `projections` of `keep` takes, one format, one replica."""
    if sweep == "layers":
        runs = model.projections * model.blocks + 2
        states, peak = runs / 2 + 1, runs  # a recipe is the all-quantized one up to its layer
    else:
        runs = states = peak = model.projections + 2
    where = "the card" if model.gb < 0.8 * on.card_gb else "host memory"
    if where != "the card" and model.gb > 0.8 * on.host_gb:
        where = "disk"
    two_blocks = 4 * model.inside / model.blocks
    resident = model.gb if where == "the card" else 2 * model.rest + two_blocks
    state_gb = 2e-9 * model.hidden * seq_len * peak
    share = -(-windows // on.gpus)
    fit = (0.9 * on.card_gb - resident - _WORKSPACE_GB) / state_gb
    together, groups = int(max(1, min(share, 32, fit))), ceil(max(1, 1 / fit))
    tokens = states * together * seq_len / groups
    copied = {
        "the card": inf,
        "host memory": rates.card_gbps,
        "disk": rates.disk_gbps / on.gpus,
    }[where]
    bytes_gb = 2 * model.inside
    compute_s = 2e9 * (model.active + model.rest / 2) * tokens / (rates.tflops * 1e12)
    copy_s = bytes_gb / copied
    device = resident + _WORKSPACE_GB + state_gb * together / groups
    seconds = max(compute_s, copy_s) * ceil(share / together) * groups
    return Plan(where, together, groups, tokens, tokens * copy_s / compute_s, device, seconds)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--tflops", type=float, required=True)
    parser.add_argument("--card-gbps", type=float, required=True)
    parser.add_argument("--disk-gbps", type=float, required=True)
    parser.add_argument("--windows", type=int, default=146)
    parser.add_argument("--seq-len", type=int, default=2048)
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--card-gb", type=float, default=80)
    parser.add_argument("--host-gb", type=float, default=256)
    o = parser.parse_args()
    rates = Rates(o.tflops, o.card_gbps, o.disk_gbps)
    machine = Machine(o.gpus, o.card_gb, o.host_gb)
    print(f"{rates}, {machine}, {o.windows} windows of {o.seq_len}")
    print("| model | sweep | blocks wait | windows | groups | tokens (hidden from) | GB | time |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in o.models.split(","):
        for sweep in ("projections", "layers"):
            found = plan(MODELS[name], sweep, o.windows, o.seq_len, rates, machine)
            print(
                f"| {name} | {sweep} | {found.where} | {found.windows} | "
                f"{found.groups} | {found.tokens:,.0f} "
                f"({found.enough:,.0f}) | {found.device_gb:.0f} | {found.sweep_s / 60:,.0f} min |"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
