"""Whoever measures, and in whatever order: the log is that of one worker."""

import random
from collections import Counter

import pytest
import torch

from fp4scope.ledger import Log
from fp4scope.study import BestGoal
from fp4scope.sweep import Shape, Stopping, Worker, memory_for, schedule, self_check
from fp4scope.sweep.crew import Crew, Outcome, attempt
from fp4scope.sweep.remote import Remote

SHAPE = Shape(windows=2, groups=1, block=4, head=4)


class Scrambled(Crew):
    """Takes several tasks, and gives them back in any order; at times memory runs out."""

    def __init__(self, worker, size, *, fails=0, seed=0):
        self._worker, self._size, self.fails = worker, size, fails
        self._tasks, self.given = [], []
        self._dice = random.Random(seed)

    @property
    def size(self):
        return self._size

    @property
    def takes_more(self):
        return len(self._tasks) < self._size

    def hand(self, task):
        assert self.takes_more
        self._tasks.append(task)
        self.given.append(task)

    def wait(self, tell):
        if self._dice.random() < 0.3:
            return None
        task = self._tasks.pop(self._dice.randrange(len(self._tasks)))
        if self.fails and self._dice.random() < 0.5:
            self.fails -= 1
            return Outcome(task, None, "made up")
        return attempt(self._worker, task, lambda share: None)


class Dropping(Stopping):
    """Decides about one unit after each window from the third, and is done after the ninth."""

    seen = 0

    def look(self, log):
        self.seen = len(log.windows)
        self.reached = self.seen >= 9

    @property
    def remaining(self):
        dropped = {unit.own for unit in self._units[: max(0, self.seen - 2)]}
        return [run for run in self.runs if run.recipe not in dropped]


@pytest.fixture(scope="module")
def asked(adopted, planned, units, calibrated):
    """A model, its windows and what is run on them."""
    loaded = adopted("llama")
    ids = torch.randint(4, 96, (12, 24), generator=torch.Generator().manual_seed(5))
    study = {"formats": "nvfp4", "sweep": "layers", "direction": "keep", "replicas": 2}
    runs, contrasts = planned(loaded, **study), units(loaded, **study)
    return loaded, ids, runs, contrasts, calibrated(loaded, ids)


@pytest.fixture
def sweep_by(asked, tmp_path):
    """`sweep_by(crew=None, goal=None)`: a sweep that ran, and its log's lines."""
    loaded, ids, runs, contrasts, injector = asked

    def run(crew=None, goal=None, shape=SHAPE):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.jsonl"
        log = Log(path, {})
        log.shapes.append(shape.to_json())
        check = self_check(loaded, ids)
        worker = Worker(loaded, ids, injector, 3, check)
        memory = memory_for(check, loaded, runs, 24, 10**10)
        stopping = (Dropping if goal else Stopping)(goal, runs, contrasts)
        made = None if crew is None else crew(worker)
        events = []
        sweep = schedule(worker, memory, log, check, stopping, crew=made)
        sweep.run(events.append)
        log.close()
        assert events[-1].done == events[-1].total
        return sweep, path.read_text()

    return run


def test_a_log_does_not_show_who_was_ready_first(sweep_by, numbers_of):
    """Tasks are as large as each other; order of windows and numbers are the same."""
    alone, _ = sweep_by()
    for seed in range(3):
        sweep, _ = sweep_by(lambda worker, s=seed: Scrambled(worker, 3, seed=s))
        assert sweep.log.windows == alone.log.windows
        assert numbers_of(sweep) == numbers_of(alone)
        sizes = [len(task.windows) for task in sweep.crew.given]
        assert sizes == [2] * 6  # three workers, up to three for each


def test_windows_go_round_again_where_memory_ran_out(sweep_by, numbers_of):
    """Whoever runs out, the windows are cut again in their place; others need no smaller shape."""
    alone, _ = sweep_by()
    sweep, _ = sweep_by(lambda worker: Scrambled(worker, 3, fails=3, seed=1))
    assert sweep.crew.fails == 0
    assert sweep.log.windows == alone.log.windows
    assert numbers_of(sweep) == numbers_of(alone)
    assert sweep.shape != SHAPE
    assert any("out of memory" in note for note in sweep.notes)


@pytest.mark.parametrize("seed", range(3))
def test_what_a_goal_decides_does_not_depend_on_who_measures(seed, sweep_by):
    """Units are dropped on the way: what others have measured of them by then is left out."""
    goal = BestGoal(k=2)
    shape = Shape(windows=1, groups=1, block=4, head=4)
    _, lines = sweep_by(goal=goal, shape=shape)
    sweep, same = sweep_by(lambda worker: Scrambled(worker, 4, seed=seed), goal=goal, shape=shape)
    assert same == lines
    assert len(sweep.log.windows) == 9
    assert len(sweep.memory.runs) < len(sweep.stopping.runs)


@pytest.mark.parametrize(
    ("measured", "said"),
    [({0: 9}, "all windows: no other worker was ready in time"),
     ({0: 9, 2: 3}, "9 windows, 1 other worker 3"),
     ({1: 4, 2: 3}, "0 windows, 2 other workers 7")],
)  # fmt: skip
def test_who_measured_is_said(measured, said):
    crew = object.__new__(Remote)
    crew.measured = Counter(measured)
    assert crew.shares == f"this process measured {said}"
