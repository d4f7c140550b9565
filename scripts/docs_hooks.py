"""What the site has beside docs/: the README as its first page, a reference, and linked sources.

Called by mkdocs (`hooks` of mkdocs.yml), and without anything of fp4scope installed.
"""

import ast
import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
_PAGE = "page.html"
"""What a kept report.html is called beside the page of its report.md."""
_LINK = re.compile(r"(\]\()([^)\s:#]+)")


def public() -> dict[str, str]:
    """Every name of `fp4scope.__all__`, and the module that defines it."""
    tree = ast.parse((ROOT / "src/fp4scope/__init__.py").read_text(encoding="utf-8"))
    known = {
        target.id: ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name) and target.id in ("_HOME", "__all__")
    }
    return {name: known["_HOME"][name] for name in known["__all__"]}


def reference() -> str:
    """The page of the public names, functions first."""
    names = sorted(public(), key=lambda name: (name[0].isupper(), name))
    said = "Names of `import fp4scope`. Tables, figures and reports come with `Diagnosis`."
    blocks = [f"::: fp4scope.{name}" for name in names]
    return "\n\n".join(["# Python", said, *blocks]) + "\n"


def home() -> str:
    """The README as a page that lies in docs/."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.sub(r'(\]\(|src="|srcset=")docs/', r"\1", text)


def on_files(files: Any, config: Any) -> Any:  # noqa: ANN401
    """Add the pages that are made, and what docs link to outside their folder."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, "index.md", content=home()))
    files.append(File.generated(config, "api.md", content=reference()))
    for kept in sorted((ROOT / "docs").rglob("report.html")):
        name = str(kept.relative_to(ROOT / "docs").with_name(_PAGE))
        files.append(File.generated(config, name, content=kept.read_text(encoding="utf-8")))
    for page in [file for file in files if file.src_uri.endswith(".md")]:
        for _, target in _LINK.findall(page.content_string):
            if path := outside(page.src_uri, target):
                name = f"source/{path}.txt"
                if files.get_file_from_path(name) is None:
                    text = (ROOT / path).read_text(encoding="utf-8")
                    files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:  # noqa: ANN401
    """Links to files outside docs/ lead to their copies, to pages of reports to these."""
    start = PurePosixPath(page.file.src_uri).parent

    def moved(found: re.Match[str]) -> str:
        if PurePosixPath(found[2]).name == "report.html":
            return found[1] + str(PurePosixPath(found[2]).with_name(_PAGE))
        path = outside(page.file.src_uri, found[2])
        return found[0] if path is None else found[1] + os.path.relpath(f"source/{path}.txt", start)

    return _LINK.sub(moved, markdown)


def outside(page: str, target: str) -> str | None:
    """The file of the repository, outside docs/, that a link of a page leads to."""
    path = os.path.normpath(PurePosixPath("docs", page).parent / target)
    is_out = not path.startswith(("docs/", ".."))
    return path if is_out and (ROOT / path).is_file() else None
