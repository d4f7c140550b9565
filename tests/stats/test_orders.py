"""Whether two models order the same units alike, and how cost goes with size."""

import numpy as np
import pytest

from asking import REFERENCE, all_quantized, asked
from fp4scope.stats import agreement, order_table, scale_table, spearman
from fp4scope.stats.between.orders import depth_weights, pair_orders
from fp4scope.stats.between.scale import trend
from fp4scope.stats.inference.dependence import drawn_means

NAMES = ("down", "up", "gate", "v", "o", "k", "q")


@pytest.fixture
def model(observe, results):
    """`model(rng, costs, ...)`: projections that cost so; a layer's share grows with depth."""

    def build(rng, costs, *, blocks=4, noise=0.01, windows=32, text="x", parameters=1):
        shared = np.random.default_rng(0).normal(3, 1, windows)
        found = [observe(REFERENCE, shared)]
        total = shared + sum(costs) + noise * rng.normal(size=windows)
        found.append(observe(all_quantized("nvfp4"), total))
        for name, cost in zip(NAMES, costs, strict=True):
            of = {"format": "nvfp4", "direction": "only", "unit": name}
            nll = shared + cost + noise * rng.normal(size=windows)
            found.append(observe(asked(**of, level="projections"), nll))
            for block in range(blocks):
                share = cost * ((block + 0.5) / blocks) ** 2
                nll = shared + share + noise * rng.normal(size=windows)
                found.append(observe(asked(**of, level="layers", block=block), nll))
        return results(
            *found,
            model={"blocks": blocks, "tokenizer_sha256": "t", "parameters": parameters},
            data={"windows": windows, "seq_len": 11, "sha256": text},
        )

    return build


def rows(table):
    return {row["level"]: row for row in table}


def test_the_same_order_in_models_of_other_depth(model):
    rng = np.random.default_rng(1)
    costs = np.linspace(0.7, 0.1, 7)
    found = rows(order_table(model(rng, costs), model(rng, 0.5 * costs, blocks=6)))
    assert set(found) == {"projections", "layers", "depth"}
    assert found["projections"]["rho"] == pytest.approx(1)
    assert [found["projections"][k] for k in ("same", "reversed", "open")] == [21, 0, 0]
    # 4 and 6 blocks: four parts of the depth, for each of seven projections.
    assert (found["layers"]["parts"], found["layers"]["units"]) == (4, 28)
    assert (found["depth"]["parts"], found["depth"]["units"]) == (4, 4)
    assert found["layers"]["rho"] > 0.95
    assert found["depth"]["rho"] == pytest.approx(1)


def test_as_many_blocks_are_compared_layer_by_layer(model):
    rng = np.random.default_rng(2)
    found = rows(order_table(*(model(rng, np.linspace(0.7, 0.1, 7)) for _ in range(2))))
    assert (found["layers"]["parts"], found["layers"]["units"]) == (None, 28)


def test_pairs_that_are_reversed_and_pairs_that_nothing_decides(model):
    rng = np.random.default_rng(3)
    one = model(rng, [0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])
    turned = model(rng, [0.6, 0.7, 0.5, 0.4, 0.3, 0.2, 0.2], text="another")
    row = rows(order_table(one, turned))["projections"]
    assert [row[k] for k in ("same", "reversed", "open")] == [19, 1, 1]
    assert not row["paired"]
    assert row["rho_apart"] is None
    assert 0.9 < row["rho"] < 1


def test_pairs_are_called_reversed_wrongly_in_at_most_one_study_of_twenty():
    """One model orders all, the other none: whatever is said of a pair is wrong."""
    rng = np.random.default_rng(4)
    said = 0
    for _ in range(400):
        one = np.arange(5.0) + 0.1 * rng.normal(size=(16, 5))
        found = pair_orders(one, rng.standard_t(5, (16, 5)))
        said += found.same + found.reversed > 0
    assert said <= 33  # three standard deviations above 5%


def test_too_few_windows_count_no_pairs(model):
    rng = np.random.default_rng(5)
    few = [model(rng, np.linspace(0.7, 0.1, 7), windows=7) for _ in range(2)]
    row = rows(order_table(*few))["projections"]
    assert (row["rho_low"], row["same"]) == (None, None)


def test_intervals_of_few_units_hold_the_true_correlation():
    """Windows of other text; mirrored quantiles, which do for many units, are too narrow here."""
    rng = np.random.default_rng(6)
    held = basic = 0
    for _ in range(150):
        truth, other = rng.normal(size=(2, 7))
        lists = truth + 1.5 * rng.normal(size=(40, 7)), other + 1.5 * rng.normal(size=(30, 7))
        rho = float(spearman(truth, other))
        found = agreement(*lists, paired=False)
        held += found.rho.low <= rho <= found.rho.high
        drawn = spearman(*(drawn_means(side, 500, seed=i) for i, side in enumerate(lists)))
        least, most = np.quantile(drawn, [0.025, 0.975])
        basic += 2 * found.rho.value - most <= rho <= 2 * found.rho.value - least
    assert held >= 0.91 * 150
    assert basic < 0.85 * 150


@pytest.mark.parametrize(("blocks", "parts"), [(3, 2), (24, 10), (28, 10), (7, 7), (48, 10)])
def test_depth_is_cut_without_losing_any(blocks, parts):
    weights = depth_weights(blocks, parts)
    assert weights.sum(axis=1) == pytest.approx(np.ones(parts))
    assert weights.sum(axis=0) == pytest.approx(np.full(blocks, parts / blocks))
    centres = (np.arange(blocks) + 0.5) / blocks
    assert weights @ centres == pytest.approx((np.arange(parts) + 0.5) / parts, abs=0.5 / blocks)


def sizes(model, rng, totals, **options):
    return {
        str(i): model(rng, np.full(7, total / 7), parameters=i, **options)
        for i, total in enumerate(totals, 1)
    }


@pytest.mark.parametrize(
    ("totals", "said"),
    [
        ((0.3, 0.2, 0.1), "falls"),
        ((0.1, 0.2, 0.3), "rises"),
        ((0.1, 0.3, 0.2), "neither"),
        ((0.3, 0.2, 0.2), "open"),
    ],
)
@pytest.mark.parametrize("text", ["x", None])
def test_the_trend_with_size_is_what_its_steps_decide(model, totals, said, text):
    rng = np.random.default_rng(7)
    runs = sizes(model, rng, totals)
    if text is None:
        for i, results in enumerate(runs.values()):
            results.data["sha256"] = f"text {i}"
    table = scale_table(dict(reversed(runs.items())))
    assert list(table["smaller"]) == ["1", "2"]
    assert set(table["trend"]) == {said}
    assert set(table["paired"]) == {text is not None}
    for row, step in zip(table, np.diff(totals), strict=True):
        assert row["change"] == pytest.approx(step, abs=0.01)


def test_two_sizes_are_a_step_and_no_trend(model):
    table = scale_table(sizes(model, np.random.default_rng(8), (0.3, 0.1)))
    assert len(table) == 1
    assert table["trend"] == [None]
    assert table[0]["change_high"] < 0


def test_models_of_other_tokenizers_have_no_common_unit(model):
    runs = sizes(model, np.random.default_rng(9), (0.3, 0.2, 0.1))
    runs["2"].model["tokenizer_sha256"] = "another"
    runs["2"].data["sha256"] = "another"
    table = scale_table(runs)
    assert [(row["smaller"], row["larger"]) for row in table] == [("1", "3")]


def test_without_a_difference_a_trend_is_seldom_claimed(model):
    rng = np.random.default_rng(10)
    said = [
        scale_table(sizes(model, rng, (0.2, 0.2, 0.2), blocks=1, windows=12))[0]["trend"]
        for _ in range(200)
    ]
    assert said.count("open") >= 190


def test_a_step_that_is_not_told_from_none_decides_nothing():
    down = {"change": -1.0, "p_holm": 0.01}
    assert trend([down, {"change": -1.0, "p_holm": 0.2}]) == "open"
    assert trend([down, {"change": -1.0, "p_holm": None}]) == "open"
    assert trend([down, down]) == "falls"
