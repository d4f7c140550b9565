"""What can be refused of a study at once: before torch is imported and anything large is fetched.

Paths, the model's name and the output folder are looked at where they are. A hub id is looked up in
the cache, else asked for once, with one retry: libraries that fetch retry for half a minute.
"""

import ctypes
import importlib.metadata
import importlib.util
import json
import os
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path

from fp4scope.errors import DataError, Fp4ScopeError, ModelError, StudyError, nearest
from fp4scope.files import at_home, named, refusing, require_file, require_memory, writable_folder
from fp4scope.recipes import Recipe
from fp4scope.study import ActivationScale, Method, Place, Study

_DEVICES = ("cpu", "cuda", "mps", "xpu", "xla", "hpu", "npu", "mtia", "meta")
"""What torch calls devices; a backend that is installed beside it may bring another."""
_TIMEOUT_S = 10.0
_PAUSE_S = 1.0
_SETTINGS = b"\x04"
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0" + _SETTINGS + bytes(5)
"""How a client of gRPC begins, which Ray talks: the preface of HTTP/2 and settings, none.

The server begins with its own, in a frame whose fourth byte is its type (RFC 9113, 3.4 and 4.1).
"""
_TEXT_MEMORY = 240
"""Bytes of memory that tokenizing may take for each byte of text.

Measured with `tokenizers` 0.23: 105 for tokens of five bytes, 195 to 235 for tokens of one. Where
it runs out of memory it ends the process.
"""


def check(study: Study, out: str | Path | None = None, *, in_memory: bool = False) -> None:
    """Refuse what cannot run, as far as it can be told without the model.

    Args:
        study: The study.
        out: Its output folder, if it has one; it is made.
        in_memory: Whether the model is there already.

    Raises:
        ModelError: The model is not there, or is no model.
        StudyError: A revision of a local model, options that do not go together, or workers that
            are not to be had.
        DataError: A text is not there, not a file, or too large for the memory.
        OutputError: The folder cannot be written to.
    """
    for name, path in (
        ("text", study.data.text),
        ("calibration text", study.data.calibration_text),
    ):
        if path is not None:
            check_text(path, name)
    _require_calibrated_head(study)
    _require_weights(study)
    _require_recipes(study)
    _require_ray(study)
    if not in_memory:
        check_device(study.numerics.device)
        check_name(study.model.name, study.model.revision)
    if out is not None:
        writable_folder(out)
    if not in_memory and not os.path.exists(os.path.expanduser(study.model.name)):
        _require_on_hub(study.model.name, study.model.revision)


def _require_weights(study: Study) -> None:
    """Refuse gradients of what has no weight."""
    question = study.question
    for option, fmt in (("--kv-cache", question.kv_cache), ("--attention", question.attention)):
        if fmt is not None and Method.GRADIENT in study.run.method:
            raise StudyError(
                f"method is gradient, which estimates products with a weight only, but {option} "
                f"quantizes what has none; use --method exact, or leave {option} out"
            )


def _require_calibrated_head(study: Study) -> None:
    """Refuse an amax that the head would not see: it gets a window's rows a few at a time."""
    if not study.model.lm_head or study.numerics.activation_scale is not ActivationScale.DYNAMIC:
        return
    for setting in study.settings:
        if setting.input is not None and setting.input.tensor_scale is not None:
            raise StudyError(
                f"activation_scale is dynamic, but the head never sees a whole window, whose amax "
                f"{setting.input.format.name} then needs; use --activation-scale calibrated, or "
                "leave --lm-head out"
            )


def _require_ray(study: Study) -> None:
    """Refuse workers where there is nothing that starts them, or no cluster that takes them."""
    workers = study.run.workers
    if not workers.is_here and importlib.util.find_spec("ray") is None:
        raise StudyError(
            f"workers is {workers}, which takes Ray, and it is not installed; "
            "pip install 'fp4scope[ray]', or leave --workers out"
        )
    if workers.takes_client and importlib.util.find_spec("grpc") is None:
        raise StudyError(
            f"workers is {workers}, an address of Ray Client, which takes grpcio, and that is not "
            "installed; pip install 'ray[client]', or give the cluster's own address, such as "
            f"{workers.endpoint[0]}:6379"
        )
    if workers.address is not None:
        _require_listener(workers)


def _require_listener(workers: Place) -> None:
    """Refuse an address where nothing listens, or something else than Ray: it tries for minutes."""
    reason = "it does not answer as Ray does"
    try:
        with socket.create_connection(workers.endpoint, timeout=_TIMEOUT_S) as listener:
            # With TLS nothing is said in the clear.
            if os.environ.get("RAY_USE_TLS", "0").lower() not in ("0", "false"):
                return
            listener.sendall(_HELLO)
            if listener.recv(4)[3:] == _SETTINGS:
                return
    except (OSError, OverflowError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
    raise StudyError(
        f"workers is {workers}, but there is no Ray ({reason}); see that the cluster is up "
        "(ray start --head), that this host reaches it, and that the port is that of the cluster, "
        "not of its dashboard; or leave --workers out"
    )


def _require_recipes(study: Study) -> None:
    """Refuse what is no recipe; which sites it names is looked up in the model."""
    for given in study.question.recipes:
        data = given.data.get("recipe", given.data)
        if isinstance(data, dict) and not {"base", "edits"}.isdisjoint(data):
            try:
                Recipe.from_json(data)
            except Fp4ScopeError as error:
                raise type(error)(f"recipe {named(given.name)}: {error}") from None


def check_text(path: str | Path, what: str = "text") -> None:
    """Refuse what is not a file, or more text than can be tokenized in the memory there is.

    Args:
        path: The file.
        what: What it is to the user.

    Raises:
        DataError: It is one of these.
    """
    size = require_file(at_home(path), what, DataError).st_size
    require_memory(
        _TEXT_MEMORY * size,
        f"the {what} {named(path)} has {size / 1e6:.0f} MB, and to tokenize it",
        DataError,
        "give a shorter one, such as its beginning (head -c)",
    )


def check_device(device: str) -> None:
    """Refuse a device that there cannot be here.

    What is left is torch's to judge: a number that is too high, or a driver that is too old.

    Raises:
        StudyError: No such kind of device is known, or it is CUDA and there is none.
    """
    kind, what = device.partition(":")[0], f"device {device!r} cannot be used here"
    if kind not in ("auto", *_DEVICES) and not importlib.metadata.entry_points(
        group="torch.backends"
    ):
        near = "did you mean cuda?" if kind.lower() == "gpu" else nearest(kind, _DEVICES)
        raise StudyError(f"{what}; {near}; try cpu")
    if kind != "cuda":
        return
    build = importlib.metadata.version("torch").partition("+")[2]
    if build == "cpu":
        raise StudyError(
            f"{what}: this torch is a build for CPUs; install one for CUDA, or try cpu"
        )
    if sys.platform == "linux" and not build.startswith("rocm") and not _has_cuda_driver():
        raise StudyError(f"{what}: this machine has no CUDA driver (libcuda.so.1); try cpu")


def _has_cuda_driver() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def _require_config(path: Path) -> None:
    """Refuse a config.json that says of no model what it is."""
    what = f"{named(path)} is no model's configuration"
    with refusing(f"cannot read {named(path)}", ModelError):
        text = path.read_bytes()
    try:
        config = json.loads(text)
    except ValueError as error:
        raise ModelError(f"{what}: it is no JSON ({error}); fetch it again") from None
    if not isinstance(config, dict) or "model_type" not in config:
        raise ModelError(f"{what}: it names no model_type; give the folder of a transformers model")


def check_name(name: str, revision: str | None = None) -> None:
    """Refuse, before anything is loaded or fetched, a name that cannot be a model's.

    Args:
        name: Hub id, local folder, or GGUF file.
        revision: Branch, tag or commit; only a hub id has them.

    Raises:
        ModelError: A path that is not there, or neither a GGUF file nor a model folder.
        StudyError: A revision of something local.
    """
    wanted = "give a GGUF file, a folder with config.json and safetensors, or a hub id"
    path = model_path(name)
    if path.is_dir():
        if not (path / "config.json").exists():
            raise ModelError(f"{named(name)} has no config.json, so it is not a model folder")
        _require_config(path / "config.json")
    elif path.exists():
        require_file(path, "model", ModelError)
        with refusing(f"cannot read {named(name)}", ModelError), path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise ModelError(f"{named(name)} is a file but not a GGUF file; {wanted}")
    elif name.startswith((".", "/", "~")) or name.endswith(".gguf") or name.count("/") > 1:
        raise ModelError(f"{named(name)} does not exist; {wanted}")
    if revision is not None and path.exists():
        raise StudyError(
            f"revision is {revision!r}, but {named(name)} is local and has no revisions; leave it "
            "out, or give a hub id"
        )


def model_path(name: str) -> Path:
    """Where a model of this name would be, if it is a local one.

    Raises:
        ModelError: No path can be so: too long, a NUL, the home of a user who is not there.
    """
    advice = "give a GGUF file, a model folder, or a hub id"
    with refusing(f"{named(name)} cannot be a model's name or path", ModelError, advice):
        path = Path(name).expanduser()
        with suppress(FileNotFoundError, NotADirectoryError):
            path.stat()
        return path


def _require_on_hub(name: str, revision: str | None) -> None:
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError

    advice = "check the name and the network, or give a local folder or a GGUF file"
    try:
        if isinstance(
            huggingface_hub.try_to_load_from_cache(name, "config.json", revision=revision), str
        ):
            return
    except HFValidationError as error:
        raise ModelError(f"{named(name)} is not there and no hub id ({error}); {advice}") from None
    error = hub_error(huggingface_hub.hf_hub_url(name, "config.json", revision=revision))
    if isinstance(error, EntryNotFoundError):
        raise ModelError(f"{name} on the hub has no config.json, so it is not a model to load")
    if error is not None:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"cannot load {name!r} from the hub ({reason}); {advice}")


def hub_error(url: str) -> Exception | None:
    """What keeps a file of the hub from being fetched, asked for at most twice; None if nothing."""
    from huggingface_hub import constants, get_hf_file_metadata
    from huggingface_hub.errors import HfHubHTTPError

    error = None
    for _ in range(2):
        try:
            get_hf_file_metadata(url, timeout=_TIMEOUT_S)
            return None
        except HfHubHTTPError as answer:  # the hub has been reached and says no
            return answer
        except Exception as missing:  # whatever the HTTP library in use raises
            error = missing
        if constants.HF_HUB_OFFLINE:
            break
        time.sleep(_PAUSE_S)
    return error
