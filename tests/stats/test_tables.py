"""Tables: which variant is compared with which, and the sign of every difference."""

import math

import numpy as np
import pytest

from asking import REFERENCE, Observed, all_quantized, asked, entries, rebuilt
from fp4scope.ledger import ActivationRecord, Rows, results_from_json, results_to_json
from fp4scope.stats import (
    MIN_WINDOWS,
    activation_table,
    all_quantized_table,
    holm,
    projection_activation_table,
    significant,
    undecided,
    unit_table,
)


def unit(direction, level="projections", name="q_proj", block=None):
    block = 0 if block is None and level == "layers" else block
    return asked(format="nvfp4", direction=direction, level=level, unit=name, block=block)


@pytest.fixture
def study(observe, results):
    return results(
        observe(REFERENCE, [2.0, 3.0, 4.0] * 3),
        observe(all_quantized("nvfp4"), [2.5, 3.6, 4.4] * 3, kl=0.4),
        observe(unit("keep"), [2.4, 3.5, 4.1] * 3),
        observe(unit("only"), [2.1, 3.0, 4.2] * 3),
        observe(unit("keep", "layers", "q_proj", 3), [2.6, 3.7, 4.5] * 3),
    )


def test_the_all_quantized_is_compared_with_the_reference(study):
    reference, base = all_quantized_table(study)
    assert (reference["format"], reference["delta_nll"]) == ("full precision", None)
    assert reference["ppl"] == pytest.approx(math.exp(3.0))
    assert base["delta_nll"] == pytest.approx(0.5)
    assert base["delta_nll_low"] < 0.5 < base["delta_nll_high"]
    assert base["kl"] == pytest.approx(0.4)
    assert (base["windows"], base["tokens"], base["top1"]) == (9, 90, 0.7)


def test_restore_is_all_quantized_minus_variant_and_isolate_variant_minus_reference(study):
    restore, isolate = unit_table(study, "projections")
    assert restore["direction"] == "keep"
    assert restore["delta_nll"] == pytest.approx((0.1 + 0.1 + 0.3) / 3)
    assert restore["delta_ppl"] == pytest.approx(math.exp(3.5) - math.exp(10 / 3))
    assert isolate["delta_nll"] == pytest.approx((0.1 + 0.0 + 0.2) / 3)


def test_a_layer_that_does_better_quantized_is_negative(study):
    (layer,) = unit_table(study, "layers")
    assert (layer["projection"], layer["block"]) == ("q_proj", 3)
    assert layer["delta_nll"] == pytest.approx(-0.1)
    assert layer["delta_nll_high"] < 0


def test_differences_pair_only_the_windows_that_both_have_seen(observe, results):
    study = results(
        observe(REFERENCE, [1.0, 2.0, 3.0]),
        observe(unit("only"), [3.5, 1.5], windows=[2, 0]),
    )
    (row,) = unit_table(study, "projections")
    assert row["delta_nll"] == pytest.approx(0.5)
    assert row["delta_nll_stderr"] == pytest.approx(0.0, abs=1e-12)
    assert row["windows"] == 2


def test_nothing_to_compare_with_leaves_the_difference_empty(observe, results):
    (row,) = unit_table(results(observe(unit("keep"), [1.0, 2.0])), "projections")
    assert row["delta_nll"] is None
    assert row["delta_nll_low"] is None


def test_columns_are_those_the_readme_promises(study):
    columns = (
        "format,precision,ppl,nll,nll_stderr,delta_nll,delta_nll_stderr,delta_nll_low,"
        "delta_nll_high,kl,kl_stderr,top1,windows,tokens,noise_nll,noise_kl"
    )
    assert ",".join(all_quantized_table(study).columns) == columns
    columns = (
        "format,direction,projection,precision,ppl,nll,nll_stderr,delta_nll,delta_nll_stderr,"
        "delta_nll_low,delta_nll_high,delta_ppl,delta_ppl_low,delta_ppl_high,delta_kl,"
        "delta_kl_stderr,delta_kl_low,delta_kl_high,p,p_holm,p_kl,p_holm_kl,tier,p_top,p_top_kl,"
        "kl,kl_stderr,top1,windows,tokens,gradient_nll,gradient_nll_stderr,gradient_nll_low,"
        "gradient_nll_high,bytes_kept,bits_kept,nll_per_mb"
    )
    assert ",".join(unit_table(study, "projections").columns) == columns
    names = {"blocks": "block", "patterns": "pattern"}
    for level, name in names.items():
        expected = columns.replace("projection", name)
        assert ",".join(unit_table(study, level).columns) == expected
    layers = columns.replace("projection", "projection,block").replace(",tier", "")
    assert ",".join(unit_table(study, "layers").columns) == layers


@pytest.fixture
def costly(observe):
    """Units that cost 1, 2, ... millinats, in windows that differ by far more."""

    def build(direction, fmt="nvfp4", level="projections", count=4, windows=12):
        rng = np.random.default_rng(0)
        base = rng.normal(3, 1, windows)
        for i in range(count):
            cost = rng.normal(1e-3 * (i + 1), 1e-4, windows)
            one = unit(direction, level, f"u{i}").but(format=fmt)
            yield observe(one, base - cost if direction == "keep" else base + cost)

    return build


@pytest.fixture
def controls(observe):
    def build(*formats, windows=12):
        base = np.random.default_rng(0).normal(3, 1, windows)
        whole = [REFERENCE, *(all_quantized(f) for f in formats)]
        return [observe(one, base) for one in whole]

    return build


@pytest.mark.parametrize("direction", ["keep", "only"])
def test_a_family_is_one_format_and_direction(direction, results, costly, controls):
    other = "only" if direction == "keep" else "keep"
    alone = unit_table(results(*controls("nvfp4"), *costly(direction)), "projections")
    crowd = unit_table(
        results(
            *controls("nvfp4", "mxfp4:floor"),
            *costly(other),
            *costly(direction, count=3, fmt="mxfp4:floor"),
            *costly(direction, level="patterns"),
            *costly(direction),
        ),
        "projections",
    )
    assert list(crowd.where(format="nvfp4", direction=direction)) == list(alone)
    assert alone["tier"] == ["d", "c", "b", "a"]
    assert alone["p_top"] == [0.0, 0.0, 1.0, 1.0]
    assert alone["p_holm"] == holm(alone["p"])
    assert all(significant(row) and not undecided(row) for row in alone)


@pytest.mark.parametrize("direction", ["keep", "only"])
@pytest.mark.parametrize("level", ["projections", "layers"])
def test_kl_is_tested_like_nll(direction, level, observe, results, newey_west):
    rng = np.random.default_rng(1)
    base, loss = np.abs(rng.normal(0.4, 0.1, 12)), rng.normal(3, 1, 12)
    moved = rng.normal([0.001, 0.0, 0.05], 0.004, (12, 3)).T
    sign = -1 if direction == "keep" else 1
    units = [unit(direction, level, f"u{i}") for i in range(3)]
    found = unit_table(
        results(
            observe(REFERENCE, loss),
            observe(all_quantized("nvfp4"), loss, kl=base),
            *(
                observe(u, loss, kl=(base if direction == "keep" else 0) + sign * m)
                for u, m in zip(units, moved, strict=True)
            ),
        ),
        level,
    )
    for row, m in zip(found, moved, strict=True):
        stderr, p = newey_west(m)
        assert row["delta_kl"] == pytest.approx(m.mean())
        assert (row["delta_kl_stderr"], row["p_kl"]) == pytest.approx((stderr, p))
        assert row["delta_kl_low"] < row["delta_kl"] < row["delta_kl_high"]
    assert found["p_holm_kl"] == holm(found["p_kl"])
    assert found["p_holm"] == [1.0] * 3  # the loss says nothing
    few = results(*(observe(u, loss[:7]) for u in (REFERENCE, all_quantized("nvfp4"), *units)))
    for row in unit_table(few, level):
        assert [row[name] for name in ("p_kl", "p_holm_kl", "p_top_kl", "delta_kl_low")] == [
            None
        ] * 4


def test_the_most_costly_by_kl_may_be_others_than_by_nll(observe, results):
    rng = np.random.default_rng(2)
    shown = [
        observe(
            unit("only", name=f"u{i}"),
            rng.normal(3 + 0.1 * i, 1e-3, 12),
            kl=rng.normal(1 - 0.1 * i, 1e-3, 12),
        )
        for i in range(4)
    ]
    found = unit_table(results(observe(REFERENCE, [3.0] * 12), *shown), "projections")
    assert found["p_top"] == [0.0, 0.0, 1.0, 1.0]
    assert found["p_top_kl"] == [1.0, 1.0, 0.0, 0.0]


def test_patterns_have_a_top_of_one_and_layers_no_tier(results, costly, controls):
    study = results(
        *controls("nvfp4"), *costly("only", level="patterns"), *costly("only", level="layers")
    )
    assert unit_table(study, "patterns")["p_top"] == [0.0, 0.0, 0.0, 1.0]
    assert unit_table(study, "patterns")["tier"] == ["d", "c", "b", "a"]
    assert unit_table(study, "layers")["p_top"] == [1.0] * 4
    assert "tier" not in unit_table(study, "layers").columns


def test_below_min_windows_there_is_a_standard_error_only(results, costly, controls):
    windows = MIN_WINDOWS - 1
    study = results(*controls("nvfp4", windows=windows), *costly("only", windows=windows))
    for row in unit_table(study, "projections"):
        assert row["delta_nll_stderr"] > 0
        empty = ("delta_nll_low", "delta_ppl_high", "p", "p_holm", "tier", "p_top")
        assert [row[column] for column in empty] == [None] * 6
        assert not significant(row)


def test_families_are_compared_over_the_windows_that_all_have(observe, results, costly, controls):
    units = list(costly("only"))
    short, *trimmed = (unit.without(range(3)) for unit in (units[0], *units))
    ragged = unit_table(results(*controls("nvfp4"), short, *units[1:]), "projections")
    even = unit_table(results(*controls("nvfp4"), *trimmed), "projections")
    assert ragged["tier"] == even["tier"]
    assert ragged["p_top"] == even["p_top"]
    assert ragged["windows"] == [9, 12, 12, 12]  # a row's own difference keeps all it has
    assert ragged["p"][1] != even["p"][1]


def test_tables_do_not_depend_on_the_order_of_measuring(study, results):
    from_file = results_from_json(results_to_json(study))
    for level in ("projections", "layers"):
        assert list(unit_table(from_file, level)) == list(unit_table(study, level))
    shuffled = rebuilt(study, [turned(one) for one in entries(study)])
    for level in ("projections", "layers"):
        assert list(unit_table(shuffled, level)) == list(unit_table(study, level))


def turned(one):
    rows = one.rows
    values = {name: column[::-1] for name, column in rows.values.items()}
    return Observed(
        one.asked, Rows(rows.indices[::-1], rows.replicas[::-1], rows.tokens[::-1], values)
    )


def test_the_projection_ratio_is_the_mean_of_the_ratios():
    records = [
        ActivationRecord(block=0, projection="a", max=10.0, p999=1.0, ratio=10.0, elements=5),
        ActivationRecord(block=1, projection="a", max=30.0, p999=15.0, ratio=2.0, elements=5),
        ActivationRecord(block=0, projection="b", max=100.0, p999=1.0, ratio=100.0, elements=5),
    ]
    first, second = projection_activation_table(records)
    assert first["projection"] == "b"
    assert second == {
        "projection": "a",
        "max": 20,
        "p999": 8,
        "ratio": 6,
        "ratio_max": 10,
        "blocks": 2,
    }
    assert activation_table(records).columns == ("block", "projection", "max", "p999", "ratio")
