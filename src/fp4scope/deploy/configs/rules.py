"""One form for every published configuration: rules in order, and how engines resolve them.

Sources: compressed-tensors 0.20 (`utils/match.py`, `_ordered_targets`), vLLM 0.33
(`compressed_tensors/utils.py`, `modelopt.py`, `quantization/online`, `inc.py`, `quark/utils.py`),
SGLang 0.5.23, TensorRT-LLM (`modelopt_config.py`); re-implemented from what they do.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from fnmatch import fnmatchcase

from fp4scope.deploy.engines import Form
from fp4scope.errors import UnitError
from fp4scope.recipes import matches

CLASSES = ("Linear", "ReplicatedLinear", "ColumnParallelLinear", "RowParallelLinear")
"""What targets call every linear; a head has other classes in engines."""


class Way(Enum):
    """How a pattern is held against the name of a linear."""

    TARGET = "its name, `re:` from its start, or its class"
    EXPERTS = "its name, or that of a module around it"
    PART = "a shell pattern, or any part of its name"
    GLOB = "its name, a shell pattern, or `re:` from its start"
    SEARCH = "its name, or a regular expression anywhere in it"
    OWN = "a pattern of fp4scope"


@dataclass(frozen=True)
class Rule:
    """What a configuration says of some linears.

    Attributes:
        pattern: Which.
        form: None leaves them in full precision.
        way: How the pattern is meant.
        place: Where it stands, such as `config_groups.group_0.targets`.
        ignores: Whether it stands in the list of exceptions, which is looked at first.
    """

    pattern: str
    form: Form | None
    way: Way
    place: str
    ignores: bool = False

    @property
    def text(self) -> str:
        """Itself, for people."""
        return f"{self.place}: {self.pattern}"

    @property
    def is_class(self) -> bool:
        """Whether it means a class of modules."""
        return self.way is Way.TARGET and self.pattern in CLASSES

    def means(self, name: str) -> bool:
        """Whether it means a linear.

        Raises:
            UnitError: Its regular expression is none.
        """
        if self.is_class:
            return not is_head(name)
        if self.pattern == name:
            return True
        return self._means_otherwise(name)

    def _means_otherwise(self, name: str) -> bool:
        pattern = self.pattern
        if self.way is Way.OWN:
            return matches(pattern, name)
        if self.way is Way.EXPERTS:
            return name.startswith(f"{pattern}.")
        if self.way is Way.PART:
            return fnmatchcase(name, pattern) or pattern in name
        if self.way is Way.SEARCH:
            special = any(c in pattern for c in "*+?^$()[]{}|\\")
            return special and self._expression(pattern).search(name) is not None
        if pattern.startswith("re:"):
            return self._expression(pattern.removeprefix("re:")).match(name) is not None
        return self.way is Way.GLOB and fnmatchcase(name, pattern)

    def _expression(self, text: str) -> re.Pattern[str]:
        try:
            return re.compile(text)
        except re.error as error:
            raise UnitError(f"{self.text} is no regular expression: {error}") from None


@dataclass(frozen=True)
class Trouble:
    """What is wrong with a configuration, whatever the model."""

    text: str
    place: str
    advice: str
    refused: bool = True


@dataclass(frozen=True)
class Config:
    """A configuration that was read.

    Attributes:
        dialect: Its container, as `engines.CONTAINERS` has them, or `recipe`.
        rules: In its order.
        default: What linears have that no rule means; None is full precision.
        has_default: Whether it says what they have, so that no linear is forgotten.
        troubles: What was wrong in it.
    """

    dialect: str
    rules: tuple[Rule, ...]
    default: Form | None = None
    has_default: bool = False
    troubles: tuple[Trouble, ...] = field(default=())

    def rule_of(self, name: str, engine: str = "vllm") -> Rule | None:
        """The rule that an engine goes by for a linear; None where none means it."""
        ignoring = next((rule for rule in self.rules if rule.ignores and rule.means(name)), None)
        return ignoring or next(iter(self.targeting(name, engine)), None)

    def targeting(self, name: str, engine: str) -> Iterator[Rule]:
        """Rules that give a linear a format, the one that an engine goes by first."""
        found = [rule for rule in self.rules if not rule.ignores]
        if self.dialect == "recipe":
            found = found[::-1]
        elif self.dialect == "compressed-tensors" and engine in ("trtllm", "hf"):
            found.sort(key=lambda rule: ("re:" in rule.pattern, rule.pattern))
        elif self.dialect == "compressed-tensors":
            found.sort(key=lambda rule: rule.is_class)
        elif self.dialect in ("auto-round", "modelopt"):
            found.sort(key=lambda rule: rule.pattern != name)
        return (rule for rule in found if rule.means(name))

    def form(self, name: str, engine: str = "vllm") -> Form | None:
        """What a linear has in an engine; None is full precision."""
        rule = self.rule_of(name, engine)
        if rule is not None:
            return rule.form
        return None if self.dialect == "recipe" and is_head(name) else self.default


def is_head(name: str) -> bool:
    """Whether a linear is the model's head, by its name."""
    return name.rpartition(".")[2] in ("lm_head", "embed_out", "output_layer")


def is_router(name: str) -> bool:
    """Whether a linear chooses experts, by its name."""
    return name.rpartition(".")[2] in ("gate", "router", "shared_expert_gate", "wg")
