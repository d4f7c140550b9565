"""Which k units of a family cost most: decided while measuring, with a known chance of error.

Units are compared pair by pair, window by window: what they are both measured against cancels, and
with it most of what makes windows differ. Each pair has a confidence sequence (`sequences`), so
the comparison may be repeated after every chunk. What is decided is not measured any more.

**The rule.** Of m units, let `active` be the undecided and `left` = k less those accepted. Say that
i beats j if the bound of their pair leaves only mean_i > mean_j. After a chunk, until nothing
changes: a unit that `left` or more active ones beat is dropped; one that beats all but fewer than
`left` of the other active ones is accepted. Then, if the `left` active units with the largest
means all have upper(mean_j - mean_i) <= within, for i among them and j any other active one,
these are chosen, the rest is left out, and the family is decided.

**The promise.** With probability 1 - error, at whatever n it ends: every unit accepted or chosen
costs at least what the k-th most costly of all does, less `within`.

**Why.** Let T be the k truly most costly (ties broken in any fixed way), and G the event that
for every i in T and j not in T, the upper bound of mean_i - mean_j holds at every look. These
are k (m - k) pairs on one side each. With alpha = error / (k (m - k)) for each, G has probability
1 - error or more by the union bound; pairs inside T or outside it need no bound. On G:

1. No j outside T ever beats an i in T: that would take upper(mean_i - mean_j) < 0, yet
   mean_i >= mean_j.
2. Nothing of T is dropped, nothing else accepted. By induction: so far accepted units are in T
   and no dropped one is, so exactly `left` active ones are in T. An i in T can only be beaten by
   others in T (1), of which `left` - 1 are active: too few. A j outside T can only beat others
   outside T (1), of which |active| - left - 1 are active; to be accepted it must beat
   |active| - left: too few.
3. If i is chosen and not in T, then some j in T is active and not chosen, since `left` of T are
   active (2) and as many are chosen. Then mean_j - mean_i <= upper(mean_j - mean_i) <= within, and
   mean_j is at least the k-th largest mean.

**Looks.** The bound of a look is the t quantile at the share of alpha that this look spends
(`share`), and the shares of however many looks add up to at most 1. When there is a look may depend
on anything but costs. So looking, dropping and stopping cost nothing more, as far as a pair's
differences are normal. Both sides of a pair have seen the same windows as long as both are active.

Confidence sequences (`sequences`) hold at every n, which is more than is needed. Their prior is for
small effects: an alpha of 3e-5 (10 of 168 units) is out of reach below 12 windows, whatever these
say. Shares reach it at 8 windows, by t = 11. That is enough where units differ by several times
their spread over windows, as KL does. From 40 windows on both bounds agree to 5%.

Source: spending an error over looks, Lan, DeMets 1983, Discrete sequential boundaries for clinical
trials, Biometrika 70(3), here by a union bound; successive elimination, Even-Dar, Mannor, Mansour
2006, Action elimination and stopping conditions, JMLR 7; for the best k, Kalyanakrishnan, Tewari,
Auer, Stone 2012, PAC subset selection in stochastic multi-armed bandits, ICML.
"""

from collections.abc import Sequence
from enum import Enum

import numpy as np
from scipy import special

from fp4scope.stats.inference.dependence import with_neighbours
from fp4scope.stats.inference.intervals import MIN_WINDOWS
from fp4scope.stats.inference.series import Floats
from fp4scope.study import BestGoal

_SPREAD = 5


class Fate(str, Enum):
    """What the search knows of a unit."""

    ACCEPTED = "accepted"
    """Among the k most costly."""
    DROPPED = "dropped"
    """Not among them."""
    CHOSEN = "chosen"
    """Within the tolerance of them; the set is complete with it."""
    LEFT = "left out"
    """Not needed once the set was complete."""
    UNDECIDED = "undecided"


class BestSearch:
    """The search for the k most costly units of one family.

    Args:
        units: How many units there are.
        goal: How many are wanted, how exactly, how surely.

    Raises:
        ValueError: There are not more units than are wanted.
    """

    def __init__(self, units: int, goal: BestGoal) -> None:
        if goal.k >= units:
            raise ValueError(f"the best {goal.k} of {units} units need no search")
        self.goal = goal
        self.fates = [Fate.UNDECIDED] * units
        self.windows = [0] * units
        """How many windows each unit was compared on."""
        self._alpha = goal.error / (goal.k * (units - goal.k))
        self._looks = 0

    @property
    def active(self) -> list[int]:
        """Units that are still to be measured."""
        return [i for i, fate in enumerate(self.fates) if fate is Fate.UNDECIDED]

    @property
    def decided(self) -> bool:
        return not self.active

    @property
    def found(self) -> list[int]:
        """Units that are in the set so far; k of them when it is decided."""
        return [i for i, f in enumerate(self.fates) if f in (Fate.ACCEPTED, Fate.CHOSEN)]

    def look(self, costs: Floats) -> None:
        """Take in what the active units cost in all windows so far; it spends a share of the error.

        Args:
            costs: Windows by active units, in the order of `active`; those that are neighbours in
                the text beside each other.
        """
        active, n = self.active, len(costs)
        for unit in active:
            self.windows[unit] = n
        if not active or n < MIN_WINDOWS:
            return
        reach = quantile(n, self._alpha * share(self._looks))
        self._looks += 1
        gap, half = _pairs(costs, reach)
        alive = self._eliminate(active, gap > half)
        left = self.goal.k - len(self.found)
        if not alive.any():
            return
        places = np.flatnonzero(alive)
        ranked = places[np.argsort(-costs.mean(axis=0)[places], kind="stable")]
        top, rest = ranked[:left], ranked[left:]
        if (gap + half)[np.ix_(rest, top)].max() <= self.goal.within:
            self._settle(active, top, Fate.CHOSEN)
            self._settle(active, rest, Fate.LEFT)

    def _eliminate(self, active: Sequence[int], beats: np.ndarray) -> np.ndarray:
        """Accept and drop until nothing changes; which of the active ones are still undecided."""
        alive = np.ones(len(active), bool)
        while alive.any():
            left = self.goal.k - len(self.found)
            lost = alive & (beats[alive].sum(axis=0) >= left)
            won = alive & (beats[:, alive].sum(axis=1) >= alive.sum() - left)
            if not (lost | won).any():
                break
            self._settle(active, np.flatnonzero(won & ~lost), Fate.ACCEPTED)
            self._settle(active, np.flatnonzero(lost), Fate.DROPPED)
            alive &= ~(lost | won)
        return alive

    def _settle(self, active: Sequence[int], places: np.ndarray, fate: Fate) -> None:
        for place in places.tolist():
            self.fates[active[place]] = fate


def search(costs: Floats, ends: Sequence[int], goal: BestGoal) -> BestSearch:
    """The search over recorded costs, looked at after each chunk.

    Args:
        costs: Windows in the order in which they were measured, by units.
        ends: How many windows there were at the end of each chunk.
        goal: What is searched for.

    Example:
        >>> noise = np.random.default_rng(0).normal(size=(48, 3))
        >>> found = search(1e-2 * noise + [0.0, 0.02, 0.03], range(8, 49, 8), BestGoal(1))
        >>> found.found, found.windows
        ([2], [8, 16, 16])
    """
    found = BestSearch(costs.shape[1], goal)
    for end in ends:
        if found.decided:
            break
        found.look(costs[:end, found.active])
    return found


def share(look: int) -> float:
    """Of the error, what a look spends, counted from 0: a sixth, then ever less, 1 in all.

    Of the sums that telescope to 1 this decides soonest on recorded windows, early or late.

    Example:
        >>> [round(share(look), 3) for look in (0, 1, 4, 22)], round(sum(map(share, range(995))), 3)
        ([0.167, 0.119, 0.056, 0.007], 0.995)
    """
    return _SPREAD / ((look + _SPREAD) * (look + _SPREAD + 1))


def quantile(n: int, alpha: float) -> float:
    """What a t statistic of `n` values without an effect exceeds with probability `alpha`."""
    return float(-special.stdtrit(n - 1, alpha))


def _pairs(costs: Floats, reach: float) -> tuple[Floats, Floats]:
    """For all pairs the mean of row less column, and how far its bound lies from that."""
    n = len(costs)
    means = costs.mean(axis=0)
    centred = costs - means
    squares = np.maximum(_distances(centred), _distances(with_neighbours(centred)))
    return means[:, None] - means, reach * np.sqrt(squares / (n - 1) / n)


def _distances(columns: Floats) -> Floats:
    """The sum of squares of every column less every other."""
    products = columns.T @ columns
    own = np.diag(products)
    return np.maximum(own[:, None] + own - 2 * products, 0.0)
