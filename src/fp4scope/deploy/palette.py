"""What a recipe may choose from: full precision, and settings that a study has measured."""

from collections.abc import Sequence
from dataclasses import dataclass

from fp4scope.deploy.engines import ENGINES, SERVING, Verdict, loads
from fp4scope.deploy.exactly import CHECKPOINTS
from fp4scope.deploy.schemes import SERVED_RULE
from fp4scope.errors import StudyError, nearest, shown
from fp4scope.treatments import Configuration, Setting, stored_bits

FULL_PRECISION = ("bf16", "bfloat16", "fp16", "float16")
"""Names of no quantization at all."""
WEIGHTS_ONLY_ON = {"sm90": 4.0}
"""GPUs on which engines quantize weights alone, of elements with so few bits.

Source: vLLM and SGLang serve NVFP4 and MXFP4 with Marlin kernels below sm100; FP8 stays W8A8.
"""


@dataclass(frozen=True)
class Choice:
    """One thing that a recipe may do to a group.

    Attributes:
        name: As a palette names it.
        setting: None is full precision.
    """

    name: str
    setting: Setting | None

    @property
    def least_bits(self) -> float:
        """Stored for each weight, block scales included, where rows are very long."""
        return stored_bits(self.setting, 1 << 20)


def choices(
    palette: str | None,
    measured: Sequence[Setting],
    serve_on: str | None = None,
    engine: str | None = None,
) -> tuple[Choice, ...]:
    """What a palette means among what was measured; full precision first.

    Args:
        palette: Names with commas between them, such as `nvfp4,fp8,bf16`, written as formats of a
            study are. None: all that was measured and the engine loads, and full precision.
        measured: The settings of a study.
        serve_on: A GPU, on which engines may quantize weights alone.
        engine: One of `SERVING` that has to load each layer, `any` for all of them; None: whatever
            was measured.

    Raises:
        FormatError: An unknown format.
        StudyError: Something that was not measured or that the engine does not load, or nothing to
            choose from.
    """
    if serve_on is not None and serve_on not in WEIGHTS_ONLY_ON:
        raise StudyError(
            f"serve_on: unknown {shown(serve_on)}; {nearest(serve_on, WEIGHTS_ONLY_ON)}"
        )
    served = [s for s in measured if serve_on is None or _as_served(s, serve_on)]
    full = Choice(FULL_PRECISION[0], None)
    if palette is None:
        loaded = [s for s in served if not engine or not _refused([s], engine, _FIRST)]
        if not loaded and served:
            advice = "give another --engine, or a --palette of these"
            raise StudyError(f"{_not_loaded(served, str(engine))}; {advice}")
        found = [full, *(Choice(setting.name, setting) for setting in loaded)]
    else:
        names = [name.strip().lower() for name in palette.split(",") if name.strip()]
        found = [_choice(name, served, serve_on) for name in dict.fromkeys(names)]
        found = [full] * any(c.setting is None for c in found) + [c for c in found if c.setting]
        settings = [choice.setting for choice in found if choice.setting is not None]
        if engine is not None and _refused(settings, engine):
            raise StudyError(
                f"{_not_loaded(settings, engine)}; leave that out of --palette, or give another "
                "--engine"
            )
    if len(found) < 2:
        raise StudyError(
            f"palette is {shown(palette or '')}; a recipe chooses between two or more of "
            f"{', '.join(s.name for s in served)} and {FULL_PRECISION[0]}"
        )
    return tuple(found)


_FIRST = CHECKPOINTS[:1]
"""What carries a recipe unless somebody says more: all that it carries goes together."""


def engine_of(engine: str | None, palette: str | None) -> str | None:
    """What has to load a recipe: where nothing is said of that, every engine.

    Of a palette that a user names nothing is left out unasked.
    """
    return engine or ("any" if palette is None else None)


def default_formats(engine: str | None = None, serve_on: str | None = None) -> tuple[str, ...]:
    """What to choose from beside full precision: what an engine loads layer by layer.

    Example:
        >>> default_formats(), default_formats("vllm")
        (('nvfp4', 'fp8'), ('nvfp4', 'mxfp4:even', 'mxfp8:e4m3:even', 'fp8'))
        >>> default_formats(serve_on="sm90")
        ('fp8',)
    """
    names = list(SERVED_RULE.values())
    if serve_on in WEIGHTS_ONLY_ON:
        few = [one for one in names if not _as_served(Setting.from_json(one), serve_on)]
        names = [f"{one}/w4a16" if one in few else one for one in names]
    return tuple(n for n in names if not _refused([Setting.from_json(n)], engine or "any", _FIRST))


def _engines(engine: str) -> Sequence[str]:
    if engine not in (*SERVING, "any"):
        raise StudyError(f"engine: unknown {shown(engine)}; {nearest(engine, (*SERVING, 'any'))}")
    return SERVING if engine == "any" else (engine,)


def _refused(
    settings: Sequence[Setting], engine: str, containers: Sequence[str] = CHECKPOINTS
) -> list[tuple[Setting, str, Verdict]]:
    """What engines do not load, through the container that carries most of these together."""
    found = [
        [
            (setting, name, verdict)
            for setting in settings
            for name in _engines(engine)
            if not (verdict := loads(name, setting, container)).loads
        ]
        for container in containers
    ]
    return min(found, key=len)


def _not_loaded(settings: Sequence[Setting], engine: str) -> str:
    setting, name, verdict = _refused(settings, engine)[0]
    why = f" ({verdict.remark})" if verdict.remark else ""
    return (
        f"{ENGINES[name]} does not load {setting.name} layer by layer{why}; --engine {engine} "
        f"loads {', '.join(default_formats(engine))} and {FULL_PRECISION[0]}"
    )


def _as_served(setting: Setting, gpu: str) -> bool:
    """Whether engines do there what a setting says."""
    few = min(fmt.element.bits for fmt in setting.formats) <= WEIGHTS_ONLY_ON[gpu]
    return setting.operands == "W" if few else True


def _choice(name: str, measured: Sequence[Setting], serve_on: str | None) -> Choice:
    if name in FULL_PRECISION:
        return Choice(FULL_PRECISION[0], None)
    asked = Configuration.parse(name)
    # Where a GPU serves weights alone, a format alone means them too.
    kinds = ("WA", "W") if serve_on else ("WA",)
    wanted = {setting.name for setting in asked.settings(kinds)}
    found = next((s for s in measured if s.name in wanted), None)
    if found is None:
        have = ", ".join(s.name for s in measured) or "nothing that can be served so"
        where = f" on {serve_on}" if serve_on else ""
        weights = " --operands w4a16" if serve_on and not asked.operands else ""
        raise StudyError(
            f"the palette has {name}, and the study measured {have}{where}; measure it: "
            f"fp4scope run MODEL --formats {asked}{weights} -o ANOTHER"
        )
    return Choice(found.name, found)
