"""Results as plain data, with a versioned JSON form. Pure Python.

A sweep measures *variants* on *windows* and nothing else: `Observation` holds what one
variant gave on each window, `Estimates` what a gradient says of it without measuring. Differences,
intervals and tables are derived from these (`fp4scope.stats`), so that they can be derived again,
differently, from an old result.
"""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from html import escape
from io import StringIO
from pathlib import Path
from typing import Any

from fp4scope.checks import read_results
from fp4scope.errors import OutputError
from fp4scope.names import cell, visible
from fp4scope.paths import named, read_bytes
from fp4scope.schema import RESULTS_VERSION, EstimateFields, Place, ResultsFields, Sums

_SHOWN = 60
"""Rows of a table that a notebook shows."""
_PLACES = ("windows", "replicas", "tokens")
_COLUMNS = (*_PLACES, "nll", "kl", "top1")


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A point of the sweep.

    `direction` is `reference` (nothing quantized), `baseline` (everything targeted is), `jitter`
    (one of these again under perturbations, compared with itself), `replica` (a baseline again
    under perturbations, compared with the reference like the baseline), `restore` or
    `isolate`. `level` is `model` for the first four; else it says what kind of unit `unit`
    names: a component, a block, a cell or a pattern. A cell's `unit` is its component and
    `block` its block; a block's `unit` is empty.
    """

    format: str
    operands: str = ""
    direction: str
    level: str = "model"
    unit: str = ""
    block: int | None = None

    @property
    def key(self) -> str:
        """A name that is unique in a study and readable in a journal."""
        where = self.unit if self.block is None else f"{self.block}.{self.unit}".rstrip(".")
        parts = (self.format, self.operands, self.direction, self.level, where)
        return "|".join(p for p in parts if p) if self.direction != "reference" else "reference"

    @property
    def is_control(self) -> bool:
        """Whether this is the reference, a baseline, or one of them under perturbations."""
        return self.level == "model"


REFERENCE = Variant(format="reference", direction="reference")


def baseline(format: str, operands: str) -> Variant:
    """The variant with every targeted linear quantized."""
    return Variant(format=format, operands=operands, direction="baseline")


def jitter(variant: Variant) -> Variant:
    """The reference or a baseline under perturbations, compared with itself unperturbed."""
    return replace(variant, direction="jitter")


def replica(variant: Variant) -> Variant:
    """A baseline under perturbations, compared with the reference."""
    return replace(variant, direction="replica")


@dataclass(kw_only=True)
class Observation:
    """What one variant gave, by window and replica. Sums over the window's targets.

    `nll` and `kl` are in nats; `top1` counts targets where the reference's most likely token is
    the variant's too. KL is KL(reference || variant). For a `jitter` variant the unperturbed
    realisation of the same configuration stands in the reference's place.
    """

    variant: Variant
    windows: list[int] = field(default_factory=list)
    replicas: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    nll: list[float] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)
    top1: list[int] = field(default_factory=list)

    def add(
        self, window: int, replica: int, *, tokens: int, nll: float, kl: float, top1: int
    ) -> None:
        self.windows.append(window)
        self.replicas.append(replica)
        self.tokens.append(tokens)
        self.nll.append(nll)
        self.kl.append(kl)
        self.top1.append(top1)

    def discard(self, windows: Sequence[int]) -> None:
        """Forget what was given on these windows."""
        kept = [i for i, window in enumerate(self.windows) if window not in windows]
        for name in _COLUMNS:
            setattr(self, name, [getattr(self, name)[i] for i in kept])

    def settled(self) -> "Observation":
        """The same, windows in the order of the text, sums with the digits that mean something.

        Their terms come from FP32 logits: nine digits of the NLL, six of the KL.
        """
        keys = list(zip(self.windows, self.replicas, strict=True))
        order = sorted(range(len(keys)), key=keys.__getitem__)
        columns = {name: [getattr(self, name)[i] for i in order] for name in _COLUMNS}
        columns["nll"] = [_digits(x, 9) for x in columns["nll"]]
        columns["kl"] = [_digits(x, 6) for x in columns["kl"]]
        return Observation(variant=self.variant, **columns)


@dataclass(kw_only=True)
class Estimates:
    """First-order estimates of what quantizing each unit costs, by window.

    Never measured. `nats` has for each unit the sum over a window's targets, more quantized minus
    less quantized, in the order of `windows`; every unit has every window.
    """

    windows: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    nats: dict[Variant, list[float]] = field(default_factory=dict)

    def add(self, window: int, *, tokens: int, nats: Mapping[Variant, float]) -> None:
        """Keep one window.

        Raises:
            ValueError: It is there already, or its units are not those of the others.
        """
        if window in self.windows:
            raise ValueError(f"window {window} is estimated twice")
        if self.windows and nats.keys() != self.nats.keys():
            raise ValueError(f"window {window} has other units than those before")
        self.windows.append(window)
        self.tokens.append(tokens)
        for variant, value in nats.items():
            self.nats.setdefault(variant, []).append(value)

    def settled(self) -> "Estimates":
        """The same, windows in the order of the text, six digits of each estimate."""
        order = sorted(range(len(self.windows)), key=self.windows.__getitem__)

        def turned(column: list[Any]) -> list[Any]:
            return [column[i] for i in order]

        return Estimates(
            windows=turned(self.windows),
            tokens=turned(self.tokens),
            nats={v: [_digits(x, 6) for x in turned(nats)] for v, nats in self.nats.items()},
        )

    def to_json(self) -> dict[str, Any]:
        found = self.settled()
        units = [{"variant": asdict(v), "nats": values} for v, values in found.nats.items()]
        return {"windows": found.windows, "tokens": found.tokens, "units": units}

    @classmethod
    def of(cls, data: EstimateFields) -> "Estimates":
        nats = {Variant(**unit["variant"]): unit["nats"] for unit in data["units"]}
        return cls(windows=data["windows"], tokens=data["tokens"], nats=nats)


@dataclass(frozen=True, kw_only=True)
class ActivationRecord:
    """Input statistics of one cell: `max` and the 99.9% quantile `p999` of |x|.

    `ratio` is max / p999, None where p999 is zero.
    """

    block: int
    component: str
    max: float
    p999: float
    ratio: float | None
    elements: int
    nonfinite: int = 0


@dataclass(kw_only=True)
class Results:
    """Everything a study measured, and under what conditions."""

    study: dict[str, Any]
    model: dict[str, Any]
    data: dict[str, Any]
    protocol: dict[str, Any]
    environment: dict[str, Any]
    observations: dict[str, Observation] = field(default_factory=dict)
    activations: list[ActivationRecord] = field(default_factory=list)
    estimates: Estimates = field(default_factory=Estimates)

    @property
    def anytime(self) -> bool:
        """Whether how many windows a variant has seen depended on what was measured."""
        return bool((self.protocol.get("stopping") or {}).get("anytime"))

    def observation(self, variant: Variant) -> Observation | None:
        return self.observations.get(variant.key)

    def to_json(self, summary: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """As JSON. Where variants were measured stands once, in `places`: most have all windows."""
        observations = [asdict(o.settled()) for o in self.observations.values()]
        places: list[dict[str, Any]] = []
        for observation in observations:
            place = {name: observation.pop(name) for name in _PLACES}
            if place not in places:
                places.append(place)
            observation["place"] = places.index(place)
        return {
            "version": RESULTS_VERSION,
            "study": self.study,
            "model": self.model,
            "data": self.data,
            "protocol": self.protocol,
            "environment": self.environment,
            "summary": dict(summary or {}),
            "activations": [asdict(a) for a in self.activations],
            "places": places,
            "observations": observations,
            "estimates": self.estimates.to_json(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], source: str = "results") -> "Results":
        """What `to_json` gave.

        Raises:
            OutputError: It is of another version, or not what a study can give.
        """
        return cls._of(read_results(data, source))

    @classmethod
    def read(cls, path: Path) -> "Results":
        """What a results file holds.

        Raises:
            OutputError: It cannot be read, is of another version, or damaged: the message names
                the place.
        """
        return cls._of(read_results(read_bytes(path, "results", OutputError), named(path)))

    @classmethod
    def _of(cls, data: ResultsFields) -> "Results":
        observations = [_observation(sums, data["places"]) for sums in data["observations"]]
        return cls(
            study=data["study"],
            model=dict(data["model"]),
            data=dict(data["data"]),
            protocol=dict(data["protocol"]),
            environment=dict(data["environment"]),
            observations={o.variant.key: o for o in observations},
            activations=[ActivationRecord(**a) for a in data["activations"]],
            estimates=Estimates.of(data["estimates"]),
        )


def _observation(sums: Sums, places: Sequence[Place]) -> Observation:
    place = places[sums["place"]]
    return Observation(
        variant=Variant(**sums["variant"]),
        windows=list(place["windows"]),
        replicas=list(place["replicas"]),
        tokens=list(place["tokens"]),
        nll=sums["nll"],
        kl=sums["kl"],
        top1=sums["top1"],
    )


class Table(Sequence[dict[str, Any]]):
    """Rows with named columns: a list of dicts that knows CSV, and pandas if you ask."""

    def __init__(self, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
        self.columns = tuple(columns)
        self.rows: list[dict[str, Any]] = [{c: row.get(c) for c in self.columns} for row in rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:  # noqa: ANN401
        if isinstance(index, str):
            return [row[index] for row in self.rows]
        return self.rows[index]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)

    def where(self, **values: Any) -> "Table":  # noqa: ANN401
        """The rows in which every named column has the given value."""
        rows = [r for r in self.rows if all(r[c] == v for c, v in values.items())]
        return Table(self.columns, rows)

    def to_csv(self) -> str:
        """One line a row; an empty field where there is no value. No name is a formula."""
        file = StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows([_cell(row[c]) for c in self.columns] for row in self.rows)
        return file.getvalue()

    def write_csv(self, path: Path) -> None:
        """Write `to_csv` to a file."""
        path.write_text(self.to_csv(), encoding="utf-8", newline="")

    def to_pandas(self) -> Any:  # noqa: ANN401
        """The table as a `pandas.DataFrame` (needs the `pandas` extra)."""
        import pandas as pd

        return pd.DataFrame(self.rows, columns=list(self.columns))

    def _repr_html_(self) -> str:
        """The first rows, as a notebook shows them."""
        shown = [[escape(_brief(row[c])) for c in self.columns] for row in self.rows[:_SHOWN]]
        head = "".join(f"<th>{escape(c)}</th>" for c in self.columns)
        body = "".join(f"<tr>{''.join(f'<td>{v}</td>' for v in row)}</tr>" for row in shown)
        more = f"<p>{_SHOWN} of {len(self)} rows</p>" if len(self) > _SHOWN else ""
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}"

    def __repr__(self) -> str:
        return f"Table({len(self)} rows: {', '.join(self.columns)})"


def _brief(value: Any) -> str:  # noqa: ANN401
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else visible(str(value))


def _digits(value: float, count: int) -> float:
    return float(f"{value:.{count}g}")


def _cell(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, str):
        return cell(value)
    if value is None:
        return ""
    return repr(value) if isinstance(value, float) else value
