"""A checkpoint that is read tensor by tensor: what it has for each site, without its weights.

Its model is made on the device meta, so that one larger than memory can be looked at. Checkpoints
name tensors in their own way: an expert's weight is a tensor of its own there, where the model
holds those of all experts in one. `transformers` knows how names change when a model is loaded.
"""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from fp4scope.errors import ModelError
from fp4scope.models import checkpoint
from fp4scope.models.checkpoint import Stored
from fp4scope.models.config import config_value, text_config
from fp4scope.models.declared import declaration
from fp4scope.models.dequantize import Contents, contents, opened
from fp4scope.models.layout import find_layout
from fp4scope.models.library import library
from fp4scope.models.load import auto_class, beside, json_beside, safetensors_of
from fp4scope.models.names import resolve
from fp4scope.models.text import text_model
from fp4scope.operands import products
from fp4scope.preflight import check_name
from fp4scope.recipes import Site, Sites, expert_of
from fp4scope.study import More

_INPUT_SCALES = {True: "input_global_scale", False: "input_scale"}
"""What compressed-tensors divides inputs by, and what ModelOpt multiplies them by."""


@dataclass(frozen=True)
class Piece:
    """A tensor of a checkpoint that is a site's weight, or one of several that make it up.

    Attributes:
        key: Name of the tensor.
        rows: Of it.
        cols: Of it.
        expert: Number of the expert that it is of, where the site holds several.
    """

    key: str
    rows: int
    cols: int
    expert: int | None = None

    @property
    def module(self) -> str:
        """What lists of targets call it."""
        return self.key.removesuffix(".weight")


@dataclass(frozen=True, kw_only=True)
class Source:
    """A checkpoint, and the sites of its model.

    Attributes:
        name: What to call the model.
        where: Hub id or folder.
        revision: Of a hub id.
        config: What its config.json says.
        settings: What that comes to, with all defaults.
        sites: Of its model.
        pieces: The tensors of each site's weight, by the site's name; nothing for a site whose
            weight is stored in a way that is not known.
        unquantized: Linears that are no sites, as the checkpoint names them.
        stored: All tensors, packed ones as the values that they stand for.
        tied: Whether the head's weight is that of the embeddings.
        dtype: That most of its values have.
        prior: How its weights are quantized already, if they are.
    """

    name: str
    where: str
    revision: str | None
    config: Mapping[str, Any]
    settings: Mapping[str, Any]
    sites: Sites
    pieces: Mapping[str, tuple[Piece, ...]]
    unquantized: tuple[str, ...]
    stored: Mapping[str, Stored]
    tied: bool
    dtype: torch.dtype | None
    prior: str | None
    _files: tuple[str, ...]
    _packed: Contents | None

    @property
    def codes(self) -> frozenset[str]:
        """Tensors that are packed."""
        return frozenset() if self._packed is None else frozenset(self._packed.packed)

    def file(self, name: str) -> Path | None:
        """A file beside the weights; None if there is none of this name."""
        found = beside(self.where, name, self.revision)
        return None if found is None else Path(found)

    def tensor_scales(self) -> dict[str, float]:
        """The scale that multiplies all of a packed weight, by the weight's name, where it has one.

        Of a weight that holds several experts there may be several, and there is none here.
        """
        found: dict[str, float] = {}
        packed = self._packed.packed if self._packed is not None else {}
        with ExitStack() as stack:
            files = [stack.enter_context(safe_open(path, framework="pt")) for path in self._files]
            places = {key: file for file in files for key in file.keys()}  # noqa: SIM118
            for key, (packing, tensors) in packed.items():
                if "tensor" in tensors:
                    scale = places[tensors["tensor"]].get_tensor(tensors["tensor"]).float()
                    if scale.numel() == 1:
                        found[key] = float(1 / scale if packing.divides else scale)
        return found

    def input_scales(self) -> dict[str, float]:
        """The scale that multiplies what enters a packed weight, by the weight's name, where one is
        stored and is one number.
        """
        found: dict[str, float] = {}
        packed = self._packed.packed if self._packed is not None else {}
        with ExitStack() as stack:
            files = [stack.enter_context(safe_open(path, framework="pt")) for path in self._files]
            places = {key: file for file in files for key in file.keys()}  # noqa: SIM118
            for key, (packing, _) in packed.items():
                name = f"{key.removesuffix('.weight')}.{_INPUT_SCALES[packing.divides]}"
                if name in places and (scale := places[name].get_tensor(name)).numel() == 1:
                    found[key] = float(1 / scale.float() if packing.divides else scale.float())
        return found

    @contextmanager
    def opened(self) -> Iterator["Tensors"]:
        """Its tensors, read one by one, until the `with` block ends."""
        if self._packed is not None:
            with opened(self._files, self._packed) as values:
                yield Tensors(values)
            return
        with ExitStack() as stack:
            places: dict[str, Any] = {}
            for path in self._files:
                file = stack.enter_context(safe_open(path, framework="pt"))
                places |= {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
            yield Tensors(places)


class Tensors:
    """Tensors that are read when they are asked for."""

    def __init__(self, slices: Mapping[str, Any]) -> None:
        self._slices = slices

    def __getitem__(self, key: str) -> Tensor:
        return self._slices[key][...]


def open_source(
    name: str, revision: str | None = None, *, named: Collection[str] = (), head: bool = False
) -> Source:
    """A checkpoint to export from.

    Args:
        name: Hub id, local folder, or GGUF file.
        revision: Of a hub id.
        named: Sites that a recipe names: where single experts are among them, experts are sites.
        head: Whether the head is a site.

    Raises:
        ModelError: Not a model, one that cannot be reached, or without safetensors.
    """
    check_name(name, revision)
    where, prior = resolve(name)
    options = {} if revision is None else {"revision": revision}
    with library(name, where) as transformers:
        config = transformers.AutoConfig.from_pretrained(where, **options)
        said = json_beside(where, "config.json", revision)
        declared = declaration(name, config, json_beside(where, "hf_quant_config.json", revision))
        files = safetensors_of(where, config, revision)
        stored = checkpoint.stored_tensors(files)
        if not stored:
            raise ModelError(
                f"{name} has no safetensors weights, which export reads tensor by tensor; convert "
                "it to safetensors first"
            )
        packed = None
        if declared is None:
            checkpoint.require_values(name, stored)
        else:
            packed = contents(name, stored, declared)
        dtype = checkpoint.main_dtype(stored)
        values = dict(stored) if packed is None else packed.values(stored)
        kind = auto_class(transformers, config, name)
        with torch.device("meta"):
            whole = kind.from_config(config, dtype=dtype or torch.bfloat16)
        model = text_model(whole)
        more = (More.LM_HEAD,) if head else ()
        layout = find_layout(model, more=more)
        if any(expert_of(each) for each in set(named) - layout.sites.by_name.keys()):
            layout = find_layout(model, more=more, single=True)
        named_by_model = _names(whole, model, values)
    excluded = {linear for each in layout.excluded for linear in each.linears}
    found = dict(products(model))
    linears = excluded | found.keys()
    by_product = _by_product(named_by_model, values, linears)
    absent = linears - by_product.keys()  # a head that is tied to the embeddings
    sites, quantizable = layout.sites, {site.product for site in layout.sites}
    transposed = {path for path, product in found.items() if issubclass(product.kind, Conv1D)}
    return Source(
        name=Path(name).name.removesuffix(".gguf") if Path(where).exists() else name,
        where=where,
        revision=revision,
        config=said,
        settings=config.to_dict(),
        sites=sites,
        pieces={
            site.name: () if site.product in transposed else _pieces_of(site, by_product)
            for site in sites
            if site.is_linear
        },
        unquantized=(
            *(
                piece.module
                for product, pieces in by_product.items()
                if product not in quantizable
                for piece in pieces
            ),
            *sorted(absent - quantizable),
        ),
        stored=values,
        tied=bool(config_value(text_config(model.config), "tie_word_embeddings", False)),
        dtype=dtype,
        prior=prior or (packed.described() if packed else None),
        _files=tuple(files),
        _packed=packed,
    )


def _names(whole: nn.Module, model: nn.Module, keys: Collection[str]) -> dict[str, str]:
    """What the text model calls the tensors of a checkpoint, by their names there."""
    prefix = next(name for name, module in whole.named_modules() if module is model)
    known = whole.state_dict().keys()
    renamed = {key: key for key in keys}
    if not known >= set(keys):
        renamed = _as_loaded(whole, keys)
    start = f"{prefix}." if prefix else ""
    return {key: name.removeprefix(start) for key, name in renamed.items()}


def _as_loaded(whole: Any, keys: Collection[str]) -> dict[str, str]:  # noqa: ANN401
    """What `transformers` calls the tensors of a checkpoint when it loads them."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, rename_source_key

    transforms = get_model_conversion_mapping(whole)
    converters = [each for each in transforms if isinstance(each, WeightConverter)]
    renamings: list[Any] = [each for each in transforms if not isinstance(each, WeightConverter)]
    prefix, held = whole.base_model_prefix, whole.state_dict()
    return {key: rename_source_key(key, renamings, converters, prefix, held)[0] for key in keys}


def _by_product(
    names: Mapping[str, str], stored: Mapping[str, Stored], linears: Collection[str]
) -> dict[str, list[Piece]]:
    """The tensors of each linear, in the order of the checkpoint."""
    found: dict[str, list[Piece]] = defaultdict(list)
    for key, name in names.items():
        product = next((n for n in (name, name.removesuffix(".weight")) if n in linears), None)
        shape = stored[key].shape
        if product is not None and len(shape) > 1:
            alone = name != key and not name.endswith(".weight")
            own = expert_of(key.removesuffix(".weight")) if alone else None
            rows, cols = shape[-2:]
            found[product].append(Piece(key, rows, cols, None if own is None else own[1]))
    return dict(found)


def _pieces_of(site: Site, by_product: Mapping[str, list[Piece]]) -> tuple[Piece, ...]:
    pieces = by_product.get(site.product, [])
    if site.expert is not None:
        pieces = [piece for piece in pieces if piece.expert == site.expert]
    # Each expert has the same share, and together they are all rows.
    whole = sum(piece.rows for piece in pieces) == site.experts * site.rows
    whole = whole and all(piece.cols == site.cols for piece in pieces)
    experts = {piece.expert for piece in pieces}
    each = len(experts) == site.experts and (site.experts == 1 or None not in experts)
    return tuple(pieces) if whole and each and site.part is None else ()
