"""What each unit of a designed sweep costs, and how well their sum tells what a run costs.

A run costs y = T - 4 C t (1 - t) + r, with t = T / 2M: T is the sum of the effects of what it
quantizes, M the mean of T over the runs, C the curvature: how far damage lies below T in the
middle. r is what this misses. Damage is zero where nothing is quantized, and T's slope is 1 at M,
where the effects hold. Effects are least squares with an intercept, so that none takes up the
curvature. Where runs are fewer than unknowns, effects are drawn to the mean of their kind instead,
as far as the likelihood of the data says.

All of this is linear in what runs cost in a window, given t. So every window has effects of its
own, and their mean has an interval over windows as any other.

What the sum misses is told by leaving out one run at a time: the square of what its prediction
misses, less the square of its standard error over windows, is one reading of r squared. It grows
toward both ends, where designs have few runs: r^2 = a + b (2t - 1)^2, least squares with a and b
at least zero.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, optimize

from fp4scope.stats.inference.dependence import standard_errors
from fp4scope.stats.inference.series import Floats

Integers = NDArray[np.int64]
_KINDS = 10.0
"""Prior variance of a kind's mean, in units of that of its members around it: weak."""
_GRID = np.logspace(-6, 6, 49)


@dataclass(frozen=True)
class Fit:
    """What a designed sweep says.

    Attributes:
        effects: Windows by groups by settings, nats per token.
        curvature: C of each window, nats per token.
        middle: M of each window: the mean over runs of the sum of effects.
        misfit: a and b, in nats squared.
        residuals: Windows by runs: what effects and curvature leave.
        lack: Groups by settings: how far effects are off because their sum misses something, as
            standard deviations. It is the same in all windows, so errors over windows lack it.
        drawn: Whether runs are too few to tell all effects, which are then drawn to their kinds.
    """

    effects: Floats
    curvature: Floats
    middle: Floats
    misfit: tuple[float, float]
    residuals: Floats
    lack: Floats
    drawn: bool

    def by_window(self, total: Floats) -> Floats:
        """What a recipe costs in each window, as far as that is linear in effects and curvature.

        Args:
            total: The sum of its effects in each window.
        """
        place, middle = _place(total.mean(), self.middle.mean()), self.middle.mean()
        moved = _place(total - total.mean() * self.middle / middle, middle) if middle else 0.0
        slope = 4 * self.curvature.mean() * (2 * place - 1)
        return total + self.curvature * _bend(place) + slope * moved

    def missed(self, total: float) -> float:
        """The standard deviation of what a sum of effects misses, in nats."""
        constant, growth = self.misfit
        place = _place(np.float64(total), self.middle.mean())
        return float(np.sqrt(constant + growth * (2 * place - 1) ** 2))


def fit(levels: Integers, costs: Floats, settings: int, kinds: Sequence[str]) -> Fit:
    """Effects, curvature and what they miss.

    Args:
        levels: Runs by groups; 0 is full precision, s > 0 the setting number s.
        costs: Windows by runs, nats per token over the full-precision model.
        settings: How many settings there are.
        kinds: Of each group, what it is drawn to where runs are few.
    """
    runs, groups = levels.shape
    indicators = np.concatenate([levels == s for s in range(1, settings + 1)], axis=1)
    design = indicators.astype(np.float64)
    centred = design - design.mean(axis=0)
    drawn = not _tells(centred)
    if drawn:
        solve = _drawn(centred, costs.mean(axis=0), _kinds(kinds, settings))
    else:  # a constant adds nothing: columns are centred
        solve = np.asarray(linalg.pinv(centred))
    effects = costs @ solve.T
    totals = effects @ design.T
    middle = totals.mean(axis=1)
    place = _place(totals.mean(axis=0), middle.mean())
    bend = _bend(place)
    square = float(bend @ bend)
    curvature = (costs - totals) @ bend / square if square else np.zeros(len(costs))
    residuals = costs - totals - curvature[:, None] * bend
    leverage = np.einsum("ij,ji->i", centred, solve) + 1 / runs
    left_out = residuals / np.maximum(1 - leverage, 1 / runs)
    by_group = effects.reshape(len(costs), settings, groups).transpose(0, 2, 1)
    misfit = _misfit(left_out, place) if len(costs) > 1 else (0.0, 0.0)
    missed = misfit[0] + misfit[1] * (2 * place - 1) ** 2
    lack = np.sqrt(np.square(solve) @ missed).reshape(settings, groups).T
    return Fit(by_group, curvature, middle, misfit, residuals, lack, drawn)


def _kinds(kinds: Sequence[str], settings: int) -> Integers:
    """A number for each kind in each setting, unknown by unknown."""
    known = {kind: place for place, kind in enumerate(dict.fromkeys(kinds))}
    one = np.array([known[kind] for kind in kinds], np.int64)
    return np.concatenate([one + s * len(known) for s in range(settings)])


def _drawn(centred: Floats, mean: Floats, kinds: Integers) -> Floats:
    """What makes effects of runs that are too few for least squares: unknowns by runs."""
    alike = kinds[:, None] == kinds
    prior = np.eye(len(kinds)) + _KINDS * alike
    spread = centred @ prior @ centred.T
    values, vectors = np.linalg.eigh(spread)
    known = values > 1e-9 * max(values[-1], 1e-300)  # the mean of all runs is not
    values, vectors = values[known], vectors[:, known]
    turned = vectors.T @ mean
    noise = min(_GRID * values.mean(), key=lambda noise: _surprise(values + noise, turned))
    return np.asarray(prior @ centred.T @ (vectors / (values + noise)) @ vectors.T)


def _tells(centred: Floats) -> bool:
    """Whether these runs tell all unknowns apart; a row and its complement say one thing."""
    runs, unknowns = centred.shape
    return runs > unknowns and int(np.linalg.matrix_rank(centred)) == unknowns


def _surprise(variances: Floats, values: Floats) -> float:
    """Minus the log likelihood of normal values of these relative variances, scaled to fit best."""
    scale = np.mean(values**2 / variances)
    return float(len(values) * np.log(max(scale, 1e-300)) + np.log(variances).sum())


def _place(total: Any, middle: Any) -> Any:  # noqa: ANN401
    """t: of sums of effects, as shares of what they are where everything is quantized."""
    return total / (2 * middle) if middle else 0.0 * total


def _bend(place: Any) -> Any:  # noqa: ANN401
    """What C is multiplied with."""
    return -4 * place * (1 - place)


def _misfit(left_out: Floats, place: Floats) -> tuple[float, float]:
    """Constant and growth, from windows by runs of what predictions miss of runs not seen."""
    read = left_out.mean(axis=0) ** 2 - standard_errors(left_out) ** 2
    unknowns = np.stack([np.ones(len(place)), (2 * place - 1) ** 2], axis=1)
    (constant, growth), _ = optimize.nnls(unknowns, read)
    return float(constant), float(growth)


def shrunk(means: Floats, stderrs: Floats, kinds: Sequence[str]) -> Floats:
    """Effects drawn to the mean of their kind, by as much as their own errors say.

    Of a kind, true effects are taken to be normal, with a mean and a variance that are estimated:
    empirical Bayes. Effects that differ by no more than their errors become nearly equal, and where
    errors are small beside what effects differ by, nearly nothing changes.

    Args:
        means: Of each group.
        stderrs: Their standard errors.
        kinds: What each is.

    Source: Morris 1983, Parametric empirical Bayes inference, JASA 78(381).

    Example:
        >>> shrunk(np.array([1.0, 3.0, 9.0]), np.array([1.0, 1.0, 1.0]), "aab").round(2).tolist()
        [1.5, 2.5, 9.0]
    """
    found = means.astype(np.float64)
    labels = np.asarray(list(kinds))
    for kind in dict.fromkeys(kinds):
        chosen = np.flatnonzero(labels == kind)
        if len(chosen) > 1:
            noise = stderrs[chosen] ** 2
            centre = means[chosen].mean()
            spread = max(0.0, float(means[chosen].var(ddof=1) - noise.mean()))
            whole = spread + noise
            weight = np.divide(spread, whole, out=np.ones_like(noise), where=whole > 0)
            found[chosen] = centre + weight * (means[chosen] - centre)
    return found


def interactions(residuals: Floats, quantized: NDArray[np.bool_]) -> tuple[Integers, Floats]:
    """What pairs of groups cost together beyond the sum of both and the curvature.

    Rows and their complements make this independent of all effects. Several pairs may have nearly
    the same runs in common, and then show the same.

    Args:
        residuals: Windows by runs, as a fit leaves them.
        quantized: Runs by groups.

    Returns:
        Pairs, as two groups each, and windows by pairs.
    """
    signs = quantized - quantized.mean(axis=0)
    groups = signs.shape[1]
    pairs: list[Integers] = []
    found: list[Floats] = []
    for first in range(groups - 1):
        products = together(signs, first)
        square = np.square(products).sum(axis=0)
        found.append(
            np.divide(residuals @ products, square, where=square > 0, out=np.zeros(
                (len(residuals), products.shape[1])
            ))
        )  # fmt: skip
        others = np.arange(first + 1, groups)
        pairs.append(np.stack([np.full(len(others), first), others], axis=1))
    if not pairs:
        return np.zeros((0, 2), np.int64), np.zeros((len(residuals), 0))
    return np.concatenate(pairs), np.concatenate(found, axis=1)


def together(signs: Floats, first: int) -> Floats:
    """How runs differ in whether one group and each later one are treated alike, centred."""
    products = signs[:, first : first + 1] * signs[:, first + 1 :]
    return np.asarray(products - products.mean(axis=0))
