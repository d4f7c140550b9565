"""HumanEval from a file: what is read, what is refused, and how answers are scored."""

import gzip
import json

import pytest

from fp4scope.errors import DataError
from fp4scope.tasks import humaneval

PROBLEM = {
    "task_id": "Own/0",
    "prompt": "def double(x):\n",
    "entry_point": "double",
    "test": "def check(candidate):\n    assert candidate(2) == 4\n",
    "canonical_solution": "    return 2 * x\n",
}


def test_plain_and_packed_files_are_read(tmp_path):
    text = "\n".join(json.dumps(PROBLEM | {"task_id": f"Own/{i}"}) for i in range(3))
    plain, packed = tmp_path / "own.jsonl", tmp_path / "own.jsonl.gz"
    plain.write_text(f"{text}\n\n")
    packed.write_bytes(gzip.compress(text.encode()))
    found = humaneval.read_problems(plain)
    assert [problem["task_id"] for problem in found] == ["Own/0", "Own/1", "Own/2"]
    assert humaneval.read_problems(packed) == found


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"{", "line 1 is no JSON"),
        (b"[1]", "no text under task_id"),
        (json.dumps(PROBLEM | {"test": 1}).encode(), "no text under test"),
        (b"\xff", "cannot read"),
    ],
)
def test_what_is_no_problem_is_refused(tmp_path, content, said):
    path = tmp_path / "own.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=said):
        humaneval.read_problems(path)


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("    return 2 * x\n", 1.0),
        ("    return x\n", 0.0),
        ("    return 2 * x\n```\nThis doubles it.", 1.0),
        ("    return", 0.0),
        ("    raise SystemExit(0)\n", 0.0),
    ],
)
def test_an_answer_passes_if_the_tests_do(answer, score):
    assert humaneval.score(PROBLEM, [answer]) == {"pass@1": score}
