"""From a study to everything that a sweep needs: model, windows, variants."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from fp4scope.conductor.matched import matched
from fp4scope.data import (
    WindowSet,
    calibration_text,
    calibration_windows,
    evaluation_text,
    evaluation_windows,
)
from fp4scope.deploy.configs import is_published
from fp4scope.deploy.given import read_recipe
from fp4scope.deploy.published import published_recipes
from fp4scope.design import Contrast, Design, Run, design
from fp4scope.errors import StudyError
from fp4scope.groups import scale_partners
from fp4scope.models import (
    NEVER_RUNS,
    LoadedModel,
    Offloaded,
    Shelf,
    find_layout,
    find_parts,
    listed,
    listed_towers,
    load_model,
    require_coverage,
)
from fp4scope.operands import Injector, never_run
from fp4scope.recipes import Recipe, Sites
from fp4scope.study import Data, Method, Parts, Scales, Study
from fp4scope.sweep import (
    NUMERICS_VERSION,
    Listener,
    Progress,
    require_reachable,
    routers,
)

_MUCH = 1 << 27
"""Bytes of a scratch file that a user is told of."""
LONG = 20_000_000
"""Characters from which on tokenizing takes many seconds, in which nothing else is said."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A study whose model is loaded and whose text is cut.

    `runs` are to be measured, `estimated` are contrasts that are to be estimated, and `design` is
    everything that the study could measure. `fused` are products that share a tensor scale of
    weights, by the name of each.
    """

    loaded: LoadedModel
    windows: WindowSet
    calibration: WindowSet
    design: Design
    runs: list[Run]
    estimated: list[Contrast]
    identity: dict[str, Any]
    fused: Mapping[str, Sequence[str]]

    def injector(
        self, amax: Mapping[str, float], by_expert: Mapping[str, Sequence[float]] | None
    ) -> Injector:
        """What quantizes the model's operands.

        Args:
            amax: Calibrated amax of what enters each linear.
            by_expert: The same of each expert.
        """
        loaded = self.loaded
        return Injector(loaded.model, amax, by_expert, loaded.layout.parts, self.fused)


def prepare(
    study: Study,
    tell: Listener,
    loaded: LoadedModel | None = None,
    calibration: WindowSet | None = None,
) -> Prepared:
    """Load and check everything that can fail before the first measurement.

    Args:
        study: It.
        tell: Hears of it.
        loaded: The model, if it is there already.
        calibration: Windows to calibrate on, if they are not the study's own.
    """
    text = evaluation_text(study.data)
    other = calibration_text(study.data) if calibration is None else None
    if loaded is None:
        loaded = load(study, tell)
    if loaded.offloaded is not None and Method.GRADIENT in study.run.method:
        raise StudyError(
            f"method is gradient, but the blocks of {loaded.name} wait {loaded.offloaded.place}, "
            "and a backward pass needs them all on the device; use --method exact, or a device "
            "(--device cpu) or dtype that they fit"
        )
    data = fitted(study.data, loaded)
    if len(text.content) >= LONG:
        say(tell, f"tokenizing {text.name}, {len(text.content) / 1e6:.0f} million characters ...")
    windows = evaluation_windows(data, text, loaded.tokenizer, loaded.config.model_type)
    if calibration is None:
        calibration = calibration_windows(data, other, loaded.tokenizer, windows)
    for used in (windows, calibration):
        loaded.require_known(used.ids, used.source)
    loaded = with_parts(study, without_silent(study, loaded, windows.ids[0]))
    say(tell, *_model_notes(study, loaded))
    sites = loaded.layout.sites
    asked = design(study, sites, routed=bool(routers(loaded)), recipes=given_recipes(study, sites))
    units = [contrast for contrast in asked.contrasts if contrast.unit is not None]
    require_reachable(study.question.stop_when, units)
    say(tell, *matched(asked, sites), *_protocol_notes(study, windows, calibration))
    identity = study.identity | {
        "model": loaded.fingerprint,
        "excluded": [f"{e.projection}: {len(e.linears)}" for e in loaded.layout.excluded],
        "dtype": loaded.dtype_name,
        "device": loaded.device.type,
        "windows": len(windows),
        "tokens": windows.sha256,
        "calibration": calibration.sha256,
        "calibration_windows": len(calibration),
        "numerics": NUMERICS_VERSION,
    }
    return Prepared(
        loaded=loaded,
        windows=windows,
        calibration=calibration,
        design=asked,
        runs=_runs(asked, study.run.method),
        estimated=units if Method.GRADIENT in study.run.method else [],
        identity=identity,
        fused=scale_partners(sites) if study.numerics.scales is Scales.SERVED else {},
    )


def _runs(asked: Design, methods: Sequence[Method]) -> list[Run]:
    """What is to be measured."""
    found = asked.runs if Method.EXACT in methods else asked.controls_alone
    return found + asked.designed if Method.DESIGNED in methods else found


def given_recipes(study: Study, sites: Sites) -> dict[str, Recipe]:
    """The recipes that a study gives, for this model.

    Of a configuration that somebody has published, also what it is without each of its exceptions.

    Raises:
        StudyError: One has a format that cannot be measured.
        UnitError: One names sites that the model has not.
    """
    found: dict[str, Recipe] = {}
    for one in study.question.recipes:
        if is_published(one.data):
            found |= published_recipes(one.name, one.data, sites)
        else:
            found[one.name] = read_recipe(one.data, sites, f"recipe {one.name}")
    return found


def load(study: Study, tell: Listener, shelf: Shelf | None = None) -> LoadedModel:
    """The model of a study.

    Args:
        study: It.
        tell: Hears of it.
        shelf: Where another process of this host keeps its blocks.
    """
    tell(Progress("loading"))
    loaded = load_model(
        study.model.name,
        revision=study.model.revision,
        device=study.numerics.device,
        dtype=study.numerics.dtype.value,
        trust_remote_code=study.run.trust_remote_code,
        allow_pickle=study.run.allow_pickle,
        allow_partial=study.run.allow_partial,
        offload=study.run.offload.value,
        sharing=_of_one_host(study),
        shelf=shelf,
        exclude=study.model.exclude,
        single=study.single_experts,
        random_weights=study.model.random_weights,
        more=study.more_sites,
    )
    say(tell, *_loading_notes(loaded))
    return loaded


def where_blocks_wait(offloaded: Offloaded) -> str:
    """In a line, and why."""
    size = f"{offloaded.size_bytes / 1e9:.1f} GB"
    if offloaded.scratch_bytes > _MUCH:
        size += f", {offloaded.scratch_bytes / 1e9:.1f} GB of it in a scratch file"
    why = "" if offloaded.why == "as asked" else f", since {offloaded.why}"
    return (
        f"the blocks wait {offloaded.place} ({size}) and come to the device in "
        f"turn, each once a pass{why}"
    )


def _of_one_host(study: Study) -> int:
    """How many processes of this host load the model, as far as it is known."""
    place = study.run.workers
    if place.count is not None:
        return place.count
    return 1 if place.is_here or place.address else max(1, torch.cuda.device_count())


def say(tell: Listener, *notes: str) -> None:
    """Tell lines that stay."""
    for note in notes:
        tell(Progress("loading", note=note))


def _loading_notes(loaded: LoadedModel) -> Iterator[str]:
    layout = loaded.layout
    yield (
        f"{loaded.name}: {layout.blocks} blocks, {len(layout.projections)} projections "
        f"({', '.join(layout.projections)}); {layout.coverage:.1%} of the blocks' parameters "
        f"are quantized; {loaded.dtype_name} on {loaded.device}"
    )
    for warning in loaded.warnings:
        yield f"warning: {warning}"
    if loaded.offloaded is not None:
        yield where_blocks_wait(loaded.offloaded)
    if loaded.prior_quantization:
        yield (
            f"these weights were quantized before ({loaded.prior_quantization}): the "
            "full-precision reference is the dequantized file"
        )


def without_silent(study: Study, loaded: LoadedModel, ids: Int[Tensor, " tokens"]) -> LoadedModel:
    """The model, its layout without layers of which no linear runs on a window.

    Raises:
        ModelError: Too little is left, and the study does not allow that.
    """
    silent = never_run(loaded.model, loaded.layout.inputs, lambda: loaded.logits(ids, last=1))
    # An expert that no token chose is not silent: others of its layer run.
    layers = [names for names in loaded.layout.layers.values() if silent.issuperset(names)]
    # Of a weight in several places those that run count.
    tied = [places for places in loaded.layout.sites.places.values() if len(places) > 1]
    some = [[p.product for p in places if p.product in silent] for places in tied]
    never = {name for names in (*layers, *some) for name in names}
    if not never:
        return loaded
    layout = find_layout(
        loaded.model,
        study.model.exclude,
        never,
        single=study.single_experts,
        more=study.more_sites,
    )
    if not study.run.allow_partial:
        require_coverage(layout)
    return replace(loaded, layout=layout)


def with_parts(study: Study, loaded: LoadedModel) -> LoadedModel:
    """The model, its layout with the parts of linears that the study wants as sites.

    Raises:
        UnitError: Of no linear it can be told what its parts are.
    """
    wanted = study.model.parts
    if wanted is Parts.NONE:
        return loaded
    layout = loaded.layout
    parts = find_parts(loaded.model, layout, partial(loaded.logits, last=1), wanted)
    never = {n for e in layout.excluded if e.reason == NEVER_RUNS for n in e.linears}
    layout = find_layout(
        loaded.model, study.model.exclude, never, parts=parts, more=study.more_sites
    )
    return replace(loaded, layout=layout)


def _model_notes(study: Study, loaded: LoadedModel) -> Iterator[str]:
    if loaded.towers:
        yield (
            "this model is measured on text; beside its language model it has "
            f"{listed_towers(loaded.towers)}, left alone"
        )
    if excluded := loaded.layout.excluded:
        count = sum(len(e.linears) for e in excluded)
        yield f"{count} linears stay in full precision: {listed(excluded)}"
    for width, count in padded_widths(study, loaded).items():
        yield (
            f"warning: {count} linears take inputs of width {width}, which is no multiple of the "
            "blocks of these formats; they are measured padded with zeros, but no engine serves "
            "them so"
        )


def padded_widths(study: Study, loaded: LoadedModel) -> dict[int, int]:
    """Widths that some format's blocks do not divide, and how many linears have inputs so wide."""
    formats = {fmt for setting in study.settings for fmt in setting.formats}
    blocks = {fmt.block_size for fmt in formats}
    # A part of the inputs is cut out of the image of all.
    widths = Counter(
        loaded.products[site.product].cols for site in loaded.layout.sites if site.is_linear
    )
    return {w: count for w, count in widths.items() if any(w % block for block in blocks)}


def fitted(data: Data, loaded: LoadedModel) -> Data:
    """The same, its calibration windows no longer than the model takes.

    Raises:
        StudyError: The evaluated windows are longer.
    """
    longest = loaded.max_seq_len
    if longest is None:
        return data
    if data.seq_len > longest:
        raise StudyError(
            f"seq_len is {data.seq_len}, but {loaded.name} takes at most {longest} tokens; "
            f"use --seq-len {longest} or less"
        )
    return data.model_copy(update={"calibration_seq_len": min(data.calibration_seq_len, longest)})


def windows_of(data: Data, loaded: LoadedModel) -> tuple[Data, WindowSet]:
    """The windows of a text, and the options as the model allows them.

    Raises:
        StudyError: The windows are longer than the model takes.
        DataError: Something about the text.
    """
    data, text = fitted(data, loaded), evaluation_text(data)
    return data, evaluation_windows(data, text, loaded.tokenizer, loaded.config.model_type)


def _protocol_notes(study: Study, windows: WindowSet, calibration: WindowSet) -> Iterator[str]:
    bos = ", BOS before each (not a target)" if windows.bos else ""
    raw = "; READ AS IT IS, not as chats" if windows.source.endswith(".jsonl") else ""
    yield (
        f"text: {windows.source}, {windows.tokens_in_text:,} tokens, "
        f"{len(windows)} windows of {windows.seq_len}{bos}{raw}"
    )
    reused = " - THE EVALUATED TEXT, there is no other" if calibration.evaluated else ""
    how = " (auto)" if study.data.calibration_windows == "auto" else ""
    yield (
        f"calibration: {calibration.source}, "
        f"{len(calibration)} windows of {calibration.seq_len}{how}{reused}"
    )
