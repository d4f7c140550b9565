"""Whether what a file holds can have been measured: each field by itself, and all together.

Files come from disks that rot and from strangers, so nothing in them is believed.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError

from fp4scope.errors import OutputError, shown
from fp4scope.names import visible
from fp4scope.schema import (
    REPORTED,
    RESULTS_VERSION,
    EstimateFields,
    Place,
    ResultsFields,
    Sums,
    VariantRow,
)

MOST_NATS = 300.0
"""Of an NLL or KL, per token: its exponential, and the square of that, are still numbers."""
_RESULTS = TypeAdapter(ResultsFields)


def read_results(data: bytes | Mapping[str, Any], source: str) -> ResultsFields:
    """What a results file holds, checked.

    Args:
        data: The file, or the same decoded.
        source: What messages call it.

    Raises:
        OutputError: It is none, of another version, or damaged: the message names the place.
    """
    try:
        found = (
            _RESULTS.validate_json(data)
            if isinstance(data, bytes)
            else _RESULTS.validate_python(data)
        )
    except ValidationError as error:
        problems = error.errors(include_url=False)
        versions = [p for p in problems if p["loc"] == ("version",)]
        if versions and problems[0]["type"] != "json_invalid":
            version = None if versions[0]["type"] == "missing" else versions[0]["input"]
            raise OutputError(
                f"{source} has version {shown(version)}; this fp4scope reads version "
                f"{RESULTS_VERSION}: use the fp4scope that wrote it"
            ) from None
        raise damaged(source, first_problem(problems)) from None
    except RecursionError:
        raise damaged(source, "it is nested too deeply") from None
    try:
        _require_consistent(found)
    except ValueError as error:
        raise damaged(source, str(error)) from None
    return found


def damaged(source: str, problem: str) -> OutputError:
    return OutputError(
        f"{source} is not a results file of fp4scope, or it is damaged: {problem}; take it from "
        "a backup, or repeat the run in its folder, which writes it again from the journal"
    )


def require_reported(sections: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse results that say too little of their conditions for a report.

    Raises:
        OutputError: What is missing.
    """
    for path in REPORTED:
        found: Any = sections
        for name in path.split("."):
            if not isinstance(found, Mapping) or name not in found:
                raise OutputError(
                    f"the results do not say {path}, which a report needs; take results.json from "
                    "a backup, or repeat the run in its folder"
                )
            found = found[name]


def first_problem(problems: Sequence[Any]) -> str:
    """What pydantic found, as `place: what (value)`."""
    problem = problems[0]
    place = ""
    for part in problem["loc"]:
        place += f"[{part}]" if isinstance(part, int) else f".{part}" if place else str(part)
    said = visible(problem["msg"].removeprefix("Value error, "))
    said = said[:1].lower() + said[1:]
    if problem["type"] in ("json_invalid", "value_error", "missing"):
        return f"{visible(place)}: {said}" if place else said
    return f"{visible(place) or 'all of it'} is {shown(problem['input'])}: {said}"


def _require_consistent(file: ResultsFields) -> None:
    windows, seq_len = file["data"].get("windows"), file["data"].get("seq_len")
    tokens = WindowTokens(windows, None if seq_len is None else seq_len - 1)
    for i, place in enumerate(file["places"]):
        _in(f"places[{i}]", _require_place, place, tokens)
    seen: dict[Any, set[int]] = {}
    for i, sums in enumerate(file["observations"]):
        _in(f"observations[{i}]", _require_sums, sums, file["places"], seen)
    _in("observations", _require_controls, seen)
    _in("estimates", _require_estimates, file["estimates"], tokens)
    blocks = file["model"].get("blocks")
    cells = [(a["block"], a["component"]) for a in file["activations"]]
    if len(set(cells)) < len(cells):
        raise ValueError("activations: a cell comes twice")
    found = [a["block"] for a in file["activations"]]
    found += [s["variant"].get("block") or 0 for s in file["observations"]]
    found += [u["variant"].get("block") or 0 for u in file["estimates"]["units"]]
    if blocks is not None and max(found, default=0) >= blocks:
        raise ValueError(f"there is a block {max(found)}, but model.blocks is {blocks}")


def _in(place: str, check: Any, *arguments: Any) -> None:  # noqa: ANN401
    try:
        check(*arguments)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None


class WindowTokens:
    """Which windows there are, and that each has the same targets whenever it comes.

    Args:
        windows: How many, if that is known.
        targets: How many targets each has, if that is known.
    """

    def __init__(self, windows: int | None, targets: int | None) -> None:
        self._windows, self._targets = windows, targets

    def require(self, windows: Sequence[int], tokens: Sequence[int]) -> None:
        """Refuse a window that is not there, or that has other targets.

        Raises:
            ValueError: One does.
        """
        if self._windows is not None and max(windows, default=0) >= self._windows:
            raise ValueError(f"there is no window {max(windows)} among {self._windows}")
        for count in set(tokens):
            self._targets = count if self._targets is None else self._targets
            if count != self._targets:
                raise ValueError(f"a window has {count} tokens, and another {self._targets}")


def _require_place(place: Place, known: WindowTokens) -> None:
    windows, replicas, tokens = place["windows"], place["replicas"], place["tokens"]
    if not len(windows) == len(replicas) == len(tokens):
        raise ValueError("windows, replicas and tokens are not equally many")
    if len(set(zip(windows, replicas, strict=True))) < len(windows):
        raise ValueError("a window comes twice")
    known.require(windows, tokens)


def _require_sums(sums: Sums, places: Sequence[Place], seen: dict[Any, set[int]]) -> None:
    if sums["place"] >= len(places):
        raise ValueError(f"there is no place {sums['place']}")
    place = places[sums["place"]]
    name = variant_key(sums["variant"])
    if name in seen:
        raise ValueError("its variant comes twice")
    seen[name] = set(place["windows"])
    if any(len(sums[column]) != len(place["windows"]) for column in ("nll", "kl", "top1")):
        raise ValueError("nll, kl and top1 do not have a value for each window of its place")
    require_sums(sums["nll"], sums["kl"], sums["top1"], place["tokens"])


def require_sums(
    nll: Sequence[float], kl: Sequence[float], top1: Sequence[int], tokens: Sequence[int]
) -> None:
    """Refuse sums over windows that no predictions have.

    Raises:
        ValueError: One is too large for its tokens.
    """
    fewest, most = min(tokens, default=1), max(tokens, default=1)
    for column, values in (("nll", nll), ("kl", kl)):
        largest = max((abs(value) for value in values), default=0.0)
        if largest > MOST_NATS * fewest:
            raise ValueError(
                f"{column} has {largest:.6g} nats for {fewest} tokens; {MOST_NATS:g} for each is "
                "beyond any prediction"
            )
    if max(top1, default=0) > most:
        raise ValueError(f"top1 has {max(top1)} of {most} tokens")


def _require_controls(seen: Mapping[Any, set[int]]) -> None:
    """Whatever a variant is compared with has its windows too."""
    reference = ("reference", "", "reference", "model", "", None)
    if not seen.get(reference):
        raise ValueError("the reference is missing")
    for name, windows in seen.items():
        fmt, operands, direction = name[:3]
        plain = fmt == "reference" or direction in ("baseline", "isolate")
        control = reference if plain else (fmt, operands, "baseline", "model", "", None)
        if not windows <= seen.get(control, set()):
            raise ValueError(f"{'|'.join(map(str, control[:3]))} lacks windows of {name[:5]}")


def _require_estimates(estimates: EstimateFields, known: WindowTokens) -> None:
    windows, tokens = estimates["windows"], estimates["tokens"]
    if len(set(windows)) < len(windows):
        raise ValueError("a window comes twice")
    known.require(windows, tokens)
    columns = [tokens, *(unit["nats"] for unit in estimates["units"])]
    if any(len(column) != len(windows) for column in columns):
        raise ValueError("there is not a value for each window")
    require_units([unit["variant"] for unit in estimates["units"]])


def require_units(variants: Sequence[VariantRow]) -> None:
    """Refuse what cannot be estimated.

    Raises:
        ValueError: A variant comes twice, or is no unit.
    """
    if len({variant_key(variant) for variant in variants}) < len(variants):
        raise ValueError("a unit comes twice")
    if any(variant.get("level", "model") == "model" for variant in variants):
        raise ValueError("a control is not estimated")


def variant_key(variant: VariantRow) -> tuple[Any, ...]:
    names = ("format", "operands", "direction", "level", "unit", "block")
    defaults = (None, "", None, "model", "", None)
    return tuple(variant.get(n, d) for n, d in zip(names, defaults, strict=True))
