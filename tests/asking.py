"""What tests ask of a study and what it finds, in few words: contrasts on sites made for them.

`asked(...)` is a contrast as a table names it, `observed(asked, nll)` what it gave, and
`take(results, ...)` puts that into results. A test that changes a study takes it apart into
`entries(results)`, changes these, and puts them together again: `rebuilt(results, entries)`.
"""

from dataclasses import dataclass, field, replace
from functools import cache

from fp4scope.design import NOTHING, Contrast, Unit, of_units, whole
from fp4scope.formats import FORMATS, get_format
from fp4scope.ledger import Ledger, Results, Rows
from fp4scope.recipes import Recipe, Site, Sites
from fp4scope.stats import FULL_PRECISION
from fp4scope.study import Direction, Operands
from fp4scope.treatments import Configuration

BOTH = "W4A4"
TOKENS = 10
"""Targets of a window."""


@dataclass(frozen=True)
class Asked:
    """A recipe, what it is run for, and whether it is compared with itself.

    `format`, `precision`, `direction`, `level`, `unit` and `block` are as a table has them. The
    full-precision model has none of them.
    """

    recipe: Recipe
    contrast: Contrast | None = None
    again: bool = False
    names: dict = field(default_factory=dict, hash=False, compare=False)

    def __getattr__(self, name):
        try:
            return self.__dict__["names"][name]
        except KeyError:
            raise AttributeError(name) from None

    @property
    def is_whole(self):
        """Whether this is the full-precision or an all-quantized model."""
        return self.level == "model"

    def but(self, **names):
        """The same with another format, unit, ..."""
        return asked(**{k: v for k, v in self.names.items() if v != ""} | names)


@dataclass
class Observed:
    """Rows of what was asked."""

    asked: Asked
    rows: Rows

    @property
    def nll(self):
        """Sums over the targets of each row, as `kl` is."""
        return self.rows.values["nll"]

    @nll.setter
    def nll(self, values):
        self.rows.values["nll"] = [float(value) for value in values]

    @property
    def kl(self):
        return self.rows.values["kl"]

    @kl.setter
    def kl(self, values):
        self.rows.values["kl"] = [float(value) for value in values]

    @property
    def plain(self):
        """The rows that are not perturbed."""
        return self.where(lambda window, replica: replica == 0)

    def but(self, **names):
        """The same rows for what has another format, unit, ..."""
        return Observed(self.asked.but(**names), _copy(self.rows))

    def without(self, windows):
        """The rows of other windows."""
        return self.where(lambda window, replica: window not in set(windows))

    def where(self, keep):
        """The rows that `keep(window, replica)` keeps."""
        return Observed(self.asked, _copy(self.rows, keep))

    def only(self, *measures):
        """Nothing but these measures; None without any."""
        rows = _copy(self.rows)
        rows.values = {name: rows.values[name] for name in measures if name in rows.values}
        return Observed(self.asked, rows) if rows.values else None


def fused_model(blocks):
    """Sites of which engines have three groups a block: q and k, o, up."""
    paths = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.o_proj", "mlp.up_proj")
    found = (
        Site(name=f"layers.{b}.{p}", block=b, projection=p, rows=4, cols=4)
        for b in range(blocks)
        for p in paths
    )
    return Sites(found, blocks)


def _nothing():
    names = {"level": "model", "format": FULL_PRECISION, "precision": "", "direction": ""}
    return Asked(NOTHING, names=names | {"unit": "", "block": None})


REFERENCE = _nothing()


def all_quantized(format, precision=BOTH):
    """Everything quantized."""
    return asked(format=format, precision=precision)


def jitter(one):
    """The same recipe, further replicas of which are compared with itself."""
    return replace(one, again=True)


def asked(*, format, precision=BOTH, direction=None, level="model", unit="", block=None):
    """A contrast as a table names it; of a format that there is not, one called so."""
    named = Configuration(_format(format), _format(format))
    setting = named.setting(Operands(precision).treated)
    if level == "model":
        contrast = whole(setting)
    else:
        names = {"layers": f"blocks.{block}.{unit}", "blocks": f"blocks.{block}.every"}
        sites = frozenset([names.get(level, f"blocks.0.all_{unit}")])
        units = [Unit(level, unit, block, sites)]
        [contrast] = of_units(units, setting, Direction(direction))
    return Asked(contrast.own, contrast, names=contrast.labels)


@cache
def _format(name):
    known = get_format("nvfp4")
    return replace(known, name=name) if name not in FORMATS and "/" in name else get_format(name)


def observed(what, nll, *, windows=None, replicas=0, kl=0.0):
    """This NLL per token in windows of ten tokens.

    `kl`, per token too, is one value for all windows, or one for each.
    """
    own = what.again and what.recipe != NOTHING
    names = ("nll", "rerun_kl", "rerun_top1") if own else ("nll", "kl", "top1")
    kls = [kl] * len(nll) if isinstance(kl, float) else kl
    columns = [float(TOKENS * x) for x in nll], [float(TOKENS * x) for x in kls], [7] * len(nll)
    return _rows(what, dict(zip(names, columns, strict=True)), windows, replicas)


def estimated(what, nats, *, windows=None):
    """This first-order estimate per token in windows of ten tokens."""
    return _rows(what, {"gradient": [float(TOKENS * x) for x in nats]}, windows, 0)


def _rows(what, values, windows, replicas):
    count = len(next(iter(values.values())))
    assert {len(column) for column in values.values()} == {count}
    indices = [*range(count)] if windows is None else [*windows]
    replicas = [replicas] * count if isinstance(replicas, int) else [*replicas]
    return Observed(what, Rows(indices, replicas, [TOKENS] * count, values))


def take(results: Results, *found: Observed) -> Results:
    """Add what was found to results."""
    contrasts = dict.fromkeys(results.contrasts)
    for one in found:
        if one.asked.contrast is not None and not one.asked.again:
            contrasts[one.asked.contrast] = None
        rows, into = one.rows, results.ledger.open(one.asked.recipe)
        if not into.indices:
            own = _copy(rows)
            into.indices, into.replicas = own.indices, own.replicas
            into.tokens, into.values = own.tokens, own.values
            continue
        for row, where in enumerate(zip(rows.indices, rows.replicas, rows.tokens, strict=True)):
            known = {name: column[row] for name, column in rows.values.items()}
            into.put(*where, {name: value for name, value in known.items() if value is not None})
    results.contrasts = list(contrasts)
    results.sites = sites_of(results.contrasts, results.model.get("blocks", 0))
    return results


def entries(results: Results) -> list[Observed]:
    """What was found of the full-precision model and of each contrast: copies, to be changed."""
    wanted = [REFERENCE, *(Asked(c.own, c, names=c.labels) for c in results.contrasts)]
    found = ((one, results.ledger.rows(one.recipe)) for one in wanted)
    return [Observed(one, _copy(rows)) for one, rows in found if rows is not None]


def rebuilt(results: Results, found) -> Results:
    """Results under the same conditions that found this; None among it is left out."""
    fresh = replace(results, contrasts=[], ledger=Ledger(counted=results.ledger.counted))
    return take(fresh, *(one for one in found if one is not None))


def entry(results: Results, what: Asked) -> Observed:
    """What was found of one contrast."""
    (one,) = (one for one in entries(results) if one.asked.recipe == what.recipe)
    return one


def _copy(rows, keep=lambda window, replica: True):
    where = list(zip(rows.indices, rows.replicas, rows.tokens, strict=True))
    kept = [place for place, row in enumerate(where) if keep(*row[:2])]
    columns = ([where[place][part] for place in kept] for part in range(3))
    values = {name: [column[place] for place in kept] for name, column in rows.values.items()}
    return Rows(*columns, values)


def sites_of(contrasts, blocks=0):
    """A site for every name that a contrast has."""
    names = dict.fromkeys(
        name for c in contrasts if c.unit is not None for name in sorted(c.unit.sites)
    )
    paths = [name.split(".", 2)[1:] for name in names]
    return sites_at(((path, int(block), path) for block, path in paths), blocks)


def sites_at(places, blocks=0):
    """A site for each (projection, block, path inside the block)."""
    found = [
        Site(name=f"blocks.{block}.{path}", block=block, projection=projection, rows=4, cols=4)
        for projection, block, path in places
    ]
    most = max((site.block for site in found), default=-1) + 1
    return Sites(sorted(found, key=lambda site: site.block), max(most, blocks))
