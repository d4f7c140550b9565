"""Decisions from effects: exact where effects are known, and refused where they are not."""

import numpy as np
import pytest

from fp4scope.deploy.bar import parse_bar
from fp4scope.deploy.palette import choices
from fp4scope.errors import FormatError, StudyError
from fp4scope.treatments import Setting

from .decided import MXFP8, NVFP4, known


def test_what_costs_most_gets_more_bits():
    found = known([0.05, 0.001, 0.001, 0.001, 0.001, 0.002])
    decision = found.under(6.0)
    assert decision.size.bits <= 6.0
    settings = {
        group.name + str(group.block): o
        for group, o in zip(found.kl.groups, decision.options, strict=True)
    }
    assert settings["self_attn.q_proj+k_proj0"] == 2
    assert decision.predicted["kl"].mean == pytest.approx(
        sum(
            [0.05, 0.001, 0.001, 0.001, 0.001, 0.002][g] * (0, 1, 0.1)[o]
            for g, o in enumerate(decision.options)
        )
    )
    # q and k are one: no recipe tells them apart.
    for group in found.kl.groups:
        assert len({decision.recipe.at(name) for name in group.names}) == 1


def test_the_front_goes_from_smallest_to_largest():
    found = known([0.05, 0.001, 0.02, 0.001, 0.003, 0.002])
    front = found.front()
    bits = [decision.size.bits for decision in front]
    costs = [decision.predicted["kl"].mean for decision in front]
    assert bits == sorted(bits)
    assert costs == sorted(costs, reverse=True)
    assert (bits[0], bits[-1]) == (4.5, 16.0)
    assert costs[-1] == 0
    whole = front[0].size
    assert whole.bytes == (4.5 * 8192 + 16 * 1024) / 8
    assert found.bits_of(whole.bytes) == pytest.approx(4.5)


def test_the_smallest_recipe_inside_all_bars():
    found = known([0.05, 0.001, 0.02, 0.001, 0.003, 0.002])
    decision = found.within([parse_bar("kl<0.0105")])
    assert decision.predicted["kl"].mean < 0.0105
    smaller = [d for d in found.front() if d.size.bits < decision.size.bits]
    assert smaller
    assert all(d.predicted["kl"].mean > 0.0105 for d in smaller)
    with pytest.raises(StudyError, match="only measured"):
        found.within([parse_bar("top1>95%")])


def test_how_sure_each_choice_is():
    clear = known([0.05, 0.001, 0.02, 0.001, 0.003, 0.002], noise=1e-5)
    found = clear.sure(clear.under(6.0))
    rows = np.arange(len(found.options)), found.options
    assert found.frequency[rows].min() > 0.95
    even = known([0.01] * 6, noise=0.02)
    found = even.sure(even.under(6.0))
    assert found.frequency[rows].min() < 0.9


@pytest.mark.parametrize(("bits", "said"), [(4.0, "smallest has 4.5"), (0.0, "smallest has 4.5")])
def test_a_bound_below_the_smallest(bits, said):
    with pytest.raises(StudyError, match=said):
        known([0.01] * 6).under(bits)


def test_a_size_below_what_is_not_quantized():
    with pytest.raises(StudyError, match="alone take"):
        known([0.01] * 6).bits_of(1024.0)


def test_palettes():
    weights = Setting.from_json({"weight": "nvfp4"})
    measured = (NVFP4, weights, MXFP8)
    assert [c.name for c in choices(None, measured)] == [
        "bf16",
        "nvfp4",
        "nvfp4/w4a16",
        MXFP8.name,
    ]
    assert choices("mxfp8, NVFP4,bf16", measured)[0].setting is None
    served = choices(None, measured, "sm90")
    assert [c.name for c in served] == ["bf16", "nvfp4/w4a16", MXFP8.name]
    assert choices("nvfp4,bf16", measured, "sm90")[1].setting == weights
    mixed = Setting.from_json("nvfp4:4over6/nvfp4")
    assert choices("nvfp4:4over6/nvfp4,bf16", (mixed, NVFP4))[1].setting == mixed
    said = "measure it: fp4scope run MODEL --formats mxfp4:floor/nvfp4 -o"
    with pytest.raises(StudyError, match=said):
        choices("mxfp4/nvfp4,bf16", measured)
    with pytest.raises(FormatError, match="did you mean nvfp4"):
        choices("nvpf4,bf16", measured)
    with pytest.raises(StudyError, match="two or more"):
        choices("bf16", measured)
    with pytest.raises(StudyError, match="unknown 'sm10'"):
        choices(None, measured, "sm10")


def test_palettes_of_engines():
    mxfp4, fp8 = (Setting.from_json(name) for name in ("mxfp4:even", "fp8"))
    measured = (NVFP4, mxfp4, MXFP8, fp8)

    def names(palette, engine):
        return [choice.name for choice in choices(palette, measured, engine=engine)]

    assert names(None, "any") == names(None, "sglang") == ["bf16", "nvfp4", "fp8"]
    assert names(None, "vllm") == ["bf16", "nvfp4", "mxfp4:even", MXFP8.name, "fp8"]
    # ModelOpt's checkpoints bring MXFP8 to SGLang, but not beside FP8 by channel.
    assert names("nvfp4,mxfp8,bf16", "sglang") == ["bf16", "nvfp4", MXFP8.name]
    with pytest.raises(StudyError, match=r"SGLang 0\.5\.23 does not load"):
        names("nvfp4,mxfp8,fp8", "sglang")
    with pytest.raises(StudyError, match=r"only NVFP4 is loaded.* loads nvfp4, fp8 and bf16"):
        names("mxfp4:even,bf16", "sglang")
    with pytest.raises(StudyError, match="give another --engine, or a --palette"):
        choices(None, (mxfp4,), engine="trtllm")
    with pytest.raises(StudyError, match="engine: unknown 'tgi'"):
        choices(None, measured, engine="tgi")
