"""The documents: links lead somewhere, commands are commands, sentences are short."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from fp4scope.cli.app import app
from fp4scope.report.gates import parse_gate

ROOT = Path(__file__).parents[1]
PLAIN = (
    "README", "docs/commands", "docs/decide", "docs/faq", "docs/method", "docs/outputs",
    "docs/reading", "docs/statistics",
)  # fmt: skip
"""Pages whose sentences are held short."""
README_LINES = 120
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MOST_WORDS = 25
PRIVATE = ("restore", "isolate", "cell", "cells", "rerun noise", "told from zero")


def plain(name):
    """Paragraphs, items and headings of a page, without code, tables and targets of links."""
    text = (ROOT / f"{name}.md").read_text()
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    text = "\n".join(line for line in text.split("\n") if not line.startswith("|"))
    text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"<[^>]*>", "", text)
    return re.sub(r"`[^`]*`", "code", text)


@pytest.mark.parametrize("name", PLAIN)
def test_sentences_are_short_and_words_are_the_fields_own(name):
    for paragraph in re.split(r"\n\s*\n|\n(?=- |\d\. |#)", plain(name)):
        for sentence in re.split(r"(?<=[.?!:;])\s+", paragraph):
            words = sentence.split()
            assert len(words) <= MOST_WORDS, " ".join(words)
        for word in PRIVATE:
            assert not re.search(rf"\b{word}\b", paragraph), (word, paragraph)


def test_the_readme_can_be_read():
    assert len((ROOT / "README.md").read_text().splitlines()) <= README_LINES


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_pictures_are_there_for_both_grounds(page):
    for light in re.findall(r'<img [^>]*src="([^"]+)"', page.read_text()):
        assert (page.parent / light).exists(), light
    for dark in re.findall(r'srcset="([^"]+)"', page.read_text()):
        assert "dark" in dark
        assert (page.parent / dark).exists(), dark


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), target
        if anchor:
            heads = re.findall(r"^#+ (.*)$", found.read_text(), flags=re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in heads}


def _commands(text):
    for language, block in re.findall(r"```(\w*)\n(.*?)```", text, flags=re.DOTALL):
        if language not in ("", "sh"):
            continue
        for line in block.replace("\\\n", " ").splitlines():
            for part in line.split("&&"):
                words = shlex.split(part, comments=True)
                if words[:1] == ["fp4scope"]:
                    yield words[1:]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_are_commands(page):
    for name, *words in _commands(page.read_text()):
        app.commands[name].make_context(name, words)


def test_the_gate_is_a_workflow_whose_commands_are_commands():
    text = (ROOT / "examples/fp4-gate.yml").read_text()
    assert yaml.safe_load(text)["jobs"]["fp4"]["steps"]
    page = (ROOT / "docs/decide.md").read_text()
    assert text.partition("\n")[2] in page
    steps = [step.get("run", "") for step in yaml.safe_load(text)["jobs"]["fp4"]["steps"]]
    for step in steps:
        if step.startswith("fp4scope "):
            name, *words = shlex.split(step)[1:]
            context = app.commands[name].make_context(name, words)
            for gate in context.params.get("fail_if") or ():
                parse_gate(gate)
