"""Settings that tell why quantizing something costs what it does. Pure data."""

from dataclasses import replace

from fp4scope.treatments import Fault, Setting

GAINS = (-30.0, -20.0)
"""Noise behind a product, in decibels of what leaves it, that its gain is measured with.

FP4 of both operands is off by about -20 to -14 dB. Two levels show how far damage is proportional
to the energy of an error.
"""


def variants(setting: Setting) -> dict[str, Setting]:
    """What is measured beside a setting, by what it tells.

    `weights` and `inputs` are the operands alone; `noise` has both with their error replaced by
    noise of the same energy in each block. Nothing of a setting that treats one operand.

    Example:
        >>> {name: s.precision for name, s in variants(Setting.from_json("nvfp4")).items()}
        {'weights': 'W4A16', 'inputs': 'W16A4', 'noise': 'W4A4'}
    """
    weight, entering = setting.weight, setting.input
    if weight is None or entering is None:
        return {}
    return {
        "weights": Setting(weight=weight),
        "inputs": Setting(input=entering),
        "noise": Setting(replace(weight, fault=Fault.NOISE), replace(entering, fault=Fault.NOISE)),
    }


def gains() -> list[Setting]:
    """Noise behind a product, level by level."""
    return [Setting(noise=db) for db in GAINS]
