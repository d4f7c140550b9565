"""HumanEval from a file that the user has, scored by running what the model wrote.

A line of the file is a problem: `task_id`, `prompt`, `entry_point` and `test`. The model goes on
with the prompt, and a document passes if the problem's own tests pass. It is a task of lm-eval,
which brings the prompt, the stops and the generation; the programs run in `sandbox`.

Source: Chen et al. 2021, Evaluating large language models trained on code, arXiv 2107.03374
(the stops are those of its section 2.1).
"""

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fp4scope.errors import DataError
from fp4scope.files import named, read_bytes
from fp4scope.tasks.sandbox import run_program

METRIC = "pass@1"
_FIELDS = ("task_id", "prompt", "entry_point", "test")
_STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
_FENCE = "```"
_MOST_TOKENS = 512
_ASK = "Complete this function. Answer with the whole function in one block of code.\n"


def read_problems(path: Path) -> list[dict[str, str]]:
    """The problems in a file, `.jsonl` or `.jsonl.gz`.

    Raises:
        DataError: It cannot be read, or a line of it is no problem.
    """
    content = read_bytes(path, "file of problems", DataError)
    advice = f"give a file such as HumanEval.jsonl: each line has {', '.join(_FIELDS)}"
    try:
        text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {named(path)}: {error}; {advice}") from None
    found = [
        _problem(line, f"{named(path)}, line {number}", advice)
        for number, line in enumerate(text.splitlines(), 1)
        if line.strip()
    ]
    if not found:
        raise DataError(f"{named(path)} is empty; {advice}")
    return found


def _problem(line: str, place: str, advice: str) -> dict[str, str]:
    try:
        said = json.loads(line)
    except ValueError as error:
        raise DataError(f"{place} is no JSON ({error}); {advice}") from None
    missing = [
        name
        for name in _FIELDS
        if not isinstance(said, Mapping) or not isinstance(said.get(name), str)
    ]
    if missing:
        raise DataError(f"{place} has no text under {missing[0]}; {advice}")
    return {name: said[name] for name in _FIELDS}


def config(name: str, path: Path, *, chat: bool) -> dict[str, Any]:
    """The task as lm-eval takes it.

    Args:
        name: What it is called.
        path: The file.
        chat: Whether the model is asked through its chat template, and answers with a block of
            code; else it goes on with the prompt.

    Raises:
        DataError: It cannot be read, or a line of it is no problem.
    """
    problems = read_problems(path)

    def dataset(**_: Any) -> Any:  # noqa: ANN401
        from datasets import Dataset

        return {"test": Dataset.from_list(problems)}

    block = f"{_FENCE}python\n{{{{prompt}}}}"
    asked = {
        "doc_to_text": f"{_ASK}{block}{_FENCE}\n",
        "gen_prefix": block,
    }
    return {
        "task": name,
        "custom_dataset": dataset,
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "{{test}}",
        **(asked if chat else {}),
        "generation_kwargs": {
            "until": [f"\n{_FENCE}"] if chat else list(_STOPS),
            "max_gen_toks": _MOST_TOKENS,
            "do_sample": False,
        },
        "process_results": score,
        "metric_list": [{"metric": METRIC, "aggregation": "mean", "higher_is_better": True}],
        "num_fewshot": 0,
        "unsafe_code": True,
        "metadata": {"version": 1},
    }


def score(doc: Mapping[str, str], answers: Sequence[str]) -> dict[str, float]:
    """Whether the problem's tests pass with what the model wrote behind the prompt."""
    return {METRIC: float(run_program(program(doc, answers[0])) == "passed")}


def program(doc: Mapping[str, str], answer: str) -> str:
    """Prompt, answer and tests as one program.

    Example:
        >>> doc = {"prompt": "def one():", "entry_point": "one"}
        >>> doc["test"] = "def check(f):" + chr(10) + "    assert f() == 1"
        >>> program(doc, chr(10) + "    return 1").splitlines()
        ['def one():', '    return 1', 'def check(f):', '    assert f() == 1', 'check(one)']
    """
    answer = answer.partition(_FENCE)[0]
    return f"{doc['prompt']}{answer}\n{doc['test']}\ncheck({doc['entry_point']})\n"
