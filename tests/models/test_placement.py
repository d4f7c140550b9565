"""Where blocks wait: the first of device, host memory and disk that has room."""

from types import SimpleNamespace

import pytest
import torch

from fp4scope.errors import StudyError
from fp4scope.models import placement
from fp4scope.models.placement import chosen_place

GB = 10**9


@pytest.fixture
def machine(monkeypatch):
    """A GPU with 80 GB free in a host with 200 GB available."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (80 * GB, 85 * GB))
    free = SimpleNamespace(available=200 * GB)
    monkeypatch.setattr(placement.psutil, "virtual_memory", lambda: free)
    return torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("size", "sharing", "where"),
    [(63, 1, "no"), (63, 8, "no"), (65, 1, "yes"), (65, 8, "yes"), (159, 1, "yes"),
     (161, 1, "disk"), (161, 8, "disk")],
)  # fmt: skip
def test_the_first_that_has_room(machine, size, sharing, where):
    """Of host memory for one copy, however many processes have the model."""
    place = chosen_place(size * GB, machine, "auto", sharing)
    assert place.offload == where
    assert f"{size}.0 GB of weights" in place.why
    assert ("80.0 GB that are free on cuda:0" in place.why) == (where != "no")
    assert ("200.0 GB that are free on this host" in place.why) == (where == "disk")


@pytest.mark.parametrize(("sharing", "where"), [(1, "yes"), (2, "yes"), (3, "disk")])
def test_where_memory_is_not_shared_each_process_needs_a_copy(machine, monkeypatch, sharing, where):
    monkeypatch.setattr(placement, "can_share", lambda: False)
    place = chosen_place(65 * GB, machine, "auto", sharing)
    assert place.offload == where
    assert ("for 3 processes" in place.why) == (sharing == 3)


def test_more_than_the_host_has_is_refused(machine):
    assert chosen_place(200 * GB, machine, "yes") == ("yes", "as asked")
    with pytest.raises(StudyError, match=r"201\.0 GB of weights do not fit in the 200\.0 GB"):
        chosen_place(201 * GB, machine, "yes")


def test_room_of_a_model_that_was_here_before_is_free(machine, monkeypatch):
    """PyTorch keeps it, so that the driver does not call it free."""
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 5 * GB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 3 * GB)
    assert chosen_place(65 * GB, machine, "auto").offload == "no"


@pytest.mark.parametrize("asked", ["no", "disk"])
def test_what_is_asked_for_is_done(machine, asked):
    assert chosen_place(900 * GB, machine, asked) == (asked, "as asked")


def test_a_cpu_computes_where_the_weights_are():
    assert chosen_place(900 * GB, torch.device("cpu"), "auto").offload == "no"
