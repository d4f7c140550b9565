"""Under what conditions a result was measured."""

import platform
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from fp4scope.conductor.prepare import say
from fp4scope.data import WindowSet
from fp4scope.design import Contrast
from fp4scope.ledger import Log
from fp4scope.models import LoadedModel, config_value
from fp4scope.recipes import Sites
from fp4scope.sweep import NUMERICS_VERSION, Listener, routers


def describe_model(loaded: LoadedModel) -> dict[str, Any]:
    layout = loaded.layout
    return {
        "name": loaded.name,
        "architecture": type(loaded.model).__name__,
        "fingerprint": loaded.fingerprint,
        "parameters": sum(p.numel() for p in loaded.model.parameters()),
        "blocks": layout.blocks,
        "projections": list(layout.projections),
        "kinds": {name: layout.kinds.get(name) for name in layout.projections},
        "layer_types": list(layout.layer_types),
        "coverage": layout.coverage,
        "not_quantized": [list(item) for item in layout.missed[:8]],
        "excluded": [
            {
                "projection": excluded.projection,
                "linears": len(excluded.linears),
                "reason": excluded.reason,
                "share": excluded.share,
            }
            for excluded in layout.excluded
        ],
        "towers": [{"name": name, "linears": count} for name, count in loaded.towers],
        "routed_experts": [[r.block, r.name] for r in routers(loaded)],
        "prior_quantization": loaded.prior_quantization,
        "dtype": loaded.dtype_name,
        "tokenizer": type(loaded.tokenizer).__name__,
        "tokenizer_sha256": loaded.tokenizer_sha256,
        "device": str(loaded.device),
        "attention": config_value(loaded.config, "_attn_implementation"),
        "warnings": list(loaded.warnings),
    }


def also_quantized(sites: Sites, contrasts: Sequence[Contrast]) -> list[str]:
    """What is quantized beside the linears of the blocks, and how."""
    found = [
        f"the head, {site.name} ({site.rows} x {site.cols}), as the linears are"
        for site in sites.behind
    ]
    for projection in dict.fromkeys(site.projection for site in sites if not site.is_linear):
        own = [site for site in sites if site.projection == projection]
        blocks = len({site.block for site in own})
        what = " and ".join(dict.fromkeys(site.name.rpartition(".")[2] for site in own))
        settings = {contrast.quantized.at(own[0].name) for contrast in contrasts}
        inputs = [s.input for s in settings if s is not None and s.input is not None]
        formats = " or ".join(sorted({treatment.format.name for treatment in inputs}))
        found.append(f"{projection} ({what} of {blocks} blocks) in {formats}")
    return found


def describe_windows(windows: WindowSet) -> dict[str, Any]:
    return {
        "source": windows.source,
        "text_sha256": windows.text_sha256,
        "tokens_in_text": windows.tokens_in_text,
        "windows": len(windows),
        "seq_len": windows.seq_len,
        "bos": windows.bos,
        "sha256": windows.sha256,
    }


def environment_of(loaded: LoadedModel) -> dict[str, Any]:
    import numpy
    import transformers

    cuda = loaded.device.type == "cuda"
    return {
        "fp4scope": version("fp4scope"),
        "numerics": NUMERICS_VERSION,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "numpy": numpy.__version__,
        "platform": platform.platform(),
        "processor": torch.cuda.get_device_name(loaded.device) if cuda else platform.processor(),
        "threads": torch.get_num_threads(),
        "command": sys.argv if "fp4scope" in Path(sys.argv[0]).name else None,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def sessions(log: Log, environment: dict[str, Any], tell: Listener) -> list[dict[str, Any]]:
    """The different environments that have written to this log, this one the last.

    Quantized activations magnify rounding, so variants measured under different libraries or on
    different processors are not quite comparable: this is said, and kept in the results.
    """
    now = {name: environment[name] for name in ("torch", "transformers", "processor", "threads")}
    known = list(log.notes.get("sessions", []))
    if now not in known:
        if known:
            say(
                tell,
                f"warning: this folder was begun with {known[-1]}, now {now}: "
                "W4A4 results of both are compared with each other",
            )
        known.append(now)
        log.note("sessions", known)
    return known
