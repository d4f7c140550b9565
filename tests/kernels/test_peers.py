"""Our bytes against those of torchao and compressed-tensors, run here and now.

`test_golden.py` holds the values of MXFP4 and NVFP4; this file holds the bytes that are stored, and
the other elements of MX. `PEERS` says how each peer deviates from our rules by its own choice, and
in how many scales and bytes of codes that shows. With these changes made our rules (`by_rule`)
give the peer's bytes exactly, and with any one of them left out they do not.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module

import ml_dtypes
import numpy as np
import pytest
import torch

from fp4scope.formats import get_format
from fp4scope.kernels import QuantizedTensor, quantize
from fp4scope.kernels.packed import _decode, _encode, _packed, _unpacked

from .reference import NV, gaussian, golden_finite, mx_exponent, neighbours, to_element

# Changes.
DIVIDES_BY_MIN_NORMAL = "where the scale is 2^-127, divides by 2^-126"
NO_RECIPROCAL = "where the scale is 2^-127, multiplies by 1, not by 2^127"
FLOAT_LOG2 = "ceil of an FP32 log2: next above max * 2^k gives the scale 2^k"
STEPS_AT_1_75 = "EVEN rounds up from a mantissa of 1.75 whatever the element: E4M3 never clips"
NO_ZERO_SIGN = "zero has no sign; what rounds to zero has"
INF_SCALE = "an amax that rounds up to 2^128 has the scale Inf: codes of 0, an undefined byte"
ALL_ZERO = "0 / 0 in an all-zero tensor: the scale is NaN"
SCALE_FLOOR_NORMAL = "clamps the E4M3 scale to at least 2^-6, the smallest normal"
RECIPROCAL = "s = (a / 6) / g, and multiplies by (1 / g) / s instead of dividing by s * g"
INVERSE_G = "G = fp32(1 / A) * 2688; s = (a / 6) * G; d = s / G; G and a / 6 in the input's dtype"
NO_ZERO_SCALE = "an E4M3 scale of 0 is stored as 0.125"


# ---- the peers ----------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def _installed():
    """Imports both, or skips. Importing them warns of their own deprecations and of kernels for
    other machines.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for package in ("torchao", "compressed_tensors"):
            why = f"{package} is not installed: pip install 'fp4scope[test]'"
            pytest.importorskip(package, reason=why)
        for module in (
            "torchao.prototype.mx_formats.mx_tensor",
            "torchao.prototype.mx_formats.nvfp4_tensor",
            "compressed_tensors.compressors",
            "compressed_tensors.quantization",
        ):
            import_module(module)


def torchao_element(name):
    from torchao.prototype.mx_formats import constants

    return {
        "E2M1": torch.float4_e2m1fn_x2,
        "E2M3": constants.DTYPE_FP6_E2M3,
        "E3M2": constants.DTYPE_FP6_E3M2,
        "E4M3": torch.float8_e4m3fn,
        "E5M2": torch.float8_e5m2,
    }[get_format(name).element.name]


def torchao_mx(x, name):
    from torchao.prototype.mx_formats.config import ScaleCalculationMode
    from torchao.prototype.mx_formats.mx_tensor import to_mx

    mode = ScaleCalculationMode[get_format(name).rule.name]
    scales, data = to_mx(x, torchao_element(name), 32, mode)
    return data.view(torch.uint8), scales.view(torch.uint8), None


def torchao_nvfp4(x, name):
    from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor, per_tensor_amax_to_scale

    g = per_tensor_amax_to_scale(x.abs().amax())
    stored = NVFP4Tensor.to_nvfp4(x, per_tensor_scale=g)
    return stored.qdata, stored.scale.view(torch.uint8), stored.per_tensor_scale


def compressed_tensors(x, name):
    """As its compressors store a weight."""
    from compressed_tensors import compressors
    from compressed_tensors.quantization import QuantizationScheme
    from compressed_tensors.quantization.quant_scheme import PRESET_SCHEMES
    from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

    fmt = get_format(name)
    preset, compressor = {
        "mxfp4:even": ("MXFP4A16", compressors.MXFP4PackedCompressor),
        "mxfp6:e2m3:even": ("MXFP6A16", compressors.MXFP6PackedCompressor),
        "mxfp8:e4m3:even": ("MXFP8A16", compressors.MXFP8QuantizationCompressor),
        "nvfp4": ("NVFP4A16", compressors.NVFP4PackedCompressor),
    }[name]
    args = PRESET_SCHEMES[preset]["weights"]
    blocks = x.unflatten(-1, (-1, fmt.block_size))
    low, high = blocks.amin(-1), blocks.amax(-1)
    state = {"weight": x}
    if name in NV:
        state["weight_global_scale"] = generate_gparam(x.amin(), x.amax())
    scale, zero_point = calculate_qparams(low, high, args, state.get("weight_global_scale"))
    state |= {"weight_scale": scale, "weight_zero_point": zero_point}
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    stored = compressor.compress(state, scheme)
    codes = stored["weight_packed"] if "weight_packed" in stored else stored["weight"]
    scales = stored["weight_scale"]
    return codes.view(torch.uint8), scales.view(torch.uint8), stored.get("weight_global_scale")


@dataclass(frozen=True, kw_only=True)
class Peer:
    """`differs`: {dtype/case: (scales, bytes of codes)} that are not ours, due to `changes`."""

    run: Callable
    format: str
    changes: tuple[str, ...] = ()
    differs: dict[str, tuple[int, int]] = field(default_factory=dict)


def both(**counts):
    """The same counts for FP32 and BF16."""
    return {f"{dtype}/{case}": n for dtype in ("f32", "bf16") for case, n in counts.items()}


PEERS = {
    "torchao.mxfp4:floor": Peer(
        run=torchao_mx,
        format="mxfp4:floor",
        changes=(DIVIDES_BY_MIN_NORMAL,),
        differs={"f32/subnormal": (0, 61), "bf16/subnormal": (0, 45)},
    ),
    "torchao.mxfp6:e2m3:floor": Peer(
        run=torchao_mx,
        format="mxfp6:e2m3:floor",
        changes=(DIVIDES_BY_MIN_NORMAL,),
        differs={"f32/subnormal": (0, 150), "bf16/subnormal": (0, 118)},
    ),
    "torchao.mxfp6:e3m2:floor": Peer(
        run=torchao_mx,
        format="mxfp6:e3m2:floor",
        changes=(DIVIDES_BY_MIN_NORMAL,),
        differs={"f32/subnormal": (0, 185), "bf16/subnormal": (0, 187)},
    ),
    "torchao.mxfp8:e4m3:floor": Peer(
        run=torchao_mx,
        format="mxfp8:e4m3:floor",
        changes=(DIVIDES_BY_MIN_NORMAL,),
        differs=both(subnormal=(0, 288)),
    ),
    "torchao.mxfp8:e5m2:floor": Peer(
        run=torchao_mx,
        format="mxfp8:e5m2:floor",
        changes=(DIVIDES_BY_MIN_NORMAL,),
        differs={"f32/subnormal": (0, 320), "bf16/subnormal": (0, 288)},
    ),
    "torchao.mxfp4:rceil": Peer(
        run=torchao_mx,
        format="mxfp4:rceil",
        changes=(NO_RECIPROCAL, FLOAT_LOG2),
        differs=both(subnormal=(0, 48)) | {"f32/amax_edges": (4, 56), "f32/edges": (49, 686)},
    ),
    "torchao.mxfp6:e2m3:rceil": Peer(
        run=torchao_mx,
        format="mxfp6:e2m3:rceil",
        changes=(NO_RECIPROCAL, FLOAT_LOG2),
        differs={"f32/subnormal": (0, 128), "bf16/subnormal": (0, 127), "f32/edges": (49, 1568)},
    ),
    "torchao.mxfp6:e3m2:rceil": Peer(
        run=torchao_mx,
        format="mxfp6:e3m2:rceil",
        changes=(NO_RECIPROCAL, FLOAT_LOG2),
        differs=both(subnormal=(0, 192)) | {"f32/amax_edges": (6, 192), "f32/edges": (49, 1568)},
    ),
    "torchao.mxfp8:e4m3:rceil": Peer(
        run=torchao_mx,
        format="mxfp8:e4m3:rceil",
        changes=(NO_RECIPROCAL, FLOAT_LOG2),
        differs=both(subnormal=(0, 288)) | {"f32/amax_edges": (10, 320), "f32/edges": (49, 1568)},
    ),
    "torchao.mxfp8:e5m2:rceil": Peer(
        run=torchao_mx,
        format="mxfp8:e5m2:rceil",
        changes=(NO_RECIPROCAL, FLOAT_LOG2),
        differs={
            "f32/amax_edges": (14, 448),
            "f32/subnormal": (0, 320),
            "bf16/subnormal": (0, 288),
            "f32/edges": (49, 1568),
        },
    ),
    "torchao.mxfp4:even": Peer(
        run=torchao_mx,
        format="mxfp4:even",
        changes=(DIVIDES_BY_MIN_NORMAL,),
        differs=both(subnormal=(0, 45)),
    ),
    "torchao.mxfp6:e2m3:even": Peer(
        run=torchao_mx,
        format="mxfp6:e2m3:even",
        changes=(DIVIDES_BY_MIN_NORMAL,),
        differs=both(subnormal=(0, 118)),
    ),
    "torchao.mxfp6:e3m2:even": Peer(
        run=torchao_mx,
        format="mxfp6:e3m2:even",
        changes=(DIVIDES_BY_MIN_NORMAL,),
        differs={"f32/subnormal": (0, 185), "bf16/subnormal": (0, 187)},
    ),
    "torchao.mxfp8:e4m3:even": Peer(
        run=torchao_mx,
        format="mxfp8:e4m3:even",
        changes=(DIVIDES_BY_MIN_NORMAL,),
        differs=both(subnormal=(0, 288)),
    ),
    "torchao.mxfp8:e5m2:even": Peer(
        run=torchao_mx,
        format="mxfp8:e5m2:even",
        changes=(DIVIDES_BY_MIN_NORMAL,),
        differs={"f32/subnormal": (0, 320), "bf16/subnormal": (0, 288)},
    ),
    "torchao.nvfp4": Peer(
        run=torchao_nvfp4,
        format="nvfp4",
        changes=(RECIPROCAL, SCALE_FLOOR_NORMAL, ALL_ZERO),
        differs=both(
            zeros=(13, 0),
            allzero=(8, 0),
            single=(31, 0),
            grid_ties=(20, 66),
            amax_edges=(72, 174),
            subnormal=(24, 0),
            huge=(4, 0),
            negzero=(4, 0),
            dynrange=(56, 212),
            edges=(282, 42),
        )
        | {
            "bf16/gauss": (3, 9),
            "bf16/heavy": (0, 1),
            "bf16/llm_act": (1, 5),
            "bf16/weight": (0, 16),
            "f32/near_ties": (0, 42),
            "bf16/near_ties": (0, 72),
            "bf16/outlier": (1, 4),
        },
    ),
    "compressed_tensors.mxfp4": Peer(
        run=compressed_tensors,
        format="mxfp4:even",
        changes=(NO_ZERO_SIGN, INF_SCALE),
        differs=both(grid_ties=(0, 14), huge=(2, 32), negzero=(0, 64))
        | {"bf16/subnormal": (0, 37)},
    ),
    "compressed_tensors.mxfp6": Peer(
        run=compressed_tensors,
        format="mxfp6:e2m3:even",
        changes=(INF_SCALE,),
        differs=both(huge=(2, 62)),
    ),
    "compressed_tensors.mxfp8": Peer(
        run=compressed_tensors,
        format="mxfp8:e4m3:even",
        changes=(STEPS_AT_1_75, INF_SCALE, NO_ZERO_SIGN),
        differs=both(
            heavy=(21, 672),
            llm_act=(16, 512),
            weight=(18, 576),
            single=(1, 1),
            grid_ties=(0, 14),
            amax_edges=(30, 960),
            huge=(4, 128),
            negzero=(0, 96),
            dynrange=(8, 256),
            outlier=(4, 128),
        )
        | {
            "f32/gauss": (14, 448),
            "bf16/gauss": (15, 480),
            "f32/subnormal": (1, 32),
            "bf16/subnormal": (1, 78),
            "f32/random": (104, 3327),
            "f32/edges": (102, 3264),
            "bf16/random": (109, 3487),
            "bf16/edges": (153, 4896),
        },
    ),
    "compressed_tensors.nvfp4": Peer(
        run=compressed_tensors,
        format="nvfp4",
        changes=(INVERSE_G, NO_ZERO_SCALE, NO_ZERO_SIGN),
        differs=both(
            zeros=(13, 0),
            allzero=(8, 0),
            single=(31, 0),
            grid_ties=(16, 14),
            huge=(4, 0),
            negzero=(4, 64),
        )
        | {
            "bf16/gauss": (11, 64),
            "bf16/heavy": (1, 6),
            "bf16/llm_act": (15, 56),
            "bf16/weight": (9, 48),
            "f32/amax_edges": (48, 0),
            "bf16/amax_edges": (48, 52),
            "f32/subnormal": (24, 0),
            "bf16/subnormal": (24, 37),
            "f32/dynrange": (29, 0),
            "bf16/dynrange": (33, 22),
            "bf16/outlier": (0, 3),
            "f32/edges": (276, 237),
            "bf16/random": (99, 319),
            "bf16/edges": (282, 279),
        },
    ),
}

UNDEFINED = 255  # what `by_rule` puts for a scale that a peer leaves undefined
NAN_SCALE = 0x7F  # of E4M3; codes under it are undefined


# ---- our rules, with changes --------------------------------------------------------------------


def by_rule(x, name, changes=()):
    """Codes and scale bytes by our rules, in numpy, with some changes."""
    fmt = get_format(name)
    y = x.to(torch.float32).numpy().reshape(-1, fmt.block_size)
    with np.errstate(all="ignore"):
        a = np.abs(y)
        peak = a.max(-1, keepdims=True)
        rule = _nv_rule if name in NV else _mx_rule
        scaled, scales = rule(a, peak, fmt, changes, x.dtype)
        values = torch.from_numpy(to_element(scaled.astype(np.float32), fmt.element))
    unsigned = (scaled == 0) & (NO_ZERO_SIGN in changes)
    sign = torch.from_numpy(np.where(unsigned, np.float32(0), y))
    codes = _packed(_encode(values, sign, fmt.element), fmt.element)
    return codes.reshape(*x.shape[:-1], -1), torch.from_numpy(scales).reshape(*x.shape[:-1], -1)


def _mx_rule(a, peak, fmt, changes, dtype):
    e = mx_exponent(peak, fmt)
    mantissa, exponent = np.frexp(peak)
    if FLOAT_LOG2 in changes:
        ratio = torch.from_numpy(peak / np.float32(fmt.element.max))
        e = np.clip(torch.log2(ratio).ceil().numpy(), -127, 127).astype(int)
    step = 2 - 2.0 ** -(fmt.element.mantissa_bits + 1)
    if STEPS_AT_1_75 in changes:
        step = 1.75
        e = exponent - 1 - fmt.element.max_exponent + (2 * mantissa >= step)
        e = np.where(peak == 0, -127, np.clip(e, -127, 127))
    divisor = np.ldexp(np.float32(1), e)
    if DIVIDES_BY_MIN_NORMAL in changes:
        divisor = np.maximum(divisor, np.float32(2.0**-126))
    if NO_RECIPROCAL in changes:
        divisor = np.where(e == -127, np.float32(1), divisor)
    if INF_SCALE in changes:
        e = np.where((exponent == 128) & (2 * mantissa >= step), UNDEFINED - 127, e)
        divisor = np.where(e == UNDEFINED - 127, np.float32(np.inf), divisor)
    return a / divisor, (e + 127).astype(np.uint8)


def _nv_rule(a, peak, fmt, changes, dtype):
    def rounded(value):
        """To the dtype of the input."""
        kind = ml_dtypes.bfloat16 if dtype == torch.bfloat16 else np.float32
        return value.astype(kind).astype(np.float32)

    one, six = np.float32(1), np.float32(6)
    amax = a.max()
    g = amax / np.float32(2688)
    ratio = peak / (six * g)
    if RECIPROCAL in changes:
        ratio = (peak / six) / g
    if INVERSE_G in changes:
        inverse = rounded(rounded(one / np.maximum(amax, np.float32(2.0**-126))) * np.float32(2688))
        inverse = np.where(np.isfinite(inverse), inverse, one)
        ratio = rounded(peak / six) * inverse
    least = 2.0**-6 if SCALE_FLOOR_NORMAL in changes else 0
    if ALL_ZERO not in changes:
        ratio = np.where(peak == 0, 0, ratio)
    s = np.clip(ratio, np.float32(least), np.float32(448))
    stored = s.astype(ml_dtypes.float8_e4m3fn)
    s = stored.astype(np.float32)
    if NO_ZERO_SCALE in changes:
        s = np.where(s == 0, np.float32(0.125), s)
        stored = s.astype(ml_dtypes.float8_e4m3fn)
    if RECIPROCAL in changes:
        scaled = a * ((one / g) / s)
    elif INVERSE_G in changes:
        scaled = a / (s / inverse)
    else:
        scaled = np.where(s * g == 0, 0, a / (s * g))
    return scaled, stored.view(np.uint8)


def inputs(name):
    """In whole blocks: golden ones, random ones, and the largest element times 2^k."""
    fmt = get_format(name)
    found = {k: x for k, x in golden_finite().items() if x.shape[-1] % fmt.block_size == 0}
    random = gaussian(96, 256, seed=7) * gaussian(96, 256, seed=8).exp()
    peaks = neighbours([fmt.element.max * 2.0**k for k in range(-100, 101, 4)])
    edges = torch.from_numpy(np.outer(peaks, np.linspace(1, -1, 32)).astype(np.float32))
    for dtype, label in ((torch.float32, "f32"), (torch.bfloat16, "bf16")):
        found[f"{label}/random"] = random.to(dtype)
        found[f"{label}/edges"] = edges.to(dtype)
    return found


def unpacked_fp6(packed):
    """compressed-tensors puts four E2M3 codes into three bytes; we give each a byte."""
    first, second, third = packed.to(torch.int32).unflatten(-1, (-1, 3)).unbind(-1)
    word = first | second << 8 | third << 16
    codes = torch.stack([word >> shift & 0x3F for shift in (0, 6, 12, 18)], dim=-1)
    return codes.flatten(-2).to(torch.uint8)


def peer_bytes(peer, x):
    codes, scales, _ = peer.run(x, peer.format)
    if peer.run is compressed_tensors and get_format(peer.format).element.bits == 6:
        codes = unpacked_fp6(codes)
    return codes.reshape(*x.shape[:-1], -1), scales.reshape(*x.shape[:-1], -1)


def count(peer, ours, theirs):
    """Scales and bytes of codes that differ, where they are defined."""
    scales = (ours[1] != theirs[1]) & (ours[1] != UNDEFINED)
    codes = (ours[0] != theirs[0]).unflatten(-1, (ours[1].shape[-1], -1))
    if peer.format in NV:  # no scale has a sign, but a NaN may
        scales = (ours[1] & 0x7F) != (theirs[1] & 0x7F)
        codes = codes & ((theirs[1] & 0x7F) != NAN_SCALE).unsqueeze(-1)
    return int(scales.sum()), int(codes.sum())


# ---- the tests ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted({peer.format for peer in PEERS.values()}))
def test_our_rules_without_changes_are_ours(name):
    for case, x in inputs(name).items():
        q, (codes, scales) = quantize(x, name), by_rule(x, name)
        assert torch.equal(codes, q.codes), case
        assert torch.equal(scales, q.scales.view(torch.uint8)), case


@pytest.mark.parametrize("name", PEERS)
def test_bytes_equal_the_peers_but_for_its_own_deviations(name):
    peer = PEERS[name]
    differs, needed = {}, set()
    for case, x in inputs(peer.format).items():
        q, theirs = quantize(x, peer.format), peer_bytes(peer, x)
        found = count(peer, (q.codes, q.scales.view(torch.uint8)), theirs)
        if any(found):
            differs[case] = found
        changed = by_rule(x, peer.format, peer.changes)
        assert count(peer, changed, theirs) == (0, 0), case
        for change in peer.changes:
            others = tuple(c for c in peer.changes if c != change)
            if any(count(peer, by_rule(x, peer.format, others), theirs)):
                needed.add(change)
    assert needed == set(peer.changes)
    assert differs == peer.differs


@pytest.mark.parametrize("name", [n for n in PEERS if n.startswith("torchao")])
def test_torchao_decodes_our_bytes_and_we_torchaos(name):
    """To FP32, where products beyond FP32 are Inf there and saturate here."""
    peer = PEERS[name]
    limit = torch.finfo(torch.float32).max
    for case, x in inputs(peer.format).items():
        q = quantize(x.to(torch.float32), peer.format)
        ours = torchao_values(q.codes, q.scales, q.tensor_scale, peer.format)
        assert torch.equal(ours.clamp(-limit, limit), q.dequantize()), case
        if case.endswith("/allzero") and peer.format in NV:
            continue  # NaN
        codes, scales, g = peer.run(x.to(torch.float32), peer.format)
        mine = QuantizedTensor(
            format=q.format,
            codes=codes.view(q.codes.shape),
            scales=scales.view(q.scales.dtype).view(q.scales.shape),
            tensor_scale=g,
            shape=q.shape,
            dtype=q.dtype,
        ).dequantize()
        theirs = torchao_values(codes, scales.view(q.scales.dtype), g, peer.format)
        assert torch.equal(mine, theirs.view(mine.shape).clamp(-limit, limit)), case


def torchao_values(codes, scales, g, name):
    from torchao.prototype.mx_formats.mx_tensor import to_dtype
    from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor

    if name in NV:
        return NVFP4Tensor(codes, scales, 16, torch.float32, g).dequantize()
    element = torchao_element(name)
    if get_format(name).element.bits == 8:
        codes = codes.view(element)
    e8m0 = scales.view(torch.float8_e8m0fnu)
    return to_dtype(codes, e8m0, element, 32, torch.float32)


def test_tensor_scales():
    """torchao stores A / 2688 as we do, compressed-tensors 2688 / A."""
    for case, x in inputs("nvfp4").items():
        ours = quantize(x, "nvfp4").tensor_scale
        assert torchao_nvfp4(x, "nvfp4")[2].item() == ours.item()
        theirs = compressed_tensors(x, "nvfp4")[2]
        assert theirs.shape == (1,)
        if case.startswith("f32") and ours > 2.0**-100:
            assert abs(theirs.item() * ours.item() - 1) < 2.0**-22


def test_compressed_tensors_packs_and_unpacks_every_pair_of_e2m1_as_we_do():
    from compressed_tensors.compressors.nvfp4.helpers import (
        pack_fp4_to_uint8,
        unpack_fp4_from_uint8,
    )

    element = get_format("nvfp4").element
    every = torch.arange(256, dtype=torch.int32).to(torch.uint8)[None]
    values = _decode(_unpacked(every, element), element)
    assert torch.equal(pack_fp4_to_uint8(values), every)
    theirs = unpack_fp4_from_uint8(every, 1, 512, torch.float32)
    assert torch.equal(theirs, values)
    assert torch.equal(theirs.signbit(), values.signbit())
    assert torch.equal(_packed(_encode(values.abs(), values, element), element), every)
