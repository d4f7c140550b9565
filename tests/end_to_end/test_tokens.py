"""Cost by position, class, frequency and confidence: against the model run by hand, everywhere."""

import csv
import json
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

import fp4scope
from fp4scope.design import NOTHING
from fp4scope.errors import OutputError
from fp4scope.ledger.lines import decode, encode
from fp4scope.ledger.strata import EDGES
from fp4scope.report.figures import figure_names
from fp4scope.report.payload import payload
from fp4scope.report.tokens import shown_models

from .by_hand import diagnosed, log_probabilities, options

WINDOWS, LENGTH = 9, 48
TARGETS = WINDOWS * (LENGTH - 1)
OPTIONS = options(WINDOWS, LENGTH)
TITLE = "Where the damage is: positions and tokens"
STRATA = ("strata_tokens", "strata_nll", "strata_kl", "strata_reference")


@pytest.fixture(scope="module")
def found(model_folder, text_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokens") / "out"
    return diagnosed(model_folder, text_file, folder, WINDOWS, LENGTH)


@pytest.fixture(scope="module")
def by_hand(model_folder, text_file):
    """Ids, and of every target: NLL in full precision, what W4A16 NVFP4 adds, KL, confidence."""
    ids, plain, other = log_probabilities(model_folder, text_file, WINDOWS, LENGTH)
    losses = [-x.gather(-1, ids[:, 1:, None])[..., 0] for x in (plain, other)]
    kl = (plain.exp() * (plain - other)).sum(-1)
    sure = plain.exp().amax(-1)
    return [x.numpy() for x in (ids, losses[0], losses[1] - losses[0], kl, sure)]


def assert_row(row, chosen, by_hand):
    """A row has the means of the targets that are chosen by hand."""
    _, nll, delta, kl, _ = by_hand
    assert row["tokens"] == chosen.sum()
    assert row["share"] == pytest.approx(chosen.mean())
    assert row["nll"] == pytest.approx(nll[chosen].mean(), rel=1e-4)
    assert row["delta_nll"] == pytest.approx(delta[chosen].mean(), rel=1e-3, abs=1e-5)
    assert row["kl"] == pytest.approx(kl[chosen].mean(), rel=1e-3)
    assert row["kl_share"] == pytest.approx(kl[chosen].sum() / kl.sum(), rel=1e-3)
    assert row["kl_low"] < row["kl"] < row["kl_high"]


def rows_by(found, by):
    return found.tokens.where(name="nvfp4", precision="W4A16", by=by).rows


def test_positions_are_those_of_the_model_run_by_hand(found, by_hand):
    place = np.broadcast_to(np.arange(1, LENGTH), (WINDOWS, LENGTH - 1))
    ends = {"1": (1, 1), "2-15": (2, 15), "16-31": (16, 31), "32-47": (32, 47)}
    rows = rows_by(found, "position")
    assert [row["stratum"] for row in rows] == list(ends)
    for row in rows:
        low, high = ends[row["stratum"]]
        assert_row(row, (place >= low) & (place <= high), by_hand)


def test_confidence_is_that_of_the_full_precision_model(found, by_hand):
    sure = by_hand[4]
    # Without a target beside an edge, where rounding would decide.
    assert np.abs(sure[..., None] - np.array(EDGES)).min() > 1e-6
    edges = [0, *EDGES, 1]
    rows = {row["stratum"]: row for row in rows_by(found, "confidence")}
    assert len(rows) > 1
    for low, high in pairwise(edges):
        chosen = (sure >= low) & (sure < high)
        name = f"{100 * low:g}-{100 * high:g}%"
        assert (name in rows) == chosen.any()
        if chosen.any():
            assert rows[name]["tokens"] == chosen.sum()
            assert rows[name]["kl"] == pytest.approx(by_hand[3][chosen].mean(), rel=1e-3)


def test_frequency_is_that_of_the_evaluated_text(found, by_hand):
    targets = by_hand[0][:, 1:]
    counts = Counter(targets.ravel().tolist())
    rows = {row["stratum"]: row for row in rows_by(found, "frequency")}
    assert list(rows) == ["most frequent", "frequent", "rare", "rarest"]
    assert sum(row["tokens"] for row in rows.values()) == TARGETS
    first = set()
    for token, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if sum(counts[t] for t in first) + count / 2 < TARGETS / 4:
            first.add(token)
    assert_row(rows["most frequent"], np.isin(targets, list(first)), by_hand)


def test_all_of_a_tokenizer_without_spaces_are_words(found):
    assert [row["stratum"] for row in rows_by(found, "class")] == ["word"]


def test_strata_sum_to_the_whole(found):
    """Of every model, every window and every stratification, in the ledger itself."""
    ledger, several = found.results.ledger, 0
    own = ledger[NOTHING]
    rows = zip(own.indices, own.replicas, own.values["nll"], strict=True)
    full = {window: nll for window, replica, nll in rows if not replica}
    for recipe in ledger:
        values = ledger[recipe].values
        for row, tokens in enumerate(ledger[recipe].tokens):
            kept = [values[name][row] for name in STRATA if name in values]
            if None in kept or not kept:
                continue
            several += 1
            plain = full[ledger[recipe].indices[row]]
            for counts, nll, kl, reference in zip(*kept, strict=True):
                assert sum(counts) == tokens
                assert sum(reference) == pytest.approx(plain, rel=1e-7)
                assert sum(nll) == pytest.approx(values["nll"][row], rel=1e-7)
                assert sum(kl) == pytest.approx(values["kl"][row], rel=1e-5)
    assert several == 4 * WINDOWS
    for by in ("position", "class", "frequency", "confidence"):
        rows = rows_by(found, by)
        assert sum(row["kl_share"] for row in rows) == pytest.approx(1)
        (whole,) = found.all_quantized.where(format="nvfp4", precision="W4A16")
        mean = sum(row["tokens"] * row["delta_nll"] for row in rows) / TARGETS
        assert mean == pytest.approx(whole["delta_nll"], rel=1e-5)


def test_every_whole_model_and_recipe_has_it_and_no_unit(found):
    named = {(row["name"], row["precision"]) for row in found.tokens}
    assert named == {("nvfp4", "W4A4"), ("nvfp4", "W4A16"), ("downs", "")}
    ledger = found.results.ledger
    kept = [one for one in ledger if "strata_kl" in ledger[one].values]
    assert len(kept) == 4 < len(ledger)
    assert NOTHING in kept


def test_the_slope_is_that_of_least_squares(found, by_hand):
    """Over strata, each at the mean of its positions' logarithms and weighed by its targets."""
    kl, place = by_hand[3], np.arange(1, LENGTH)
    strata = np.digitize(place, (2, 16, 32))
    x = np.array([np.log2(place[strata == s]).mean() for s in range(4)])
    weights = np.sqrt(np.bincount(strata))
    slopes = [
        np.polyfit(x, [window[strata == s].mean() for s in range(4)], 1, w=weights)[0]
        for window in kl
    ]
    (row,) = found.positions.where(name="nvfp4", precision="W4A16", measure="kl")
    assert row["slope"] == pytest.approx(np.mean(slopes), rel=1e-3, abs=1e-6)
    assert row["relative"] == pytest.approx(np.mean(slopes) / kl.mean(), rel=1e-3, abs=1e-4)
    assert row["slope_low"] < row["slope"] < row["slope_high"]


def test_it_stands_on_page_markdown_in_words_and_in_files(found):
    assert TITLE in found.report()
    assert TITLE in found.html()
    assert "with each doubling of the position" in found.report()
    assert "positions" in figure_names(found)
    for name in ("tokens", "positions"):
        with (found.folder / f"{name}.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["name"] for row in rows] == getattr(found, name)["name"]


def test_what_is_drawn_is_kl_by_position(found):
    axis, *_ = found.plot("positions").axes
    labels = [line.get_label() for line in axis.get_lines()]
    assert set(labels) == {"nvfp4 W4A4", "downs"}
    for line in axis.get_lines():
        name, _, precision = line.get_label().partition(" ")
        rows = found.tokens.where(name=name, precision=precision, by="position")
        assert list(line.get_ydata()) == pytest.approx([1e3 * row["kl"] for row in rows])
        assert line.get_xdata()[0] == 1
        assert 32 < line.get_xdata()[-1] < 47


def test_the_page_draws_the_same(found):
    drawn = payload(found)["positions"]
    rows = found.tokens.where(by="position")
    assert drawn["names"] == ["1", "2-15", "16-31", "32-47"]
    assert [name for name, _ in drawn["lines"]] == [w.title for w in shown_models(found)]
    for name, points in drawn["lines"]:
        own = [row for row in rows if f"{row['name']} {row['precision']}".rstrip() == name]
        assert [point[0] for point in points] == pytest.approx([1e3 * r["kl"] for r in own], 1e-3)
    lowest = min(end for _, points in drawn["lines"] for _, *ends, _ in points for end in ends)
    assert lowest >= drawn["axis"]["low"] * (1 - 1e-3)  # the axis is logarithmic
    highest = max(end for _, points in drawn["lines"] for _, *ends, _ in points for end in ends)
    assert highest <= drawn["axis"]["high"]
    assert 'id="chart-positions"' in found.html()


def test_nothing_is_drawn_where_no_model_that_is_shown_has_damage(found, changed):
    """A recipe that keeps everything is a whole model too; W4A16 is not shown beside W4A4."""
    (shown,) = (w for w in found.wholes if w.precision == "W4A16")
    kept = found.results.ledger.rows(shown.recipe).values["strata_kl"]

    def mend(values):
        if values.get("strata_kl", kept) != kept:
            for own in (own for each in values["strata_kl"] if each for own in each):
                own[:] = [0.0] * len(own)

    whole = fp4scope.load(changed(mend))
    assert any(row["mean"] > 0 for row in whole.positions)
    assert "positions" not in figure_names(whole)
    assert whole.html()


def test_it_comes_back_from_files(found):
    again = fp4scope.load(found.folder)
    assert again.tokens.rows == found.tokens.rows
    assert again.positions.rows == found.positions.rows


@pytest.fixture
def changed(found, tmp_path):
    """`changed(change)`: the folder of the same results with other rows."""

    def write(change):
        data = json.loads((found.folder / "results.json").read_text())
        for row in data["ledgers"]["text"]["rows"]:
            change(row["values"])
        (tmp_path / "results.json").write_text(json.dumps(data))
        return tmp_path

    return write


def test_results_without_it_are_read_and_show_nothing(found, changed):
    older = fp4scope.load(changed(lambda values: [values.pop(name, None) for name in STRATA]))
    assert not older.tokens
    assert not older.positions
    assert TITLE not in older.report()
    assert TITLE not in older.html()
    assert payload(older)["positions"] is None
    assert "positions" not in figure_names(older)
    assert older.all_quantized.rows == found.all_quantized.rows


def test_windows_without_it_are_left_out(found, changed):
    """As of a journal that an earlier version began, and this one ended."""

    def forget(values):
        for name in STRATA:
            if name in values:
                values[name][0] = None

    partly = fp4scope.load(changed(forget))
    assert set(partly.tokens.where(by="position")["windows"]) == {WINDOWS - 1}
    assert {row["tokens"] for row in partly.tokens.where(by="class")} == {TARGETS - LENGTH + 1}


def test_a_stratum_of_few_windows_has_no_interval(changed):
    """Of one window a ratio has no error that is seen: it would look exact."""

    def move(values):
        """Four targets of one window, and half its sums, are of another class."""
        for name in STRATA:
            if name in values:
                (words,) = values[name][0][1]
                values[name][0][1] = [words - 4, 4] if name == "strata_tokens" else [words / 2] * 2

    few = fp4scope.load(changed(move))
    table = few.tokens.where(name="nvfp4", precision="W4A16", by="class")
    words, (one,) = table.where(stratum="word"), table.where(stratum="word, continued")
    assert (one["tokens"], one["windows"]) == (4, 1)
    assert one["kl"] > 0
    assert one["kl_low"] is one["kl_high"] is one["delta_nll_low"] is None
    assert one["kl_share_low"] is not None
    assert words[0]["windows"] == WINDOWS
    assert words[0]["kl_low"] < words[0]["kl_high"]
    assert TITLE in few.html()


def move_a_target(values):
    """Of the full-precision model alone: rounded otherwise, a target is beyond an edge."""
    if STRATA[0] in values and "kl_bins" not in values:
        most = int(np.argmax(values[STRATA[0]][0][3]))
        for name in STRATA:
            step = 1 if name == STRATA[0] else 7.0
            values[name][0][3][most] -= step
            values[name][0][3].append(step)


def test_costs_by_confidence_are_of_the_very_same_targets(found, changed):
    """Whatever the full-precision model's own row says, which another pass may have made."""
    assert fp4scope.load(changed(move_a_target)).tokens.rows == found.tokens.rows


def test_results_that_leave_it_to_the_full_precision_row_are_read(found, changed):
    def forget(values):
        if STRATA[0] in values and "kl_bins" not in values:  # it may end in another stratum
            for name in STRATA:
                values[name][0][3].append(0)
        values.pop("strata_reference", None)

    assert fp4scope.load(changed(forget)).tokens.rows == found.tokens.rows


def more_tokens(values):
    if "strata_tokens" in values:
        values["strata_tokens"][0][0][0] += 1


def fewer_sums(values):
    if "strata_kl" in values:
        values["strata_kl"][0][0].pop()


def only_counts(values):
    values.pop("strata_nll", None)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (more_tokens, "strata_tokens has 48 tokens in 4 strata of position, not 47"),
        (fewer_sums, "strata_tokens, strata_nll and strata_kl have strata"),
        (only_counts, "strata_tokens, strata_nll and strata_kl have strata"),
    ],
)
def test_strata_of_other_tokens_are_damage(change, said, changed):
    with pytest.raises(OutputError, match=said):
        fp4scope.load(changed(change))


def test_a_journal_that_was_begun_without_it_goes_on(found, model_folder, text_file, tmp_path):
    """Rows of the first windows lack it, and nothing else differs."""
    kept, first = [], 4
    for line in (found.folder / "journal.jsonl").read_bytes().splitlines():
        record = decode(line)
        if 0 in record.get("job", ()):
            record |= {name: record[name][:first] for name in ("job", "tokens")}
            for _, _, values in record["rows"]:
                for name in list(values):
                    values[name] = values[name][:first]
                    if name in STRATA:
                        del values[name]
        elif "job" in record:
            continue
        kept.append(encode(record))
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "journal.jsonl").write_bytes(b"".join(kept))
    downs = {"base": "nvfp4", "edits": [{"sites": ["*.down_proj"], "setting": "fp8"}]}
    again = fp4scope.diagnose(
        model_folder, text=str(text_file), recipes={"downs": downs}, output_dir=folder, **OPTIONS
    )
    assert again.all_quantized.rows == found.all_quantized.rows
    assert set(again.tokens.where(by="position")["windows"]) == {WINDOWS - first}
