"""Several texts in one run: each a study in a folder of its own, on one model and one calibration.

What is compared between domains is then the text alone. A file of chats becomes text through the
model's own chat template.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from fp4scope.conductor.prepare import load, say, windows_of
from fp4scope.conductor.run import run_study
from fp4scope.conductor.workers import device_of
from fp4scope.data import (
    WindowSet,
    calibration_text,
    calibration_windows,
)
from fp4scope.diagnosis import Diagnosis
from fp4scope.errors import DataError, StudyError, shown
from fp4scope.files import named, read_bytes, replace_file, text_bytes, writable_folder
from fp4scope.models import LoadedModel
from fp4scope.preflight import check
from fp4scope.study import Study
from fp4scope.sweep import Listener

_NAMED = re.compile(r"\s*([\w.-]+)=(.+)")
_CHATS = ".jsonl"
_ADVICE = 'each line is {"messages": [{"role": "user", "content": "..."}, ...]}'


def parse_domains(text: str | None) -> dict[str, Path] | None:
    """Texts by domain as `--text` names them; None where it names one file.

    Args:
        text: Such as `prose=a.txt,code=b.py,chat=c.jsonl`.

    Raises:
        StudyError: Some have a name and others have none, a name comes twice, or there is one.

    Example:
        >>> sorted(parse_domains("prose=a.txt,code=b.py")), parse_domains("a=b.txt")
        (['code', 'prose'], None)
    """
    items = (text or "").split(",")
    found = [_NAMED.fullmatch(item) for item in items]
    if len(items) < 2 or os.path.exists(text or "") or not any(found):
        return None
    texts: dict[str, Path] = {}
    for item, match in zip(items, found, strict=True):
        if match is None or match[1] in texts or match[1].startswith("."):
            raise StudyError(
                f"text has {shown(item)} among several; give each a name of its own: "
                "prose=a.txt,code=b.py"
            )
        texts[match[1]] = Path(match[2].strip()).expanduser()
    return texts


def run_domains(
    study: Study,
    texts: Mapping[str, Path],
    folder: Path,
    tell: Listener,
    accept: Sequence[str] = (),
) -> dict[str, Diagnosis]:
    """Diagnose a model on each of several texts.

    Args:
        study: What is asked of each; its text is left out.
        texts: Files by domain: text, or chats where they end in `.jsonl`.
        folder: Each domain has a folder in it; a stopped run goes on there.
        tell: Hears how the work goes on.
        accept: Bars that whole models are held to.

    Raises:
        Fp4ScopeError: Something about the request, a text or the model.
    """
    loaded, studies = domain_studies(study, texts, folder, tell)
    calibration = calibration_of_all([_calibration(own, loaded) for own in studies.values()])
    found: dict[str, Diagnosis] = {}
    for name, own in studies.items():
        say(tell, f"domain {name}: {texts[name]}")
        found[name] = run_study(
            own,
            output_dir=folder / name,
            progress=tell,
            loaded=loaded,
            calibration=calibration,
            accept=accept,
        )
    return found


def domain_studies(
    study: Study, texts: Mapping[str, Path], folder: Path, tell: Listener
) -> tuple[LoadedModel, dict[str, Study]]:
    """The model, and the study of each text; chats become texts in the folder.

    Args:
        study: What is asked of each; its text is left out.
        texts: Files by domain: text, or chats where they end in `.jsonl`.
        folder: Where chats are written as texts.
        tell: Hears how the work goes on.

    Raises:
        Fp4ScopeError: Something about the request, a text or the model.
    """
    for path in texts.values():
        check(study.but(text=str(path), dataset=None))
    writable_folder(folder)
    chats = {name: _chats(path) for name, path in texts.items() if path.suffix == _CHATS}
    device_of(study)
    loaded = load(study, tell)
    plain = dict(texts)
    for name, messages in chats.items():
        plain[name] = folder / f"{name}.txt"
        replace_file(plain[name], text_bytes(_templated(messages, loaded)), "choose another folder")
    return loaded, {n: study.but(text=str(path), dataset=None) for n, path in plain.items()}


def _chats(path: Path) -> list[Any]:
    """Messages of each line.

    Raises:
        DataError: A line has none.
    """
    content = read_bytes(path, "text", DataError)
    found: list[Any] = []
    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip():
            continue
        try:
            messages = json.loads(line)["messages"]
            good = all(isinstance(m["role"], str) and isinstance(m["content"], str)
                       for m in messages)  # fmt: skip
        except (ValueError, KeyError, TypeError):
            good, messages = False, []
        if not good or not messages:
            raise DataError(f"{named(path)}, line {number} holds no chat; {_ADVICE}")
        found.append(messages)
    if not found:
        raise DataError(f"{named(path)} is empty; {_ADVICE}")
    return found


def _templated(chats: Sequence[Any], loaded: LoadedModel) -> str:
    """Chats as the model is shown them, one after the other.

    Raises:
        DataError: The model has no chat template, or it refuses these.
    """
    tokenizer = loaded.tokenizer
    if not getattr(tokenizer, "chat_template", None):
        raise DataError(f"{loaded.name} has no chat template; give the chat as a text instead")
    try:
        return "".join(str(tokenizer.apply_chat_template(own, tokenize=False)) for own in chats)
    except Exception as error:  # templates raise what they like
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"the chat template of {loaded.name} refuses a chat: {reason}") from None


def _calibration(study: Study, loaded: LoadedModel) -> WindowSet:
    data, windows = windows_of(study.data, loaded)
    return calibration_windows(data, calibration_text(data), loaded.tokenizer, windows)


def calibration_of_all(parts: Sequence[WindowSet]) -> WindowSet:
    """Calibration windows of all domains; of one text that all share they are taken once."""
    distinct = list({part.sha256: part for part in parts}.values())
    if len(distinct) == 1:
        return distinct[0]
    shortest = min(part.ids.shape[1] for part in distinct)
    joined = "".join(part.text_sha256 for part in distinct)
    return replace(
        distinct[0],
        ids=torch.cat([part.ids[:, :shortest] for part in distinct]),
        source=" + ".join(dict.fromkeys(part.source for part in distinct)),
        text_sha256=sha256(joined.encode()).hexdigest(),
        tokens_in_text=sum(part.tokens_in_text for part in distinct),
        evaluated=any(part.evaluated for part in distinct),
    )
