"""Attributes of configurations that are absent, differ by layer, or raise when they are read."""

from types import SimpleNamespace

import pytest
from transformers import CodeGenConfig, Mamba2Config

from fp4scope.models import config_size, config_value
from fp4scope.models.config import text_config


class Heterogeneous:
    """As in transformers 5: reading what differs by layer raises, the layers' own does not."""

    def __init__(self, *layers):
        self._layers = layers

    @property
    def heads(self):
        raise RuntimeError("'heads' is a per-layer attribute and may vary across layers")

    @property
    def per_layer_config(self):
        return [SimpleNamespace(heads=heads) for heads in self._layers]


@pytest.mark.parametrize(
    ("config", "size"),
    [
        (SimpleNamespace(heads=4), 4),
        (SimpleNamespace(heads=[4, 16, 8]), 16),
        (SimpleNamespace(heads=(4, None)), 4),
        (SimpleNamespace(heads=None), 7),
        (SimpleNamespace(heads="many"), 7),
        (SimpleNamespace(heads=True), 7),
        (SimpleNamespace(heads=[]), 7),
        (SimpleNamespace(), 7),
        (None, 7),
        (Heterogeneous(2, 8, 4), 8),
        (Heterogeneous(), 7),
        (Mamba2Config(), 7),
    ],
)
def test_a_size_is_a_number_whatever_the_configuration_says(config, size):
    assert config_size(config, "heads", 7) == size


def test_a_value_that_is_absent_none_or_raises_is_the_default():
    assert config_value(Heterogeneous(), "heads", "default") == "default"
    assert config_value(SimpleNamespace(x=None), "x", 1) == 1
    assert config_value(SimpleNamespace(x=0), "x", 1) == 0
    assert config_value(CodeGenConfig(), "no_such_attribute", 1) == 1


def test_the_text_part_of_a_configuration():
    text = SimpleNamespace(vocab_size=8)
    assert text_config(SimpleNamespace(get_text_config=lambda: text)) is text
    assert text_config(text) is text

    def several():
        raise ValueError("multiple valid text configs were found")

    config = SimpleNamespace(get_text_config=several)
    assert text_config(config) is config
