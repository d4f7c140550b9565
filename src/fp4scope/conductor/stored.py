"""A GGUF file beside recipes: its weights as it stores them, dequantized, inputs as they are."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from fp4scope.conductor.triage import Counter, observed
from fp4scope.deploy.verify import Losses
from fp4scope.errors import ModelError
from fp4scope.groups import scale_partners
from fp4scope.metrics import compare, reference_predictions
from fp4scope.models import LoadedModel
from fp4scope.operands import Injector
from fp4scope.recipes import Recipe
from fp4scope.stats.inference.intervals import Estimate, mean
from fp4scope.sweep import Listener
from fp4scope.treatments import stored_bits


@dataclass(frozen=True)
class Row:
    """A whole model beside the original, on the same windows.

    Attributes:
        name: The file's, or the recipe's.
        bits: Of each weight of the blocks' linears.
        nll: What it costs, nats per token.
        kl: KL from the original, nats per token.
        top1: Share of targets with the original's most likely token.
        more: What it costs more than the file; None of the file itself.
    """

    name: str
    bits: float
    nll: Estimate
    kl: Estimate
    top1: float
    more: Estimate | None


def require_pair(original: LoadedModel, stored: LoadedModel) -> None:
    """Refuse a file of another model, and an original that was such a file itself.

    Raises:
        ModelError: It is so.
    """
    if original.prior_quantization is not None:
        raise ModelError(
            f"{original.name} was quantized before ({original.prior_quantization}), so nothing is "
            "known of what that cost; give the original checkpoint, in BF16 as a rule"
        )
    ours, theirs = (
        {site.name: (site.rows, site.cols) for site in each.layout.sites}
        for each in (original, stored)
    )
    if ours != theirs or original.vocab_size != stored.vocab_size:
        raise ModelError(
            f"{stored.name} is no file of {original.name}: it has {len(theirs)} linears and "
            f"{stored.vocab_size} tokens, and the original {len(ours)} and {original.vocab_size}, "
            "or their sizes differ"
        )


def bits_of_file(path: Path) -> float:
    """Bits for each weight of the blocks' linears in a GGUF file, scales included."""
    from gguf import GGUFReader

    held = [
        tensor
        for tensor in GGUFReader(path).tensors
        if tensor.name.startswith("blk.") and len([n for n in tensor.shape if n > 1]) > 1
    ]
    elements = sum(int(tensor.n_elements) for tensor in held)
    return 8 * sum(int(tensor.n_bytes) for tensor in held) / elements if elements else 16.0


def beside_recipes(
    original: LoadedModel,
    stored: LoadedModel,
    bits: float,
    recipes: Mapping[str, Recipe],
    ids: torch.Tensor,
    tell: Listener,
) -> list[Row]:
    """What a file and each recipe cost on the same windows; the file first, then by KL.

    Args:
        original: In full precision.
        stored: The file's model.
        bits: Of the file.
        recipes: What is held against it, by name.
        ids: Windows, (windows, tokens).
        tell: Hears how far it is.

    Raises:
        DataError: Tokens that the models do not have.
    """
    for each in (original, stored):
        each.require_known(ids, "the windows")
    ran = Counter(tell, len(ids), ["full precision", stored.name, *recipes])
    _, seen = observed(original, ids, ran)
    own = _measured(original, stored, ids, nullcontext, ran)
    rows = [_row(stored.name, bits, own, None)]
    fused = scale_partners(original.layout.sites)
    injector = Injector(original.model, seen, parts=original.layout.parts, fused=fused)
    for name, recipe in recipes.items():
        settings = dict(recipe.in_block(original.layout.sites.everywhere))
        found = _measured(original, original, ids, partial(injector.applied, settings), ran)
        injector.forget()
        rows.append(_row(name, _bits(original, recipe), found, own))
    return [rows[0], *sorted(rows[1:], key=lambda row: row.kl.mean)]


def _measured(
    original: LoadedModel,
    model: LoadedModel,
    ids: torch.Tensor,
    applied: Callable[[], AbstractContextManager[None]],
    ran: Counter,
) -> Losses:
    """By measure (NLL less the original's, KL, top-1) and window: means over targets."""
    found: list[tuple[float, ...]] = []
    for row in ids:
        logits, targets = original.logits(row)[:-1], row[1:].to(original.device)
        reference = reference_predictions(logits)
        (plain,) = compare(logits[None], targets, reference).windows()
        with applied():
            other = model.logits(row)[:-1].to(original.device)
        (own,) = compare(other[None], targets, reference).windows()
        found.append(
            ((own.nll - plain.nll) / own.tokens, own.kl / own.tokens, own.top1 / own.tokens)
        )
        ran()
    return np.array(found).T


def _bits(original: LoadedModel, recipe: Recipe) -> float:
    linears = [site for site in original.layout.sites if site.is_linear]
    stored = [site.parameters * stored_bits(recipe.at(site.name), site.cols) for site in linears]
    return sum(stored) / sum(site.parameters for site in linears)


def _row(name: str, bits: float, found: Losses, file: Losses | None) -> Row:
    nll, kl, top1 = found
    more = None if file is None else mean(nll - file[0])
    return Row(name, bits, mean(nll), mean(kl), float(top1.mean()), more)
