"""What a run takes of cards and of a host, and what several workers win by sharing a sweep."""

import os
from dataclasses import dataclass

import psutil
import torch

from fp4scope.models import LoadedModel

PROCESS_BYTES = 600 << 20
"""Of a host, what a worker's process takes beside the model: 530 MB with torch 2.14 on Linux."""


@dataclass(frozen=True)
class Room:
    """Memory that a run takes beside its sweep.

    Attributes:
        device_bytes: Of the model on each worker's device: all, or what is around the blocks, and
            two of these.
        host_bytes: Of blocks that wait in this host's memory, for all its workers; on disk, what
            they are read into.
    """

    device_bytes: int
    host_bytes: int


def room_of(loaded: LoadedModel, workers: int) -> Room:
    """What a model takes.

    Args:
        loaded: It.
        workers: Of this host.
    """
    every = [*loaded.model.parameters(), *loaded.model.buffers()]
    size, waiting = sum(tensor.nbytes for tensor in every), loaded.offloaded
    if waiting is None:
        return Room(size, 0)
    two = 2 * waiting.largest_bytes
    around = max(0, size - waiting.size_bytes)
    once = waiting.shelf is not None
    host = waiting.size_bytes if waiting.kind == "yes" else two
    return Room(around + two, host * (1 if once and waiting.kind == "yes" else workers))


def left_of(windows: int, task: int, workers: int) -> float:
    """Of a sweep's time by one worker, the share that several take: that of who measures most.

    Args:
        windows: Of the text.
        task: Of them in a task.
        workers: How many.

    Example:
        >>> left_of(12, 3, 4), left_of(5, 2, 2)
        (0.25, 0.8)
    """
    return min(windows, -(-windows // (task * workers)) * task) / windows


def crowded(workers: int) -> float:
    """How many threads of workers on a CPU there are for each core; at least 1."""
    return max(1.0, workers * torch.get_num_threads() / _cores())


def crowded_note(workers: int) -> str | None:
    """What to say of workers that slow each other down; None if they do not."""
    if crowded(workers) == 1:
        return None
    threads, cores = torch.get_num_threads(), _cores()
    few = max(1, cores // workers)
    advice = (
        f"OMP_NUM_THREADS={few} gives each cores of its own"
        if few < threads and few * workers <= cores
        else f"more than {cores} workers win nothing"
    )
    return (
        f"{workers} workers have {workers * threads} threads on {cores} cores, so they slow each "
        f"other down: {advice}"
    )


def _cores() -> int:
    """That this process may use; two threads of a core are one."""
    mine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 4096
    return max(1, min(psutil.cpu_count(logical=False) or 1, mine))
