"""Benchmarks hold what they say: here those whose own checks tell, on a model of three blocks."""

import importlib
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def sweep(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    shared = importlib.import_module("shared")
    config = type(shared.CONFIGS["small"])(
        vocab_size=128,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    monkeypatch.setitem(shared.CONFIGS, "small", config)
    return importlib.import_module("sweep")


def test_the_sweep_takes_half_the_blocks_of_whole_runs(
    sweep: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--windows", "1", "--seq-len", "32", "--formats", "mxfp4:floor,nvfp4"]
    monkeypatch.setattr("sys.argv", ["sweep.py", *asked, "--rivals", "naive,eager"])
    assert sweep.main() == 0
    said = capsys.readouterr().out
    assert said.count("21 layers and 2 all-quantized models") == 2
    assert "FAILED" not in said
