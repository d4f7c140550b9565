"""What a study will take and reach, from a short probe instead of a run.

The probe measures a few units of every kind on a few windows. Its speed gives the time, its
spread over windows the half-width of the intervals.
"""

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from fp4scope.conductor.calibrate import activation_records, amaxes, observe
from fp4scope.conductor.prepare import Prepared, prepare, where_blocks_wait
from fp4scope.conductor.provenance import describe_model
from fp4scope.conductor.remedies import measuring, require_windows
from fp4scope.conductor.room import Room, crowded, crowded_note, left_of, room_of
from fp4scope.conductor.workers import budget_of, device_of, shared_among
from fp4scope.design import NOTHING, Contrast, Run, like_remedied
from fp4scope.design import Family as Asked
from fp4scope.ledger import Ledger, Log
from fp4scope.operands import Injector
from fp4scope.preflight import check
from fp4scope.stats import Pairing, half_width, mean, seen_table
from fp4scope.study import Level, Study
from fp4scope.sweep import (
    MOST_WINDOWS,
    Listener,
    Memory,
    Progress,
    SelfCheck,
    Shape,
    Worker,
    estimate_window,
    looks,
    memory_for,
    schedule,
    self_check,
    task_windows,
)

_WINDOWS = 4
_TOKENS = {"cpu": 128, "cuda": 1024}
_LAYERS = Level.LAYERS.value
_UNITS = 4
"""So many of each format, precision, direction and level."""


@dataclass(frozen=True)
class Family:
    """Units of one kind, and how wide the intervals of their differences will be.

    `half_width` is in nats per token, the root mean square of the units probed; None if it cannot
    be told.
    """

    format: str
    precision: str
    direction: str
    level: str
    units: int
    half_width: float | None


@dataclass(frozen=True, kw_only=True)
class StudyForecast:
    """What `fp4scope plan` shows.

    `memory_bytes` are beside the model, of `budget_bytes`; `room` is what the model takes.
    `executions` are blocks run on one window, `work` the same with the head; `passes` is how often
    the weights are read, `task` how many windows go through them together. `whole` says why every
    recipe takes forwards of the whole model, if it does; `blocks`, where they wait if not on the
    device. `unseen` are how many experts will probably see few tokens at calibration, and of how
    many. `workers` share the sweep; those of a cluster are not counted; `crowded` says why they
    slow each other down. Of `variants`, `causes` tell why units cost what they do. `remedies` come
    after these, at most so many; `remedies_s` is how long they take. `coarse_s` is what the sweep
    takes without single layers, where there is more.
    """

    study: Study
    model: dict[str, Any]
    windows: int
    tokens: int
    variants: int
    causes: int
    remedies: int
    shape: Shape
    memory_bytes: int
    budget_bytes: int
    room: Room
    executions: int
    work: float
    task: int
    passes: int
    calibration_s: float
    sweep_s: float
    remedies_s: float
    coarse_s: float | None
    estimates_s: float | None
    families: tuple[Family, ...]
    unseen: tuple[int, int]
    probe: str
    whole: str | None = None
    workers: int = 1
    crowded: str | None = None
    blocks: str | None = None


def forecast(study: Study, progress: Listener | None = None) -> StudyForecast:
    """What this study will take and reach.

    Raises:
        Fp4ScopeError: As for a run: everything that can fail before measuring is tried.
    """
    tell = progress or (lambda event: None)
    check(study)
    device_of(study)
    prepared = prepare(study, tell)
    loaded, windows = prepared.loaded, prepared.windows

    checked = self_check(loaded, windows.ids)
    budget = budget_of(study, loaded)
    memory = memory_for(checked, loaded, prepared.runs, windows.seq_len, budget)
    goal = study.question.stop_when
    shape = memory.shape(len(windows) if goal is None else min(len(windows), MOST_WINDOWS))
    probe = _Probe(prepared, checked)
    probe.run(tell, study.run.memory)
    longer = windows.seq_len / probe.tokens
    work = memory.work(shape) * len(windows)
    tried, more = _remedies(study, prepared, memory)
    calibration = prepared.calibration
    shared = shared_among(study, loaded)
    task = shape.windows
    if goal is None:  # under one, tasks are those of one worker
        task = task_windows(len(windows), task, windows.seq_len, loaded, shared)
    share = left_of(len(windows), task if goal is None else 1, shared)
    if loaded.device.type == "cpu":
        share *= crowded(shared)
    return StudyForecast(
        study=study,
        model=describe_model(loaded),
        windows=len(windows),
        tokens=windows.seq_len,
        variants=len(prepared.runs),
        causes=sum(run.is_cause for run in prepared.runs),
        remedies=len(tried),
        shape=shape,
        memory_bytes=memory.needed(shape),
        budget_bytes=memory.budget,
        room=room_of(loaded, shared),
        executions=memory.executions(shape) * len(windows),
        work=work,
        task=task,
        passes=len(looks(goal, len(windows), task)) * len(memory.passes(shape.groups)),
        calibration_s=len(calibration)
        * loaded.layout.blocks
        * calibration.seq_len
        / probe.tokens
        * probe.seconds_per_block,
        sweep_s=work * longer * probe.seconds_per_block * share,
        remedies_s=more * longer * probe.seconds_per_block,
        coarse_s=None
        if (coarse := _without_layers(prepared, memory)) is None
        else coarse * longer * probe.seconds_per_block * share,
        estimates_s=None
        if probe.seconds_per_estimate is None
        else len(windows) * longer * probe.seconds_per_estimate,
        families=tuple(probe.families(len(windows), longer)),
        unseen=probe.unseen,
        probe=f"{len(probe.runs)} of {len(prepared.runs)} variants on "
        f"{len(probe.ids)} windows of {probe.tokens} tokens",
        whole=checked.reason,
        workers=shared,
        crowded=crowded_note(shared) if loaded.device.type == "cpu" else None,
        blocks=None if loaded.offloaded is None else where_blocks_wait(loaded.offloaded),
    )


def _remedies(study: Study, prepared: Prepared, memory: Memory) -> tuple[list[Run], float]:
    """What is tried on units that are not known yet, at most, and its work on all windows."""
    windows = len(prepared.windows)
    require_windows(study, windows)
    if not study.question.remedies:
        return [], 0.0
    runs = like_remedied(study, prepared.loaded.layout.sites).runs
    own, ours = memory.of(runs), measuring(windows)
    return runs, own.work(own.shape(len(ours))) * len(ours)


def _without_layers(prepared: Prepared, memory: Memory) -> float | None:
    """The work on all windows without single layers; None where that is nothing or all."""
    swept = {f: members for f, members in _families(prepared).items() if f.direction is not None}
    if {family.level == _LAYERS for family in swept} != {True, False}:
        return None
    single = {c.own for f, members in swept.items() if f.level == _LAYERS for c in members}
    others = {c.own for f, members in swept.items() if f.level != _LAYERS for c in members}
    own = memory.of([run for run in prepared.runs if run.recipe not in single - others])
    windows = len(prepared.windows)
    return own.work(own.shape(windows)) * windows


class _Probe:
    """A few units of every kind on a few, possibly shorter, windows."""

    def __init__(self, prepared: Prepared, check: SelfCheck) -> None:
        loaded = prepared.loaded
        self._loaded, self._prepared = loaded, prepared
        self.tokens = min(prepared.windows.seq_len, _TOKENS.get(loaded.device.type, 256))
        self.ids = prepared.windows.ids[:_WINDOWS, : self.tokens]
        self.runs = _some(prepared, _UNITS)
        self.seconds_per_block = 0.0
        self.seconds_per_estimate: float | None = None
        self.unseen = 0, 0
        self._ledger = Ledger()
        # Masks grow with the square of the tokens.
        longer = prepared.windows.seq_len / self.tokens
        self._check = replace(check, captured_bytes=int(check.captured_bytes / longer**2))

    def run(self, tell: Listener, budget: int | None) -> None:
        calibration = self._prepared.calibration
        few = replace(calibration, ids=calibration.ids[:2, : self.tokens])
        observed = observe(self._loaded, few, tell, "calibrating")
        more = calibration.ids.numel() / few.ids.numel()
        seen = seen_table(
            replace(record, tokens=[round(more * tokens) for tokens in record.tokens])
            for record in activation_records(self._loaded, observed)
            if record.tokens is not None
        )
        self.unseen = sum(seen["few"]), sum(seen["count"])
        shared, by_expert = amaxes(self._loaded.layout, observed)
        injector = self._prepared.injector(shared, by_expert)
        # One unit of a kind has kernels compiled, which the time is not to hold.
        self._measure(_some(self._prepared, 1), injector, tell, budget, "warming")
        self._measure(self.runs, injector, tell, budget, "probing")
        if self._prepared.estimated:
            begun = time.monotonic()
            estimate_window(self._loaded, self.ids[0], self._prepared.estimated, injector)
            self.seconds_per_estimate = time.monotonic() - begun

    def _measure(
        self,
        runs: Sequence[Run],
        injector: Injector,
        tell: Listener,
        budget: int | None,
        phase: str,
    ) -> None:
        with tempfile.TemporaryDirectory(prefix="fp4scope-") as folder:
            log = Log(Path(folder) / "journal.jsonl", {})
            try:
                worker = Worker(self._loaded, self.ids, injector, check=self._check)
                memory = memory_for(self._check, self._loaded, runs, self.tokens, budget)
                sweep = schedule(worker, memory, log, self._check)
                begun = time.monotonic()
                sweep.run(lambda e: tell(Progress(phase, e.done, e.total, "a short probe")))
                seconds = time.monotonic() - begun
            finally:
                log.close()
        self.seconds_per_block = seconds / (sweep.work * len(self.ids))
        self._ledger = log.ledger

    def families(self, windows: int, longer: float) -> Iterator[Family]:
        """Of all that is measured, widths scaled to so many windows, so much longer."""
        pairing = Pairing(self._ledger)
        for family, members in _families(self._prepared).items():
            if family.direction is None:
                continue
            found = [d for contrast in members if (d := pairing.difference(contrast)) is not None]
            # Of the difference in one window; longer ones average over more tokens.
            variances = [
                estimate.n * estimate.stderr**2 / longer
                for estimate in (mean(series.values) for series in found)
                if estimate.stderr is not None
            ]
            width = half_width(fmean(variances) ** 0.5, windows) if variances else None
            yield Family(**family.labels, units=len(members), half_width=width)


def _families(prepared: Prepared) -> dict[Asked, list[Contrast]]:
    """The contrasts that are measured, by family."""
    measured = {run.recipe for run in prepared.runs}
    found: dict[Asked, list[Contrast]] = {}
    for contrast in prepared.design.contrasts:
        if contrast.own in measured:
            found.setdefault(contrast.family, []).append(contrast)
    return found


def _some(prepared: Prepared, units: int) -> list[Run]:
    """Whole models, and so many units evenly out of every family; one replica of each."""
    chosen = {NOTHING}
    for family, members in _families(prepared).items():
        step = 1 if family.direction is None else max(1, -(-len(members) // units))
        chosen |= {contrast.own for contrast in members[step // 2 :: step]}
    return [run for run in prepared.runs if not run.replica and run.recipe in chosen]
