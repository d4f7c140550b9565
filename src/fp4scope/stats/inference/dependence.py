"""Standard errors of means over windows that stand beside each other in a text.

Neighbouring windows share a topic, and with it some of what quantization costs. Pairing takes out
what variants share, not that: in what whole models cost, neighbours still correlate at 0.24 to 0.37
(medians of three models), in what projections cost at 0.13 to 0.16, and the plain s / sqrt(n) is
too small there. So the standard error is Newey and West's, with `lags(n)` neighbours on each side,
and never below the plain one, since the estimate itself is noisy and no reason is known for windows
to be less than independent.

How often a 95% t interval then covers, on average over the units of a family, was measured by
drawing runs of 12 windows on average from three recorded studies of a whole text (Qwen2.5-Coder
0.5B, Gemma 3 270M, SmolLM2-135M, 142 to 148 windows of 2048; in brackets with s / sqrt(n);
`benchmarks/intervals.py`). Ranges are over models and formats:

| windows | 16 | 32 | 64 | all |
| --- | --- | --- | --- | --- |
| whole models | 82-86% (79-83) | 85-88% (79-84) | 88-91% (78-85) | 90-93% (78-84) |
| projections, only | 88-92% (86-90) | 90-93% (86-92) | 90-95% (84-92) | 91-96% (85-93) |
| projections, keep | 89-95% (88-95) | 89-95% (87-95) | 90-96% (87-95) | 90-96% (86-95) |
| layers, only | 91-96% (90-95) | 92-96% (90-95) | 93-97% (90-96) | 94-96% (91-95) |
| layers, keep | 94-97% (93-96) | 95-97% (93-97) | 95-97% (94-97) | 96-98% (94-97) |

Single rows differ: of the layers in `only` 11 to 32% cover below 93% over a whole text, the worst
83%. Short texts do not hold enough to tell how far their windows go together.

Source: Newey, West 1987, A simple, positive semi-definite, heteroskedasticity and autocorrelation
consistent covariance matrix, Econometrica 55(3); a number of lags that grows with sqrt(n), Lazarus,
Lewis, Stock, Watson 2018, HAR inference: recommendations for practice, JBES 36(4) (here half as
many: the t interval takes no account of their noise).
"""

import numpy as np

from fp4scope.stats.inference.series import Floats


def lags(n: int) -> int:
    """How many neighbours on each side are taken to be alike, of `n` windows.

    Example:
        >>> [lags(n) for n in (1, 8, 16, 64, 146)]
        [1, 2, 3, 5, 8]
    """
    return round(2 / 3 * n**0.5)


def standard_errors(values: Floats) -> Floats:
    """Those of the means over the first axis: at least two windows, in the order of the text.

    Of windows with gaps between them those count as neighbours that follow each other.
    """
    n = len(values)
    centred = values - values.mean(axis=0)
    plain, shared = (np.square(x).sum(axis=0) for x in (centred, with_neighbours(centred)))
    return np.asarray(np.sqrt(np.maximum(plain, shared) / (n - 1) / n))


def with_neighbours(centred: Floats) -> Floats:
    """Each window's deviation together with those of its `lags`, scaled.

    Running sums of lags + 1 windows, with zeros on both ends, over sqrt(lags + 1): their products
    summed are the products of windows k apart, weighted with 1 - k / (lags + 1), which is Newey and
    West's estimate.

    Args:
        centred: Windows by any shape, in the order of the text, without their means.

    Returns:
        `lags` more rows than windows.
    """
    n = len(centred)
    reach = lags(n)
    sums = np.zeros((n + reach, *centred.shape[1:]))
    for shift in range(reach + 1):
        sums[shift : shift + n] += centred
    return sums / np.sqrt(reach + 1)


def drawn_means(values: Floats, draws: int, seed: int = 0) -> Floats:
    """What the means of `values` may be, given these windows: always the same draws.

    From the multivariate t distribution with n - 1 degrees of freedom around the means: each mean
    alone has the distribution of its t interval, and columns that rise and fall together in the
    same windows, or in neighbouring ones, do so in the draws. The covariance is never formed:
    independent normals times the windows' deviations `with_neighbours` have it.

    Args:
        values: Windows by columns, in the order of the text; at least two windows.
        draws: How many.
        seed: Draws of different seeds are independent.

    Returns:
        Draws by columns.
    """
    n = len(values)
    rng = np.random.default_rng(seed)
    means = values.mean(axis=0)
    shared = with_neighbours(values - means)
    sizes = np.sqrt(np.square(shared).sum(axis=0) / n / (n - 1))
    with np.errstate(invalid="ignore", divide="ignore"):
        scale = np.where(sizes > 0, standard_errors(values) / sizes, 0.0)
    normals = rng.standard_normal((draws, len(shared)))
    chi2 = rng.chisquare(n - 1, (draws, 1))
    return np.asarray(means + normals @ (shared * scale) / np.sqrt(n * chi2))


def halves(rng: np.random.Generator, windows: int, count: int) -> Floats:
    """Windows split in two at random, runs of `lags` + 1 neighbours together.

    Returns:
        1 for windows of the one half, 0 for those of the other: `count` by windows.
    """
    runs = np.arange(windows) // (lags(windows) + 1)
    if runs[-1] == 0:
        runs = np.arange(windows)
    places = rng.permuted(np.tile(np.arange(runs[-1] + 1), (count, 1)), axis=1)
    return (places < (runs[-1] + 1) // 2).astype(np.float64)[:, runs]
