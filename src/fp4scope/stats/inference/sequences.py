"""Confidence sequences: intervals for a mean that hold at all sample sizes at once.

A t interval covers in 95 of 100 samples of a size that was fixed beforehand. Who looks after every
chunk and stops when it looks good picks the sample size by the data, and then it covers less. A
confidence sequence covers with 95% at every n together, so it may be looked at as often as one
likes, and the n at which one stops may depend on anything.

**How.** Let t = sqrt(n) (mean - mu) / s, the t statistic of n values against a supposed mean mu.
Bet against mu: let the effect size (true mean - mu) / sigma have a normal prior N(0, c^2) and
sigma the right Haar prior 1 / sigma. The ratio of the marginal likelihoods is, with nu = n - 1 and
A = 1 + n c^2,

    E_n = A^(-1/2) * ((1 + t^2 / nu) / (1 + t^2 / (nu A)))^(n / 2).

If the values are normal with mean mu, whatever their sigma, E_1 = 1, E_2, ... is a nonnegative
martingale: it depends on the values only through their ratios, whose distribution no longer
has sigma in it. By Ville's inequality it ever reaches 1 / alpha with probability at most
alpha. So the mu that have E_n < 1 / alpha are a confidence sequence, and min(1, 1 / E_n) a p-value
that may be read at any time. E_n rises with |t|, so these mu are mean +- critical * s / sqrt(n).

**One side.** For a bound on one side only the prior is the half of the normal above zero:
E+_n = 2 E_n P(effect > 0 | the values), where the posterior probability is a Student t with n
degrees of freedom: given sigma it is Phi(k / sigma), and 1 / sigma^2 is a scaled chi square.

**c** decides for which n it is tightest, weakly. `EFFECT` = 0.7 is within 7% of the best c for
n from 24 to 146 at alpha = 0.05 and within 2% from 32 on at alpha = 2.5e-5 (a pair of 210 layers).

All of that is for independent values. Where neighbouring windows are alike, the larger standard
error of `dependence` stands in the place of s / sqrt(n): without neighbours in common the promise
holds as it is, with them it is as good as that estimate, and no theorem.

Values are not quite normal, so this was simulated: `docs/LOG.md` has coverage for heavy tails,
skew and recorded differences.

Source: the Bayes factor, Gonen, Johnson, Lu, Westfall 2005, The American Statistician 59(3) and
Rouder et al. 2009, Psychonomic Bulletin & Review 16(2); why stopping is free, Hendriksen, de Heide,
Grunwald 2021, Bayesian Analysis 16(3); as a confidence sequence, Wang, Ramdas 2024, Anytime-valid
t-tests and confidence sequences for Gaussian means with unknown variance (arXiv 2310.03722).
"""

from functools import cache
from typing import Any

import numpy as np
from scipy import optimize, special

from fp4scope.stats.inference.series import Floats

EFFECT = 0.7
"""c: the standard deviation of the prior on the effect size."""


def log_evidence(
    t: Floats | float, n: int, *, one_sided: bool = False, effect: float = EFFECT
) -> Floats:
    """Log E_n of a t statistic over `n` values against its mean of zero.

    Args:
        t: sqrt(n) * mean / s, of either sign.
        n: How many values; at least 2.
        one_sided: Whether only a mean above zero counts as evidence.
        effect: c.

    Example:
        >>> round(float(np.exp(log_evidence(4.0, 16))), 2)
        44.99
    """
    t = np.asarray(t, np.float64)
    nu, a = n - 1, 1 + n * effect**2
    with np.errstate(over="ignore"):
        squared = t * t / nu
    with np.errstate(invalid="ignore"):
        ratio = np.log1p(squared) - np.log1p(squared / a)
    ratio = np.where(np.isfinite(squared), ratio, np.log(a))
    found = n / 2 * ratio - np.log(a) / 2
    if one_sided:
        with np.errstate(invalid="ignore"):
            place = n * effect / np.sqrt(a) * t / np.sqrt(nu + t * t / a)
        place = np.where(np.isinf(t), np.sign(t) * n * effect, place)
        found = found + np.log(2) + np.log(special.stdtr(n, place))
    return np.asarray(found)


@cache
def critical(n: int, alpha: float, *, one_sided: bool = False, effect: float = EFFECT) -> float:
    """The t at which the evidence reaches 1 / alpha; infinite where it never does.

    Times s / sqrt(n) it is the half-width of the confidence sequence.

    Example:
        >>> round(critical(32, 0.05), 3), critical(2, 0.05)
        (3.265, inf)
    """
    if not 0 < alpha < 0.5:
        raise ValueError(f"alpha is {alpha}; give a probability above 0 and below 0.5")
    if n < 2:
        return float("inf")
    above = _two_sided(n, alpha, effect)
    if not one_sided or np.isinf(above):
        return above

    def excess(t: float) -> float:
        return float(log_evidence(t, n, one_sided=True, effect=effect) + np.log(alpha))

    # For t > 0 the one-sided evidence lies between the two-sided one and twice that.
    root: Any = optimize.brentq(excess, 0.0, above, xtol=1e-12)
    return float(root)


def _two_sided(n: int, alpha: float, effect: float) -> float:
    a = 1 + n * effect**2
    r = float(np.exp(2 / n * (np.log(a) / 2 - np.log(alpha))))
    return float(np.sqrt((n - 1) * (r - 1) / (1 - r / a))) if r < a else float("inf")


def anytime_p_values(means: Floats | float, stderrs: Floats | float, n: int) -> Floats:
    """Two-sided p-values of means over `n` values, whatever n was chosen by.

    Without any spread a mean of zero has p = 1, and another the least that n values can give.

    Example:
        >>> anytime_p_values(np.array([0.0, 4.0]), 1.0, 16).round(4).tolist()
        [1.0, 0.0222]
    """
    means = np.asarray(means, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(means == 0, 0.0, means / np.asarray(stderrs))
    return np.asarray(np.exp(-np.maximum(log_evidence(t, n), 0.0)))
