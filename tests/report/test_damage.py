"""Whatever stands in a results file: it is read and reported, or refused in one message."""

import json
import os
from copy import deepcopy

import pytest

from fp4scope.errors import OutputError
from fp4scope.records import Estimates, Results
from fp4scope.report import Diagnosis, compare, load, write_report
from fp4scope.report.figures import figures
from fp4scope.study import Study

NAN, HUGE, DEEP = "<nan>", "<huge>", "<deep>"
VALUES = (None, [], [None], {}, "", "x", True, 0, -1, 3, 0.5, 1e300, NAN, HUGE, DEEP)
SPELT = {NAN: "NaN", HUGE: "1" + "0" * 5000, DEEP: "[" * 50_000 + "]" * 50_000}


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
    kept = {
        key: observation
        for key, observation in results.observations.items()
        if observation.variant.format != "mxfp4:floor" and (observation.variant.block or 0) < 2
    }
    results.observations = kept
    results.activations = [a for a in results.activations if a.block < 2]
    results.study = Study(model="m").model_dump(mode="json")
    results.model |= {"blocks": 2, "components": ["q_proj", "down_proj"], "parameters": 1000}
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
                    "level": "components", "format": "nvfp4", "operands": "weights",
                    "direction": "restore", "k": 1, "within_nats": 0.003, "error": 0.05,
                    "decided": True, "windows": 8,
                    "units": [{"unit": "q_proj", "block": None, "fate": "accepted", "windows": 8}],
                }
            ],
        },
    }  # fmt: skip
    results.environment |= {"command": ["fp4scope", "run"], "started": "then", "processor": "one"}
    units = [o.variant for o in kept.values() if not o.variant.is_control][:2]
    results.estimates = Estimates(
        windows=[0, 1], tokens=[10, 10], nats=dict.fromkeys(units, [1.0, 2.0])
    )
    return results.to_json()


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
    path, refused, shown = tmp_path / "results.json", 0, 0
    for place, name, change in changes(whole):
        path.write_text(spelt(changed(whole, place, change)))
        try:
            diagnosis = load(tmp_path)
            diagnosis.html()
            diagnosis.report()
            shown += 1
        except OutputError as error:
            refused += 1
            assert str(error).isprintable(), (place, name)
        except Exception as error:
            raise AssertionError(f"{'.'.join(map(str, place))} {name}: {error!r}") from error
    assert refused > shown > 100
