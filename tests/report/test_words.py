"""Numbers as the report shows them."""

# ruff: noqa: RUF001 (a minus sign is meant)

import io
import re
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from fp4scope.cli.tables import unit_tables
from fp4scope.records import REFERENCE, baseline
from fp4scope.report import Diagnosis
from fp4scope.report.words import headlines, neighbour_line, number, sums

BOTH = "weights+activations"
FORMATS = ["mxfp4:floor", "nvfp4"]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, ""),
        (0.0, "0"),
        (3e-6, "<0.00001"),
        (-3e-6, "−<0.00001"),
        (1e-5, "0.00001"),
        (0.000123, "0.00012"),
        (0.0123, "0.012"),
        (0.5, "0.500"),
        (9.9996, "10.00"),
        (99.94, "99.94"),
        (99.996, "100.0"),
        (999.96, "1000"),
        (12345.6, "12346"),
        (7777777.0, "7777777"),
        (-99.996, "−100.0"),
    ],
)
def test_significant_digits(value, shown):
    assert number(value) == shown


def test_a_sign_where_it_is_wanted():
    shown = [number(x, sign=True) for x in (2.0, -2.0, 3e-6, -0.0)]
    assert shown == ["+2.00", "−2.00", "0", "0"]


def test_a_given_number_of_digits():
    shown = [number(x, digits=2) for x in (0.126, -0.126, -0.001, None)]
    assert shown == ["0.13", "−0.13", "0.00", ""]


def test_one_minus_sign_in_all_that_is_shown(known):
    """U+2212, in the terminal's tables, the page's, the Markdown and the notebook alike."""
    results = known().results
    for observation in results.observations.values():
        if observation.variant.unit == "q_proj":
            observation.nll = [nll + 0.3 for nll in observation.nll]  # restoring it now harms
    diagnosis = Diagnosis(results)
    terminal = io.StringIO()
    console = Console(file=terminal, width=200)
    for table in unit_tables(diagnosis):
        console.print(table)
    page = re.sub(r"<(style|script).*?</\1>|<[^>]*>", " ", diagnosis.html(), flags=re.DOTALL)
    texts = [terminal.getvalue(), page, diagnosis.report(), diagnosis._repr_html_()]
    for text in texts:
        assert "−" in text
        assert not re.search(r"(?<![\w.-])-\d", text)


@pytest.fixture
def baselines(observe, known):
    """`baselines({(format, operands): millinats})`: a study with these costs besides its own."""

    def build(costs):
        results = known().results
        text = np.array(results.observations[REFERENCE.key].nll) / 10  # ten tokens a window
        rounds = np.array([0.001, -0.001] * (len(text) // 2))
        for (fmt, operands), cost in costs.items():
            found = observe(baseline(fmt, operands), text + cost / 1000 + rounds)
            results.observations[found.variant.key] = found
        return Diagnosis(results)

    return build


def test_only_what_was_swept_has_a_headline_and_a_cheaper_rule_is_named(baselines):
    costs = {("mxfp4:even", BOTH): 80, ("mxfp4:rceil", BOTH): 150, ("nvfp4", "weights"): 50}
    lines = headlines(baselines(costs))
    assert [line.split(" costs")[0] for line in lines if " costs " in line] == FORMATS
    assert [line.split(" [")[0] for line in lines if "rule" in line] == [
        "mxfp4:even, another scale rule, is cheaper than mxfp4:floor by +40.00"
    ]
    (line,) = [line for line in lines if "weights" in line]
    assert line.startswith("Under nvfp4, weights alone cost +50.00 [")
    assert "millinats; quantizing activations too adds +" in line


def test_operands_are_named_where_units_were_measured_under_several(baselines):
    results = baselines({("nvfp4", "weights"): 50}).results
    for observation in list(results.observations.values()):
        if (observation.variant.format, observation.variant.level) == ("nvfp4", "components"):
            variant = replace(observation.variant, operands="weights")
            results.observations[variant.key] = replace(observation, variant=variant)
    lines = headlines(Diagnosis(results))
    for operands in (BOTH, "weights"):
        assert any(line.startswith(f"nvfp4 ({operands}) costs") for line in lines)


def test_where_nothing_was_swept_every_baseline_has_a_headline(observe, results):
    text = np.array([2.0, 3.0] * 4)
    rest = [observe(baseline(fmt, BOTH), text + 0.1) for fmt in ("nvfp4", "mxfp4:floor")]
    lines = headlines(Diagnosis(results(observe(REFERENCE, text), *rest)))
    assert [line.split()[0] for line in lines] == ["nvfp4", "mxfp4:floor"]


def test_components_beside_what_all_cost(known):
    (line,) = sums(known())
    # Restored or alone both components cost five millinats under MXFP4.
    assert (
        "under mxfp4:floor (weights+activations), where all together cost 120.0 millinats" in line
    )
    assert "restored they save 10.0" in line
    assert "alone they cost 10.0" in line


@pytest.mark.parametrize("shared", [True, False])
def test_the_reader_learns_what_neighbours_that_share_a_cost_do(shared, observe, results):
    rng = np.random.default_rng(0)
    text, cost = rng.normal(3, 1, 400), rng.normal(size=400)
    if shared:
        cost = np.convolve(cost, np.ones(4), "same")
    study = results(observe(REFERENCE, text), observe(baseline("nvfp4", BOTH), text + 0.1 * cost))
    line = neighbour_line(study)
    assert line.startswith("Neighbouring windows correlate at ")
    assert ("times as wide" in line) == shared
    assert "over 399 pairs" in line
