r"""What is done to a model: which of its sites are quantized, and how. Pure data.

A recipe is one setting for all sites and edits to it, so that it stays small however many sites a
model has. Two recipes that do the same are equal and have one id, however they were written.

Users name sites by patterns. A pattern is a shell pattern or, behind `re:`, a regular expression
from the start of the name, as in the ignore lists of checkpoints. It is held against the full
module name and against its endings at a dot: `o_proj`, `self_attn.*`, `*.layers.0.*` and
`re:.*\.mlp\.gate$` are all good. A shell pattern is held against the projection's name in the same
way, since that is what tables show.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal

from fp4scope.errors import StudyError, UnitError, nearest
from fp4scope.treatments import Amax, Setting, stored_bits


def matches(pattern: str, name: str, projection: str = "") -> bool:
    """Whether a pattern means a site, or any other module.

    Args:
        pattern: It.
        name: Full module name.
        projection: Of a site: the name of its projection, where that may be another.

    Raises:
        UnitError: It is no regular expression, though it says so.

    Example:
        >>> [matches(p, "model.layers.0.mlp.gate") for p in ("gate", "mlp.*", "re:.*gate$", "up")]
        [True, True, True, False]
    """
    if not pattern.startswith("re:"):
        known = (name, projection) if projection else (name,)
        return any(fnmatchcase(f".{own}", f"*.{pattern}") for own in known)
    try:
        return re.match(pattern.removeprefix("re:"), name) is not None
    except re.error as error:
        raise UnitError(f"{pattern!r} is no regular expression: {error}") from None


def expert_name(product: str, expert: int) -> str:
    """The name of one of the experts whose weights lie in one tensor.

    Example:
        >>> expert_name("model.layers.0.mlp.experts.down_proj", 7)
        'model.layers.0.mlp.experts.7.down_proj'
    """
    holder, _, leaf = product.rpartition(".")
    return f"{holder}.{expert}.{leaf}"


def expert_of(name: str) -> tuple[str, int] | None:
    """Product and number of what is named as `expert_name` has it; None of any other name.

    Example:
        >>> expert_of("model.layers.0.mlp.experts.7.down_proj")
        ('model.layers.0.mlp.experts.down_proj', 7)
    """
    holder, _, leaf = name.rpartition(".")
    outer, _, number = holder.rpartition(".")
    return (f"{outer}.{leaf}", int(number)) if number.isdecimal() else None


Edit = tuple[frozenset[str], Setting | None]
"""Sites by name, and the setting that they have instead of the base's; None is full precision."""


@dataclass(frozen=True)
class Part:
    """Some of the outputs of a product, or of its inputs, that are a site of their own.

    Attributes:
        name: Such as `q`, `up` or `heads.0-3`.
        axis: `rows` for outputs, `cols` for inputs.
        runs: Where they are: first, end and step of each run.
    """

    name: str
    axis: Literal["rows", "cols"]
    runs: tuple[tuple[int, int, int], ...]

    @classmethod
    def of(cls, name: str, axis: Literal["rows", "cols"], places: Sequence[int]) -> "Part":
        """The part of these places, in order.

        Example:
            >>> Part.of("up", "rows", [1, 3, 5]).runs, Part.of("q", "rows", [0, 1, 4, 5]).runs
            (((1, 6, 2),), ((0, 2, 1), (4, 6, 1)))
        """
        steps = {b - a for a, b in pairwise(places)}
        if len(steps) == 1:
            return cls(name, axis, ((places[0], places[-1] + 1, steps.pop()),))
        runs: list[tuple[int, int, int]] = []
        for place in places:
            if runs and runs[-1][1] == place:
                runs[-1] = (runs[-1][0], place + 1, 1)
            else:
                runs.append((place, place + 1, 1))
        return cls(name, axis, tuple(runs))

    @property
    def places(self) -> list[int]:
        """All of them."""
        return [place for run in self.runs for place in range(*run)]

    @property
    def size(self) -> int:
        """How many they are."""
        return sum(len(range(*run)) for run in self.runs)


@dataclass(frozen=True, kw_only=True)
class Site:
    """One matrix product whose operands can be quantized.

    Attributes:
        name: Full module name, such as `model.layers.3.mlp.up_proj`: what ignore lists take.
        block: Number of its block, from 0; None of what is behind them all.
        projection: Its projection: what it is in every block, as `models.projections` names it.
        rows: Outputs of its weight; 0 of what has none, as keys in a cache.
        cols: Inputs: the axis along which blocks of a format run.
        experts: How many experts have such a weight in it; 1 for any other.
        expert: Of a single expert whose weight lies in one tensor with others: its number there.
        part: Of a part of a product, its name; then `rows` and `cols` are the part's.
    """

    name: str
    block: int | None
    projection: str
    rows: int
    cols: int
    experts: int = 1
    expert: int | None = None
    part: str | None = None

    @property
    def key(self) -> str:
        """What recipes call it."""
        return self.name

    @property
    def product(self) -> str:
        """Name of the product that it is, or is a part of."""
        if self.part is not None:
            return self.name.removesuffix(f".{self.part}")
        alone = None if self.expert is None else expert_of(self.name)
        return self.name if alone is None else alone[0]

    @property
    def path(self) -> str:
        """Its name inside its block."""
        return self.name.partition(f".{self.block}.")[2] or self.name

    @property
    def is_linear(self) -> bool:
        """Whether it has a weight."""
        return self.rows > 0

    @property
    def parameters(self) -> int:
        """Numbers in its weight."""
        return self.experts * self.rows * self.cols


@dataclass(frozen=True, kw_only=True)
class TiedSite(Site):
    """Another place where the weight of a site is multiplied by: blocks may share weights.

    Its setting is the site's: recipes name the first place alone.

    Attributes:
        site: Name of the site.
    """

    site: str

    @property
    def key(self) -> str:
        return self.site


class Sites(Sequence[Site]):
    """The sites of a model in the order of its blocks.

    Args:
        sites: All of them, blocks in order.
        blocks: How many blocks the model has; one may have no site.
        tied: More places of some of them.

    Attributes:
        by_name: All of them.
        blocks: What is quantized in each block: its sites, and places of earlier ones.
        behind: Those behind the blocks.
    """

    def __init__(self, sites: Iterable[Site], blocks: int, tied: Iterable[TiedSite] = ()) -> None:
        self._sites = tuple(sites)
        self._tied = tuple(tied)
        self.by_name = {site.name: site for site in self._sites}
        by_block: list[list[Site]] = [[] for _ in range(blocks)]
        for site in self.everywhere:
            if site.block is not None:
                by_block[site.block].append(site)
        self.blocks = tuple(map(tuple, by_block))
        self.behind = tuple(site for site in self._sites if site.block is None)

    @property
    def everywhere(self) -> Sequence[Site]:
        """The sites, and their further places."""
        return (*self._sites, *self._tied)

    @cached_property
    def places(self) -> Mapping[str, Sequence[Site]]:
        """Where each site is, by its name: itself first."""
        found: dict[str, list[Site]] = {}
        for site in self.everywhere:
            found.setdefault(site.key, []).append(site)
        return found

    def __len__(self) -> int:
        return len(self._sites)

    def __getitem__(self, index: Any) -> Any:  # noqa: ANN401
        return self._sites[index]

    def __iter__(self) -> Iterator[Site]:
        return iter(self._sites)

    def blocks_before(self, name: str) -> int:
        """How many blocks run before a site's own, or before it."""
        block = self.by_name[name].block
        return len(self.blocks) if block is None else block

    @cached_property
    def projections(self) -> tuple[str, ...]:
        """Projection types in the order in which a block holds them."""
        return tuple(dict.fromkeys(site.projection for site in self._sites))

    def match(self, pattern: str) -> frozenset[str]:
        """Names of the sites that a pattern means (`matches`).

        Raises:
            UnitError: It means none: a silent miss would read as "insensitive".
        """
        found = frozenset(s.key for s in self.everywhere if matches(pattern, s.name, s.projection))
        if not found:
            raise UnitError(
                f"pattern {pattern!r} matches none of the {len(self)} linears; their names look "
                f"like {self._sites[0].name}; for projections, {nearest(pattern, self.projections)}"
            )
        return found


@dataclass(frozen=True, slots=True)
class Recipe:
    """A setting for all sites, and edits to it.

    Built in any order and with overlaps, where a later edit wins, it is kept in one canonical form:
    no site stands in two edits, and no edit says what the base says.

    Attributes:
        base: Of every site that no edit names; None is full precision.
        edits: Sites by name, and what they have instead.
        replay: Whether tokens go to the experts that the full-precision model chooses on the same
            text, with the weights that it gives them.
    """

    base: Setting | None = None
    edits: tuple[Edit, ...] = ()
    replay: bool = False
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if len(self.edits) > 1 or not all(self._is_news(*edit) for edit in self.edits):
            object.__setattr__(self, "edits", self._canonical())
        # Of many names, and asked for often.
        object.__setattr__(self, "_hash", hash((self.base, self.edits, self.replay)))

    def _canonical(self) -> tuple[Edit, ...]:
        claimed: set[str] = set()
        by_setting: dict[Setting | None, set[str]] = {}
        for names, setting in reversed(self.edits):
            fresh = names - claimed
            claimed |= fresh
            if self._is_news(fresh, setting):
                by_setting.setdefault(setting, set()).update(fresh)
        edits = [(frozenset(names), setting) for setting, names in by_setting.items()]
        return tuple(sorted(edits, key=lambda edit: min(edit[0])))

    def __hash__(self) -> int:
        return self._hash

    def __reduce__(self) -> Any:  # noqa: ANN401
        """Made anew in another process, where texts have other hashes."""
        return type(self), (self.base, self.edits, self.replay)

    def _is_news(self, names: Set[str], setting: Setting | None) -> bool:
        return bool(names) and setting != self.base

    @property
    def settings(self) -> set[Setting]:
        """The different settings in it."""
        return {s for s in (self.base, *(setting for _, setting in self.edits)) if s is not None}

    @property
    def edited(self) -> frozenset[str]:
        """Names of the sites that some edit names."""
        return frozenset().union(*(names for names, _ in self.edits))

    def at(self, name: str) -> Setting | None:
        """The setting of one site; None is full precision."""
        return next((setting for names, setting in self.edits if name in names), self.base)

    def in_block(self, sites: Sequence[Site]) -> tuple[tuple[str, Setting], ...]:
        """What is done to some sites, sorted by name; those in full precision are left out."""
        found = ((site.name, self.at(site.key)) for site in sites)
        return tuple(sorted((name, setting) for name, setting in found if setting is not None))

    def average_bits(self, sites: Sequence[Site]) -> float:
        """Stored bits for each weight of these sites, scales of blocks and rows included.

        One scale of a whole tensor is not counted.
        """
        total = sum(site.parameters for site in sites)
        stored = 0.0
        for site in sites:
            setting = self.at(site.name)
            stored += stored_bits(setting, site.cols) * site.parameters
        return stored / total

    def id(self, calibration: str = "") -> str:
        """16 hexadecimal digits that name what it does.

        Args:
            calibration: Hash of the text that static scales come from; it counts only where the
                recipe has any.
        """
        static = any(
            s.input is not None and s.input.tensor_scale in (Amax.CALIBRATED, Amax.EXPERT)
            for s in self.settings
        )
        text = json.dumps([self.to_json(), calibration if static else ""], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        """Its canonical form, which YAML holds as well."""
        edits = [{"sites": sorted(names), "setting": _written(s)} for names, s in self.edits]
        found = {"base": _written(self.base), "edits": edits}
        return found | {"replay": True} if self.replay else found

    @classmethod
    def from_json(cls, data: object, sites: Sites | None = None) -> "Recipe":
        """A recipe as `to_json` gives it, or as a user writes it, with patterns for sites.

        Args:
            data: What JSON or YAML holds.
            sites: Where patterns are looked up; without them every name is taken as it is.

        Raises:
            FormatError: An unknown format.
            StudyError: It is not a recipe; says where.
            UnitError: A pattern that matches no site.
        """
        if not isinstance(data, Mapping) or (unknown := set(data) - {"base", "edits", "replay"}):
            known = "a recipe has `base`, `edits` and `replay`"
            what = f"{sorted(map(str, unknown))[0]!r}" if isinstance(data, Mapping) else f"{data!r}"
            raise StudyError(f"{what} is not part of a recipe; {known}")
        edits = data.get("edits") or []
        if not isinstance(edits, Sequence) or isinstance(edits, str):
            raise StudyError(f"edits is {edits!r}; give a list of `sites` and `setting`")
        replay = data.get("replay", False)
        if not isinstance(replay, bool):
            raise StudyError(f"replay is {replay!r}; give true or false")
        return cls(_read(data.get("base")), tuple(_edit(edit, sites) for edit in edits), replay)


def _edit(data: object, sites: Sites | None) -> Edit:
    if not isinstance(data, Mapping) or set(data) != {"sites", "setting"}:
        raise StudyError(f"edit {data!r} is not of the form `{{sites: [...], setting: ...}}`")
    patterns = data["sites"]
    if isinstance(patterns, str):
        patterns = [patterns]
    if not isinstance(patterns, Sequence) or not all(isinstance(p, str) for p in patterns):
        raise StudyError(f"sites is {patterns!r}; give names or patterns")
    named = (
        frozenset([p]) if sites is None or p in sites.by_name else sites.match(p) for p in patterns
    )
    return frozenset().union(*named), _read(data["setting"])


def _written(setting: Setting | None) -> Any:  # noqa: ANN401
    return None if setting is None else setting.to_json()


def _read(data: object) -> Setting | None:
    return None if data is None else Setting.from_json(data)
