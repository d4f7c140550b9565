"""Numbers as the report shows them."""

# ruff: noqa: RUF001 (a minus sign is meant)

import io
import re

import numpy as np
import pytest
from rich.console import Console

from asking import BOTH, REFERENCE, all_quantized, asked, entries, entry, rebuilt
from fp4scope.cli.app import app
from fp4scope.cli.tables import main_tables
from fp4scope.cli.terminal import in_grid
from fp4scope.diagnosis import Diagnosis
from fp4scope.report.numbers import number
from fp4scope.report.selection import swept
from fp4scope.report.sentences import headlines, neighbour_line, next_step, sums, then_step

FORMATS = ["mxfp4:floor", "nvfp4"]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, ""),
        (0.0, "0"),
        (3e-6, "<0.00001"),
        (-3e-6, "<0.00001"),
        (1e-5, "0.000010"),
        (0.06, "0.060"),
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
    found = entries(results)
    for one in found:
        if one.asked.unit == "q_proj":
            one.nll = [nll + 0.3 for nll in one.nll]  # keeping it now harms
    diagnosis = Diagnosis(rebuilt(results, found))
    terminal = io.StringIO()
    console = Console(file=terminal, width=200)
    for section in main_tables(diagnosis):
        console.print(in_grid(section))
    tags = re.compile(r"<(style|script).*?</\1>|<[^>]*>", re.DOTALL)
    texts = [terminal.getvalue(), diagnosis.report()]
    for text in [*texts, *(tags.sub(" ", t) for t in (diagnosis.html(), diagnosis._repr_html_()))]:
        assert "−" in text
        assert not re.search(r"(?<![\w.-])-\d", text)


@pytest.fixture
def baselines(observe, known):
    """`baselines({(format, precision): millinats})`: a study with these costs besides its own."""

    def build(costs):
        results = known().results
        found = entries(results)
        text = np.array(found[0].plain.nll) / 10  # ten tokens a window
        rounds = np.array([0.001, -0.001] * (len(text) // 2))
        found += [
            observe(all_quantized(fmt, precision), text + cost / 1000 + rounds)
            for (fmt, precision), cost in costs.items()
        ]
        return Diagnosis(rebuilt(results, found))

    return build


def test_only_what_was_swept_has_a_headline_and_a_cheaper_rule_is_named(baselines):
    costs = {("mxfp4:even", BOTH): 80, ("mxfp4:rceil", BOTH): 150, ("nvfp4", "W4A16"): 50}
    lines = headlines(baselines(costs))
    assert [line.split(" costs")[0] for line in lines if " costs " in line] == FORMATS
    assert [line.split(" [")[0] for line in lines if "rule" in line] == [
        "mxfp4:even, another scale rule, is cheaper than mxfp4:floor by +40.00"
    ]
    (line,) = [line for line in lines if "weights alone" in line]
    assert line.startswith("Under nvfp4, weights alone cost +50.00 [")
    assert "millinats; quantizing activations too adds +" in line


def test_operands_are_named_where_units_were_measured_under_several(baselines):
    results = baselines({("nvfp4", "W4A16"): 50}).results
    found = entries(results)
    found += [
        one.but(precision="W4A16")
        for one in found
        if (one.asked.format, one.asked.level) == ("nvfp4", "projections")
    ]
    lines = headlines(Diagnosis(rebuilt(results, found)))
    for bits in ("W4A4", "W4A16"):
        assert any(line.startswith(f"nvfp4 ({bits}) costs") for line in lines)


def test_where_nothing_was_swept_every_all_quantized_has_a_headline(observe, results):
    text = np.array([2.0, 3.0] * 4)
    rest = [observe(all_quantized(fmt), text + 0.1) for fmt in ("nvfp4", "mxfp4:floor")]
    lines = headlines(Diagnosis(results(observe(REFERENCE, text), *rest)))
    assert [line.split()[0] for line in lines] == ["nvfp4", "mxfp4:floor"]


def test_formats_of_which_only_experts_were_measured_are_swept(observe, results):
    text = np.array([2.0, 3.0] * 4)
    rest = [observe(all_quantized(fmt), text + 0.1) for fmt in ("nvfp4", "mxfp4:floor")]
    one = asked(format="nvfp4", direction="only", level="experts", unit="mlp.experts.0", block=0)
    found = results(observe(REFERENCE, text), *rest, observe(one, text + 0.05))
    assert [row["format"] for row in swept(Diagnosis(found))] == ["nvfp4"]


def test_projections_beside_what_all_cost(known):
    (line,) = sums(known())
    # Kept or quantized alone both projections cost five millinats under MXFP4.
    assert "under mxfp4:floor (W4A4), where all together cost 120.0 millinats" in line
    assert "keeping each saves 10.0" in line
    assert "quantizing only each costs 10.0" in line


@pytest.mark.parametrize("shared", [True, False])
def test_the_reader_learns_what_neighbours_that_share_a_cost_do(shared, observe, results):
    rng = np.random.default_rng(0)
    text, cost = rng.normal(3, 1, 400), rng.normal(size=400)
    if shared:
        cost = np.convolve(cost, np.ones(4), "same")
    study = results(observe(REFERENCE, text), observe(all_quantized("nvfp4"), text + 0.1 * cost))
    line = neighbour_line(study)
    assert line.startswith("Neighbouring windows correlate at ")
    assert ("times as wide" in line) == shared
    assert "over 399 pairs" in line


def noisy(known, millinats):
    """Every unit's NLL moved by much more than it costs, so that nothing is significant."""
    results = known().results
    rng = np.random.default_rng(1)
    found = entries(results)
    for one in found:
        if not one.asked.is_whole:
            one.nll = [n + 0.01 * millinats * rng.normal() for n in one.nll]
    return Diagnosis(rebuilt(results, found))


def test_where_nothing_is_significant_nothing_is_singled_out(known):
    diagnosis = noisy(known, 60)
    rows = diagnosis.projections.where(direction="keep", format="nvfp4").rows
    half = np.median([500 * (r["delta_nll_high"] - r["delta_nll_low"]) for r in rows])
    (line,) = [line for line in headlines(diagnosis) if "singled out" in line and "nvfp4" in line]
    start = f"Under nvfp4, no projection can be singled out: ±{number(half)} millinats on 8 windows"
    assert line.startswith(start)
    # A t interval's half-width falls with the root of the windows, and t from 2.36 to 1.96.
    needed = int(re.search(r"about ([\d,]+) would give ±5 ", line)[1].replace(",", ""))
    assert needed == pytest.approx(8 * (half / 5 * 1.96 / 2.365) ** 2, rel=0.06)
    assert line.endswith("(this text has 8).")
    assert not any("saves most" in line for line in headlines(diagnosis))
    assert line in diagnosis.report()
    assert line in diagnosis.html()


def test_units_that_change_nothing_at_all_are_known_exactly(known):
    results = known().results
    found = entries(results)
    for one in found:
        if one.asked.level == "projections":
            kept = one.asked.direction == "keep"
            same = entry(results, all_quantized(one.asked.format) if kept else REFERENCE)
            one.nll = same.plain.nll
    results = rebuilt(results, found)
    lines = [line for line in headlines(Diagnosis(results)) if "singled out" in line]
    assert len(lines) == 2
    assert all(
        line.endswith("no projection can be singled out: ±0 millinats on 8 windows.")
        for line in lines
    )


def test_too_few_windows_single_nothing_out(known):
    results = known().results
    results = rebuilt(results, (one.without(range(3, 8)) for one in entries(results)))
    found = [line for line in headlines(Diagnosis(results)) if "singled out" in line]
    assert len(found) == 2
    assert all(line.endswith("3 windows are too few for intervals (8 or more).") for line in found)


def test_what_saves_most_is_named_with_what_does_not_differ_from_it(known):
    lines = [line for line in headlines(known()) if "saves most" in line]
    assert "keeping down_proj" in lines[0]
    assert "(not significantly more than q_proj)" in lines[0]
    assert lines[1].endswith("; not significant: q_proj.")


def test_the_next_step(known, tmp_path):
    def step(diagnosis):
        return " ".join(next_step(diagnosis, tmp_path / "out")).replace(str(tmp_path), "")

    chosen = "fp4scope recommend --config /out/study.yaml --accept ppl<2% -o /out-recipe"
    assert step(known()) == chosen
    unclear = noisy(known, 60)
    assert step(unclear) == chosen  # no more windows in this text
    unclear.results.data["tokens_in_text"] = 11 * 50
    again = "fp4scope run --config /out/study.yaml"
    assert step(unclear) == f"{again} --windows 50 -o /out-50-windows"
    few = known()
    few.results.study["data"] = {"windows": 8}
    more = chosen.replace("study.yaml", "study.yaml --windows 24")
    assert step(few) == more  # recommend takes no fewer
    few.results.data["tokens_in_text"] = 11 * 500
    assert step(few) == more.replace("24", "48")
    barred = known()
    barred.results.protocol["accept"] = ["kl<0.02"]
    assert step(barred) == chosen.replace("ppl<2%", "kl<0.02")


def test_what_makes_the_checkpoint_stands_behind_the_next_step():
    export = "fp4scope export {} --to compressed-tensors --checkpoint {}"
    recommend = ["fp4scope", "recommend", "--config", "out/study.yaml", "-o", "out-recipe"]
    made = export.format("out-recipe/recipe.yaml", "out-recipe-checkpoint")
    assert " ".join(then_step(recommend)) == made
    recipe = ["fp4scope", "recipe", "out", "--accept", "ppl<2%"]
    assert " ".join(then_step(recipe)) == export.format("out/recipe.yaml", "out-checkpoint")
    assert then_step(["fp4scope", "run", "-o", "out"]) == []
    for _, *words in map(str.split, (made, export.format("out/recipe.yaml", "d"))):
        app.commands[words[0]].make_context(words[0], words[1:])
