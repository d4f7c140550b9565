"""What a model's configuration says, whatever shape it has.

A configuration need not have an attribute, may have it as a list with an item for each layer, and
since transformers 5 may raise anything when it is read: in a heterogeneous one an attribute that
differs by layer raises a `RuntimeError`, which neither `hasattr` nor `getattr` with a default
catches.
"""

from collections.abc import Iterator
from typing import Any

from transformers import PreTrainedConfig


def text_config(config: Any) -> Any:  # noqa: ANN401
    """The part that describes the text model, of a multimodal model's configuration too."""
    try:
        return config.get_text_config()
    except Exception:
        return config


def config_value(config: Any, name: str, default: Any = None) -> Any:  # noqa: ANN401
    """An attribute, or `default` where there is none, it is None, or reading it raises."""
    try:
        value = getattr(config, name, None)
    except Exception:
        return default
    return default if value is None else value


def config_size(config: Any, name: str, default: int) -> int:  # noqa: ANN401
    """A whole number, the largest where it differs by layer.

    Example:
        >>> from types import SimpleNamespace
        >>> config = SimpleNamespace(heads=[4, 8], width="wide")
        >>> config_size(config, "heads", 1), config_size(config, "width", 1)
        (8, 1)
    """
    value = config_value(config, name)
    if value is None:
        try:
            value = [config_value(layer, name) for layer in config.per_layer_config]
        except Exception:
            return default
    values = value if isinstance(value, list | tuple) else [value]
    sizes = [size for size in values if isinstance(size, int) and not isinstance(size, bool)]
    return max(sizes, default=default)


def parts(config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    """A configuration and those inside it."""
    yield config
    for value in list(vars(config).values()):
        if isinstance(value, PreTrainedConfig):
            yield from parts(value)
