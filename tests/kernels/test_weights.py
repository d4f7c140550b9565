"""Formats of weights alone have the libraries' own bits; nothing else can have them."""

import importlib.util

import gguf
import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import fake_quantize as compressed_fake
from compressed_tensors.quantization.utils.helpers import calculate_qparams

from fp4scope import fake_quantize
from fp4scope.errors import FormatError, StudyError
from fp4scope.formats import WEIGHT_FORMATS, get_cache_format, get_format
from fp4scope.formats.spec import INT5, Q8
from fp4scope.study import Study
from fp4scope.treatments import Configuration, Setting, Treatment

GGUF = {"q8_0": "Q8_0", "q5_0": "Q5_0", "q4_0": "Q4_0"}


def weight():
    """Heavy tails, zeros, ties for the largest magnitude, halves, and tiny numbers."""
    w = torch.randn(64, 256, generator=torch.Generator().manual_seed(0)) ** 3
    w[0, :32] = 0
    w[1, :32], w[1, 5] = 1.0, -1.0
    w[2, :32], w[2, 9] = -1.0, 1.0
    w[3] = torch.linspace(-8, 8, 256).mul(2).round().div(2)
    w[4, :64] *= 1e-9
    return w


@pytest.mark.parametrize("name", GGUF)
def test_those_of_gguf(name):
    kind = gguf.GGMLQuantizationType[GGUF[name]]
    w = weight()
    theirs = gguf.quants.dequantize(gguf.quants.quantize(w.numpy(), kind), kind)
    assert (fake_quantize(w, name).numpy() == theirs).all()
    size, stored = gguf.GGML_QUANT_SIZES[kind]
    assert get_format(name).bits_per_element == 8 * stored / size


@pytest.mark.parametrize("name", WEIGHT_FORMATS)
def test_numbers_whose_inverse_is_infinite_are_next_to_nothing(name):
    """As of a dead row: beside exact zeros an infinite inverse would give NaN."""
    w = torch.zeros(2, 256)
    w[0, ::3], w[0, 1] = 1e-39, -2e-39
    assert (fake_quantize(w, name) - w).abs().max() <= 2e-39


def test_int4_is_compressed_tensors():
    """Of a weight in BF16, whose scales are BF16 too, divided in FP32."""
    w = weight().to(torch.bfloat16)
    args = QuantizationArgs(
        num_bits=4, type="int", symmetric=True, strategy="group", group_size=128
    )
    groups = w.view(64, 2, 128)
    scale, zero = calculate_qparams(groups.amin(-1), groups.amax(-1), args)
    assert scale.dtype == torch.bfloat16
    theirs = compressed_fake(w.float(), scale.float(), zero.float(), args)
    assert torch.equal(fake_quantize(w.float(), "int4:g128"), theirs)
    assert get_format("int4:g128").bits_per_element == 4.125


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="no bitsandbytes")
def test_nf4_is_bitsandbytes():
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    w = weight()
    packed, state = quantize_4bit(w, blocksize=64, quant_type="nf4")
    assert torch.equal(fake_quantize(w, "nf4"), dequantize_4bit(packed, state))


def test_nf4_takes_the_nearest_of_its_sixteen():
    """By distances, which no sum of thresholds is; blocks go on across rows."""
    w = weight()[:6, :96].contiguous()
    found = fake_quantize(w, "nf4")
    scale = w.flatten().view(-1, 64).abs().amax(1, keepdim=True).expand(-1, 64).reshape(w.shape)
    values = torch.unique((found / torch.where(scale > 0, scale, 1)).double().round(decimals=6))
    assert len(values) == 16
    assert (values.min(), values.max()) == (-1, 1)
    whole = (w / torch.where(scale > 0, scale, 1)).double()
    nearest = (whole[..., None] - values).abs().amin(-1)
    own = (found / torch.where(scale > 0, scale, 1)).double()
    assert ((whole - own).abs() <= nearest + 2e-6).all()


@pytest.mark.parametrize("name", WEIGHT_FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_any_shape_and_dtype(name, dtype):
    fmt = get_format(name)
    w = weight()[:8].to(dtype)
    whole = fake_quantize(w, name)
    assert (whole.dtype, whole.shape) == (dtype, w.shape)
    cut = fake_quantize(w[:, :128].contiguous(), name)
    assert torch.equal(cut, whole[:, :128])
    assert torch.equal(fake_quantize(w.view(2, 4, 256), name), whole.view(2, 4, 256))
    narrow = fake_quantize(w[:, :40].contiguous(), name)  # as if there were zeros behind it
    assert narrow.isfinite().all()
    assert torch.equal(
        fake_quantize(torch.zeros(2, 64, dtype=dtype), name), torch.zeros(2, 64, dtype=dtype)
    )
    error = (whole.float() - w.float()).abs().amax() / w.float().abs().amax()
    assert error <= 1.01 / 2 ** (fmt.element.bits - 1)
    w[0, 0] = torch.inf
    with pytest.raises(FormatError, match="has no NaN or Inf"):
        fake_quantize(w, name)


def test_elements_have_whole_steps():
    assert INT5.magnitudes == tuple(range(16))
    assert Q8.magnitudes == tuple(range(128))


@pytest.mark.parametrize("name", WEIGHT_FORMATS)
def test_names_mean_weights_alone(name):
    setting = Setting.from_json(name)
    assert setting == Setting(weight=Treatment(get_format(name)))
    assert setting == Setting.from_json(f"{name}/w4a16")
    assert setting.name == str(Configuration.parse(name)) == name
    assert Setting.from_json(setting.to_json()) == setting
    both = Setting.from_json(f"{name}/fp8")
    assert both.input is not None
    assert both.input.format.name == "fp8"


def test_what_only_weights_have():
    for name in ("q4_0/w4a4", "q4_0/w16a4", "nvfp4/q4_0"):
        with pytest.raises(StudyError, match="weights"):
            Setting.from_json(name)
    with pytest.raises(StudyError, match="name the format of inputs behind it: q4_0/fp8"):
        Setting.from_json({"input": "q4_0"})
    with pytest.raises(StudyError, match="leave out what follows"):
        Setting.from_json("nf4+noise")
    with pytest.raises(FormatError, match="unknown format"):
        get_cache_format("q8_0")
    with pytest.raises(StudyError, match="q4_0 is measured as a whole; give it to --all-quantized"):
        Study.build(model="m", formats="nvfp4,q4_0")
    assert len(Study.build(model="m", all_quantized="q8_0,nf4").question.all_quantized) == 2
