"""`fp4scope compare`: what a user and a build see."""

import json
import subprocess
import sys

import numpy as np
import pytest

from asking import REFERENCE, all_quantized, asked, jitter
from fp4scope.ledger import results_to_json

BASE = all_quantized("nvfp4")


@pytest.fixture
def outputs(observe, results, tmp_path):
    """Folders `main` and `change`: NVFP4 costs 200 millinats in one and 230 in the other."""
    text = np.random.default_rng(0).normal(3, 1, 16)
    for name, cost in (("main", 0.2), ("change", 0.23)):
        rng = np.random.default_rng(int(1e3 * cost))
        found = [observe(REFERENCE, text), observe(jitter(REFERENCE), text, replicas=1)]
        for whole, replicas in ((BASE, 0), (jitter(BASE), 1)):
            noisy = text + cost + 0.005 * rng.normal(size=16)
            found.append(observe(whole, noisy, replicas=replicas))
        for i, unit in enumerate(("q_proj", "up_proj", "down_proj")):
            projection = asked(format="nvfp4", direction="only", level="projections", unit=unit)
            found.append(observe(projection, text + 0.05 * i + 0.001 * rng.normal(size=16)))
        study = results(
            *found,
            model={"name": "m", "fingerprint": "f", "blocks": 2, "tokenizer_sha256": "t"},
            data={"windows": 16, "seq_len": 11, "sha256": "s", "source": "words"},
        )
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(results_to_json(study)))
    return "main", "change"


def test_outputs_are_printed_side_by_side(fp4scope, outputs):
    code, out, err = fp4scope("compare", *outputs)
    assert (code, err) == (0, "")
    for words in ("16 x 11", "down_proj", "Same order?", "What changed from main to change"):
        assert words in out
    assert "the cost of nvfp4 (W4A4) changed by +" in out
    assert "millinats: beyond noise." in out
    assert "0 of 3 projections changed beyond noise" in out


def test_a_condition_that_holds_exits_with_1_and_says_which(fp4scope, outputs):
    code, out, err = fp4scope(
        "compare", *outputs, "--fail-if", "change(nvfp4) > 20", "--fail-if", "cost > 900",
        "--fail-if", "beyond-noise",
    )  # fmt: skip
    assert code == 1
    assert "What each format costs" in out
    first, second = err.splitlines()
    assert first.startswith("fp4scope: fail-if change(nvfp4) > 20: change, nvfp4, W4A4 has +")
    assert second.startswith("fp4scope: fail-if beyond-noise: change, nvfp4, W4A4 changed by +")
    turned = outputs[::-1]
    assert (
        fp4scope("compare", *turned, "--fail-if", "change > 0", "--fail-if", "cost > 220")[0] == 0
    )


def test_markdown_and_json(fp4scope, outputs, tmp_path):
    code, _, _ = fp4scope(
        "compare", *outputs, "-o", "c.md", "--json", "c.json", "--fail-if", "change > 20"
    )
    assert code == 1
    assert (tmp_path / "c.md").read_text().startswith("# main · change\n")
    data = json.loads((tmp_path / "c.json").read_text())
    assert data["version"] == 1
    assert data["outputs"] == list(outputs)
    assert len(data["failed"]) == 1
    assert [round(row["delta_nll"], 1) for row in data["all_quantized"]] == [0.2, 0.2]
    assert {row["level"] for row in data["changes"]} == {"model", "projections"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "0 outputs to compare"),
        (["main"], "give two or more folders"),
        (["main", "main"], "is the same folder as"),
        (["main", "nothing"], "nothing does not exist"),
        (["main", "change", "--fail-if", "cots > 1"], "did you mean cost"),
        (["main", "change", "--fail-if", "cost(mxfp4) > 1"], "there is: nvfp4"),
        (["main", "change", "-o", "no/such/folder.md"], "cannot write"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(fp4scope, outputs, arguments, words):
    code, _, err = fp4scope("compare", *arguments)
    assert code == 2
    assert len(err.splitlines()) == 1
    assert words in err


def test_it_never_loads_torch(outputs, tmp_path):
    check = (
        "import sys; sys.argv = ['fp4scope', 'compare', *sys.argv[1:]]\n"
        "from fp4scope.cli import main\nmain()\n"
    )
    check = check.replace("main()\n", "try: main()\nfinally: print('torch' in sys.modules)\n")
    done = subprocess.run(
        [sys.executable, "-c", check, *outputs],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "False"
