"""`fp4scope export`: a recipe as a configuration, or as a packed checkpoint."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fp4scope.cli.terminal import console, say
from fp4scope.deploy.checkpoint import require_place, write_checkpoint
from fp4scope.deploy.dialects import (
    compressed_tensors,
    llm_compressor,
    modelopt,
    modelopt_file,
    vllm_online,
)
from fp4scope.deploy.export import Export, plan_export
from fp4scope.deploy.written import WrittenRecipe
from fp4scope.errors import StudyError
from fp4scope.files import replace_file, require_writable
from fp4scope.models import Source, open_source

_WRITERS: Mapping[str, Callable[[Export], dict[str, Any]]] = {
    "compressed-tensors": compressed_tensors,
    "modelopt": modelopt,
    "vllm-online": vllm_online,
    "llm-compressor": llm_compressor,
}
_PACKED = ("compressed-tensors", "modelopt")
_HEAD = "lm_head"
_MODELOPT_FILE = "hf_quant_config.json"


def print_export(
    recipe: Path, to: str, checkpoint: Path | None, out: Path | None, model: str | None
) -> None:
    """Export, and say what was written.

    Args:
        recipe: The file with the recipe.
        to: The program that reads the export.
        checkpoint: Where a packed checkpoint is written.
        out: Where the configuration is written; it is shown where neither is given.
        model: Where the recipe's model is, if that is not what it calls it.
    """
    if checkpoint is not None and to not in _PACKED:
        raise StudyError(
            f"{to} reads no packed checkpoint: it rounds the original one itself; leave "
            f"--checkpoint out, or use --to {' or '.join(_PACKED)}"
        )
    if out is not None:
        require_writable(out)
    written = WrittenRecipe.read(recipe)
    source = _source(written, model)
    export = plan_export(written, source)
    config = _WRITERS[to](export)
    screen = console(stderr=True)
    for scheme, members in export.schemes.items():
        say(screen, f"{scheme.label}: {len(members)} linears")
    say(screen, f"full precision: {len(export.plain)} linears")
    for note in export.notes:
        say(screen, f"note: {note}")
    if checkpoint is not None:
        require_place(checkpoint, export, source)
        dialect = "modelopt" if to == "modelopt" else "compressed-tensors"
        write_checkpoint(export, source, checkpoint, dialect)
        screen.print(f"Written: {checkpoint}", soft_wrap=True)
    if out is not None:
        for path, content in _files(out, to, config, export).items():
            replace_file(path, content.encode(), "choose another file")
            screen.print(f"Written: {path}", soft_wrap=True)
    elif checkpoint is None:
        print(_text(to, config), end="")


def _source(written: WrittenRecipe, model: str | None) -> Source:
    named = written.recipe.edited
    revision = written.model.revision if model is None else None
    head = any(name.rpartition(".")[2] == _HEAD for name in named)
    return open_source(model or written.model.name, revision, named=named, head=head)


def _files(out: Path, to: str, config: dict[str, Any], export: Export) -> dict[Path, str]:
    """What is written; ModelOpt's readers want the same in two files."""
    found = {out: _text(to, config)}
    if to == "modelopt" and out.name != _MODELOPT_FILE:
        found[out.with_name(_MODELOPT_FILE)] = _text("", modelopt_file(export))
    elif to == "modelopt":
        found[out] = _text("", modelopt_file(export))
    return found


def _text(to: str, config: dict[str, Any]) -> str:
    import yaml

    if to == "llm-compressor":
        plain = json.loads(json.dumps(config))  # YAML has references to what is shared
        return yaml.safe_dump(plain, sort_keys=False, width=100)
    if to in _PACKED:
        config = {"quantization_config": config}
    return json.dumps(config, indent=2) + "\n"
