"""What quantizing costs by position, class, frequency and confidence of the targets.

A stratum's cost is a ratio of sums over the windows that hold targets of it: nats of these over
their number, with the windows' error of a ratio. So is its share of the whole KL, over all windows.
Costs are paired: of the same targets, those of the full-precision model are taken off.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from fp4scope.design import NOTHING
from fp4scope.ledger import STRATA, STRATIFICATIONS, Results, Rows, names_of, octave_of
from fp4scope.stats.findings.wholes import Whole, wholes
from fp4scope.stats.inference.intervals import mean, ratio
from fp4scope.table import Table

TOKEN_COLUMNS = (
    "name", "precision", "by", "stratum", "tokens", "share", "nll",
    "delta_nll", "delta_nll_stderr", "delta_nll_low", "delta_nll_high",
    "kl", "kl_stderr", "kl_low", "kl_high",
    "kl_share", "kl_share_stderr", "kl_share_low", "kl_share_high", "windows",
)  # fmt: skip
POSITION_COLUMNS = (
    "name", "precision", "measure", "mean",
    "slope", "slope_stderr", "slope_low", "slope_high",
    "relative", "relative_stderr", "relative_low", "relative_high", "windows",
)  # fmt: skip


@dataclass(frozen=True)
class StratumSums:
    """Sums of one whole model over the strata of one stratification, window by window.

    `nll` is that of the full-precision model, `delta_nll` what quantizing adds, in nats.
    """

    windows: Int[np.ndarray, " windows"]
    tokens: Float[np.ndarray, "windows strata"]
    nll: Float[np.ndarray, "windows strata"]
    delta_nll: Float[np.ndarray, "windows strata"]
    kl: Float[np.ndarray, "windows strata"]


def token_table(results: Results) -> Table:
    """Every whole model's cost and KL in every stratum that has targets, nats per token.

    `share` is that of the targets, `kl_share` that of the model's whole KL. `windows` are those
    that hold targets of the stratum: few of them have no interval, however many there are.
    """
    rows = [
        {"name": whole.name, "precision": whole.precision, "by": by, **row}
        for whole, place, by in _asked(results)
        for kept in stratum_sums(results, whole, place)
        for row in _rows(results, by, kept)
    ]
    return Table(TOKEN_COLUMNS, rows)


def position_table(results: Results) -> Table:
    """How cost and KL change with each doubling of the position: a row for every whole model.

    The slope is that of least squares over positions, each target alike, in nats per token. What is
    `relative` is the slope over the mean. Only windows with targets in three strata have a slope.
    """
    rows = [
        {"name": whole.name, "precision": whole.precision, **row}
        for whole, place, _ in _asked(results)
        if not place
        for kept in stratum_sums(results, whole, place)
        for row in _slopes(results, kept)
    ]
    return Table(POSITION_COLUMNS, rows)


def _asked(results: Results) -> Iterator[tuple[Whole, int, str]]:
    for whole in wholes(results):
        if not whole.is_full_precision:
            for place, by in enumerate(STRATIFICATIONS):
                yield whole, place, by


def stratum_sums(results: Results, whole: Whole, place: int) -> Iterator[StratumSums]:
    """On the windows where it is known, with the full-precision model; nothing without any."""
    found, plain = (_sums(results.ledger.rows(one)) for one in (whole.recipe, NOTHING))
    # Its own pass knows what the full-precision model lost on the very targets of each stratum. An
    # earlier version left that to the full-precision model's row.
    for window, kept in found.items():
        if kept["reference"] is None and window in plain:
            kept["reference"] = plain[window]["nll"]
    windows = sorted(w for w, kept in found.items() if kept["reference"] is not None)
    if not windows:
        return
    strata = max(len(sums[place]) for w in windows for sums in found[w].values())
    tokens, nll, kl, reference = (
        _matrix([found[w][kind][place] for w in windows], strata) for kind in STRATA
    )
    yield StratumSums(np.array(windows), tokens, reference, nll - reference, kl)


def _sums(rows: Rows | None) -> dict[int, dict[str, Any]]:
    """By window what is kept of each kind, by stratification and stratum."""
    if rows is None:
        return {}
    columns = [rows.values.get(name, [None] * len(rows.indices)) for name in STRATA.values()]
    found = zip(rows.indices, *columns, strict=True)
    return {
        window: dict(zip(STRATA, kept, strict=True))
        for window, *kept in found
        if kept[0] is not None
    }


def _matrix(
    lists: Sequence[Sequence[float | int]], strata: int
) -> Float[np.ndarray, "windows strata"]:
    """A row for each window, with 0 in strata that it does not reach."""
    found = np.zeros((len(lists), strata))
    for row, own in zip(found, lists, strict=True):
        row[: len(own)] = own
    return found


def _rows(results: Results, by: str, kept: StratumSums) -> Iterator[dict[str, Any]]:
    anytime = results.anytime
    every, whole = kept.tokens.sum(axis=1), kept.kl.sum(axis=1)
    for stratum, name in enumerate(names_of(by, int(every[0]))[: kept.tokens.shape[1]]):
        tokens = kept.tokens[:, stratum]
        count, held = int(tokens.sum()), tokens > 0
        if not count:
            continue
        row: dict[str, Any] = {
            "stratum": name,
            "tokens": count,
            "share": count / float(every.sum()),
            "nll": float(kept.nll[:, stratum].sum()) / count,
            "windows": int(held.sum()),
        }
        for column, of, to in (
            ("delta_nll", kept.delta_nll[held, stratum], tokens[held]),
            ("kl", kept.kl[held, stratum], tokens[held]),
            ("kl_share", kept.kl[:, stratum], whole),
        ):
            found = ratio(of, to, anytime=anytime)
            row |= {} if found is None else found.columns(column)
        yield row


def slope_weights(kept: StratumSums) -> Float[np.ndarray, " strata"] | None:
    """What sums over positions times give the slope of least squares, nats for each doubling.

    Each target is alike. None of windows with fewer than three strata.
    """
    counts = kept.tokens[0]
    if len(counts) < 3:
        return None
    octaves = np.array([octave_of(place, int(counts.sum())) for place in range(len(counts))])
    apart = octaves - (counts * octaves).sum() / counts.sum()
    return apart / (counts * apart**2).sum()


def _slopes(results: Results, kept: StratumSums) -> Iterator[dict[str, Any]]:
    """Of what a target costs on the binary logarithm of its position."""
    counts, weights = kept.tokens[0], slope_weights(kept)
    if weights is None:
        return
    for measure, sums in (("delta_nll", kept.delta_nll), ("kl", kept.kl)):
        slope, level = sums @ weights, sums.sum(axis=1) / counts.sum()
        relative = ratio(slope, level, anytime=results.anytime)
        yield {
            "measure": measure,
            "mean": float(level.mean()),
            "windows": len(slope),
            **mean(slope, anytime=results.anytime).columns("slope"),
            **({} if relative is None else relative.columns("relative")),
        }
