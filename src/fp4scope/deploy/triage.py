"""Whose fault the damage is: the format, the export, the calibration, or what serves.

These are run one after another on the same windows, each a step from the one before:

1. full precision: the original;
2. predicted (*quantization*): the original, its weights and inputs quantized as the recipe says,
   with input scales from these very windows;
3. the checkpoint's own weights, inputs as before (*export*);
4. the checkpoint's own input scales, where it stores any (*calibration*);
5. what the engine gives (*serving*: its kernel or runtime).

The first step is what the format costs. Each other adds nothing where all is right, but for
rounding, which `stats.inference.steps` allows for.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from fp4scope.deploy.verify import Losses
from fp4scope.stats.inference.intervals import MIN_WINDOWS, Estimate
from fp4scope.stats.inference.steps import Step, room_of, steps, total

QUANTIZATION, EXPORT, CALIBRATION, SERVING = "quantization", "export", "calibration", "serving"
_COST = {
    EXPORT: ("the checkpoint's own weights cost", "what the recipe makes of the original"),
    CALIBRATION: ("its stored input scales cost", "scales from these windows"),
    SERVING: ("what the engine gives costs", "the checkpoint run here"),
}
_PROVEN = (
    "{} is settled without windows: weights, other tensors and configuration are proven to be what "
    "the recipe makes of the original"
)
_MNAT = 1e3


@dataclass(frozen=True)
class Chain:
    """Losses of each thing that is run, (windows, tokens) each, in nats; None for what is not.

    Attributes:
        full: Of the original.
        predicted: With the recipe.
        exported: Of the checkpoint's weights, with the same input scales.
        calibrated: With the stored ones; None where none is stored.
        replica: Of the last of these a second time, rounded in another order.
        served: By the engine.
        reference: Of the original, by the engine.
    """

    full: Losses
    predicted: Losses
    exported: Losses
    calibrated: Losses | None = None
    replica: Losses | None = None
    served: Losses | None = None
    reference: Losses | None = None

    @property
    def checkpoint(self) -> Losses:
        """As it is to be served."""
        return self.exported if self.calibrated is None else self.calibrated


@dataclass(frozen=True)
class Triage:
    """Where the damage comes from, in nats per token.

    Attributes:
        quantization: What the format costs.
        steps: What each other step adds, by its name.
        damage: Of all together.
        rerun: What a second run of the checkpoint moved; None where it was not run.
        room: What a step may add.
    """

    quantization: Estimate
    steps: Mapping[str, Step]
    damage: Estimate
    rerun: Estimate | None
    room: float

    @property
    def faults(self) -> list[str]:
        """Steps that add damage, the worst first."""
        found = [name for name in self._at("beyond") if self.steps[name].change.mean > 0]
        return sorted(found, key=lambda name: -self.steps[name].change.mean)

    @property
    def still_open(self) -> list[str]:
        """Steps that cannot be told, of damage that is there or not."""
        return self._at("open")

    def _at(self, state: str) -> list[str]:
        return [name for name, step in self.steps.items() if step.state == state]

    def sentences(self) -> list[str]:
        """What it comes to: faults first, then what the format costs, then what cannot be told."""
        proven = [_PROVEN.format(name) for name, step in self.steps.items() if step.proven]
        if self.damage.low is None:
            some = f"{self.damage.n} window{'s' * (self.damage.n != 1)}"
            return [*proven, f"cannot tell with {some}: intervals take {MIN_WINDOWS}"]
        beyond, still_open = self._at("beyond"), self.still_open
        said = [self._fault(name) for name in self.faults]
        said += [self._gain(name) for name in beyond if name not in self.faults]
        cost = f"the format costs {_said(self.quantization)} millinats"
        if said:
            said.append(cost)
        elif still_open:
            said.append(f"no step behind the format is seen to add damage; {cost}")
        else:
            said.append(
                f"quantization is all: {cost}, and no step behind it ({', '.join(self.steps)}) "
                f"adds more than {self.room * _MNAT:.3g}"
            )
        return said + proven + [self._open(name) for name in still_open]

    def _fault(self, name: str) -> str:
        what, than = _COST[name]
        return f"{name} is off: {what} {_said(self.steps[name].change)} millinats more than {than}"

    def _gain(self, name: str) -> str:
        what, than = _COST[name]
        less = _said(_negative(self.steps[name].change))
        return f"{name} differs: {what} {less} millinats less than {than}"

    def _open(self, name: str) -> str:
        step = self.steps[name]
        more = f"; about {step.windows} windows would tell" if step.windows else ""
        return (
            f"{name} cannot be told with {step.change.n} windows: it adds {_said(step.change)} "
            f"millinats, and {self.room * _MNAT:.3g} is what rounding may add{more}"
        )

    def to_json(self) -> dict[str, Any]:
        """For machines."""
        rows = [
            {
                "step": name,
                "state": step.state,
                "proven": step.proven,
                "windows_to_tell": step.windows,
            }
            | step.change.columns("adds_nats")
            for name, step in self.steps.items()
        ]
        return {
            "verdict": "; ".join(self.sentences()),
            "faults": self.faults,
            "room_nats": self.room,
            **self.quantization.columns("quantization_nats"),
            **self.damage.columns("damage_nats"),
            **({} if self.rerun is None else self.rerun.columns("rerun_nats")),
            "steps": rows,
        }


def triage(chain: Chain, proven: bool = False) -> Triage:
    """Where the damage comes from.

    Args:
        chain: What was run.
        proven: Whether the checkpoint is known, by what it stores, to be what its recipe makes of
            the original. Losses then differ by rounding alone, which windows need not tell.
    """
    checkpoint, engine = chain.checkpoint, chain.full
    changes = {EXPORT: chain.exported - chain.predicted}
    if chain.calibrated is not None:
        changes[CALIBRATION] = chain.calibrated - chain.exported
    last = checkpoint
    if chain.served is not None:
        engine = chain.full if chain.reference is None else chain.reference
        changes[SERVING] = (chain.served - engine) - (checkpoint - chain.full)
        last = chain.served
    quantization = total(chain.predicted, chain.full)
    rerun = None if chain.replica is None else total(chain.replica, checkpoint)
    room = room_of(quantization.mean, 0.0 if rerun is None else rerun.mean)
    found = dict(zip(changes, steps(list(changes.values()), room), strict=True))
    if proven:
        found[EXPORT] = found[EXPORT].with_proof()
    return Triage(quantization, found, total(last, engine), rerun, room)


def _negative(found: Estimate) -> Estimate:
    low, high = (None if end is None else -end for end in (found.high, found.low))
    return replace(found, mean=-found.mean, low=low, high=high)


def _said(found: Estimate) -> str:
    mean, low, high = (
        "" if end is None else f"{end * _MNAT:+.1f}" for end in (found.mean, found.low, found.high)
    )
    return f"{mean} [{low}, {high}]" if low else mean
