"""A worker: what a task gives depends on the task, not on what was done before."""

import torch

from fp4scope.sweep import Shape, Task, Worker
from fp4scope.sweep.passes import passes


def test_a_task_gives_the_same_whatever_came_before(adopted, ids, planned, calibrated):
    """Other windows, fewer runs, another shape or another worker in between."""
    loaded = adopted("llama")
    four = torch.cat([ids, ids.flip(0).roll(1, 1)])
    injector = calibrated(loaded, four)
    runs = planned(loaded, formats="mxfp4,nvfp4", sweep="blocks", replicas=2)
    shape = Shape(windows=2, groups=2, block=4, head=4)

    def task_of(runs, windows, shape):
        return Task(runs, windows, shape, passes(runs, shape.groups, loaded.layout.sites))

    task = task_of(runs, [1, 3], shape)
    worker = Worker(loaded, four, injector, seed=3)
    shares = []
    first = worker.execute(task, shares.append)
    assert sum(shares) > 0
    worker.execute(task_of([run for run in runs if not run.replica], [0], shape))
    worker.execute(task_of(runs, [3], Shape(windows=1, groups=1, block=1, head=1)))
    assert worker.execute(task) == first
    assert Worker(loaded, four, injector, seed=3).execute(task) == first
    assert {(found.recipe, found.replica) for found in first} == {
        (run.recipe, run.replica) for run in runs
    }
    assert all(len(values) == 2 for found in first for values in found.values.values())
