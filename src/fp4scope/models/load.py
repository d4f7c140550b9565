"""Load a causal language model from wherever the user's name for it points.

A name is a GGUF file, a local folder, or else a hub id. Nothing that a model brings is run
(`trust_remote_code`) and no pickle is opened (`allow_pickle`) unless the user asks.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from fp4scope.errors import Fp4ScopeError, ModelError, StudyError
from fp4scope.models.config import config_size, config_value, text_config
from fp4scope.models.gguf import converted, is_gguf, quantization_of
from fp4scope.models.layout import Layout, find_layout, is_linear
from fp4scope.models.offload import Offloaded
from fp4scope.models.stack import BlockStack, only_last_rows

# Activations of these families leave FP16's range (65504); known from their authors' own notes
# and from the checkpoints being published in BF16 only.
_OVERFLOWS_FP16 = ("gemma2", "gemma3_text", "gemma3n_text")
# What saving, loading or running writes into a configuration; `architectures` is one of these.
_VOLATILE_CONFIG = (
    "_name_or_path",
    "architectures",
    "transformers_version",
    "dtype",
    "torch_dtype",
    "use_cache",
)
MINIMUM_COVERAGE = 0.95


@dataclass(kw_only=True)
class LoadedModel:
    """A model ready to be measured, and what identifies it.

    `name` is its hub id, or the last part of its path.
    `prior_quantization` says how the weights were stored before they came here, if they were
    quantized; `fingerprint` is a SHA-256 over every parameter and the configuration.
    """

    name: str
    model: PreTrainedModel
    tokenizer: Any
    layout: Layout
    device: torch.device
    dtype: torch.dtype
    fingerprint: str
    prior_quantization: str | None = None
    warnings: tuple[str, ...] = ()
    offloaded: Offloaded | None = None

    @property
    def config(self) -> Any:  # noqa: ANN401
        """The configuration of the text model."""
        return text_config(self.model.config)

    @property
    def dtype_name(self) -> str:
        """Such as `float32`."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def max_seq_len(self) -> int | None:
        """Tokens in a window at most; None if the model names no bound."""
        longest = config_size(self.config, "max_position_embeddings", 0)
        return longest if longest > 0 else None

    @property
    def hidden_size(self) -> int:
        """Width of what a block passes on."""
        return config_size(self.config, "hidden_size", 0) or self._embeddings[1]

    @property
    def vocab_size(self) -> int:
        return config_size(self.config, "vocab_size", 0) or self._embeddings[0]

    @property
    def _embeddings(self) -> tuple[int, int]:
        embeddings: Any = self.model.get_input_embeddings()
        tokens, width = embeddings.weight.shape
        return tokens, width

    @cached_property
    def linears(self) -> list[torch.nn.Linear | Conv1D]:
        """The modules that can be quantized."""
        modules = map(self.model.get_submodule, self.layout.linears)
        return [module for module in modules if is_linear(module)]

    @property
    def weights(self) -> list[torch.Tensor]:
        return [module.weight for module in self.linears]

    @property
    def tokenizer_sha256(self) -> str | None:
        """Hash of a fast tokenizer's whole definition."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        return hashlib.sha256(backend.to_str().encode()).hexdigest() if backend else None

    @cached_property
    def stack(self) -> BlockStack:
        """The blocks, to be run one at a time."""
        return BlockStack(self.model, self.layout, self.offloaded)

    @torch.no_grad()
    def logits(self, ids: torch.Tensor, last: int | None = None) -> torch.Tensor:
        """The model's own forward on one window: token ids (1-d) to logits (tokens, vocab).

        With `last`, only those of the last so many tokens; most heads then compute no others.
        """
        spared = nullcontext() if last is None else only_last_rows(self.model, last)
        with spared:
            logits = self.model(ids[None].to(self.device), use_cache=False).logits[0]
        return logits if last is None else logits[-last:]


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
) -> LoadedModel:
    """The model called `name`, on `device`, ready to be measured.

    Args:
        name: Hub id, local folder, or GGUF file.
        revision: Branch, tag or commit of a hub id.
        device: A torch device, or `auto`: CUDA if there is one.
        dtype: `float32`, `bfloat16`, `float16`, or `auto`: the checkpoint's own on CUDA,
            FP32 on CPU.
        trust_remote_code: Run Python code that the model brings.
        allow_pickle: Load weights that are not safetensors.
        allow_partial: Go on when less than 95% of the blocks' parameters can be quantized.
        offload: `yes`: the blocks wait in host memory and come to the device in turn; `auto`: if
            they do not fit there.

    Raises:
        ModelError: Not a model, one that cannot be reached, or one that cannot be diagnosed.
        StudyError: A device that is not there.
    """
    where = resolve_device(device)
    source, prior = _resolve(name)
    wanted = dtype if dtype != "auto" else ("auto" if where.type == "cuda" else "float32")
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if revision is not None:
        options["revision"] = revision
    with _transformers(name, source) as transformers:
        config = transformers.AutoConfig.from_pretrained(source, **options)
        _require_decoder(config, name)
        # What transformers can dequantize while it loads (FP8, for example) still was quantized.
        declared = getattr(config, "quantization_config", None)
        if isinstance(declared, dict):
            prior = prior or str(declared.get("quant_method"))
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, **options)
        model, info = transformers.AutoModelForCausalLM.from_pretrained(
            source,
            dtype=wanted,
            use_safetensors=None if allow_pickle else True,
            ignore_mismatched_sizes=True,  # refused below, by name
            output_loading_info=True,
            **options,
        )
    absent = sorted(info["missing_keys"]) + [str(key[0]) for key in info["mismatched_keys"]]
    if absent:
        raise ModelError(
            f"{name} has no weights that fit for {len(absent)} of its parameters, {absent[0]} "
            "first; they would be random: check that the checkpoint is complete and a causal "
            "language model"
        )
    shown = Path(name).name.removesuffix(".gguf") if Path(source).exists() else name
    return adopt(
        model,
        tokenizer,
        name=shown,
        prior=prior,
        allow_partial=allow_partial,
        device=where,
        offload=offload,
    )


def adopt(
    model: PreTrainedModel,
    tokenizer: Any,  # noqa: ANN401
    *,
    name: str | None = None,
    prior: str | None = None,
    allow_partial: bool = False,
    device: torch.device | None = None,
    offload: str = "no",
) -> LoadedModel:
    """A model that is in memory already, checked and described like a loaded one.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        name: What to call it.
        prior: How its weights were quantized before.
        allow_partial: Go on when less than 95% of the blocks' parameters can be quantized.
        device: Where to move it; by default it stays.
        offload: As for `load_model`; `yes` and `auto` need a device.

    Raises:
        ModelError: It has no blocks, or too little of them can be quantized.
    """
    model = model.eval().requires_grad_(False)
    config = model.config
    _require_decoder(config, name or type(model).__name__)
    layout = find_layout(model)
    offloaded = None
    if device is not None:
        offloaded = _placed(model, layout, device, offload)
    _require_causal(model, name or type(model).__name__)
    if layout.coverage < MINIMUM_COVERAGE and not allow_partial:
        listed = ", ".join(f"{path} ({share:.1%})" for path, share in layout.missed[:4])
        raise ModelError(
            f"only {layout.coverage:.1%} of the parameters in the blocks are weights of linears "
            f"that can be quantized; missed: {listed}. A baseline would not be an FP4 model; pass "
            "--allow-partial (allow_partial=True) to measure it all the same"
        )
    parameter = next(model.parameters())
    warnings = []
    kind = config_value(text_config(config), "model_type")
    if parameter.dtype == torch.float16 and kind in _OVERFLOWS_FP16:
        warnings.append(
            f"{kind} models are known to overflow float16; "
            "if the reference is not finite, use bfloat16 or float32"
        )
    return LoadedModel(
        name=name or config_value(config, "_name_or_path") or type(model).__name__,
        model=model,
        tokenizer=tokenizer,
        layout=layout,
        device=parameter.device,
        dtype=parameter.dtype,
        fingerprint=_fingerprint(model),
        prior_quantization=prior,
        warnings=tuple(warnings),
        offloaded=offloaded,
    )


def _placed(
    model: PreTrainedModel, layout: Layout, device: torch.device, offload: str
) -> Offloaded | None:
    """Move a model to a device, or all of it but its blocks."""
    if offload == "no" or (offload == "auto" and _fits(model, device)):
        model.to(device)  # type: ignore[arg-type]
        return None
    blocks = list(model.get_submodule(layout.blocks_path).children())
    waiting = {id(t) for block in blocks for t in (*block.parameters(), *block.buffers())}
    for tensor in (*model.parameters(), *model.buffers()):
        if id(tensor) not in waiting:
            tensor.data = tensor.data.to(device)
    return Offloaded(blocks, device)


def _fits(model: PreTrainedModel, device: torch.device) -> bool:
    """Whether a GPU has room for the weights and some more to work in."""
    if device.type != "cuda":
        return True
    weights = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    free, _ = torch.cuda.mem_get_info(device)
    return weights < 0.8 * free


def resolve_device(device: str) -> torch.device:
    """The torch device called `device`; `auto` is CUDA if there is one.

    Raises:
        StudyError: There is no such device here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(0, device=found).cpu()  # the copy finds out a device without data, `meta`
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0][:100]
        raise StudyError(f"device {device!r} cannot be used here ({reason}); try cpu") from None
    return found


def check_name(name: str) -> None:
    """Refuse, before anything is loaded or fetched, a name that cannot be a model's.

    Raises:
        ModelError: A path that is not there, or neither a GGUF file nor a model folder.
    """
    path = Path(name).expanduser()
    if path.is_file():
        if not is_gguf(path):
            raise ModelError(
                f"{name} is a file but not a GGUF file; give a GGUF file, a folder with "
                "config.json and safetensors, or a hub id"
            )
    elif path.is_dir():
        if not (path / "config.json").exists():
            raise ModelError(f"{name} has no config.json, so it is not a model folder")
    elif name.startswith((".", "/", "~")) or name.endswith(".gguf") or name.count("/") > 1:
        raise ModelError(f"{name} does not exist; give a GGUF file, a model folder, or a hub id")


def _resolve(name: str) -> tuple[str, str | None]:
    """What to hand to `from_pretrained`, and how its weights were quantized before."""
    check_name(name)
    path = Path(name).expanduser()
    if path.is_file():
        with _transformers(name, name):
            folder = converted(path)
        return str(folder), quantization_of(folder)
    if path.is_dir():
        return str(path), quantization_of(path)
    return name, None


@contextmanager
def _transformers(name: str, source: str) -> Iterator[Any]:
    """`transformers`, silent, its many exceptions turned into one that says what to do."""
    os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
    import transformers
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    if Path(source).exists():  # downloads keep their progress bars
        logging.disable_progress_bar()
    try:
        yield transformers
    except Fp4ScopeError:
        raise
    except Exception as error:
        raise ModelError(_why(name, source, error)) from error
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _require_decoder(config: Any, name: str) -> None:  # noqa: ANN401
    if config_value(config, "is_encoder_decoder", False):
        raise ModelError(f"{name} is an encoder-decoder; fp4scope needs a causal language model")


@torch.no_grad()
def _require_causal(model: PreTrainedModel, name: str) -> None:
    """Refuse a model whose predictions depend on later tokens: it would see its own targets."""
    ids = torch.arange(8, device=next(model.parameters()).device) % config_size(
        text_config(model.config), "vocab_size", 8
    )
    other = torch.cat([ids[:-1], ids[:1]])
    before, after = (model(i[None], use_cache=False).logits[0, :-1].float() for i in (ids, other))
    rounding = 32 * torch.finfo(model.dtype).eps * before.abs().max()
    if (before - after).abs().max() > rounding:
        raise ModelError(
            f"{name} is not causal: its predictions change with tokens that come later; fp4scope "
            "needs a causal language model"
        )


def _why(name: str, source: str, error: Exception) -> str:
    whole = " ".join(str(error).split())
    reason = whole[:300]
    if "trust_remote_code" in whole:
        return (
            f"{name} brings its own Python code, which fp4scope does not run; if you trust it, "
            "pass --trust-remote-code"
        )
    if not Path(source).exists():
        return (
            f"cannot load {name!r} from the hub ({reason}); check the name and the network, or "
            "give a local folder or a GGUF file"
        )
    if "safetensors" in whole and not any(Path(source).glob("*.safetensors")):
        return (
            f"{name} has no safetensors weights ({reason}); if you trust its pickled weights, "
            "pass --allow-pickle"
        )
    return f"cannot load {name}: {type(error).__name__}: {reason}"


def _fingerprint(model: PreTrainedModel) -> str:
    digest = hashlib.sha256()
    config = {k: v for k, v in model.config.to_dict().items() if k not in _VOLATILE_CONFIG}
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
