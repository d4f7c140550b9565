"""Ray, started on this host or found at an address, and quiet. Nothing else imports it.

A Ray of our own has a folder and a token of its own, no dashboard, no statistics of usage and a
small object store: what travels is text, numbers of windows and sums. It goes when it is left, and
with this process, however that ends.
"""

import logging
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fp4scope.errors import StudyError
from fp4scope.study import Place
from fp4scope.sweep import leftovers

_OBJECT_STORE = 80 << 20
"""Bytes; Ray takes no fewer than 75 MB."""
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_worker_niceness": "0",  # as nice as this process, which takes tasks too
}
_LONGEST = 32
"""Characters of a temporary folder: paths of sockets in it may have 107."""


def ray_library() -> Any:  # noqa: ANN401
    """The module.

    Raises:
        StudyError: It is not installed, or not whole.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import ray
            import ray.exceptions
    except ImportError as error:
        raise StudyError(
            f"workers take Ray, and it cannot be imported ({error}); "
            "pip install 'fp4scope[ray]', or leave --workers out"
        ) from None
    return ray


@contextmanager
def connected(place: Place, *, gpus: bool) -> Iterator[Any]:
    """Ray, until the block ends; one that was there before stays.

    Args:
        place: Where.
        gpus: Whether workers compute on GPUs.

    Raises:
        StudyError: Ray is not installed, does not start, or does not answer.
    """
    if (
        place.address is None
        and "ray" not in sys.modules
        and "RAY_AUTH_TOKEN_PATH" not in os.environ
    ):
        # Or Ray writes one into the home, for every cluster.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    ray = ray_library()
    if ray.is_initialized():
        yield ray
        return
    with tempfile.TemporaryDirectory(
        prefix="fp4scope-", dir=_short(), ignore_cleanup_errors=True
    ) as folder:
        try:
            with _not_survived(folder):
                try:
                    with _undisturbed(), warnings.catch_warnings():
                        warnings.simplefilter("ignore")
                        _start(ray, place, folder, gpus)
                    with _unheard(ray):
                        yield ray
                finally:
                    with _undisturbed():
                        ray.shutdown()
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _start(ray: Any, place: Place, folder: str, gpus: bool) -> None:  # noqa: ANN401
    options: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": logging.CRITICAL,
        "configure_logging": True,
    }
    if place.address is None:
        for name, value in _QUIET.items():
            os.environ.setdefault(name, value)
        options |= {
            "address": "local",
            "num_cpus": place.count or os.cpu_count(),
            "include_dashboard": False,
            "object_store_memory": _OBJECT_STORE,
            "_temp_dir": folder,
        }
        options |= {} if gpus else {"num_gpus": 0}
    else:
        options["address"] = place.address
    try:
        ray.init(**options)
    except Exception as error:  # of many kinds
        # Versions that differ stand in lines of their own.
        reason = " ".join(str(error).split())[:400] or type(error).__name__
        what, advice = "does not start", "look for what keeps it from that, or leave --workers out"
        if place.address is not None:
            what = "does not let us in"
            advice = (
                "it takes the same versions of Ray and Python as the cluster's, and "
                "RAY_AUTH_MODE=token where the cluster has a token; ray:// is for Ray Client's port"
            )
        raise StudyError(f"workers is {place}, but Ray {what} ({reason}); {advice}") from None


@contextmanager
def _unheard(ray: Any) -> Iterator[None]:  # noqa: ANN401
    """Ray prints on stdout that a worker died, whatever `log_to_driver` says; we say it too."""
    printing = ray._private.worker
    own = getattr(printing, "print_to_stdstream", None)
    printing.print_to_stdstream = lambda *_, **__: None
    try:
        yield
    finally:
        printing.print_to_stdstream = own


@contextmanager
def _not_survived(folder: str) -> Iterator[None]:
    """However the block or this process ends, so do the processes that Ray has started for it.

    They would outlive a Ray that is stopped while it starts, and its agents one that is killed.
    """
    if sys.platform != "linux":
        yield
        return
    with subprocess.Popen(
        [sys.executable, "-I", "-S", leftovers.__file__, folder, str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ):
        yield  # then its input ends, and it is waited for


def _short() -> str | None:
    """Where a folder may be whose sockets' paths are not too long."""
    return "/tmp" if len(tempfile.gettempdir()) > _LONGEST and os.path.isdir("/tmp") else None


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Ctrl-C waits until the block ends: in the middle of Ray's work it crashes the process.

    A second one does not wait. Ray takes SIGTERM for itself; that is given back.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    waiting: list[int] = []

    def later(number: int, _: object) -> None:
        waiting.append(number)
        signal.signal(number, before[signal.SIGINT])

    signal.signal(signal.SIGINT, later)
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    if waiting:
        signal.raise_signal(signal.SIGINT)
