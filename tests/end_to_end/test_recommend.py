"""`fp4scope recommend`: choose, refine, certify, write; stopped and gone on with."""

import csv
import json
import random
import re
import shutil
from html import unescape
from urllib.parse import unquote

import pytest

import fp4scope as package
from fp4scope.deploy import moves
from fp4scope.deploy.bar import Verdict
from fp4scope.deploy.proof import Measured
from fp4scope.deploy.recommendation import Recommendation
from fp4scope.deploy.written import WrittenRecipe
from fp4scope.errors import StudyError
from fp4scope.study import read_options

BASE = {
    "--design-runs": 36,
    "--seq-len": 32,
    "--calibration-windows": 8,
    "--calibration-seq-len": 32,
    "--all-quantized": "",
}


@pytest.fixture
def recommend(fp4scope, model_folder, text_file, tmp_path):
    def run(*more, windows=24):
        options = [str(word) for pair in BASE.items() for word in pair]
        return fp4scope(
            "recommend", str(model_folder), "--text", str(text_file), "--windows", str(windows),
            "--formats", "nvfp4,mxfp8", *options, "-o", str(tmp_path / "out"), *map(str, more),
        )  # fmt: skip

    return run


def page_of(folder):
    """The page's verdict and links: these lead to pages, and it says what the Markdown says."""
    page = (folder / "recommendation.html").read_text(encoding="utf-8")
    text = unescape((folder / "recommendation.md").read_text(encoding="utf-8"))
    shown = unescape(re.sub(r"<[^>]+>", "", page))
    said = [line for line in text.splitlines() if line.startswith(("- ", "    ", "##"))]
    assert len(said) > 4
    assert [line for line in said if line.lstrip("-# ") not in shown] == []
    assert "default-src 'none'" in page
    assert not re.search(r"<script|<link|(?:src|srcset)=\"(?!data:image/svg)", page)
    assert page.count("data:image/svg+xml") == 2
    assert "(prefers-color-scheme: dark)" in page
    links = [unquote(link) for link in re.findall(r'href="([^"]+)"', page)]
    assert all((folder / link).is_file() for link in links)
    assert all(f"({link})" in text for link in links)
    ((title, verdict),) = re.findall(r'<h1>(.+?) <span class="verdict \w+">([^<]+)</span>', page)
    assert text.splitlines()[0] == f"# {title}: {verdict}"
    return verdict, links


THREE = [f"{part}/report.html" for part in ("choose", "refine", "certify")]


def test_a_recipe_under_a_bound_on_bits(recommend, fp4scope, tmp_path):
    code, shown, _ = recommend("--max-bits", 7)
    assert code == 0
    out = tmp_path / "out"
    recipe = WrittenRecipe.read(out / "recipe.yaml")
    assert recipe.numbers["bits"] <= 7
    assert json.loads(json.dumps(recipe.numbers)) == recipe.numbers
    proof = recipe.numbers["measured"]
    assert proof["windows"] == 8
    certify = package.load(out / "certify")
    (row,) = [r for r in certify.given if r["bits"] == recipe.numbers["bits"]]
    assert proof["nll"]["mean"] == row["delta_nll"]
    # Together the intervals of all recipes are wider than each alone.
    assert proof["nll"]["low"] < row["delta_nll_low"]
    # Three runs of windows, none in two of them.
    parts = [package.load(out / name).results for name in ("choose", "refine", "certify")]
    firsts = [part.study["data"]["first_window"] for part in parts]
    assert [part.data["windows"] for part in parts] == [8, 8, 8]
    assert firsts == [0, 8, 16]
    assert len({part.data["sha256"] for part in parts}) == 3
    # What is measured as a whole has the tensor scales that an export stores.
    assert [part.study["numerics"]["scales"] for part in parts] == ["own", "served", "served"]
    assert recipe.scales == "served"
    assert "certify, the windows that nothing was chosen on" in shown
    # One row of each part is the recipe that all of it is about.
    bits = f"{recipe.numbers['bits']:.2f}"
    marked = [line.split()[0] for line in shown.splitlines() if " (taken) " in line]
    assert marked == [bits, bits]
    assert (out / "recommendation.md").read_text("utf-8").count("(taken)") == 2
    assert recipe.numbers["chosen_over_resampled_windows"]
    assert "%" in next(line for line in shown.splitlines() if "mlp.down_proj" in line)
    assert "Written:" in shown
    # Predicted against measured, also as numbers.
    held = list(csv.DictReader((out / "predicted.csv").read_text().splitlines()))
    measures = {(r["windows"], r["measure"]) for r in held}
    assert measures == {(p, m) for p in ("refine", "certify") for m in ("kl", "nll")}
    own = [r for r in held if r["windows"] == "certify" and float(r["bits"]) == row["bits"]]
    assert [float(r["measured"]) for r in own] == [proof[r["measure"]]["mean"] for r in own]
    expected = recipe.numbers["predicted_nats_per_token"]
    assert [float(r["predicted_high"]) for r in own] == [
        pytest.approx(expected[r["measure"]]["high"]) for r in own
    ]
    assert (out / "figures" / "predicted.svg").exists()
    assert "figures/predicted.svg" in (out / "recommendation.md").read_text()
    assert page_of(out) == ("recommended", THREE)
    page = out / "recommendation.html"
    assert f"Open: {page.resolve().as_uri()}" in shown.splitlines()
    first = page.read_bytes()
    # Again, in Python: nothing is measured twice.
    before = {path: path.read_bytes() for path in out.glob("*/journal.jsonl")}
    options = read_options(out / "study.yaml")
    given = {name: options[name] for name in ("text", "seq_len", "windows", "formats")}
    given |= {name.lstrip("-").replace("-", "_"): value for name, value in BASE.items()}
    again = package.recommend(str(options["model"]), output_dir=out, max_bits=7.0, **given)
    assert again.is_recommended
    assert again.written == recipe
    assert page.read_bytes() == first
    # Another bound is another recommendation, and says so before it measures.
    code, _, complaint = recommend("--max-bits", 9)
    assert code == 2
    assert "has a recommendation of other recipes" in " ".join(complaint.split())
    assert WrittenRecipe.read(out / "recipe.yaml") == recipe
    with pytest.raises(StudyError, match="what may the recipe cost or store"):
        package.recommend("m", output_dir=out)
    with pytest.raises(StudyError, match="output_dir is missing"):
        package.recommend("m", max_bits=7.0)
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize(("found", "expected"), [(Verdict.MISSED, 1), (Verdict.UNDECIDED, 3)])
def test_undecided_is_told_from_missed(recommend, tmp_path, monkeypatch, found, expected):
    monkeypatch.setattr(Recommendation, "verdict", property(lambda _: found))
    code, shown, _ = recommend("--accept", "kl<50")
    assert code == expected
    assert f"kl<50: {found.value}" in shown
    assert "No recommendation" in shown
    recipe = WrittenRecipe.read(tmp_path / "out" / "recipe.yaml")
    assert recipe.numbers["measured"]["recommended"] is False
    said = {Verdict.MISSED: "not recommended", Verdict.UNDECIDED: "undecided"}[found]
    assert page_of(tmp_path / "out") == (said, THREE)
    assert "fp4scope export" not in (tmp_path / "out" / "recommendation.html").read_text("utf-8")


def test_a_bar_that_is_met(recommend, text_file, tmp_path):
    hostile = shutil.copy(text_file, tmp_path / "<b>`.txt")
    code, shown, _ = recommend("--accept", "kl<50", "--text", hostile)
    assert code == 0
    recipe = WrittenRecipe.read(tmp_path / "out" / "recipe.yaml")
    assert recipe.numbers["measured"]["verdict"] == "met"
    assert "kl<50: met" in shown
    assert recipe.numbers["bits"] == pytest.approx(4.5)
    # No name acts as HTML.
    assert page_of(tmp_path / "out") == ("recommended", THREE)
    page = (tmp_path / "out" / "recommendation.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;`.txt" in page
    assert "<b>" not in page


@pytest.mark.parametrize(
    ("more", "windows", "said"),
    [
        ((), 24, "give one of --accept"),
        (("--max-bits", 5, "--accept", "kl<1"), 24, "two bounds"),
        (("--max-bits", 3), 24, "smallest has 4.5"),
        (("--max-bits", "nan"), 24, "max_bits is nan"),
        (("--max-size", "lots"), 24, "max_size is 'lots'"),
        (("--accept", "ppl<2"), 24, "written ppl<2%"),
        (("--max-bits", 5), 20, "refining and certifying need; give --windows 24 or more"),
        (("--max-bits", 5, "--palette", "fp3,bf16"), 24, "unknown format"),
    ],
)
def test_bad_bounds(recommend, tmp_path, more, windows, said):
    code, _, complaint = recommend(*more, windows=windows)
    assert code == 2
    assert said in " ".join(complaint.split())
    assert not (tmp_path / "out" / "recipe.yaml").exists()


@pytest.fixture(scope="module")
def finished(model_folder, text_file, tmp_path_factory):
    """A run of layers, without a designed sweep."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    package.diagnose(
        model_folder, text=str(text_file), seq_len=32, windows=8, calibration_windows=8,
        calibration_seq_len=32, all_quantized="", formats="nvfp4", direction="only", sweep="layers",
        design_runs=16, output_dir=folder,
    )  # fmt: skip
    return folder


@pytest.fixture
def run(finished, tmp_path):
    """It, for one test."""
    return shutil.copytree(finished, tmp_path / "run")


def test_a_run_that_was_stopped_is_finished_and_measured_on_windows_that_it_has_not_used(
    run, fp4scope
):
    (run / "results.json").unlink()
    journal = run / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:-1]))
    assert fp4scope("recommend", run, "--max-bits", 7)[0] == 0
    assert journal.read_bytes().startswith(b"".join(lines[:-1]))
    assert package.load(run).results.data["windows"] == 8
    assert not (run / "choose").exists()  # its own effects are used
    assert WrittenRecipe.read(run / "recipe.yaml").numbers["bits"] <= 7
    parts = [package.load(run / name).results for name in ("refine", "certify")]
    # Eight windows were measured, and the eight behind them calibrated with.
    assert [part.study["data"]["first_window"] for part in parts] == [16, 24]
    calibrated = [
        part.data["calibration"]["sha256"] for part in (package.load(run).results, *parts)
    ]
    assert len(set(calibrated)) == 1
    # Its effects are on its own page.
    links = ["report.html", "refine/report.html", "certify/report.html"]
    assert page_of(run) == ("recommended", links)
    # In another folder they are linked to as well.
    other = run.with_name("other")
    assert fp4scope("recommend", run, "--max-bits", 7, "-o", other)[0] == 0
    assert page_of(other) == ("recommended", ["../run/report.html", *links[1:]])


def test_where_predictions_fail_recipes_are_changed_as_measured_and_not_recommended(
    run, fp4scope, monkeypatch
):
    monkeypatch.setattr(Measured, "is_as_predicted", property(lambda _: False))
    monkeypatch.setattr(moves, "PASSES", 2)
    code, shown, _ = fp4scope("recommend", run, "--max-bits", 9)
    assert code == 1
    said = " ".join(shown.split())
    assert "the prediction of the choice failed: effects do not add up" in said
    assert "No recommendation" in said
    assert "Next:" not in said
    held = WrittenRecipe.read(run / "recipe.yaml")
    assert held.numbers["measured"]["recommended"] is False
    searched = held.numbers["searched"]
    passes = [package.load(folder).results for folder in sorted(run.glob("refine-*"))]
    assert len(passes) == searched["passes"]
    assert sum(len(one.given) for one in passes) == searched["moves"]
    between = [f"refine-{number}/report.html" for number in range(1, 1 + searched["passes"])]
    links = ["report.html", "refine/report.html", *between, "certify/report.html"]
    assert page_of(run) == ("not recommended", links)
    windows = {one.data["sha256"] for one in passes}
    assert windows == {package.load(run / "refine").results.data["sha256"]}
    # What was measured on refine is what is expected of it.
    (own,) = {
        row["kl"]
        for one in [package.load(run / "refine"), *map(package.load, run.glob("refine-*"))]
        for row in one.given
        if one.results.given[row["recipe"]] == held.recipe
    }
    assert held.numbers["predicted_nats_per_token"]["kl"]["mean"] == own
    assert own == searched["kl_after"] <= searched["kl_before"]


def test_effects_that_a_run_lacks_are_measured_beside_it(run, fp4scope, tmp_path):
    text = tmp_path / "more.txt"
    text.write_text(" ".join(random.Random(1).choices([f"w{i}" for i in range(92)], k=600)))
    out = tmp_path / "other"
    options = ["--palette", "mxfp8,nvfp4", "--max-bits", 7, "--text", text, "--windows", 16]
    assert fp4scope("recommend", run, *options, "-o", out)[0] == 0
    choose, refine = (package.load(out / name).results for name in ("choose", "refine"))
    assert choose.data["sha256"] == package.load(run).results.data["sha256"]
    assert refine.data["source"] == "more.txt"
    assert refine.study["data"]["first_window"] == 0
    assert not (run / "recipe.yaml").exists()
    assert page_of(out) == ("recommended", THREE)


def test_a_text_that_is_too_short_for_what_is_missing(run, fp4scope, tmp_path):
    text = tmp_path / "short.txt"
    text.write_text(" ".join(["w1"] * 32 * 9))
    code, _, complaint = fp4scope("recommend", run, "--max-bits", 7, "--text", text)
    assert code == 2
    assert " windows of short.txt are there for measuring" in " ".join(complaint.split())


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--seq-len", 64), "seq_len is the run's own"),
        (("--windows", 15), "give --windows 16 or more"),
        (("--max-size", "1KB"), "embeddings, head and norms alone take"),
    ],
)
def test_what_a_run_cannot_be_gone_on_with(run, fp4scope, more, said):
    bound = () if "--max-size" in more else ("--max-bits", 7)
    code, _, complaint = fp4scope("recommend", run, *bound, *more)
    assert code == 2
    assert said in " ".join(complaint.split())
    assert not (run / "refine").exists()


def test_a_run_that_used_all_of_its_text(model_folder, text_file, fp4scope, tmp_path):
    short = tmp_path / "short.txt"
    short.write_text(" ".join(text_file.read_text().split()[:300]))
    given = ["--text", short, "--seq-len", 32, "--sweep", "", "-o", tmp_path / "run"]
    assert fp4scope("run", model_folder, *given, "--formats", "nvfp4")[0] == 0
    code, _, complaint = fp4scope("recommend", tmp_path / "run", "--max-bits", 7)
    assert code == 2
    assert "0 windows of short.txt" in " ".join(complaint.split())
    assert "--text" in complaint


def test_one_recipe_for_several_texts(recommend, text_file, tmp_path):
    """Chosen on the mean of both, and held to the bar on the worst."""
    whole = text_file.read_text(encoding="utf-8")
    texts = {"first": whole[: len(whole) // 2], "last": whole[len(whole) // 2 :]}
    for name, text in texts.items():
        (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8")
    named = ",".join(f"{name}={tmp_path / name}.txt" for name in texts)
    code, shown, _ = recommend("--accept", "mnat<5000", "--text", named)
    assert code == 0
    assert "met by" in shown
    assert "on every text" in shown
    out = tmp_path / "out"
    proof = WrittenRecipe.read(out / "recipe.yaml").numbers["measured"]
    assert set(proof["texts"]) == set(texts)
    assert proof["windows"] == 16
    assert proof["kl"] in [of["kl"] for of in proof["texts"].values()]
    assert proof["kl"]["high"] == max(of["kl"]["high"] for of in proof["texts"].values())
    found = {name: package.load(out / name / "certify") for name in texts}
    for name, of in found.items():
        row = next(r for r in of.given if r["delta_nll"] == proof["texts"][name]["nll"]["mean"])
        # Intervals hold for all recipes on both texts at once.
        assert proof["texts"][name]["nll"]["low"] < row["delta_nll_low"]
    # One recipe, one calibration, windows of each text.
    assert len({of.results.data["sha256"] for of in found.values()}) == 2
    assert len({str(of.results.data["calibration"]) for of in found.values()}) == 1
    with (out / "predicted.csv").open(encoding="utf-8") as file:
        parts = {row["windows"] for row in csv.DictReader(file)}
    assert parts == {f"{part}: {name}" for part in ("refine", "certify") for name in texts}
    assert "that nothing was chosen on, last" in (out / "recommendation.md").read_text("utf-8")
    page = (out / "recommendation.html").read_text(encoding="utf-8")
    assert all(f"that nothing was chosen on, {name}" in page for name in texts)
    assert page_of(out) == ("recommended", [f"{name}/{link}" for name in texts for link in THREE])
