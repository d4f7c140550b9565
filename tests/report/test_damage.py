"""Whatever stands in a results file: it is read and reported, or refused in one message."""

import json
import os
from copy import deepcopy
from pathlib import Path

import pytest

from asking import entries, estimated, rebuilt
from fp4scope.diagnosis import compare, load
from fp4scope.errors import OutputError
from fp4scope.ledger import read_results, results_to_json
from fp4scope.report import write_report
from fp4scope.study import Study

DOCS = Path(__file__).parents[2] / "docs"
NAN, HUGE, DEEP = "<nan>", "<huge>", "<deep>"
VALUES = (None, [None], {}, "x", True, -1, 0.5, 1e300, NAN, HUGE, DEEP)
ROWS, PLACE = ("ledgers", "text", "rows"), ("ledgers", "text", "places", 0)
SPELT = {NAN: "NaN", HUGE: "1" + "0" * 5000, DEEP: "[" * 2000 + "]" * 2000}


def spelt(data):
    """As JSON, with what no value of Python's stands for."""
    text = json.dumps(data)
    for word, spelling in SPELT.items():
        text = text.replace(f'"{word}"', spelling)
    return text


@pytest.fixture
def whole(known):
    """A small study as its file holds it, every section full."""
    results = known().results
    found = [
        one
        for one in entries(results)
        if one.asked.format != "mxfp4:floor" and (one.asked.block or 0) < 2
    ]
    units = [one.asked for one in found if not one.asked.is_whole][:2]
    results = rebuilt(results, [*found, *(estimated(unit, [0.1, 0.2]) for unit in units)])
    results.activations = [a for a in results.activations if a.block < 2]
    results.study = Study.build(model="m").model_dump(mode="json")
    results.model |= {"blocks": 2, "projections": ["q_proj", "down_proj"], "parameters": 1000}
    results.data["calibration"]["sha256"] = "c"
    results.protocol |= {
        "identity": {"seq_len": 11, "formats": ["nvfp4"]},
        "sessions": [{"torch": "0", "threads": 1}],
        "shapes": [
            {"windows": 2, "groups": 1, "block": 4, "head": 8, "rows": 128, "spill": False}
        ],
        "self_check": {
            "difference": 0.1, "allowed": 1.0, "batches": True, "flattens": False,
            "captured_bytes": 1,
        },
        "notes": ["a note"],
        "stopping": {
            "goal": "best=1", "reached": True, "anytime": False, "windows": 8, "available": 8,
            "widest_nats": None,
            "families": [
                {
                    "level": "projections", "format": "nvfp4", "precision": "W4A16",
                    "direction": "keep", "k": 1, "within_nats": 0.003, "error": 0.05,
                    "decided": True, "windows": 8,
                    "units": [{"unit": "q_proj", "block": None, "fate": "accepted", "windows": 8}],
                }
            ],
        },
    }  # fmt: skip
    results.environment |= {"command": ["fp4scope", "run"], "started": "then", "processor": "one"}
    return results_to_json(results)


def places(node, path=()):
    """Where something stands: of a list its first and last items stand for all."""
    yield path
    if isinstance(node, dict):
        for key, value in node.items():
            if path or key != "summary":
                yield from places(value, (*path, key))
    elif isinstance(node, list):
        for index in dict.fromkeys((0, len(node) - 1)) if node else ():
            yield from places(node[index], (*path, index))


def changed(data, path, change):
    """A copy in which `change(parent, key)` was done to what stands at the path."""
    found = parent = {"": deepcopy(data)}
    for key in ("", *path)[:-1]:
        parent = parent[key]
    change(parent, ("", *path)[-1])
    return found[""]


def to(value):
    def change(parent, key):
        parent[key] = deepcopy(value)

    return change


def dropped(parent, key):
    del parent[key]


def added(parent, key):
    if isinstance(parent[key], dict):
        parent[key]["more"] = 1
    elif isinstance(parent[key], list):
        parent[key].append(deepcopy(parent[key][-1]) if parent[key] else 0)


def changes(data):
    for path in places(data):
        for value in VALUES:
            yield path, f"to {value!r}", to(value)
        if path:
            yield path, "dropped", dropped
        yield path, "longer", added


def test_damage_of_every_kind_in_every_place_is_refused_or_does_no_harm(whole, tmp_path):
    path, messages, read = tmp_path / "results.json", [], []
    for place, name, change in changes(whole):
        damage = f"{'.'.join(map(str, place))} {name}"
        path.write_text(spelt(changed(whole, place, change)))
        try:
            read.append((damage, load(tmp_path)))
        except OutputError as error:
            messages.append(str(error))
        except Exception as error:
            raise AssertionError(f"{damage}: {error!r}") from error
    assert len(messages) > len(read) > 100
    assert all("\n" not in message for message in messages)
    # A report takes long, so only some are made: of those that lack something, more.
    lacking = [one for one in read if "dropped" in one[0]]
    chosen = [*lacking[::3], *read[::40]]
    for damage, diagnosis in chosen:
        try:
            diagnosis.html()
            diagnosis.report()
        except OutputError:
            continue
        except Exception as error:
            raise AssertionError(f"{damage}: {error!r}") from error


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", "object"),
        ("null", "object"),
        ("[" * 200_000, "recursion limit"),
        ("{", "EOF"),
        ("\udce9", "invalid JSON"),
    ],
)
def test_what_is_no_results_file_is_said_to_be_none(text, words, tmp_path):
    (tmp_path / "results.json").write_text(text, errors="surrogateescape")
    with pytest.raises(OutputError, match=f"(?i)is not a results file.*{words}.*repeat the run"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        ((*ROWS, 2, "values", "nll", 1), NAN, r"text\.rows\[2\]\.values\.nll\[1\] is nan"),
        ((*ROWS, 2, "values", "nll", 1), 1e9, r"rows of \{.*: nll has 1e\+09 nats for 10"),
        ((*ROWS, 2, "place"), 99, "there is no place 99"),
        (("contrasts", 1, "setting", "input"), "../x", r"unknown format '\.\./x'"),
        (("contrasts", 1, "direction"), "up", r"contrasts\[1\]\.direction is 'up'"),
        ((*PLACE, "tokens", 0), 9, r"rows of \{.*: a window has \d+ tokens, and another"),
        ((*PLACE, "indices", 0), 1, r"rows of \{.*: a window comes twice"),
        ((*PLACE, "indices", 0), 8, r"rows of \{.*: there is no window 8 among 8"),
        (("model", "coverage"), "most", r"model\.coverage is 'most'"),
        (("model", "covrage"), 1.0, r"model\.covrage is 1\.0"),
        (ROWS, [], "the full-precision model was not measured"),
    ],
)
def test_the_place_of_the_damage_is_named(whole, tmp_path, place, value, words):
    (tmp_path / "results.json").write_text(spelt(changed(whole, place, to(value))))
    with pytest.raises(OutputError, match=words) as caught:
        load(tmp_path)
    assert str(tmp_path / "results.json") in str(caught.value)


def test_results_that_say_little_are_compared_but_not_reported(whole, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        text = json.dumps(whole | {"study": {}, "model": {}, "protocol": {}, "environment": {}})
        (tmp_path / name / "results.json").write_text(text)
    assert "What each format costs" in compare([tmp_path / "a", tmp_path / "b"]).report()
    with pytest.raises(OutputError, match=r"do not say study\.numerics\.replicas"):
        write_report(load(tmp_path / "a"), tmp_path / "a")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes are of POSIX")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "results.json")
    with pytest.raises(OutputError, match="not a regular file"):
        load(tmp_path)


def test_all_kept_results_are_read():
    """Those of the repository, which earlier versions wrote."""
    found = sorted(DOCS.glob("results/**/results.json"))
    assert found
    for path in found:
        assert len(read_results(path).ledger)
