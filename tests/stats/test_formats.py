"""Formats against each other: paired differences of baselines."""

import numpy as np
import pytest
from scipy import stats as scipy_stats

from asking import REFERENCE, all_quantized, asked
from fp4scope.stats import format_table, operand_table


def test_every_format_against_the_cheapest_and_the_cheapest_of_its_rules(observe, results):
    text = np.random.default_rng(0).normal(3, 1, 12)
    flips = np.array([1, -1] * 6)
    costs = {"mxfp4:floor": 0.5, "mxfp4:rceil": 0.3, "mxfp4:even": 0.4, "nvfp4": 0.1}
    found = [observe(REFERENCE, text)]
    for precision in ("W4A4", "W4A16"):
        for fmt, cost in costs.items():
            spread = 0.01 * flips if fmt == "mxfp4:floor" else 0
            found.append(observe(all_quantized(fmt, precision), text + cost + spread))
    table = format_table(results(*found))
    compared = [(r["format"], r["against"]) for r in table.where(precision="W4A16")]
    assert compared == [
        ("mxfp4:floor", "nvfp4"), ("mxfp4:rceil", "nvfp4"), ("mxfp4:even", "nvfp4"),
        ("mxfp4:floor", "mxfp4:rceil"), ("mxfp4:even", "mxfp4:rceil"),
    ]  # fmt: skip
    for row in table:
        gap = costs[row["format"]] - costs[row["against"]]
        assert row["delta_nll"] == pytest.approx(gap)
        assert row["rules"] == (row["against"] == "mxfp4:rceil")
        assert row["windows"] == 12
        # t(11) at 5% over six pairs, of 12 values 0.01 above and below their mean.
        half = (
            scipy_stats.t.ppf(1 - 0.05 / 12, 11) * 0.01 / 11**0.5
            if row["format"] == "mxfp4:floor"
            else 0
        )
        assert row["delta_nll_high"] - gap == pytest.approx(half, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("anytime", [False, True])
def test_of_formats_that_cost_the_same_none_seems_dearer_than_the_cheapest(
    anytime, observe, results
):
    """In 95 of 100 studies, though the cheapest is chosen from the same data."""
    rng = np.random.default_rng(1)
    names = ["mxfp8:e4m3:floor", "mxfp6:e2m3:floor", "mxint8", "nvfp4", "nvint4"]
    studies, wrong, plain = 200, 0, 0
    for _ in range(studies):
        costs = rng.normal(0.3, 0.05, (len(names), 24))
        found = [
            observe(all_quantized(name, "W4A16"), 3 + cost)
            for name, cost in zip(names, costs, strict=True)
        ]
        table = format_table(results(*found, protocol={"stopping": {"anytime": anytime}}))
        wrong += any(row["delta_nll_low"] > 0 for row in table)
        gaps = costs - costs[np.argmin(costs.mean(axis=1))]
        plain += np.nanmin(scipy_stats.ttest_1samp(gaps, 0, axis=1).pvalue) < 0.05
    assert plain > 0.15 * studies
    assert wrong <= 0.05 * studies + 3 * (0.05 * 0.95 * studies) ** 0.5


def test_swept_formats_are_compared_with_each_other_too(observe, results):
    text = np.arange(9.0)
    found = [observe(REFERENCE, text)]
    for fmt, cost in {"mxfp4:floor": 0.5, "nvfp4": 0.2, "nvfp4:4over6": 0.1}.items():
        found.append(observe(all_quantized(fmt, "W4A16"), text + cost))
    names = {"precision": "W4A16", "direction": "only", "level": "projections", "unit": "q_proj"}
    for fmt in ("mxfp4:floor", "nvfp4"):
        found.append(observe(asked(format=fmt, **names), text + 0.05))
    assert [(r["format"], r["against"]) for r in format_table(results(*found))] == [
        ("mxfp4:floor", "nvfp4:4over6"), ("nvfp4", "nvfp4:4over6"), ("mxfp4:floor", "nvfp4"),
    ]  # fmt: skip


def test_one_format_has_none_to_compare_with(observe, results):
    text = np.ones(9)
    assert not format_table(
        results(observe(REFERENCE, text), observe(all_quantized("nvfp4", "W4A16"), text))
    )


def test_what_activations_add_to_weights_alone(observe, results):
    text = np.random.default_rng(0).normal(3, 1, 12)
    flips = 0.01 * np.array([1, -1] * 6)
    costs = {"W4A4": 0.5, "W4A16": 0.2, "W16A4": 0.35}
    found = [observe(REFERENCE, text)]
    for precision, cost in costs.items():
        spread = flips if precision == "W4A16" else 0
        found.append(observe(all_quantized("mxfp4:floor", precision), text + cost + spread))
    found.append(observe(all_quantized("nvfp4", "W4A16"), text + 0.1))
    table = operand_table(results(*found))
    assert [(r["format"], r["precision"], r["against"]) for r in table] == [
        ("mxfp4:floor", "W4A4", "W4A16"),
        ("mxfp4:floor", "W4A4", "W16A4"),
    ]
    weights, activations = table
    assert weights["delta_nll"] == pytest.approx(0.3)
    assert weights["delta_nll_low"] == pytest.approx(0.3 - 2.201 * 0.01 / 11**0.5, abs=1e-5)
    assert activations["delta_nll"] == pytest.approx(0.15)
    assert {row["windows"] for row in table} == {12}
