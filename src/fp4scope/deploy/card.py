"""The model card of an exported checkpoint: what is stored how, and what is known of it."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from fp4scope.deploy.plan import Export
from fp4scope.names import markdown


def model_card(export: Export, name: str) -> str:
    """README.md, in Markdown with a head of metadata.

    Args:
        export: What is stored.
        name: Of the model that it is made from.
    """
    head = {"base_model": name, "tags": ["fp4", "quantized", "fp4scope"]}
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in head.items()), "---", ""]
    lines += [f"# {markdown(name)}, quantized by a recipe of fp4scope", ""]
    lines += ["| Scheme | Linears | Parameters | Weight formats |", "|---|---:|---:|---|"]
    for scheme, members in export.schemes.items():
        parameters = sum(rows * cols for rows, cols in (each.size for each in members))
        formats = ", ".join(dict.fromkeys(each.format.name for each in members))
        lines.append(f"| {scheme.label} | {len(members)} | {parameters:,} | {formats} |")
    lines += [f"| Full precision | {len(export.plain)} | | |", ""]
    if export.notes:
        lines += ["What is served differs from what was measured:", ""]
        lines += [f"- {note}" for note in export.notes] + [""]
    if rows := list(_rows(export.written.numbers)):
        lines += ["| Number | Value |", "|---|---|"]
        lines += [f"| {markdown(key)} | {markdown(value)} |" for key, value in rows] + [""]
    lines += ["The recipe is in `fp4scope-recipe.yaml`.", ""]
    return "\n".join(lines)


def _rows(numbers: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    for key, value in numbers.items():
        name = f"{above}{key}".replace("_", " ")
        if isinstance(value, Mapping):
            yield from _rows(value, f"{name}: ")
        else:
            yield name, _said(value)


def _said(value: Any) -> str:  # noqa: ANN401
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(_said, value))
    return str(value)
