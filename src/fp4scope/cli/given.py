"""What the options of a command say: a study, texts by domain, a folder's name."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fp4scope.errors import StudyError

if TYPE_CHECKING:
    from fp4scope.study import Study


def study_from(options: dict[str, Any], config: Path | None = None) -> "Study":
    """The study that options ask for, over what a file asks.

    Raises:
        StudyError: No model, or an option that is none.
    """
    from fp4scope.study import Study, read_options

    given = given_of(options)
    known = read_options(config) if config is not None else {}
    # A text given here replaces whichever way the file names one.
    if "text" in given or "dataset" in given:
        known = {k: v for k, v in known.items() if k not in ("text", "dataset")}
    merged = known | given
    if not merged.get("model"):
        raise StudyError("which model? give a hub id, a local folder or a GGUF file, or --config")
    return Study.build(**merged)


def given_of(options: dict[str, Any]) -> dict[str, Any]:
    """Those options that were given."""
    return {name: value for name, value in options.items() if value not in (None, ())}


def domains_of(text: str | None) -> dict[str, Path] | None:
    """Texts by domain, if several are named."""
    if text is None or "=" not in text or "," not in text:
        return None
    from fp4scope.conductor.domains import parse_domains

    return parse_domains(text)


def slug(study: "Study") -> str:
    """The last part of the model's name, without `.gguf`, safe as a folder's name."""
    name = study.model.name.rstrip("/").rpartition("/")[2].removesuffix(".gguf")
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in name) or "model"
