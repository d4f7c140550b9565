"""Load a causal language model from wherever the user's name for it points.

A name is a GGUF file, a local folder, or else a hub id. Nothing that a model brings is run
(`trust_remote_code`) and no pickle is opened (`allow_pickle`) unless the user asks.
"""

import json
from collections.abc import Collection, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from fp4scope.errors import Fp4ScopeError, ModelError
from fp4scope.models import checkpoint, checks
from fp4scope.models.config import config_size, config_value, text_config
from fp4scope.models.declared import declaration, require_undeclared
from fp4scope.models.dequantize import Contents, contents, opened
from fp4scope.models.drawn import NOTE, drawn, empty
from fp4scope.models.layout import find_layout
from fp4scope.models.library import library
from fp4scope.models.loaded import LoadedModel, fingerprint_of
from fp4scope.models.names import resolve
from fp4scope.models.ondisk import Files
from fp4scope.models.placement import (
    Place,
    choose_dtype,
    chosen_place,
    dtype_note,
    keeper_of,
    placed,
    resolve_device,
    size_of,
)
from fp4scope.models.pool import Pool
from fp4scope.models.shelf import Shelf
from fp4scope.models.taking import taking
from fp4scope.models.text import text_model, towers
from fp4scope.operands import products, shared_caches, watched
from fp4scope.preflight import check_name
from fp4scope.study import More

# Activations of these families leave FP16's range (65504); known from their authors' own notes
# and from the checkpoints being published in BF16 only.
_OVERFLOWS_FP16 = ("gemma2", "gemma3_text", "gemma3n_text")
# What loading says of a checkpoint.
_INFO = ("missing_keys", "mismatched_keys", "unexpected_keys")
# Of these, the first that knows a configuration; a multimodal class runs on text alone.
_CLASSES = ("AutoModelForCausalLM", "AutoModelForImageTextToText", "AutoModelForMultimodalLM")


def load_model(
    name: str,
    *,
    revision: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    allow_partial: bool = False,
    offload: str = "auto",
    sharing: int = 1,
    shelf: Shelf | None = None,
    exclude: Sequence[str] = (),
    single: bool = False,
    random_weights: bool = False,
    more: Collection[More] = (),
) -> LoadedModel:
    """The model called `name`, on `device`, ready to be measured.

    Args:
        name: Hub id, local folder, or GGUF file.
        revision: Branch, tag or commit of a hub id.
        device: A torch device, or `auto`: CUDA if there is one.
        dtype: `float32`, `bfloat16`, `float16`, or `auto`: FP32 on CPU; on CUDA the checkpoint's
            own if it has 16 bits, else BF16.
        trust_remote_code: Run Python code and kernels that the model brings.
        allow_pickle: Load weights that are not safetensors.
        allow_partial: Go on when less than 95% of the blocks' parameters can be quantized.
        offload: `no`: the blocks are on the device; `yes`: they wait in host memory and come to it
            in turn; `disk`: in files; `auto`: the first of these that has room.
        sharing: How many processes of this host load it.
        shelf: Where another of them keeps the blocks.
        exclude: Patterns of linears that stay in full precision, beside the defaults.
        single: Experts in one tensor are a site each, not one together.
        random_weights: Weights are drawn; of the checkpoint only its configuration is read.
        more: What is quantized beside the linears of the blocks.

    Raises:
        ModelError: Not a model, one that cannot be reached, or one that cannot be diagnosed.
        StudyError: A device that is not there, or a revision of something local.
    """
    where = resolve_device(device)
    check_name(name, revision)
    source, prior = resolve(name)
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if revision is not None:
        options["revision"] = revision
    with library(name, source) as transformers:
        config = transformers.AutoConfig.from_pretrained(source, **options)
        checks.require_decoder(config, name)
        if not trust_remote_code:
            checkpoint.require_own_kernels(name, config)
        if More.ATTENTION in more:
            config._attn_implementation = "eager"
        quantizer = json_beside(source, "hf_quant_config.json", revision)
        declared = declaration(name, config, quantizer)
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, **options)
        files = [] if random_weights else safetensors_of(source, config, revision)
        stored = checkpoint.stored_tensors(files)
        packed = None
        if declared is None:
            checkpoint.require_values(name, stored)
        elif not random_weights:
            packed = contents(name, stored, declared)
        kept = checkpoint.main_dtype(stored) or config_value(text_config(config), "dtype")
        chosen = choose_dtype(dtype, where.type, kept)
        options |= {"dtype": chosen, "output_loading_info": True}
        options |= {"ignore_mismatched_sizes": True}  # refused below, by name
        kind = auto_class(transformers, config, name)
        info: dict[str, Any] = dict.fromkeys(_INFO, ())
        size = None
        if random_weights:
            size = size_of(empty(kind, config, chosen))
        elif stored:
            values = stored if packed is None else packed.values(stored)
            size = sum(tensor.elements for tensor in values.values()) * chosen.itemsize
        place: Place | str = offload
        if size is not None and shelf is None:
            place = chosen_place(size, where, offload, sharing)
        waits = place.offload if isinstance(place, Place) else place
        keeper = None if waits == "auto" else keeper_of(waits, sharing, shelf)
        if shelf is not None and keeper is not None and keeper.takes:
            place = Place(waits, "as asked")  # the blocks have their room already
        elif shelf is not None and size is not None:
            place = chosen_place(size, where, offload)
        with nullcontext() if keeper is None or not keeper.takes else taking(keeper.kept):
            if random_weights:
                model = drawn(kind, config, chosen, where, keeper)
            elif packed is not None:
                model, info = _from_values(kind, config, files, packed, options)
            else:
                options |= {"use_safetensors": None if allow_pickle else True}
                model, info = kind.from_pretrained(source, config=config, **options)
        adapter = json_beside(source, "adapter_config.json", revision)
    _require_all_read(name, info, stored.keys() | model.state_dict().keys())
    loaded = adopt(
        model,
        tokenizer,
        name=Path(name).name.removesuffix(".gguf") if Path(source).exists() else name,
        prior=prior or (packed.described() if packed else None),
        allow_partial=allow_partial,
        device=where,
        offload=place,
        keeper=keeper,
        exclude=exclude,
        single=single,
        more=more,
    )
    notes = [
        NOTE if random_weights else None,
        dtype_note(dtype, where.type, kept, chosen),
        checkpoint.unread_note(info["unexpected_keys"], loaded.layout),
        "the adapter beside the weights (adapter_config.json) is not applied; to measure it, merge "
        "it into them" if adapter else None,
    ]  # fmt: skip
    loaded.warnings += tuple(note for note in notes if note)
    return loaded


def adopt(
    model: PreTrainedModel,
    tokenizer: Any,  # noqa: ANN401
    *,
    name: str | None = None,
    prior: str | None = None,
    allow_partial: bool = False,
    device: torch.device | None = None,
    offload: str | Place = "no",
    keeper: Files | Pool | None = None,
    exclude: Sequence[str] = (),
    single: bool = False,
    more: Collection[More] = (),
) -> LoadedModel:
    """A model that is in memory already, checked and described like a loaded one.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        name: What to call it.
        prior: How its weights were quantized before.
        allow_partial: Go on when less than 95% of the blocks' parameters can be quantized.
        device: Where to move it; by default it stays.
        offload: As for `load_model`; all but `no` need a device.
        keeper: Of its blocks, if they are to wait; some may be there already.
        exclude: As for `load_model`.
        single: As for `load_model`.
        more: As for `load_model`.

    Raises:
        ModelError: It is no model, it has no blocks, or too little of them can be quantized.
        StudyError: The tokenizer is none.
    """
    checks.require_model(model, tokenizer)
    config = model.config
    name = str(name or config_value(config, "_name_or_path") or type(model).__name__)
    checks.require_decoder(config, name)
    require_undeclared(name, config)
    checks.require_data(model, name)
    beside = towers(model)
    model = text_model(model).eval().requires_grad_(False)
    layout = find_layout(model, exclude, single=single, more=more)
    checks.require_plain(model, layout, name)
    offloaded = None
    if device is not None:
        place = offload
        if place == "yes":  # it is in memory, and its blocks move one by one
            place = Place("yes", "as asked")
        elif not isinstance(place, Place):
            place = chosen_place(size_of(model), device, place)
        offloaded = placed(model, layout, device, place, keeper)
    try:
        copies = _run_shortly(model)
        if More.KV_CACHE in more:
            _require_own_caches(model, name)
    except Fp4ScopeError:
        raise
    except Exception as error:
        raise checks.forward_failed(model, name, error, beside) from error
    if not allow_partial:
        checks.require_coverage(layout)
    parameter = next(model.parameters())
    warnings = []
    kind = config_value(text_config(config), "model_type")
    if parameter.dtype == torch.float16 and kind in _OVERFLOWS_FP16:
        warnings.append(
            f"{kind} models are known to overflow float16; "
            "if the reference is not finite, use bfloat16 or float32"
        )
    return LoadedModel(
        name=name,
        model=model,
        tokenizer=tokenizer,
        layout=layout,
        towers=beside,
        device=parameter.device,
        dtype=parameter.dtype,
        fingerprint=fingerprint_of(model),
        prior_quantization=prior,
        warnings=tuple(warnings),
        offloaded=offloaded,
        copies=copies,
    )


def _from_values(
    kind: Any,  # noqa: ANN401
    config: Any,  # noqa: ANN401
    files: Sequence[str],
    packed: Contents,
    options: dict[str, Any],
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The model of a checkpoint whose weights are dequantized on the way."""
    # Only the class itself takes a checkpoint without a name.
    with torch.device("meta"):
        empty = kind.from_config(config, trust_remote_code=options["trust_remote_code"])
    with opened(files, packed) as values:
        return type(empty).from_pretrained(None, config=empty.config, state_dict=values, **options)


def auto_class(transformers: Any, config: Any, name: str) -> Any:  # noqa: ANN401
    """The class that loads the model with its language model's head."""
    brought = config_value(config, "auto_map", {})
    for kind in _CLASSES:
        found = getattr(transformers, kind, None)
        if found is not None and (kind in brought or type(config) in found._model_mapping):
            return found
    raise ModelError(
        f"{name} is of type {config_value(config, 'model_type')!r}, for which transformers "
        f"{transformers.__version__} has no class with a language model's head; give a causal "
        "language model"
    )


def safetensors_of(source: str, config: Any, revision: str | None) -> list[str]:  # noqa: ANN401
    """The files that hold the weights, fetched if they are not here; none if they are pickled."""
    from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
    from transformers.utils.hub import get_checkpoint_shard_files

    own = config_value(config, "transformers_weights")
    for file in [own] if isinstance(own, str) else [SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME]:
        path = beside(source, file, revision)
        if path is not None and path.endswith(".index.json"):
            return get_checkpoint_shard_files(source, path, revision=revision)[0] or []
        if path is not None and path.endswith(".safetensors"):
            return [path]
    return []


def beside(source: str, file: str, revision: str | None) -> str | None:
    """A file of a model, fetched if it is not here; None if the model has none of this name."""
    from transformers.utils.hub import cached_file

    return cached_file(
        source,
        file,
        revision=revision,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )


def json_beside(source: str, file: str, revision: str | None) -> Any:  # noqa: ANN401
    path = beside(source, file, revision)
    return None if path is None else json.loads(Path(path).read_text(encoding="utf-8"))


def _require_all_read(name: str, info: dict[str, Any], known: set[str]) -> None:
    """Refuse a checkpoint that lacks parameters, or holds more than the model has understood."""
    absent = sorted(info["missing_keys"]) + [str(key[0]) for key in info["mismatched_keys"]]
    if absent:
        raise ModelError(
            f"{name} has no weights that fit for {len(absent)} of its parameters, {absent[0]} "
            "first; they would be random: check that the checkpoint is complete and a causal "
            "language model"
        )
    checkpoint.require_no_scales(name, info["unexpected_keys"], known)


def _few_tokens(model: PreTrainedModel) -> torch.Tensor:
    vocab = config_size(text_config(model.config), "vocab_size", 8)
    return torch.arange(8, device=next(model.parameters()).device) % vocab


@torch.no_grad()
def _require_own_caches(model: PreTrainedModel, name: str) -> None:
    """Refuse a model some of whose blocks attend to what another block has cached."""
    ids = _few_tokens(model)
    for first, other in shared_caches(model, lambda: model(ids[None], use_cache=False)):
        raise ModelError(
            f"{other} of {name} attends to the keys and values of {first}, so that quantizing them "
            "in one block changes another; leave --kv-cache out"
        )


@torch.no_grad()
def _run_shortly(model: PreTrainedModel) -> int:
    """A forward of a few tokens, for what it may raise; how many rows one is to experts."""
    ids = _few_tokens(model)
    rows = [len(ids)]
    of_experts = {name: product for name, product in products(model) if product.experts > 1}
    with watched(of_experts, lambda _, entering: rows.append(len(entering.x))):
        model(ids[None], use_cache=False)
    return -(-max(rows) // len(ids))
