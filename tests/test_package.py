"""The package as a whole: what is public, what loads torch, how fast it answers."""

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fp4scope

SOURCE = Path(fp4scope.__file__).parent
ROOT = Path(__file__).parents[1]


def test_the_three_lists_of_public_names_agree():
    tree = ast.parse((SOURCE / "__init__.py").read_text())
    guarded = next(n for n in tree.body if isinstance(n, ast.If))
    imported = {alias.name for node in guarded.body for alias in node.names}
    assert imported == set(fp4scope._HOME) == set(fp4scope.__all__)
    for name in fp4scope.__all__:
        assert getattr(fp4scope, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = fp4scope.nothing


@pytest.mark.parametrize(
    "code",
    [
        "import fp4scope",
        "import fp4scope.cli",
        "import fp4scope.study, fp4scope.ledger, fp4scope.formats",
        "import fp4scope.stats",
        "import fp4scope; fp4scope.load; fp4scope.compare",
        "import fp4scope.report.figures, fp4scope.report.markdown, fp4scope.report.page",
        "import fp4scope.cli.compare, fp4scope.diagnosis",
    ],
)
def test_these_never_load_torch(code):
    check = f"{code}\nimport sys\nassert not {{'torch', 'transformers'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True)


def test_the_architecture_lists_the_rooms_that_the_import_linter_knows():
    project = (ROOT / "pyproject.toml").read_text()
    layers = re.search(r"^layers = \[(.*?)^\]", project, re.DOTALL | re.MULTILINE)
    rooms = (ROOT / "docs" / "architecture.md").read_text().split("## Rooms")[1]
    listed = re.findall(r"^\| `(\w+)` \|", rooms, re.MULTILINE)
    assert listed == re.findall(r"fp4scope\.(\w+)", layers[1])
    sources = [p for p in SOURCE.iterdir() if p.suffix in ("", ".py")]
    assert set(listed) == {p.stem for p in sources if not p.name.startswith("_")}


def test_help_loads_nothing_heavy():
    check = (
        "import sys; sys.argv = ['fp4scope', '--help']\n"
        "from fp4scope.cli import main\n"
        "try: main()\n"
        "except SystemExit as stop: assert not stop.code\n"
        "heavy = {'torch', 'transformers', 'numpy', 'pydantic', 'matplotlib', 'scipy'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", check], check=True, capture_output=True)


def _documented():
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                text = ast.get_docstring(node) or ""
                if "Args:" in text:
                    yield pytest.param(node, text, id=f"{path.stem}.{node.name}")


@pytest.mark.parametrize(("node", "text"), list(_documented()))
def test_documented_arguments_exist(node, text):
    section = re.search(r"Args:\n((?:    .*\n?|\n)*)", inspect.cleandoc(text)).group(1)
    named = set(re.findall(r"^    \*{0,2}(\w+):", section, re.MULTILINE))
    function = node
    if isinstance(node, ast.ClassDef):
        function = next(n for n in node.body if getattr(n, "name", "") == "__init__")
    a = function.args
    real = {x.arg for x in (*a.posonlyargs, *a.args, *a.kwonlyargs, a.vararg, a.kwarg) if x}
    assert named
    assert named == real - {"self", "cls"}
