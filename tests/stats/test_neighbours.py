"""Whether neighbouring windows are alike."""

import numpy as np
import pytest

from fp4scope.records import REFERENCE, Observation, Results, Variant
from fp4scope.stats import neighbour_correlation

UNIT = Variant(format="nvfp4", operands="w", direction="isolate", level="components", unit="q")


def results(windows, **by_variant):
    observations = {}
    for variant, values in ((REFERENCE, by_variant["reference"]), (UNIT, by_variant.get("unit"))):
        if values is None:
            continue
        observation = Observation(variant=variant)
        for window, value in zip(windows, values, strict=True):
            observation.add(int(window), 0, tokens=1, nll=float(value), kl=0.0, top1=0)
        observations[variant.key] = observation
    return Results(
        study={}, model={}, data={}, protocol={}, environment={}, observations=observations
    )


def test_what_neighbours_share_is_found_in_any_order_of_measuring(alike):
    rng = np.random.default_rng(0)
    nll = alike(rng, 4000, share=0.6)
    effect = rng.normal(0, 0.1, 4000)
    order = rng.permutation(4000)
    found = neighbour_correlation(results(order, reference=nll[order], unit=(nll + effect)[order]))
    assert found.pairs == 3999
    assert found.nll == pytest.approx(0.6, abs=0.05)
    assert found.difference == pytest.approx(0.0, abs=0.05)
    assert found.large == found.difference  # the one unit is a component


def test_costs_that_neighbours_share_are_found_and_what_they_do_to_an_interval(alike):
    rng = np.random.default_rng(0)
    cost = alike(rng, 4000, share=0.5)
    text = rng.normal(size=4000)
    found = neighbour_correlation(results(range(4000), reference=text, unit=text + cost))
    assert found.large == pytest.approx(0.5, abs=0.05)
    assert found.widened == pytest.approx(3**0.5, rel=0.1)


def test_only_neighbours_in_the_text_are_pairs():
    # Alternating windows 0, 1, 3, 4, 6, 7: opposite inside a pair, the same across the gap.
    windows = [3 * i + j for i in range(20) for j in (0, 1)]
    found = neighbour_correlation(results(windows, reference=[1.0, -1.0] * 20))
    assert found.pairs == 20
    assert found.nll == pytest.approx(-1.0)
    assert found.difference is None


@pytest.mark.parametrize(("windows", "pairs"), [(8, None), (9, 8)])
def test_a_few_pairs_say_nothing(windows, pairs):
    found = neighbour_correlation(results(range(windows), reference=np.arange(float(windows))))
    assert (found and found.pairs) == pairs


def test_without_a_reference_there_is_none():
    study = results(range(20), reference=range(20))
    study.observations.clear()
    assert neighbour_correlation(study) is None


def test_pairing_takes_out_what_neighbours_share_in_the_recorded_study(study):
    found = neighbour_correlation(study)
    assert found.pairs == 44
    assert found.nll > 0.6
    assert abs(found.difference) < 0.15
