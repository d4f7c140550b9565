"""Measuring everything that a study runs."""

from fp4scope.sweep.check import SelfCheck, self_check
from fp4scope.sweep.crew import Alone, Crew
from fp4scope.sweep.entrances import entering
from fp4scope.sweep.gradient import estimate_window
from fp4scope.sweep.memory import Memory, free_memory, is_out_of_memory
from fp4scope.sweep.naive import measure_naively
from fp4scope.sweep.perturb import perturbation, perturbed
from fp4scope.sweep.progress import Listener, Progress
from fp4scope.sweep.routing import routers
from fp4scope.sweep.scheduler import Scheduler, schedule, task_windows
from fp4scope.sweep.shape import Shape
from fp4scope.sweep.stopping import MOST_WINDOWS, Stopping, looks, require_reachable
from fp4scope.sweep.whole import memory_for
from fp4scope.sweep.worker import NUMERICS_VERSION, Task, Worker
