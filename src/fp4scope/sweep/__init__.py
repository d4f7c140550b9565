"""Measuring everything that a study runs."""

from fp4scope.sweep.check import SelfCheck, self_check
from fp4scope.sweep.gradient import WindowEstimates, estimate_window
from fp4scope.sweep.memory import Memory, free_memory, is_out_of_memory
from fp4scope.sweep.naive import measure_naively
from fp4scope.sweep.progress import Listener, Progress
from fp4scope.sweep.scheduler import Scheduler, schedule
from fp4scope.sweep.shape import Shape
from fp4scope.sweep.stopping import MOST_WINDOWS, Stopping, require_reachable
from fp4scope.sweep.worker import NUMERICS_VERSION, Task, Worker

__all__ = [
    "MOST_WINDOWS",
    "NUMERICS_VERSION",
    "Listener",
    "Memory",
    "Progress",
    "Scheduler",
    "SelfCheck",
    "Shape",
    "Stopping",
    "Task",
    "WindowEstimates",
    "Worker",
    "estimate_window",
    "free_memory",
    "is_out_of_memory",
    "measure_naively",
    "require_reachable",
    "schedule",
    "self_check",
]
