"""Who measures the windows of a study: this process, or others beside it."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass

import torch

from fp4scope.conductor.prepare import Prepared, load, say, with_parts, without_silent
from fp4scope.conductor.room import PROCESS_BYTES, crowded_note, room_of
from fp4scope.errors import ModelError, StudyError
from fp4scope.models import LoadedModel, Shelf, resolve_device
from fp4scope.operands import Injector
from fp4scope.study import Place, Study
from fp4scope.sweep import Alone, Crew, Listener, SelfCheck, Worker, free_memory


@dataclass(frozen=True)
class Blueprint:
    """What a worker in another process is made from; the model is loaded there.

    Attributes:
        study: Of which the model and the device matter, as it was resolved in this process.
        fingerprint: Of the model, which has to be the same.
        ids: Token ids of all windows.
        inputs: Amax of what enters each linear, and of each expert, and products that share a
            tensor scale.
        check: What the self-check of this process found.
        shelf: Where this process keeps blocks that wait on the host.
    """

    study: Study
    fingerprint: str
    ids: torch.Tensor
    inputs: tuple[Mapping[str, float], Mapping[str, Sequence[float]], Mapping[str, Sequence[str]]]
    check: SelfCheck
    shelf: Shelf | None = None

    def __call__(self) -> Worker:
        """The worker.

        Raises:
            ModelError: The model is another there.
        """
        loaded = load(self.study, lambda event: None, self.shelf)
        if loaded.fingerprint != self.fingerprint:
            raise ModelError(f"it loads other weights as {loaded.name}; give all the same files")
        loaded = with_parts(self.study, without_silent(self.study, loaded, self.ids[0]))
        amax, by_expert, fused = self.inputs
        injector = Injector(loaded.model, amax, by_expert, loaded.layout.parts, fused)
        return Worker(loaded, self.ids, injector, self.study.numerics.seed, self.check)


def blueprint(study: Study, prepared: Prepared, injector: Injector, check: SelfCheck) -> Blueprint:
    """What another process makes a worker like that of this one from."""
    loaded = prepared.loaded
    name = os.path.expanduser(study.model.name)
    resolved = study.but(
        model=os.path.abspath(name) if os.path.exists(name) else name,
        device=loaded.device.type,
        dtype=loaded.dtype_name,
        offload="no" if loaded.offloaded is None else loaded.offloaded.kind,
    )
    inputs = injector.calibrated, injector.by_expert, dict(prepared.fused)
    shelf = None if loaded.offloaded is None else loaded.offloaded.shelf
    return Blueprint(resolved, loaded.fingerprint, prepared.windows.ids, inputs, check, shelf)


@contextmanager
def crew_of(
    study: Study,
    prepared: Prepared,
    worker: Worker,
    injector: Injector,
    check: SelfCheck,
    tell: Listener,
) -> Iterator[Crew]:
    """Who measures, until the block ends.

    Args:
        study: It says so.
        prepared: Its model and windows.
        worker: That of this process.
        injector: Its injector.
        check: What the self-check found.
        tell: Hears of it.

    Raises:
        StudyError: The others cannot be started.
    """
    place = study.run.workers
    alone = place.is_here
    if place.address is None and place.count is None and prepared.loaded.device.type == "cuda":
        alone = torch.cuda.device_count() == 1
        if alone:
            say(tell, "there is one GPU, so this process measures by itself")
    if alone:
        yield Alone(worker)
        return
    from fp4scope.sweep.remote import Remote

    say(tell, f"starting workers: {place}")
    if place.count is not None and prepared.loaded.device.type == "cpu":
        say(tell, *(f"warning: {note}" for note in [crowded_note(place.count)] if note))
    with closing(Remote(place, blueprint(study, prepared, injector, check), worker)) as crew:
        yield crew
        if crew.measured:
            say(tell, crew.shares)


def device_of(study: Study) -> torch.device:
    """Where a study runs; nothing is loaded for that.

    Raises:
        StudyError: There is no such device, or there are no such workers on its kind.
    """
    device = resolve_device(study.numerics.device)
    require_same_kind(study.run.workers, device)
    return device


def require_same_kind(place: Place, device: torch.device) -> None:
    """Refuse workers that there cannot be.

    Raises:
        StudyError: Neither CPU nor CUDA, or a worker for each of no GPUs.
    """
    kind = device.type
    if place.is_here:
        return
    if kind not in ("cpu", "cuda"):
        raise StudyError(f"workers is {place}, which is for cuda and cpu, but the device is {kind}")
    if kind == "cpu" and place.count is None and place.address is None:
        raise StudyError(
            f"workers is {place}, one for each GPU, but the device is cpu; say how many, as "
            "ray:2, or leave --workers out"
        )
    known = torch.cuda.device_count() if kind == "cuda" and place.address is None else None
    if known is not None and (place.count or 1) > known:
        raise StudyError(f"workers is {place}, but this host has {known} GPUs; give no more")


def budget_of(study: Study, loaded: LoadedModel) -> int | None:
    """What each worker's sweep may take: all of a GPU's memory, of a host's its share.

    Raises:
        StudyError: The host has no memory for so many models.
    """
    place = study.run.workers
    shared = place.address is None and not place.is_here and loaded.device.type == "cpu"
    if study.run.memory is not None or not shared or place.count is None:
        return study.run.memory
    mine, ours = room_of(loaded, 1), room_of(loaded, place.count)
    each = mine.device_bytes + PROCESS_BYTES
    others = (place.count - 1) * each + ours.host_bytes - mine.host_bytes
    free = free_memory(loaded.device) - others
    if free <= 0:
        each = others / (place.count - 1)
        raise StudyError(
            f"workers is {place}, and each more takes {each / 1e9:.2f} GB of this host's memory "
            "for its process and the model, which has no room for so many; give fewer"
        )
    return free // place.count


def shared_among(study: Study, loaded: LoadedModel) -> int:
    """How many will measure, as far as it is known before they are started."""
    place = study.run.workers
    if place.count is not None:
        return place.count
    return torch.cuda.device_count() if loaded.device.type == "cuda" else 1
