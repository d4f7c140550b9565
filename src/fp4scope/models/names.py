"""What a name points at: a GGUF file, a local folder, or a hub id."""

from pathlib import Path

from fp4scope.errors import ModelError, StudyError
from fp4scope.models.gguf import converted, is_gguf, quantization_of
from fp4scope.models.library import library


def check_name(name: str, revision: str | None = None) -> None:
    """Refuse, before anything is loaded or fetched, a name that cannot be a model's.

    Args:
        name: Hub id, local folder, or GGUF file.
        revision: Branch, tag or commit; only a hub id has them.

    Raises:
        ModelError: A path that is not there, or neither a GGUF file nor a model folder.
        StudyError: A revision of something local.
    """
    path = _path(name)
    if path.is_file():
        if not is_gguf(path):
            raise ModelError(
                f"{name} is a file but not a GGUF file; give a GGUF file, a folder with "
                "config.json and safetensors, or a hub id"
            )
    elif path.is_dir():
        if not (path / "config.json").exists():
            raise ModelError(f"{name} has no config.json, so it is not a model folder")
    elif name.startswith((".", "/", "~")) or name.endswith(".gguf") or name.count("/") > 1:
        raise ModelError(f"{name} does not exist; give a GGUF file, a model folder, or a hub id")
    if revision is not None and path.exists():
        raise StudyError(
            f"revision is {revision!r}, but {name} is local and has no revisions; leave it out, or "
            "give a hub id"
        )


def resolve(name: str) -> tuple[str, str | None]:
    """What to hand to `from_pretrained`, and how its weights were quantized before."""
    path = _path(name)
    if path.is_file():
        with library(name, name):
            folder = converted(path)
        return str(folder), quantization_of(folder)
    if path.is_dir():
        return str(path), quantization_of(path)
    return name, None


def _path(name: str) -> Path:
    try:
        path = Path(name).expanduser()
        path.stat()
    except FileNotFoundError:
        return path
    except (OSError, RuntimeError, ValueError) as error:  # too long, no such user, a null byte
        reason = getattr(error, "strerror", None) or error
        raise ModelError(
            f"{name[:80]!r} cannot be a model's name or path ({reason}); give a GGUF file, a model "
            "folder, or a hub id"
        ) from None
    return path
