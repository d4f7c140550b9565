"""From a written recipe to what an engine reads: a configuration, or a packed checkpoint."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fp4scope.deploy.checkpoint import require_place, write_checkpoint
from fp4scope.deploy.dialects import (
    compressed_tensors,
    llm_compressor,
    modelopt,
    modelopt_file,
    vllm_online,
)
from fp4scope.deploy.plan import Export, plan_export
from fp4scope.deploy.written import WrittenRecipe
from fp4scope.errors import StudyError, nearest, shown
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


@dataclass(frozen=True)
class Exported:
    """What an export has, and where it lies.

    Attributes:
        export: How each linear is stored.
        config: What the engine's program reads.
        text: The same, as a file has it.
        files: What was written.
    """

    export: Export
    config: Mapping[str, Any]
    text: str
    files: tuple[Path, ...]

    @property
    def notes(self) -> tuple[str, ...]:
        """How what is served differs from what was measured."""
        return self.export.notes


def export(
    recipe: str | Path | WrittenRecipe,
    to: str = "compressed-tensors",
    *,
    checkpoint: str | Path | None = None,
    out: str | Path | None = None,
    model: str | Path | None = None,
) -> Exported:
    """Write a recipe as engines read it.

    Args:
        recipe: The file of one, as `recommend` leaves it, or what that holds
            (`Recommendation.written`).
        to: Who reads it: `compressed-tensors`, `modelopt`, `vllm-online` or `llm-compressor`.
        checkpoint: A folder for a packed checkpoint, which must not be there.
        out: A file for the configuration.
        model: Where the recipe's model is, if that is not what it calls it.

    Returns:
        The configuration, how each linear is stored, and what was written.

    Raises:
        Fp4ScopeError: The recipe is of another model, no engine serves it, or something cannot be
            written; nothing is half-written.

    Example:
        >>> import fp4scope
        >>> fp4scope.export("out/recipe.yaml", checkpoint="packed").notes  # doctest: +SKIP
    """
    if to not in _WRITERS:
        raise StudyError(f"to is {shown(to)}; {nearest(to, _WRITERS)}")
    if checkpoint is not None and to not in _PACKED:
        raise StudyError(
            f"{to} reads no packed checkpoint: it rounds the original one itself; leave "
            f"--checkpoint out, or use --to {' or '.join(_PACKED)}"
        )
    if out is not None:
        require_writable(Path(out))
    written = recipe if isinstance(recipe, WrittenRecipe) else WrittenRecipe.read(recipe)
    source = _source(written, None if model is None else str(model))
    planned = plan_export(written, source)
    config = _WRITERS[to](planned)
    files: list[Path] = []
    if checkpoint is not None:
        folder = Path(checkpoint)
        require_place(folder, planned, source)
        dialect = "modelopt" if to == "modelopt" else "compressed-tensors"
        write_checkpoint(planned, source, folder, dialect)
        files.append(folder)
    if out is not None:
        for path, content in _files(Path(out), to, config, planned).items():
            replace_file(path, content.encode(), "choose another file")
            files.append(path)
    return Exported(planned, config, _text(to, config), tuple(files))


def _source(written: WrittenRecipe, model: str | None) -> Source:
    named = written.recipe.edited
    revision = written.model.revision if model is None else None
    head = any(name.rpartition(".")[2] == _HEAD for name in named)
    return open_source(model or written.model.name, revision, named=named, head=head)


def _files(out: Path, to: str, config: dict[str, Any], planned: Export) -> dict[Path, str]:
    """What is written; ModelOpt's readers want the same in two files."""
    found = {out: _text(to, config)}
    if to == "modelopt" and out.name != _MODELOPT_FILE:
        found[out.with_name(_MODELOPT_FILE)] = _text("", modelopt_file(planned))
    elif to == "modelopt":
        found[out] = _text("", modelopt_file(planned))
    return found


def _text(to: str, config: Mapping[str, Any]) -> str:
    import yaml

    if to == "llm-compressor":
        plain = json.loads(json.dumps(config))  # YAML has references to what is shared
        return yaml.safe_dump(plain, sort_keys=False, width=100)
    if to in _PACKED:
        config = {"quantization_config": config}
    return json.dumps(config, indent=2) + "\n"
