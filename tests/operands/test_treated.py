"""Images of treatments that rotate, or change the error on purpose."""

import pytest
import torch
from scipy.linalg import hadamard

from fp4scope import fake_quantize
from fp4scope.errors import StudyError, UnitError
from fp4scope.operands.treated import image_of, noisy, rotated, scattered
from fp4scope.treatments import Setting, Treatment


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def image(x, name, entering=False):
    return image_of(x, Treatment.named(name), lambda x: None, entering=entering)


def energy(x, size):
    return x.double().square().unflatten(-1, (-1, size)).sum(-1)


@pytest.mark.parametrize("block", [16, 32, 128])
def test_a_rotation_is_the_hadamard_matrix_and_its_own_inverse(block):
    x = drawn(5, 256)
    matrix = torch.tensor(hadamard(block)).double() / block**0.5
    expected = (x.double().unflatten(-1, (-1, block)) @ matrix).flatten(-2)
    assert torch.allclose(rotated(x, block).double(), expected, atol=1e-6)
    assert torch.allclose(rotated(rotated(x, block), block), x, atol=1e-6)


def test_both_operands_turned_have_the_product_of_the_turned_and_quantized():
    x, w = drawn(7, 64), drawn(11, 64, seed=1)
    x[:, 3] *= 50
    found = image(x, "nvfp4+hadamard32", entering=True) @ image(w, "nvfp4+hadamard32").T
    turned = [fake_quantize(rotated(each, 32), "nvfp4") for each in (x, w)]
    assert torch.allclose(found, turned[0] @ turned[1].T, atol=1e-3)


def test_rows_that_the_blocks_do_not_divide_are_refused():
    with pytest.raises(UnitError, match="blocks of 128 cannot be turned in rows of 96"):
        image(drawn(2, 96), "mxfp4+hadamard128")


@pytest.mark.parametrize(("name", "size"), [("mxfp4", 32), ("nvfp4", 16), ("fp8", 16)])
def test_noise_has_the_energy_of_the_error_in_every_block(name, size):
    x = drawn(6, 96)
    error = image(x, f"{name}+noise") - x
    rounding = fake_quantize(x, name) - x
    assert torch.allclose(energy(error, size), energy(rounding, size), rtol=1e-4, atol=1e-9)
    assert not torch.allclose(error, rounding, atol=1e-3)


def test_noise_has_no_direction_and_nothing_in_common_with_rounding():
    x = drawn(4000, 32)
    error = (image(x, "mxfp4+noise") - x).double()
    shape = error / error.norm(dim=-1, keepdim=True)
    second = shape.T @ shape / len(shape)
    # 1/32 on the diagonal, give or take 1/32 sqrt(2 / 4000); nothing beside it.
    assert torch.allclose(second.diag(), torch.full((32,), 1 / 32).double(), atol=0.004)
    assert (second - second.diag().diag()).abs().max() < 0.004
    rounding = (fake_quantize(x, "mxfp4") - x).double()
    assert abs((error * rounding).sum() / rounding.square().sum()) < 0.02


def test_rows_and_blocks_of_the_same_numbers_differ_only_by_place():
    row = drawn(32).repeat(4)[None].repeat(3, 1)
    error = image(row, "mxfp4+noise") - row
    assert error[0].equal(error[1])
    first, second = error[0, :32], error[0, 32:64]
    assert abs(torch.dot(first, second) / first.norm() / second.norm()) < 0.6


def test_noise_does_not_depend_on_the_batch():
    x = drawn(64, 8, 96)
    amax = rotated(x, 16).abs().amax()

    def noise(part):
        treatment = Treatment.named("nvfp4+hadamard16+noise")
        return image_of(part, treatment, lambda _: amax, entering=True)

    for chosen in (slice(3, 4), slice(5, 40, 7), (slice(None), slice(2, 3))):
        assert noise(x)[chosen].equal(noise(x[chosen]))
        assert noisy(x, -20.0)[chosen].equal(noisy(x[chosen], -20.0))


def test_an_exact_scale_maps_the_largest_of_a_block_to_itself():
    x = drawn(4, 64)
    for name, size in (("mxfp4+exact-scale", 32), ("nvfp4+exact-scale", 16)):
        found, own = (each.unflatten(-1, (-1, size)) for each in (image(x, name), x))
        largest = own.abs().amax(-1, keepdim=True)
        assert torch.allclose(found.abs().amax(-1, keepdim=True), largest, rtol=1e-6)
        assert ((found - own).abs() <= largest / 6 + 1e-6).all()


def test_noise_behind_a_product_has_the_energy_that_was_asked_for():
    y = drawn(5, 3, 50)
    moved = (noisy(y, -20.0) - y).square().sum(-1) / y.square().sum(-1)
    assert torch.allclose(moved, torch.full((5, 3), 0.01), rtol=1e-3)
    smaller = noisy(y, -40.0) - y
    assert torch.allclose(10 * smaller, noisy(y, -20.0) - y, atol=1e-4)


def test_noise_in_16_bits_stays_finite():
    x = (6e4 * torch.ones(2, 32)).half()
    assert image(x, "mxfp4+noise").isfinite().all()
    assert image(x, "mxfp4+noise").dtype == torch.float16
    assert scattered(torch.zeros(2, 32), torch.zeros(2, 32), 16).eq(0).all()


@pytest.mark.parametrize(
    "name", ["nvfp4+hadamard32", "mxfp4:rceil+noise", "nvfp4+exact-scale", "fp8+hadamard128+noise"]
)
def test_names_say_all(name):
    assert Treatment.named(name).name == name
    setting = Setting.from_json({"weight": name, "noise": -20})
    assert Setting.from_json(setting.to_json()) == setting
    assert Setting.from_json(name).format == name


@pytest.mark.parametrize(
    ("name", "said"), [("nvfp4+hadamard12", "hadamard12"), ("nvfp4+noize", "noise")]
)
def test_what_is_no_name_is_refused(name, said):
    with pytest.raises(StudyError, match=said):
        Treatment.named(name)


def test_noise_that_is_no_number_is_refused():
    with pytest.raises(StudyError, match="give decibels"):
        Setting.from_json({"noise": "loud"})
