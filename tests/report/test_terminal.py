"""The tables on the terminal."""

import io
from dataclasses import replace

from rich.console import Console

from fp4scope.cli.tables import baselines, component_tables
from fp4scope.report import Diagnosis

BOTH = "weights+activations"


def printed(groups, width=80):
    out = Console(file=io.StringIO(), width=width)
    for group in groups:
        out.print(group)
    return out.file.getvalue().splitlines()


def test_one_choice_of_operands_is_one_table_that_fits(known):
    lines = printed(baselines(known()))
    assert lines[0] == "What each format costs"
    assert [line.split()[0] for line in lines[1:]] == [
        "format",
        "reference",
        "mxfp4:floor",
        "nvfp4",
    ]
    assert "+120.0 [+120.0, +120.0]" in lines[3]


def test_a_table_for_each_choice_of_operands(known):
    results = known().results
    for observation in list(results.observations.values()):
        variant = observation.variant
        if variant.direction == "baseline" and variant.format == "nvfp4":
            twin = replace(variant, operands="weights")
            results.observations[twin.key] = replace(observation, variant=twin)
    lines = printed(baselines(Diagnosis(results)))
    titles = [f"What each format costs, {operands}" for operands in (BOTH, "weights")]
    assert [line for line in lines if line.startswith("What")] == titles
    second = lines[lines.index(titles[1]) + 2 :]
    assert [line.split()[0] for line in second] == ["reference", "nvfp4"]


def test_components_stand_in_the_order_of_their_mean_cost(known):
    lines = printed(component_tables(known()))
    rows = [line.split()[0] for line in lines if "_proj" in line]
    assert rows == ["down_proj", "q_proj"] * 2
