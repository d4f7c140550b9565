"""Whether what a file holds can have been measured: each field by itself, and all together.

Files come from disks that rot and from strangers, so nothing in them is believed.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from fp4scope.design import NOTHING, Contrast
from fp4scope.errors import OutputError, shown
from fp4scope.ledger.measures import MOST_BINS, ROUTERS, STRATA
from fp4scope.ledger.results import Results
from fp4scope.ledger.rows import Ledger, Rows
from fp4scope.ledger.schema import REPORTED
from fp4scope.ledger.strata import MOST_STRATA, STRATIFICATIONS
from fp4scope.names import visible
from fp4scope.recipes import Recipe

MOST_NATS = 300.0
"""Of an NLL or KL, per token: its exponential, and the square of that, are still numbers."""


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


def require_consistent(results: Results) -> None:
    """Refuse results that no study can have: what is there once and what belongs together.

    Raises:
        ValueError: Something does not fit the rest; says what and where.
    """
    tokens = WindowTokens(results.data)
    for ledger in (results.ledger, results.remedied):
        for subject in ledger:
            try:
                _require_rows(ledger[subject], ledger.counted, tokens)
            except ValueError as error:
                raise ValueError(f"rows of {subject.to_json()}: {error}"[:500]) from None
    _require_routers(results)
    _require_once("contrasts", [contrast.name for contrast in results.contrasts])
    _require_compared(results.contrasts, results.ledger)
    if results.remedies:
        _require_once("remedies", results.remedies)
        _require_compared(results.remedies, results.remedied)
    layers = [(a.block, a.projection) for a in results.activations]
    if len(set(layers)) < len(layers):
        raise ValueError("activations: a layer comes twice")
    blocks = results.model.get("blocks")
    found = [a.block for a in results.activations] + [site.block or 0 for site in results.sites]
    found += [c.unit.block or 0 for c in results.contrasts if c.unit is not None]
    if blocks is not None and max(found, default=0) >= blocks:
        raise ValueError(f"there is a block {max(found)}, but model.blocks is {blocks}")


def _require_rows(rows: Rows, counted: int, known: "WindowTokens") -> None:
    where = rows.indices, rows.replicas, rows.tokens
    count = len(rows.indices)
    if any(len(column) != count for column in (*where, *rows.values.values())):
        raise ValueError("its columns are not equally long")
    if len(set(zip(rows.indices, rows.replicas, strict=True))) < count:
        raise ValueError("a window comes twice")
    known.require(rows.indices, rows.tokens)
    require_sums(rows.values, rows.tokens)
    missing = [None] * count
    columns = (rows.values.get(name, missing) for name in ("nll", "kl", "top1"))
    for replica, *values in zip(rows.replicas, *columns, strict=True):
        if replica < counted and any((v is None) != (values[0] is None) for v in values):
            raise ValueError("a window lacks one of nll, kl and top1")


def _require_routers(results: Results) -> None:
    """What there is of every router is there of all of them."""
    count = len(results.model.get("routed_experts", ()))
    for subject in results.ledger:
        values = results.ledger[subject].values
        for name in ROUTERS.values():
            if any(v is not None and len(v) != count for v in values.get(name, ())):
                raise ValueError(f"{name} has not a value for each of {count} routers")


def _require_once(what: str, found: Sequence[Hashable]) -> None:
    if len(set(found)) < len(found):
        raise ValueError(f"{what}: one comes twice")


def _require_compared(contrasts: Sequence[Contrast], ledger: Ledger) -> None:
    """Whatever a subject is compared with has its windows too."""
    reference = _measured(ledger, NOTHING)
    if not reference:
        raise ValueError("the full-precision model was not measured")
    measured = {subject: _measured(ledger, subject) for subject in ledger}
    for contrast in contrasts:
        own = measured.get(contrast.own, set())
        if any(not own <= measured.get(other, set()) for other, _ in contrast.terms):
            raise ValueError(f"what {contrast.name} is compared with lacks windows")


def _measured(ledger: Ledger, subject: Recipe) -> set[int]:
    rows = ledger.rows(subject)
    nll = [] if rows is None else rows.values.get("nll", [])
    indices = [] if rows is None else rows.indices
    return {w for w, value in zip(indices, nll, strict=False) if value is not None}


class WindowTokens:
    """Which windows there are, and that each has the same targets whenever it comes.

    Args:
        known: Has `windows`, how many, and `seq_len`, one more than the targets of each, if these
            are known.
    """

    def __init__(self, known: Mapping[str, Any]) -> None:
        self._windows, seq_len = known.get("windows"), known.get("seq_len")
        self._targets = None if seq_len is None else seq_len - 1

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


def require_sums(values: Mapping[str, Sequence[Any]], tokens: Sequence[int]) -> None:
    """Refuse sums over windows that no predictions have.

    Args:
        values: By measure, a sum in each row.
        tokens: Targets of each row.

    Raises:
        ValueError: One is too large for its tokens.
    """
    fewest, most = min(tokens, default=1), max(tokens, default=1)
    _require_strata(values, tokens)
    for name, column in values.items():
        if name in ROUTERS.values() or name in STRATA.values():
            continue
        if name == "kl_bins":
            _require_counts(column, tokens)
            continue
        known = [value for value in column if value is not None]
        largest = max(max(known, default=0.0), -min(known, default=0.0))
        # What an estimate may be knows no bounds.
        if name == "kl_max" and largest > MOST_NATS * most:
            raise ValueError(f"kl_max is {largest:.6g} nats, beyond any prediction")
        if name in ("nll", "kl", "rerun_kl") and largest > MOST_NATS * fewest:
            raise ValueError(
                f"{name} has {largest:.6g} nats for {fewest} tokens; {MOST_NATS:g} for each is "
                "beyond any prediction"
            )
        if name in ("top1", "rerun_top1") and largest > most:
            raise ValueError(f"{name} has {largest} of {most} tokens")


def _require_counts(column: Sequence[Any], tokens: Sequence[int]) -> None:
    for counts, own in zip(column, tokens, strict=True):
        if counts is not None and (len(counts) > MOST_BINS or sum(counts) != own):
            raise ValueError(f"kl_bins has {sum(counts)} tokens in {len(counts)} bins, not {own}")


def _require_strata(values: Mapping[str, Sequence[Any]], tokens: Sequence[int]) -> None:
    """Every target is in one stratum of each kind, and every stratum has its sums."""
    missing = [None] * len(tokens)
    columns = [values.get(name, missing) for name in STRATA.values()]
    for own, *kept in zip(tokens, *columns, strict=True):
        if all(sums is None for sums in kept):
            continue
        needed = kept[:-1] if kept[-1] is None else kept  # the reference's came last
        shapes = [[len(strata) for strata in sums or ()] for sums in needed]
        if any(shape != shapes[0] for shape in shapes) or len(shapes[0]) != len(STRATIFICATIONS):
            raise ValueError(f"strata_tokens, strata_nll and strata_kl have strata {shapes}")
        for name, counts in zip(STRATIFICATIONS, kept[0], strict=True):
            if sum(counts) != own or len(counts) > MOST_STRATA:
                raise ValueError(
                    f"strata_tokens has {sum(counts)} tokens in {len(counts)} strata of {name}, "
                    f"not {own}"
                )
