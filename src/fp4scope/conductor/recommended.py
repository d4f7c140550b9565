"""`recommend`, as users call it: from a model, or from a run that is there."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fp4scope.conductor.domains import parse_domains
from fp4scope.conductor.recommendation import begin, go_on
from fp4scope.deploy.bound import bound_of, required
from fp4scope.deploy.palette import default_formats, engine_of
from fp4scope.deploy.recommendation import Recommendation
from fp4scope.errors import StudyError, shown
from fp4scope.study import Study, is_run
from fp4scope.sweep import Listener


def recommend(
    model: str | Path,
    *,
    output_dir: str | Path | None = None,
    accept: str | Sequence[str] = (),
    max_bits: float | None = None,
    max_size: str | None = None,
    palette: str | None = None,
    engine: str | None = None,
    serve_on: str | None = None,
    progress: Listener | None = None,
    **options: Any,  # noqa: ANN401
) -> Recommendation:
    """Choose a recipe, measure it as a whole on other text, and write it.

    Args:
        model: Hub id, local folder or GGUF file; or the folder of a run, which is gone on with.
        output_dir: For the studies and `recipe.yaml`; by default the folder of the run.
        accept: The smallest recipe that meets these bars, such as `ppl<2%`.
        max_bits: The best recipe with at most so many bits for each weight of the linears.
        max_size: The best recipe of such a checkpoint, such as `4GB`.
        palette: What to choose from, such as `nvfp4,fp8,bf16`.
        engine: What has to load every layer: `vllm`, `sglang`, `trtllm` or `any`.
        serve_on: A GPU on which engines serve FP4 weights alone, such as `sm90`.
        progress: Called as the work goes on.
        options: As for `diagnose`. `text` may name several: `prose=a.txt,code=b.py`.

    Returns:
        The recipe with what was predicted and measured of it; `written` is what `export` takes.

    Raises:
        Fp4ScopeError: Something about the request, the model or the text; nothing that was
            measured is lost.

    Example:
        >>> import fp4scope
        >>> found = fp4scope.recommend(
        ...     "Qwen/Qwen2.5-0.5B", accept="ppl<2%", output_dir="out"
        ... )  # doctest: +SKIP
        >>> found.is_recommended, found.written.numbers["bits"]  # doctest: +SKIP
    """
    if not isinstance(model, str | Path):
        raise StudyError(f"model is {shown(model)}; give the name or the folder of a model")
    bound = required(bound_of(accept, max_bits, max_size))
    if is_run(model):
        return go_on(
            Path(model),
            Path(model if output_dir is None else output_dir),
            bound,
            palette=palette,
            serve_on=serve_on,
            engine=engine_of(engine, palette),
            progress=progress,
            options=options,
        )
    if output_dir is None:
        raise StudyError("output_dir is missing; give a folder for the studies and recipe.yaml")
    if "formats" not in options:
        options["formats"] = default_formats(engine, serve_on)
    text = options.get("text")
    texts = None if text is None else parse_domains(str(text))
    if texts is not None:
        options["text"] = str(next(iter(texts.values())))
    return begin(
        Study.build(model=str(model), **options),
        Path(output_dir),
        bound,
        texts=texts,
        palette=palette,
        serve_on=serve_on,
        engine=engine,
        progress=progress,
    )
