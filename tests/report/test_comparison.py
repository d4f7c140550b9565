"""Outputs side by side: what is compared with what, in tables, words and conditions."""

import json
import re
from dataclasses import replace

import pytest

import fp4scope
from asking import entries, rebuilt
from fp4scope.diagnosis import Comparison, compare
from fp4scope.errors import FormatError, OutputError, StudyError
from fp4scope.ledger import results_to_json
from fp4scope.report.gates import failures, parse_gate
from fp4scope.report.side_by_side import findings, headline, sections

MODEL = {"tokenizer_sha256": "t", "parameters": 1_000_000, "projections": ["q_proj", "down_proj"]}


@pytest.fixture
def run(known):
    """`run(shift=0.0, model={"dtype": ...})`: the known study under other conditions.

    NVFP4's all-quantized model costs `shift` nats more.
    """

    same = known().results

    def build(shift=0.0, **conditions):
        found = entries(same)
        for one in found:
            if one.asked.is_whole and one.asked.format == "nvfp4":
                one.nll = [value + 10 * shift for value in one.nll]
        results = rebuilt(same, found)
        results.model = results.model | MODEL | conditions.pop("model", {})
        for name, value in conditions.items():
            setattr(results, name, getattr(results, name) | value)
        return results

    return build


@pytest.fixture
def folder(tmp_path):
    """`folder(name, results)`: a folder as a run leaves it."""

    def build(name, results):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "results.json").write_text(json.dumps(results_to_json(results)))
        return tmp_path / name

    return build


def test_every_output_and_all_quantized_has_a_row(run):
    found = Comparison({"a": run(), "b": run(model={"dtype": "bfloat16"})})
    assert [(r["output"], r["format"], r["dtype"]) for r in found.all_quantized] == [
        ("a", "mxfp4:floor", "float32"),
        ("a", "nvfp4", "float32"),
        ("b", "mxfp4:floor", "bfloat16"),
        ("b", "nvfp4", "bfloat16"),
    ]
    assert [round(1e3 * r["delta_nll"]) for r in found.all_quantized] == [120, 240, 120, 240]
    assert len(set(found.all_quantized["reference_ppl"])) == 1


def test_the_same_twice_has_not_changed(run):
    found = Comparison({"a": run(), "b": run()})
    assert found.compared == [("a", "b")]
    assert set(found.changes["change"]) == {0.0}
    assert set(found.agreement["rho"]) == {1.0}
    assert not found.warnings
    assert not found.scale


def test_each_output_is_held_to_the_first_that_is_comparable(run):
    other = {"fingerprint": "e" * 64, "blocks": 7}
    runs = {"a1": run(), "b1": run(model=other), "a2": run(), "b2": run(model=other)}
    assert Comparison(runs).compared == [("a1", "a2"), ("b1", "b2")]
    checkpoint = run(model={"fingerprint": "e" * 64})
    assert Comparison({"a": run(), "b": checkpoint}).compared == [("a", "b")]
    elsewhere = run(model={"tokenizer_sha256": "u"}, data={"sha256": "c"})
    assert Comparison({"a": run(), "b": elsewhere}).compared == []


def test_what_was_not_the_same_is_said_with_what_follows(run):
    other = run(
        model={"dtype": "bfloat16", "tokenizer_sha256": "u" * 64},
        data={"text_sha256": "d" * 64, "seq_len": 9, "windows": 4},
        environment={"numerics": 2},
    )
    said = " ".join(Comparison({"a": run(), "b": run(), "c": other}).warnings)
    for words in (
        "text: aaaaaaaa (a, b), dddddddd (c); costs are of different texts",
        "tokens in a window: 11 (a, b), 9 (c)",
        "dtype: float32 (a, b), bfloat16 (c)",
        "tokenizer: t (a, b), uuuuuuuu (c)",
        "number of windows: 8 (a, b), 4 (c)",
        "numerics version: none (a, b), 2 (c)",
    ):
        assert words in said, said


def test_a_planted_change_is_in_the_words_and_tables(run):
    found = Comparison({"a": run(), "b": run(shift=0.05)})
    text = found.report()
    assert (
        "From a to b, the cost of nvfp4 (W4A4) changed by +50.00 [+50.00, +50.00] millinats: "
        "beyond noise."
    ) in text
    # All of NVFP4's kept units are differences from that baseline.
    assert "12 of 48 layers and 2 of 8 projections changed beyond noise" in text
    assert "| nvfp4 |  | everything | +240.0 → +290.0 | +50.00 [+50.00, +50.00] |" in text
    titles = re.findall("^## (.*)$", text, re.M)
    assert titles == [section.title for section in sections(found)]
    assert all(
        len(row) == len(section.columns) for section in sections(found) for row in section.rows
    )


def test_three_sizes_have_a_trend_in_words(run):
    runs = {}
    for i, shift in enumerate((0.04, 0.02, 0.0)):
        model = {"parameters": 10 ** (6 + i), "fingerprint": str(i), "blocks": 6 + i}
        runs[f"size{i}"] = run(shift, model=model)
    said = findings(Comparison(runs))
    assert (
        "Over 1M, 10M, 100M, what nvfp4 (W4A4) costs falls with size, every step significantly."
    ) in said
    assert any(line.startswith("Over 1M, 10M, 100M, what mxfp4:floor (W4A4) costs is not shown")
               for line in said)  # fmt: skip


def test_projections_have_their_rank_side_by_side(run):
    found = Comparison({"a": run(), "b": run()}).projections
    rows = found.where(output="b", format="nvfp4", direction="only")
    assert [(r["projection"], r["rank"], r["tier"]) for r in rows] == [
        ("down_proj", 1, "a"), ("q_proj", 2, "b"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("cost(nvfp4) > 289", 1),
        ("cost(nvfp4) > 291", 0),
        ("cost(nvfp4/w4a4) > 289", 1),
        ("cost > 100", 2),
        ("cost(mxfp4).high < 121", 1),
        ("change(nvfp4) > 5", 1),
        ("change(mxfp4:floor)>5", 0),
        ("change.low > 49.9", 1),
        ("change < -1", 0),
        ("beyond-noise(mxfp4)", 0),
        ("beyond-noise(nvfp4)", 6),  # five, and how many more
        ("beyond-noise", 6),
    ],
)
def test_conditions_hold_where_they_should(run, text, count):
    found = Comparison({"a": run(), "b": run(shift=0.05)})
    assert len(failures(parse_gate(text), found)) == count


def test_a_failure_says_where_and_by_how_much(run):
    found = Comparison({"a": run(), "b": run(shift=0.05)})
    (said,) = failures(parse_gate("cost(nvfp4) > 40"), found)
    assert said == "cost(nvfp4) > 40: b, nvfp4, W4A4 has +290.0, 250.0 above"
    said = failures(parse_gate("beyond-noise"), found)[0]
    assert said.startswith("beyond-noise: b, nvfp4, W4A4 changed by +50.00 (p ")


def test_the_first_output_is_not_judged(run):
    found = Comparison({"a": run(shift=0.05), "b": run()})
    assert failures(parse_gate("cost(nvfp4) > 250"), found) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cots > 4", "did you mean cost"),
        ("cost(nvfp4)", "no limit"),
        ("cost.lo > 3", "did you mean low"),
        ("cost >", "give a condition such as"),
        ("cost == 3", "give a condition such as"),
        ("cost > 3 or True", "give a condition such as"),
        ("", "give a condition such as"),
        ("beyond-noise > 3", "nothing may follow"),
        ("beyond-noise.low", "nothing may follow"),
    ],
)
def test_a_condition_that_is_none_is_refused(text, words):
    with pytest.raises(StudyError, match=re.escape(words)):
        parse_gate(text)


def test_an_unknown_format_in_a_condition_is_refused():
    with pytest.raises(FormatError, match="did you mean nvfp4"):
        parse_gate("cost(nvpf4) > 4")


def test_a_gate_that_can_check_nothing_does_not_pass(run, known):
    other = run(model={"fingerprint": "e" * 64, "blocks": 7})
    with pytest.raises(StudyError, match="b is not comparable with an output before it"):
        failures(parse_gate("change > 5"), Comparison({"a": run(), "b": other}))
    with pytest.raises(StudyError, match="there is: mxfp4:floor, nvfp4"):
        failures(parse_gate("cost(mxfp4:even) > 5"), Comparison({"a": run(), "b": run()}))
    with pytest.raises(StudyError, match="nothing of nvfp4 W4A16"):
        failures(parse_gate("cost(nvfp4/w4a16) > 5"), Comparison({"a": run(), "b": run()}))
    quiet = [known(noise=False).results for _ in range(2)]
    for results in quiet:
        results.model = results.model | MODEL
    found = Comparison(dict(zip("ab", quiet, strict=True)))
    assert failures(parse_gate("beyond-noise"), found) == []  # paired windows show what noise does
    short = run()
    short = rebuilt(short, (one.without([0]) for one in entries(short)))
    with pytest.raises(StudyError, match="8 windows or more"):
        failures(parse_gate("beyond-noise"), Comparison({"a": run(), "b": short}))
    with pytest.raises(StudyError, match="has no interval"):
        failures(parse_gate("cost.low > 5"), Comparison({"a": run(), "b": short}))


def test_folders_are_read_and_named_apart(run, folder):
    one, other = folder("x/out", run()), folder("y/out", run())
    found = fp4scope.compare([one, str(other)])
    assert list(found.runs) == ["x/out", "y/out"]
    assert list(compare([one, folder("z", run())]).runs) == ["out", "z"]


def test_folders_that_cannot_be_compared(run, folder, tmp_path):
    good = folder("good", run())
    (tmp_path / "empty").mkdir()
    old = folder("old", run())
    (old / "results.json").write_text(json.dumps(results_to_json(run()) | {"version": 1}))
    for folders, kind, words in (
        ([], StudyError, "0 outputs to compare"),
        ([good], StudyError, "1 output to compare; give two"),
        (str(good), StudyError, "1 output to compare; give two"),
        ([good, good / ".." / "good"], StudyError, "is the same folder as"),
        ([good, tmp_path / "no"], OutputError, "does not exist"),
        ([good, good / "results.json"], OutputError, "is not a folder"),
        ([good, tmp_path / "empty"], OutputError, "has no results.json"),
        ([good, old], OutputError, "has version 1"),
    ):
        with pytest.raises(kind, match=re.escape(words)):
            compare(folders)


def test_results_that_say_nothing_of_their_conditions_are_compared_side_by_side(known):
    bare = [
        replace(known().results, study={}, model={}, data={"windows": 8}, protocol={},
                environment={})
        for _ in range(2)
    ]  # fmt: skip
    found = Comparison(dict(zip("ab", bare, strict=True)))
    assert found.compared == []
    assert "## What each format costs" in found.report()


def test_the_page_has_the_headline_and_every_pair_and_obeys_no_name(known):
    hostile = "<img src=x onerror=alert(1)>"
    other = known().results
    other.model |= {"fingerprint": "e" * 64, "blocks": 6, "parameters": 10}
    comparison = Comparison({"a": known().results, hostile: other})
    text = comparison.html()
    assert "<img" not in text
    assert "&lt;img" in text
    assert "<script" not in text
    assert headline(comparison).split(":")[0] in text
    assert comparison.report().splitlines()[2].startswith(headline(comparison)[:20])
