"""Recording and replaying, with a recorder that stands in for a CUDA graph."""

from types import SimpleNamespace

import pytest
import torch

from fp4scope.sweep.replay import Replayed


class Recorded(Replayed):
    """Records a graph that runs the function on what its entrance holds when it is replayed."""

    recordings = 0

    def _record(self, x, windows):
        self.recordings += 1
        entrance, out = x.clone(), torch.empty_like(x)

        def replay():
            out.copy_(self._function(entrance, windows=windows))

        return SimpleNamespace(replay=replay), entrance, out


@pytest.fixture
def calls():
    return []


@pytest.fixture
def replayed(calls):
    def function(x, windows):
        calls.append(windows)
        return x * 2 + windows[0]

    return Recorded(function, pool="some")


def test_the_second_call_records_and_all_give_the_result(replayed):
    found = [replayed(torch.full((3,), float(i)), (5,)) for i in range(4)]
    assert replayed.recordings == 1
    # Each is its own tensor: the next replay leaves it alone.
    assert [f.tolist() for f in found] == [[2.0 * i + 5] * 3 for i in range(4)]


def test_another_shape_or_other_windows_begin_anew(replayed):
    x = torch.ones(3)
    for windows in ((1,), (1,), (1,), (2,), (2,), (1,), (1,)):
        assert replayed(x, windows).tolist() == [2.0 + windows[0]] * 3
    assert replayed.recordings == 3
    assert replayed(torch.ones(4), (1,)).tolist() == [3.0] * 4
    assert replayed.recordings == 3


def test_nothing_is_recorded_without_a_pool(calls):
    replayed = Recorded(lambda x, windows: x + windows[0], pool=None)
    for _ in range(3):
        assert replayed(torch.zeros(1), (7,)).item() == 7
    assert replayed.recordings == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
def test_a_real_recording():
    weight = torch.randn(64, 64, device="cuda")
    replayed = Replayed(lambda x, windows: (x @ weight).relu(), torch.cuda.graph_pool_handle())
    for seed in range(5):
        x = torch.randn(32, 64, device="cuda", generator=torch.Generator("cuda").manual_seed(seed))
        assert torch.equal(replayed(x, (0,)), (x @ weight).relu())
