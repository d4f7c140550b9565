"""How first-order estimates rank the units of a study, against what was measured."""

from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from fp4scope.design import Family
from fp4scope.ledger import Results
from fp4scope.stats.findings.pairing import costs
from fp4scope.stats.findings.windows import by_window
from fp4scope.stats.inference.agreement import FEWEST_UNITS, agreement, ceilings
from fp4scope.stats.inference.ranks import TOP_K
from fp4scope.stats.inference.series import Floats, Series, aligned
from fp4scope.table import Table

AGREEMENT_COLUMNS = (
    "format", "direction", "precision", "level", "units", "rho", "rho_low", "rho_high", "ceiling",
    "rho_apart", "ceiling_apart", "top", "top_shared", "windows",
)  # fmt: skip


def agreement_table(results: Results) -> Table:
    """A row for each family that was both measured and estimated."""
    rows = []
    for family, members in _families(results):
        level = family.level
        exact, estimated = (aligned(side)[1] for side in zip(*members, strict=True))
        found = agreement(exact, estimated)
        if found is None:
            continue
        row = family.labels | {"units": len(members), "windows": len(exact)}
        row |= found.rho.columns("rho")
        row["rho_apart"] = found.apart
        most = ceilings(exact)
        if most is not None:
            row |= dict(zip(("ceiling", "ceiling_apart"), most, strict=True))
        if len(members) > TOP_K[level]:
            shared = _top(exact, TOP_K[level]) & _top(estimated, TOP_K[level])
            row |= {"top": TOP_K[level], "top_shared": len(shared)}
        rows.append(row)
    return Table(AGREEMENT_COLUMNS, rows)


def _families(results: Results) -> Iterator[tuple[Family, list[tuple[Series, Series]]]]:
    """By family, each unit's exact and estimated cost over the windows of both."""
    found: dict[Family, list[tuple[Series, Series]]] = defaultdict(list)
    for contrast, exact in costs(results).items():
        estimated = by_window(results.ledger, contrast.own, "gradient")
        if contrast.unit is None or estimated is None:
            continue
        windows, values = aligned([exact, estimated])
        if len(windows):
            one, other = (Series(windows, column) for column in values.T)
            found[contrast.family].append((one, other))
    for family, members in found.items():
        if len(members) >= FEWEST_UNITS:
            yield family, members


def _top(costs: Floats, k: int) -> set[int]:
    return set(np.argsort(-costs.mean(axis=0), kind="stable")[:k].tolist())
