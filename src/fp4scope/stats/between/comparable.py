"""What two results have in common, and so how they may be compared. Only their conditions count.

Three questions, each with its own consequence. Is it the same model, or a checkpoint of the same
shape: then units can be compared one by one. Do the windows hold the same tokens: then they pair.
Is a token the same piece of text: then nats per token are the same unit. Rank orders of units need
none of the three.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from fp4scope.ledger import Results
from fp4scope.stats.findings.windows import by_window

_SHAPE = ("architecture", "blocks", "projections", "parameters")
_TEXT = ("text_sha256", "tokens_in_text", "bos")
# What may differ, where it stands, and what then does not compare.
_CONDITIONS = (
    (
        "text",
        "data.text_sha256",
        "costs are of different texts, and nothing is paired across them",
    ),
    (
        "tokenizer",
        "model.tokenizer_sha256",
        "unless the windows hold the same tokens, perplexities and millinats per token are not the "
        "same unit across them; rank orders compare",
    ),
    (
        "tokens in a window",
        "data.seq_len",
        "context is part of what is measured, and nothing is paired across them",
    ),
    ("BOS before each window", "data.bos", "nothing is paired across them"),
    ("number of windows", "data.windows", "where the text is the same, those of both are compared"),
    ("dtype", "model.dtype", "references of other precision have other costs against them"),
    (
        "quantization before",
        "model.prior_quantization",
        "a reference that was quantized before has part of the damage in it",
    ),
    ("operands", "study.question.operands", "only what both have is compared"),
    (
        "NVFP4's activation scale",
        "protocol.activation_scale",
        "NVFP4's costs differ by it too",
    ),
    ("NVFP4's weight scales", "study.numerics.scales", "NVFP4's costs differ by it too"),
    (
        "calibration text",
        "data.calibration.text_sha256",
        "NVFP4's activation scale differs by it too",
    ),
    (
        "numerics version",
        "environment.numerics",
        "the same format may round differently, so a change may be fp4scope's and not the model's",
    ),
    (
        "processor",
        "environment.processor",
        "quantized activations magnify its rounding: that is run-to-run noise",
    ),
    (
        "torch",
        "environment.torch",
        "quantized activations magnify its rounding: that is run-to-run noise",
    ),
    ("replicas", "study.numerics.replicas", "those with more have less run-to-run noise"),
)  # fmt: skip
_HASH_SHOWN = 8


def same_model(one: Results, other: Results) -> bool:
    """Whether every parameter is the same."""
    return _agree(one.model, other.model, ("fingerprint",))


def same_shape(one: Results, other: Results) -> bool:
    """Whether one can be a checkpoint of the other: units of the same name are the same place."""
    return _agree(one.model, other.model, _SHAPE)


def same_tokens(one: Results, other: Results) -> bool:
    """Whether windows of the same number hold the same tokens.

    As many windows have the same hash or not. A result with fewer has the first of the same text;
    then text, tokenizer and their number of tokens must be the same.
    """
    if not _agree(one.data, other.data, ("seq_len",)):
        return False
    if _agree(one.data, other.data, ("windows",)):
        return _agree(one.data, other.data, ("sha256",))
    return _agree(one.data, other.data, _TEXT) and _same_tokenizer(one, other)


def same_unit(one: Results, other: Results) -> bool:
    """Whether a token is the same piece of text in both."""
    return _same_tokenizer(one, other) or same_tokens(one, other)


def comparable(one: Results, other: Results) -> bool:
    """Whether units can be compared one by one, in nats per token."""
    return (same_model(one, other) or same_shape(one, other)) and same_unit(one, other)


def matched_formats(one: Results, other: Results) -> dict[str, str]:
    """Per format of `one` the one of `other` that it is compared with.

    The same; or, where they share none and each has one, those two.
    """
    mine, theirs = (_formats(results) for results in (one, other))
    shared = {name: name for name in mine if name in theirs}
    if not shared and len(mine) == len(theirs) == 1:
        return {mine[0]: theirs[0]}
    return shared


def differing_conditions(runs: Mapping[str, Results]) -> list[str]:
    """What was not the same in all, and what then does not compare: a sentence each."""
    found = []
    for name, place, consequence in _CONDITIONS:
        holders: dict[str, list[str]] = {}
        for run, results in runs.items():
            holders.setdefault(_shown(_at(results, place)), []).append(run)
        if len(holders) > 1:
            values = ", ".join(f"{value} ({', '.join(of)})" for value, of in holders.items())
            found.append(f"{name}: {values}; {consequence}")
    return found


def _formats(results: Results) -> list[str]:
    """Those that were measured on the whole model."""
    return list(
        dict.fromkeys(
            contrast.family.setting.format
            for contrast in results.contrasts
            if not contrast.unit and by_window(results.ledger, contrast.own, "nll")
        )
    )


def _same_tokenizer(one: Results, other: Results) -> bool:
    return _agree(one.model, other.model, ("tokenizer_sha256",))


def _agree(one: Mapping[str, Any], other: Mapping[str, Any], names: Sequence[str]) -> bool:
    """Whether both have these, and the same."""
    return all(name in one and name in other and one[name] == other[name] for name in names)


def _at(results: Results, place: str) -> Any:  # noqa: ANN401
    found: Any = vars(results)
    for name in place.split("."):
        found = (found or {}).get(name)
    return found


def _shown(value: Any) -> str:  # noqa: ANN401
    if isinstance(value, list):
        return "+".join(map(str, value))
    if isinstance(value, str) and len(value) == 64:
        return value[:_HASH_SHOWN]
    return {True: "yes", False: "no", None: "none"}.get(value, str(value))
