"""What a name points at: a GGUF file, a local folder, or a hub id."""

from fp4scope.models.gguf import converted, quantization_of
from fp4scope.models.library import library
from fp4scope.preflight import model_path


def resolve(name: str) -> tuple[str, str | None]:
    """What to hand to `from_pretrained`, and how its weights were quantized before."""
    path = model_path(name)
    if path.is_file():
        with library(name, name):
            folder = converted(path)
        return str(folder), quantization_of(folder)
    if path.is_dir():
        return str(path), quantization_of(path)
    return name, None
