"""Tables: which variant is compared with which, and the sign of every difference."""

import math

import pytest

from fp4scope.records import REFERENCE, ActivationRecord, Observation, Results, Variant, baseline
from fp4scope.stats import (
    activation_table,
    baseline_table,
    component_activation_table,
    unit_table,
)

BOTH = "weights+activations"
TOKENS = 10


def observe(variant, per_token_nll, kl=0.0, windows=None):
    observation = Observation(variant=variant)
    for i, nll in enumerate(per_token_nll):
        window = i if windows is None else windows[i]
        observation.add(window, tokens=TOKENS, nll=nll * TOKENS, kl=kl * TOKENS, top1=7)
    return observation


def results(*observations):
    return Results(
        study={},
        model={},
        data={},
        protocol={},
        environment={},
        observations={o.variant.key: o for o in observations},
    )


def unit(direction, level="components", name="q_proj", block=None):
    return Variant(
        format="nvfp4", operands=BOTH, direction=direction, level=level, unit=name, block=block
    )


@pytest.fixture
def study():
    return results(
        observe(REFERENCE, [2.0, 3.0, 4.0]),
        observe(baseline("nvfp4", BOTH), [2.5, 3.6, 4.4], kl=0.4),
        observe(unit("restore"), [2.4, 3.5, 4.1]),
        observe(unit("isolate"), [2.1, 3.0, 4.2]),
        observe(unit("restore", "cells", "q_proj", 3), [2.6, 3.7, 4.5]),
    )


def test_the_baseline_is_compared_with_the_reference(study):
    reference, base = baseline_table(study)
    assert (reference["format"], reference["delta_nll"]) == ("reference", None)
    assert reference["ppl"] == pytest.approx(math.exp(3.0))
    assert base["delta_nll"] == pytest.approx(0.5)
    assert base["delta_nll_low"] < 0.5 < base["delta_nll_high"]
    assert base["kl"] == pytest.approx(0.4)
    assert (base["windows"], base["tokens"], base["top1"]) == (3, 30, 0.7)


def test_restore_is_baseline_minus_variant_and_isolate_variant_minus_reference(study):
    restore, isolate = unit_table(study, "components")
    assert restore["direction"] == "restore"
    assert restore["delta_nll"] == pytest.approx((0.1 + 0.1 + 0.3) / 3)
    assert restore["delta_ppl"] == pytest.approx(math.exp(3.5) - math.exp(10 / 3))
    assert isolate["delta_nll"] == pytest.approx((0.1 + 0.0 + 0.2) / 3)


def test_a_cell_that_does_better_quantized_is_negative(study):
    (cell,) = unit_table(study, "cells")
    assert (cell["component"], cell["block"]) == ("q_proj", 3)
    assert cell["delta_nll"] == pytest.approx(-0.1)
    assert cell["delta_nll_high"] < 0


def test_differences_pair_only_the_windows_that_both_have_seen():
    study = results(
        observe(REFERENCE, [1.0, 2.0, 3.0]),
        observe(unit("isolate"), [3.5, 1.5], windows=[2, 0]),
    )
    (row,) = unit_table(study, "components")
    assert row["delta_nll"] == pytest.approx(0.5)
    assert row["delta_nll_stderr"] == pytest.approx(0.0, abs=1e-12)
    assert row["windows"] == 2


def test_nothing_to_compare_with_leaves_the_difference_empty():
    (row,) = unit_table(results(observe(unit("restore"), [1.0, 2.0])), "components")
    assert row["delta_nll"] is None
    assert row["delta_nll_low"] is None


def test_columns_are_those_the_readme_promises(study):
    columns = (
        "format,operands,ppl,nll,nll_stderr,delta_nll,delta_nll_stderr,delta_nll_low,"
        "delta_nll_high,kl,kl_stderr,top1,windows,tokens"
    )
    assert ",".join(baseline_table(study).columns) == columns
    assert unit_table(study, "components").columns[:4] == (
        "format",
        "direction",
        "component",
        "operands",
    )
    assert unit_table(study, "cells").columns[:4] == ("format", "direction", "component", "block")


def test_the_component_ratio_is_the_mean_of_the_ratios():
    records = [
        ActivationRecord(block=0, component="a", max=10.0, p999=1.0, ratio=10.0, elements=5),
        ActivationRecord(block=1, component="a", max=30.0, p999=15.0, ratio=2.0, elements=5),
        ActivationRecord(block=0, component="b", max=100.0, p999=1.0, ratio=100.0, elements=5),
    ]
    first, second = component_activation_table(records)
    assert first["component"] == "b"
    assert second == {
        "component": "a",
        "max": 20,
        "p999": 8,
        "ratio": 6,
        "ratio_max": 10,
        "blocks": 2,
    }
    assert activation_table(records).columns == ("block", "component", "max", "p999", "ratio")
