"""The site of the documents: its pages and its reference. Nothing is built or fetched."""

import importlib.util
import re
from pathlib import Path

import yaml

import fp4scope

ROOT = Path(__file__).parents[1]
MADE = {"index.md", "api.md"}


class _Loader(yaml.SafeLoader):
    """Reads tags of Python as nothing."""


_Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)
CONFIG = yaml.load((ROOT / "mkdocs.yml").read_text(), _Loader)


def hooks():
    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / CONFIG["hooks"][0])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pages(nav):
    for entry in nav:
        for value in entry.values():
            yield from [value] if isinstance(value, str) else pages(value)


def test_every_page_has_a_place_and_every_place_a_page():
    named = list(pages(CONFIG["nav"]))
    assert len(named) == len(set(named))
    there = {path.name for path in (ROOT / "docs").glob("*.md")}
    assert {name for name in named if "/" not in name} == there | MADE
    assert all((ROOT / "docs" / name).exists() for name in named if name not in MADE)
    assert not there & MADE


def test_every_public_name_is_in_the_reference():
    listed = re.findall(r"^::: fp4scope\.(\w+)$", hooks().reference(), flags=re.MULTILINE)
    assert sorted(listed) == sorted(fp4scope.__all__)
    for name, home in hooks().public().items():
        assert getattr(fp4scope, name).__module__.startswith(home)


def test_links_of_the_first_page_lead_somewhere_from_docs():
    text = hooks().home()
    targets = re.findall(r'\]\(([^)\s#:]+)|(?:src|srcset)="([^"]+)"', text)
    assert len(targets) > 20
    for target in map("".join, targets):
        assert (ROOT / "docs" / target).exists(), target


def test_sources_that_pages_link_to_are_files_of_the_repository():
    outside = hooks().outside
    assert outside("method.md", "../src/fp4scope/formats/spec.py") == "src/fp4scope/formats/spec.py"
    assert outside("results/README.md", "../why.md") is None
    assert outside("method.md", "../../elsewhere.py") is None
    assert outside("method.md", "https") is None


def test_the_site_and_its_tools_are_ignored_and_pinned():
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert f"{CONFIG['site_dir']}/" in ignored
    assert ".venv-docs" in ignored
    assert CONFIG["strict"] is True
