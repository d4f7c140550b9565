"""Moving numbers by one unit in the last place: by as much as said, and from its key alone."""

import pytest
import torch

from fp4scope.sweep.perturb import perturbation, perturbed

DTYPES = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}
KEY = {"seed": 0, "replica": 1, "window": 2, "block": 3}


def moved_by(hidden, **key):
    return perturbed(hidden, perturbation(hidden.shape, **key))


@pytest.fixture(params=DTYPES, ids=str)
def hidden(request):
    x = torch.randn(64, 96, generator=torch.Generator().manual_seed(0))
    x = (x**5).to(request.param)
    x[::7] = 0
    x[3, ::2] = -0.0
    return x


def test_a_perturbation_is_a_quarter_of_the_numbers_by_one_ulp(hidden):
    moved = moved_by(hidden, **KEY)
    assert moved.dtype == hidden.dtype
    bits = [x.view(DTYPES[x.dtype]).long() for x in (moved, hidden)]
    steps = bits[0] - bits[1]
    assert steps.abs().max() == 1
    zeros = hidden == 0
    assert (steps[zeros] == 0).all()
    n = int((~zeros).sum())
    # Five standard deviations of a binomial distribution.
    for step in (1, -1):
        share = float((steps[~zeros] == step).sum()) / n
        assert abs(share - 1 / 8) < 5 * (7 / 64 / n) ** 0.5
    # A step of the integer is one of the number: none is skipped, none changes the sign.
    assert (moved * hidden >= 0).all()
    upwards = torch.nextafter(hidden.abs(), torch.tensor(torch.inf, dtype=hidden.dtype))
    assert torch.equal(moved.abs()[steps == 1], upwards[steps == 1])


def test_a_perturbation_belongs_to_seed_replica_window_and_block(hidden):
    moved = moved_by(hidden, **KEY)
    assert torch.equal(moved_by(hidden.clone(), **KEY), moved)
    for name in KEY:
        other = moved_by(hidden, **KEY | {name: KEY[name] + 1})
        assert 0.2 < float((other != moved)[hidden != 0].float().mean()) < 0.6, name


def test_a_perturbation_changes_neither_its_input_nor_the_generator(hidden):
    kept = hidden.clone()
    state = torch.random.get_rng_state()
    moved_by(hidden, **KEY)
    assert torch.equal(hidden, kept)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_perturbing_what_is_not_contiguous_is_the_same(hidden):
    across = hidden.T.contiguous().T
    assert not across.is_contiguous()
    assert torch.equal(moved_by(across, **KEY), moved_by(hidden, **KEY))
