"""What fp4scope does with a family: a row of the table in docs/models.md.

A tiny random model goes the way of a run: it is adopted, checked, and measured under some recipes.
Every NLL is compared with the model's own forward (`sweep/naive.py`) and with a path that shares
nothing with fp4scope (`independent`). Coverage is that of the default widths, in fewer layers.
"""

import re
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
import transformers
from torch.nn import functional

from families.independent import Quantized
from families.tiny import narrow, tiny
from fp4scope.conductor.prepare import without_silent
from fp4scope.design import NOTHING, Run, design
from fp4scope.errors import Fp4ScopeError, ModelError
from fp4scope.ledger import Log
from fp4scope.models import adopt, find_layout
from fp4scope.models.checks import require_decoder
from fp4scope.models.load import auto_class
from fp4scope.models.text import text_model
from fp4scope.operands import Injector
from fp4scope.study import Study
from fp4scope.sweep import Worker, measure_naively, memory_for, schedule, self_check

BLOCKS, WHOLE, REFUSED, UNTRIED = "block by block", "whole forwards", "refused", "not tried"
CLOSE = 1e-5
"""Nats per token: rounding in another order, magnified by quantized activations."""
_TOKENS = 24
_MEASURED = re.compile(r"(?<![\d.])\d+\.\d+(?:e-?\d+)?(?![\d.])")
"""Numbers in messages, which differ by machine; 5.24.0 is none."""
_PLENTY = 1 << 32


class Row(NamedTuple):
    """A family in the table.

    Attributes:
        family: Its `model_type`.
        measured: One of the ways above.
        covered: Share of its blocks' parameters that is quantized, to three digits.
        apart: Share that recipes leave alone.
        says: Its projections, or why it is not measured.
    """

    family: str
    measured: str
    covered: float | None = None
    apart: float | None = None
    says: str = ""

    @property
    def enough(self) -> bool:
        """Whether at least 95% of what recipes quantize is reached."""
        known = self.covered is not None and self.apart is not None
        return self.measured in (BLOCKS, WHOLE) and known and self.covered + self.apart >= 0.95

    @property
    def line(self) -> str:
        shares = ["" if share is None else f"{share:.1%}" for share in (self.covered, self.apart)]
        return f"| {self.family} | {self.measured} | {' | '.join(shares)} | {self.says} |"

    @classmethod
    def of(cls, line: str) -> "Row":
        """The row of such a line."""
        family, measured, *shares, says = (part.strip() for part in line.split("|")[1:-1])
        values = [round(float(s.rstrip("%")) / 100, 3) if s else None for s in shares]
        return cls(family, measured, *values, says)


def families() -> list[str]:
    """All types whose class `load_model` finds."""
    auto = transformers.models.auto.modeling_auto
    tasks = ("CAUSAL_LM", "IMAGE_TEXT_TO_TEXT", "MULTIMODAL_LM")
    mappings = (getattr(auto, f"MODEL_FOR_{task}_MAPPING_NAMES", {}) for task in tasks)
    return sorted({family for mapping in mappings for family in mapping})


def examined(family: str) -> Row:
    """What fp4scope does with a family."""
    try:
        config = tiny(family)
        kind = auto_class(transformers, config, family)
        require_decoder(config, family)
        model = _random(kind.from_config(config))
    except Fp4ScopeError as error:
        return Row(family, REFUSED, says=_without_name(error, family))
    except Exception as error:
        return Row(family, UNTRIED, says=f"no tiny configuration: {_said(error)}")
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(4, 90, (2, _TOKENS), generator=generator)
    study = Study.build(
        model="x", formats="mxfp4:floor", sweep="projections,layers", direction="keep,only",
        allow_partial=True, jitter=1, all_quantized="",
    )  # fmt: skip
    try:
        loaded = without_silent(study, adopt(model, None, name=family, allow_partial=True), ids[0])
        check = self_check(loaded, ids)
        runs = _some(design(study, loaded.layout.sites).contrasts)
        _require_equal(loaded, check, runs, ids)
    except Fp4ScopeError as error:
        return Row(family, REFUSED, says=_without_name(error, family))
    return Row(
        family,
        BLOCKS if check.reason is None else WHOLE,
        *_shares(family, kind, loaded, _elsewhere(loaded, ids)),
        ", ".join(f"`{name}`" for name in loaded.layout.projections),
    )


def _elsewhere(loaded, ids) -> set[str]:
    """Weights of other stacks of blocks than the one that is measured, if products use them."""
    model = loaded.model
    with torch.no_grad(), Quantized() as forward:
        model(ids[:1], use_cache=False)
    lists = [(n, m) for n, m in model.named_modules() if isinstance(m, torch.nn.ModuleList)]
    stacks = [f"{n}." for n, m in lists if any(list(block.children()) for block in m)]
    return {
        name
        for name, weight in model.named_parameters()
        if name.startswith(tuple(stacks))
        and not name.startswith(f"{loaded.layout.blocks_path}.")
        and forward.met(weight)
    }


def _shares(family, kind, loaded, elsewhere) -> tuple[float, float]:
    """What is quantized and what recipes leave alone, of all blocks.

    At default widths where it can be; parameters have no data there.
    """
    model, layout = loaded.model, loaded.layout
    try:
        with torch.device("meta"):
            wide = text_model(kind.from_config(narrow(family)))
        model, layout = wide, find_layout(wide)
    except (Exception, SystemExit):  # what a family's code makes of an odd configuration
        pass
    sizes = {name: weight.numel() for name, weight in model.named_parameters()}
    blocks = sum(n for name, n in sizes.items() if name.startswith(f"{layout.blocks_path}."))
    whole = blocks + sum(sizes.get(name, 0) for name in elsewhere)
    apart = layout.reachable - layout.coverage
    return round(layout.coverage * blocks / whole, 3), round(apart * blocks / whole, 3)


def _random(model):
    """The same weights each time, with the heavy tails that make quantizing matter."""
    generator = torch.Generator().manual_seed(0)
    model = model.eval().float()
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if not parameter.is_floating_point():
            continue
        if parameter.ndim > 1:
            parameter.data = noise**3 / (15 * parameter.shape[-1]) ** 0.5
        elif name.endswith("bias"):
            parameter.data = 0.3 * noise
        else:
            parameter.data += 0.1 * noise
    return model


def _some(contrasts):
    """The full-precision and the all-quantized model, a projection and a layer either way."""
    recipes = [NOTHING, contrasts[0].own]
    for direction in ("keep", "only"):
        units = [c.own for c in contrasts if c.unit and c.labels["direction"] == direction]
        recipes += [units[len(units) // 3], units[-1]]
    return [Run(recipe) for recipe in dict.fromkeys(recipes)]


def _require_equal(loaded, check, runs, ids) -> None:
    """A sweep, the model's own forward and the independent path agree on every NLL."""
    injector = Injector(loaded.model)
    naive = measure_naively(loaded, ids, runs, injector)
    products = loaded.products
    weights = {site.name: products[site.product].parameter for site in loaded.layout.sites}
    with tempfile.TemporaryDirectory() as folder:
        log = Log(Path(folder) / "journal.jsonl", {})
        worker = Worker(loaded, ids, injector, check=check)
        memory = memory_for(check, loaded, runs, _TOKENS, _PLENTY)
        schedule(worker, memory, log, check).run()
        ledger = log.ledger
        log.close()
    moved = abs(naive[1][0].nll - naive[0][0].nll)
    assert moved > CLOSE * _TOKENS, "quantizing everything changes nothing, so nothing is compared"
    for run, results in zip(runs, naive, strict=True):
        chosen = [weights[name] for name in weights if run.recipe.at(name) is not None]
        swept = ledger[run.recipe].values["nll"]
        for window, (row, plain) in enumerate(zip(ids, results, strict=True)):
            with torch.no_grad(), Quantized(chosen):
                logits = loaded.model(row[None], use_cache=False).logits[0, :-1].double()
            own = float(functional.cross_entropy(logits, row[1:], reduction="sum"))
            for way, nll in (("the sweep", swept[window]), ("its own forward", plain.nll)):
                assert abs(nll - own) / (_TOKENS - 1) < CLOSE, f"{way} gives {nll}, not {own}"


def _without_name(error: ModelError, family: str) -> str:
    text = " ".join(str(error).split()).removeprefix(f"{family} ").replace("|", "/")
    text = text.removesuffix("; fp4scope needs a causal language model")
    return _MEASURED.sub("...", text)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:80]}".replace("|", "/")
