"""A checkpoint, its original and what an engine gives: run on the same windows, one by one."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fp4scope.conductor.calibrate import amaxes
from fp4scope.conductor.likeliest import Likeliest
from fp4scope.data import evaluation_text, evaluation_windows
from fp4scope.deploy.checkpoint import NV_DIVISOR, RECIPE
from fp4scope.deploy.configs import is_published, read_config
from fp4scope.deploy.held import (
    ROUNDED,
    absent,
    far_scales,
    input_amaxes,
    other_settings,
    without_scales,
    wrong_plain,
    wrong_weights,
)
from fp4scope.deploy.losses import Looked, Ran, losses_of
from fp4scope.deploy.plan import Export, plan_export
from fp4scope.deploy.published import recipe_of
from fp4scope.deploy.served import Served
from fp4scope.deploy.triage import Chain, Triage, triage
from fp4scope.deploy.verify import (
    Losses,
    Verdict,
    by_product,
    candidates_of,
    judge,
    losses_under,
)
from fp4scope.deploy.written import RecipeModel, WrittenRecipe
from fp4scope.errors import Fp4ScopeError, StudyError
from fp4scope.files import named
from fp4scope.models import LoadedModel, Source, load_model, open_source
from fp4scope.models.library import library
from fp4scope.models.names import resolve
from fp4scope.operands import observe_inputs
from fp4scope.stats.inference.sharpness import sharpness
from fp4scope.study import Given, Study
from fp4scope.sweep import Listener, Progress


@dataclass(frozen=True)
class Checked:
    """A checkpoint that is opened, and what it stores otherwise than its recipe says.

    Attributes:
        source: The original.
        packed: The checkpoint.
        export: What its recipe asks for.
        own: Whether the recipe is fp4scope's own, so that its weights are known to the bit.
        weights: Those that are not what the recipe makes, by `held.wrong_weights`.
        plain: Tensors in full precision that are others than the original's, or are absent.
        settings: Of its configuration, the original's and its own where they differ.
        stored: What its input scales come from, by site.
        unscaled: Sites that have none, and should.
    """

    source: Source
    packed: Source
    export: Export
    own: bool
    weights: dict[str, float]
    plain: list[str]
    settings: dict[str, tuple[Any, Any]]
    stored: dict[str, float]
    unscaled: list[str]

    @property
    def scales(self) -> dict[str, float]:
        """Stored amaxes of inputs over those of the recipe, where they are not the same; 0 where
        one is absent.
        """
        known = {p.site: p.input_amax for p in self.export.packed if p.input_amax}
        return dict.fromkeys(self.unscaled, 0.0) | far_scales(self.stored, known, ROUNDED)

    @property
    def is_whole(self) -> bool:
        """Whether it is what the recipe of fp4scope makes; nothing is known of another's."""
        return not (self.own and (self.weights or self.plain or self.scales))

    @property
    def is_proven(self) -> bool:
        """Whether it is known without running it to compute what its recipe makes of the original:
        by its weights, its tensors in full precision, its configuration and its input scales. Those
        of another program's are what its own file says.
        """
        return not (self.weights or self.plain or self.settings or self.scales)


@dataclass(frozen=True)
class Found:
    """What triage found.

    Attributes:
        triage: Where the damage comes from.
        far: Stored amaxes of inputs over what entered here, where they are far off.
        verdict: What is served; None where nothing was.
    """

    triage: Triage
    far: dict[str, float]
    verdict: Verdict | None


def open_checkpoint(folder: Path, model: str | None) -> Checked:
    """A checkpoint beside its original.

    Args:
        folder: The checkpoint.
        model: The original; by default what fp4scope's recipe in the folder names.

    Raises:
        Fp4ScopeError: One cannot be read, or they are no pair.
    """
    own = (folder / RECIPE).is_file()
    if own:
        written = WrittenRecipe.read(folder / RECIPE)
        source = _opened(model or written.model.name, written, None if model else written)
    elif model is None:
        raise StudyError(
            f"{named(folder)} has no {RECIPE} that names its original; give it: --original MODEL"
        )
    else:
        source = open_source(model)
        written = _published(folder, source)
    packed = open_source(str(folder), named=written.recipe.edited, head=_has_head(written))
    try:
        export = plan_export(written, source)
    except Fp4ScopeError as error:
        if own:
            raise
        raise type(error)(f"what {named(folder)} declares cannot be followed: {error}") from None
    return Checked(
        source,
        packed,
        export,
        own,
        wrong_weights(export, source, packed),
        [*absent(source, packed), *wrong_plain(export, source, packed)],
        other_settings(source, packed),
        input_amaxes(export, packed),
        without_scales(export, packed),
    )


def _published(folder: Path, source: Source) -> WrittenRecipe:
    """The recipe that a checkpoint of another program declares, with the scales that it stores."""
    given = Given.read(folder)
    if not is_published(given.data):
        raise StudyError(
            f"{named(folder)} declares no quantization; give a quantized checkpoint, or leave it "
            "out to try candidates: verify --original MODEL --served FILE"
        )
    recipe = recipe_of(read_config(given.data), source.sites)
    packed = open_source(str(folder))
    pieces = {piece.key: site for site, found in source.pieces.items() for piece in found}
    found: dict[str, float] = {}
    for key, scale in packed.input_scales().items():
        if key in pieces:
            site = pieces[key]
            found[site] = max(scale * float(NV_DIVISOR), found.get(site, 0.0))
    return WrittenRecipe(recipe, RecipeModel(source.name), "served", found)


def _has_head(written: WrittenRecipe) -> bool:
    return any(name.rpartition(".")[2] == "lm_head" for name in written.recipe.edited)


def _opened(model: str, written: WrittenRecipe, own: WrittenRecipe | None) -> Source:
    revision = None if own is None else own.model.revision
    named = written.recipe.edited
    return open_source(model, revision, named=named, head=_has_head(written))


def windows_of_text(study: Study, tokenizer_of: str) -> torch.Tensor:
    """Windows of the study's text, by the tokenizer of a model.

    Args:
        study: Its text, and how it is cut.
        tokenizer_of: Hub id, folder or GGUF file.

    Raises:
        ModelError: It has no tokenizer that can be loaded.
    """
    where, _ = resolve(tokenizer_of)
    with library(tokenizer_of, where) as transformers:
        tokenizer = transformers.AutoTokenizer.from_pretrained(where, trust_remote_code=False)
        config = transformers.AutoConfig.from_pretrained(where, trust_remote_code=False)
        kind = config.model_type
    return evaluation_windows(study.data, evaluation_text(study.data), tokenizer, kind).ids


def run_triage(
    study: Study,
    checked: Checked,
    ids: torch.Tensor,
    served: Served | None,
    reference: Served | None,
    tell: Listener,
) -> Found:
    """Run a checkpoint and its original, one step after another, and judge.

    Args:
        study: Device and dtype.
        checked: The checkpoint.
        ids: Windows, (windows, tokens).
        served: What an engine gave for them.
        reference: What it gave with the original.
        tell: Hears how far it is.

    Raises:
        DataError: Tokens that the models do not have.
    """
    export, stored = checked.export, checked.stored
    candidates = candidates_of(export, checked.packed.tensor_scales())
    predicted = candidates[0]
    names = ["full precision", "predicted", "the checkpoint's weights"]
    names += ["the checkpoint's input scales"] * bool(stored)
    names += ["a second run"] * bool(predicted.inputs)
    names += [c.name for c in candidates[1:]] * (served is not None)
    ran = Counter(tell, len(ids), names)
    original = _loaded(study, checked.source)
    original.require_known(ids, "the windows")
    full, seen = observed(original, ids, ran)
    asked = losses_under(original, export, predicted, ids, ran, amaxes=seen, quantize=True)
    del original  # two models need not fit
    loaded = _loaded(study, checked.packed)
    loaded.require_known(ids, "the windows")

    beside = [] if served is None else [Likeliest(loaded, served) for _ in candidates]

    def under(candidate: int, amaxes: dict[str, float], *, replica: int = 0) -> Losses:
        own = candidates[candidate]
        look = None if replica or not beside else beside[candidate].first
        return losses_under(
            loaded, export, own, ids, ran, amaxes=amaxes, replica=replica, look=look
        )

    exported = under(0, seen)
    known = seen | by_product(stored)
    calibrated = under(0, known) if stored else None  # what was looked at last stands
    replica = under(0, known, replica=1) if predicted.inputs else None
    gave = None if served is None else -served.logprobs
    own = None if reference is None else -reference.logprobs
    chain = Chain(full, asked, exported, calibrated, replica, gave, own)
    verdict = None
    if gave is not None and served is not None:
        rivals = [under(place, known) for place in range(1, len(candidates))]
        verdict = judge(gave, full, candidates, [chain.checkpoint, *rivals], own)
        if served.top_ids is not None:
            nearest = min(range(len(beside)), key=lambda place: float(beside[place].kl.mean()))
            found = sharpness(beside[nearest].slopes)
            verdict = replace(verdict, sharpness=found, nearest=nearest)
    return Found(triage(chain, checked.is_proven), far_scales(by_product(stored), seen), verdict)


def _loaded(study: Study, source: Source) -> LoadedModel:
    return load_model(
        source.where,
        revision=source.revision,
        device=study.numerics.device,
        dtype=study.numerics.dtype.value,
    )


def observed(
    loaded: LoadedModel, ids: torch.Tensor, ran: Ran, look: Looked | None = None
) -> tuple[Losses, dict[str, float]]:
    """Losses in full precision, and the largest magnitude that enters each linear meanwhile."""
    found: list[Losses] = []

    def forwards() -> Iterator[None]:
        for number, row in enumerate(ids):
            own = None if look is None else partial(_as, look, number)
            found.append(losses_of(loaded, row[None], ran, look=own))
            yield

    statistics = observe_inputs(loaded.model, loaded.layout.inputs, forwards())
    shared, _ = amaxes(loaded.layout, statistics)
    return np.concatenate(found), shared


def _as(look: Looked, number: int, _: int, logits: torch.Tensor) -> None:
    look(number, logits)


class Counter:
    """Tells how far the windows are, one way of running them after another."""

    def __init__(self, tell: Listener, windows: int, names: list[str]) -> None:
        self._tell, self._windows, self._names, self._done = tell, windows, names, 0

    def __call__(self) -> None:
        self._done += 1
        name = self._names[(self._done - 1) // self._windows]
        self._tell(Progress("measuring", self._done, self._windows * len(self._names), name))
