"""What a checkpoint stores, held against what its recipe makes of the original."""

from collections.abc import Iterator, Mapping
from math import inf
from typing import Any

import torch

from fp4scope.deploy.checkpoint import NV_DIVISOR, tensor_amaxes
from fp4scope.deploy.plan import Export
from fp4scope.kernels import quantize
from fp4scope.models import Source

SUSPICIOUS = 4.0
"""How many times the energy of rounding to nearest an error may have: rounding to the second order,
or under another scale rule, has less."""
FAR = 2.0
"""Input scales that are so many times off what enters, either way, are named."""
_OF_A_FILE = (
    "_name_or_path", "architectures", "dtype", "gguf_file", "quantization_config", "torch_dtype",
    "transformers_version", "use_cache",
)  # fmt: skip
"""Settings that say how a checkpoint is stored or run, and not what it computes."""
ROUNDED = 1.001
"""What rounding to an inverse and back leaves."""


def wrong_weights(export: Export, source: Source, packed: Source) -> dict[str, float]:
    """Weights of a checkpoint that are not what its recipe makes of the original.

    Args:
        export: What the recipe asks for.
        source: The original.
        packed: The checkpoint.

    Returns:
        Of each that differs by more than the last bit of 16: the energy of its error over that of
        rounding to nearest as the recipe says, the largest first. Infinite for one that is absent
        or of another shape, and for one that rounding would leave as it is.
    """
    wrong: dict[str, float] = {}
    with source.opened() as original, packed.opened() as found:
        amaxes = tensor_amaxes(export, original)
        for each in export.packed:
            stored = packed.stored.get(each.key)
            if stored is None or stored.shape != source.stored[each.key].shape:
                wrong[each.key] = inf
                continue
            whole, held = original[each.key].float(), found[each.key].float()
            amax = amaxes.get(each.scale)
            expected = quantize(whole, each.format, amax=amax).dequantize()
            if not bool(torch.isclose(held, expected, rtol=2.0**-8, atol=0.0).all()):
                errors = [float((own - whole).square().sum()) for own in (held, expected)]
                wrong[each.key] = errors[0] / errors[1] if errors[1] else inf
    return dict(sorted(wrong.items(), key=lambda item: -item[1]))


def wrong_plain(export: Export, source: Source, packed: Source) -> list[str]:
    """Tensors that no recipe quantizes, and that a checkpoint has otherwise than the original.

    Numbers that were rounded to 16 bits are the same.
    """
    quantized = {each.key for each in export.packed}
    with source.opened() as original, packed.opened() as found:
        return [
            key
            for key in sorted(source.stored.keys() & packed.stored.keys() - quantized)
            if source.stored[key].shape != packed.stored[key].shape
            or not torch.isclose(
                found[key].float(), original[key].float(), rtol=2.0**-7, atol=1e-9
            ).all()
        ]


def other_settings(source: Source, packed: Source) -> dict[str, tuple[Any, Any]]:
    """What the configurations of an original and its checkpoint say otherwise, and how.

    Of a configuration in a configuration a name has both, such as `text_config.head_dim`.
    """
    ours, theirs = (dict(_settings(each.settings)) for each in (source, packed))
    names = sorted(ours.keys() | theirs.keys())
    both = {name: (ours.get(name), theirs.get(name)) for name in names}
    return {name: (one, other) for name, (one, other) in both.items() if one != other}


def _settings(config: Mapping[Any, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if name in _OF_A_FILE:
            continue
        if isinstance(value, Mapping):
            yield from _settings(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


def absent(source: Source, packed: Source) -> list[str]:
    """Tensors of an original that a checkpoint does not have; a tied head needs none."""
    missing = sorted(source.stored.keys() - packed.stored.keys())
    return [key for key in missing if not (packed.tied and key.endswith("lm_head.weight"))]


def input_amaxes(export: Export, packed: Source) -> dict[str, float]:
    """What the stored scales of inputs come from, by site: the largest of those of one."""
    stored = packed.input_scales()
    found: dict[str, float] = {}
    for each in export.packed:
        if each.scheme.static and each.key in stored:
            amax = stored[each.key] * float(NV_DIVISOR)
            found[each.site] = max(amax, found.get(each.site, 0.0))
    return found


def without_scales(export: Export, packed: Source) -> list[str]:
    """Sites whose inputs have static scales by the recipe, and a part without any in the file."""
    stored = packed.input_scales()
    sites = (p.site for p in export.packed if p.input_amax is not None and p.key not in stored)
    return list(dict.fromkeys(sites))


def far_scales(
    stored: Mapping[str, float], seen: Mapping[str, float], far: float = FAR
) -> dict[str, float]:
    """Stored amaxes of inputs that are far from what enters, by site.

    Args:
        stored: From the checkpoint.
        seen: Largest magnitude that entered here, by the same sites.
        far: How many times they are off, either way.

    Returns:
        Stored over seen, the farthest first.

    Example:
        >>> far_scales({"a": 8.0, "b": 1.1}, {"a": 1.0, "b": 1.0})
        {'a': 8.0}
    """
    ratios = {site: stored[site] / seen[site] for site in stored if seen.get(site)}
    off = {site: ratio for site, ratio in ratios.items() if not 1 / far <= ratio <= far}
    return dict(sorted(off.items(), key=lambda item: -max(item[1], 1 / max(item[1], 1e-30))))
