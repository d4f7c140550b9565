"""`fp4scope`: the commands and their options.

Heavy modules are imported inside the commands, so that `--help` answers at once.
"""

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from fp4scope.cli.streams import Watched, watched_streams
from fp4scope.errors import Fp4ScopeError, StudyError
from fp4scope.names import visible

app = typer.Typer(
    help="Which parts of a language model MXFP4 and NVFP4 break, by how much, with error bars.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Out = Annotated[
    Path | None, typer.Option("-o", "--out", help="Folder for the results (fp4scope-MODEL).")
]
Formats = Annotated[str | None, typer.Option(help="Such as mxfp4:floor,mxfp4:rceil,nvfp4.")]
TextFile = Annotated[Path | None, typer.Option(help="Evaluation text: a UTF-8 file.")]
Dataset = Annotated[str | None, typer.Option(help="wikitext2 (default) or pydoc-topics.")]
SeqLen = Annotated[int | None, typer.Option(help="Tokens in a window (2048).")]
Device = Annotated[str | None, typer.Option(help="A torch device (CUDA if there is one).")]
Dtype = Annotated[
    str | None,
    typer.Option(
        help="float32, bfloat16, float16 or fp32, bf16, fp16 (the checkpoint's; on CPU float32)."
    ),
]
CalibrationText = Annotated[Path | None, typer.Option(help="A UTF-8 file that is not evaluated.")]
CalibrationWindows = Annotated[
    str | None, typer.Option(help="At most so many (auto: as much as is evaluated, 8 to 256).")
]
CalibrationSeqLen = Annotated[int | None, typer.Option(help="Tokens in each (512).")]
Config = Annotated[Path | None, typer.Option(help="A study.yaml; options given here win.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id.")]
Bos = Annotated[str | None, typer.Option(help="BOS before every window: auto, yes or no.")]
Remote = Annotated[bool | None, typer.Option("--trust-remote-code", help="Run the model's code.")]
Pickle = Annotated[bool | None, typer.Option("--allow-pickle", help="Load pickled weights.")]
StopWhen = Annotated[
    str | None,
    typer.Option(help="A time (10m), half-width=2mnat, or best=10,within=3mnat,error=5%."),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(
        help="Linears left in full precision: a pattern or re:REGEX. Repeatable; none: no defaults."
    ),
]
Partial = Annotated[
    bool | None, typer.Option("--allow-partial", help="Go on when under 95% can be quantized.")
]


@app.command()
def run(
    model: Annotated[
        str | None, typer.Argument(help="Hub id, local folder or GGUF file.", show_default=False)
    ] = None,
    out: Out = None,
    preset: Annotated[
        str | None, typer.Option(help="paper: the study of arXiv 2603.08747; options given win.")
    ] = None,
    formats: Formats = None,
    sweep: Annotated[
        str | None,
        typer.Option(help="Of components,blocks,cells; also cells:isolate (components,cells)."),
    ] = None,
    cells: Annotated[
        str | None, typer.Option(help="Only cells of these linears, as down_proj,*.0.* (all).")
    ] = None,
    direction: Annotated[
        str | None, typer.Option(help="Of restore,isolate, also called keep,only (both).")
    ] = None,
    pattern: Annotated[
        list[str] | None, typer.Option(help="One more unit: linears by name, as '*.0.mlp.*'.")
    ] = None,
    operands: Annotated[
        str | None,
        typer.Option(help="Of weights+activations,weights,activations (weights+activations)."),
    ] = None,
    baselines: Annotated[
        str | None,
        typer.Option(help="More whole-model costs, as mxfp4:even,nvfp4/weights (none)."),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(help="Of exact,gradient: measured, estimated to first order (exact)."),
    ] = None,
    text: TextFile = None,
    dataset: Dataset = None,
    seq_len: SeqLen = None,
    windows: Annotated[int | None, typer.Option(help="The first N of the text (all).")] = None,
    bos: Bos = None,
    activation_scale: Annotated[
        str | None, typer.Option(help="NVFP4's: calibrated, or dynamic for each window.")
    ] = None,
    calibration_text: CalibrationText = None,
    calibration_windows: CalibrationWindows = None,
    calibration_seq_len: CalibrationSeqLen = None,
    replicas: Annotated[
        int | None, typer.Option(help="Realisations of every variant, one ulp apart (1).")
    ] = None,
    jitter: Annotated[
        str | None, typer.Option(help="More realisations of reference and baselines (auto).")
    ] = None,
    memory: Annotated[
        str | None, typer.Option(help="To take beside the model, such as 8GB (what is free).")
    ] = None,
    offload: Annotated[
        str | None, typer.Option(help="Blocks in host memory: auto, yes or no (auto).")
    ] = None,
    stop_when: StopWhen = None,
    device: Device = None,
    dtype: Dtype = None,
    seed: Annotated[int | None, typer.Option(help="Order in which windows are measured.")] = None,
    revision: Revision = None,
    exclude: Exclude = None,
    allow_partial: Partial = None,
    trust_remote_code: Remote = None,
    allow_pickle: Pickle = None,
    config: Config = None,
) -> None:
    """Diagnose a model: baselines, components, cells, activations. A rerun goes on."""
    options = {k: v for k, v in locals().items() if k not in ("out", "config", "pattern")}
    study = _study(options | {"patterns": pattern or None}, config)
    _diagnose(study, out or Path(f"fp4scope-{_slug(study.model.name)}"))


def _options_of(command: Callable[..., None], *, but: str) -> Callable[[Any], Any]:
    """Give a command that takes `**options` the options of another, without one."""

    def decorate(function: Any) -> Any:  # noqa: ANN401
        parameters = inspect.signature(command).parameters
        kept = [parameter for name, parameter in parameters.items() if name != but]
        function.__signature__ = inspect.Signature(kept)
        function.__annotations__ = {p.name: p.annotation for p in kept}
        return function

    return decorate


@app.command()
@_options_of(run, but="out")
def plan(**options: Any) -> None:  # noqa: ANN401
    """What a run with these options would take and reach: variants, memory, time, intervals."""
    from fp4scope.cli.plan import print_plan
    from fp4scope.preflight import check

    config, patterns = options.pop("config"), options.pop("pattern")
    with _stoppable("nothing was written"):
        study = _study(options | {"patterns": patterns or None}, config)
        check(study)
        print_plan(study)


@app.command()
def demo(
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Folder for the results (fp4scope-demo).")
    ] = None,
    from_hub: Annotated[
        bool, typer.Option(help="Take the original model from the hub instead of the wheel.")
    ] = False,
) -> None:
    """Diagnose a real 135M model in a few minutes on a laptop, without a network."""
    from fp4scope.cli.demo import INTRODUCTION, demo_study
    from fp4scope.cli.terminal import console, say

    say(console(stderr=True), INTRODUCTION)
    _diagnose(demo_study(from_hub), out or Path("fp4scope-demo"))


@app.command()
def stats(
    model: Annotated[str, typer.Argument(help="Hub id, local folder or GGUF file.")],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="A CSV file to write.")] = None,
    text: Annotated[Path | None, typer.Option(help="A UTF-8 file (else --dataset).")] = None,
    dataset: Dataset = None,
    windows: Annotated[int, typer.Option(min=1, help="At most this many.")] = 64,
    seq_len: Annotated[int, typer.Option(help="Tokens in each.")] = 512,
    bos: Bos = None,
    device: Device = None,
    dtype: Dtype = None,
    revision: Revision = None,
    exclude: Exclude = None,
    allow_partial: Partial = None,
    trust_remote_code: Remote = None,
    allow_pickle: Pickle = None,
) -> None:
    """Activation outliers: max, P99.9 and their ratio for every linear's input."""
    from fp4scope.cli.stats import print_statistics
    from fp4scope.paths import require_writable
    from fp4scope.preflight import check

    parameters = inspect.signature(stats).parameters
    given = {k: v for k, v in locals().items() if k in parameters and k not in ("out", "windows")}
    with _stoppable("nothing was written"):
        study = _study(given)
        check(study)
        if out is not None:
            require_writable(out)
        print_statistics(study, windows, out)


@app.command()
def report(
    out: Annotated[Path, typer.Argument(help="A folder with results, as `run` leaves it.")],
    figures: Annotated[
        bool, typer.Option("--figures", help="Also each of the paper's figures, as PDF and SVG.")
    ] = False,
) -> None:
    """Write report.html, a page complete in itself, from results alone."""
    from fp4scope.diagnosis import load
    from fp4scope.report import write_report

    with _stoppable("the results are as they were"):
        for path in write_report(load(out), out, with_figures=figures):
            print(visible(str(path)))


@app.command()
def compare(
    outputs: Annotated[
        list[Path] | None,
        typer.Argument(help="Folders of runs; others are held to the first.", show_default=False),
    ] = None,
    fail_if: Annotated[
        list[str] | None,
        typer.Option(
            help="Exit with 1 if it holds for an output after the first: 'cost(nvfp4) > 40', "
            "'change.low > 0' (millinats), beyond-noise. Repeatable."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="A Markdown file.")] = None,
    json: Annotated[Path | None, typer.Option(help="A JSON file.")] = None,
) -> None:
    """Several outputs side by side: sizes, formats, checkpoints; what changed beyond noise."""
    from fp4scope.cli.compare import print_comparison

    with _stoppable("nothing was written"):
        failed = print_comparison(outputs or [], fail_if or [], out, json)
    for line in failed:
        _complain(f"fail-if {line}")
    if failed:
        raise typer.Exit(1)


@app.command()
def formats() -> None:
    """The number formats: grid, block, scale, effective bits, rule."""
    from fp4scope.cli.tables import print_formats

    print_formats()


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        from fp4scope import __version__

        print(f"fp4scope {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line. Our own errors become one message on stderr and exit code 2."""
    with watched_streams() as stdout:
        code = _exit_code(stdout)
        failed = stdout and stdout.failed
        if failed and not isinstance(failed, BrokenPipeError):
            print(f"fp4scope: cannot write to stdout: {failed.strerror}", file=sys.stderr)
    sys.exit(code or (1 if failed else 0))


def _exit_code(stdout: Watched | None) -> int | str | None:
    try:
        app()
        if stdout is not None:
            stdout.flush()
    except SystemExit as stop:
        return stop.code
    except Fp4ScopeError as error:
        _complain(str(error))
        return 2
    except OSError as error:
        if stdout is None or error is not stdout.failed:
            raise
    return 0


def _study(options: dict[str, Any], config: Path | None = None) -> Any:  # noqa: ANN401
    from fp4scope.study import Study, read_options

    given = {name: value for name, value in options.items() if value not in (None, [])}
    known = read_options(config) if config is not None else {}
    # A text given here replaces whichever way the file names one.
    if "text" in given or "dataset" in given:
        known = {k: v for k, v in known.items() if k not in ("text", "dataset")}
    merged = known | given
    if not merged.get("model"):
        raise StudyError("which model? give a hub id, a local folder or a GGUF file, or --config")
    return Study.build(**merged)


def _diagnose(study: Any, folder: Path) -> None:  # noqa: ANN401
    from fp4scope.cli.progress import Screen
    from fp4scope.cli.tables import print_diagnosis
    from fp4scope.preflight import check

    kept = f"what was measured is kept in {folder}; repeat the same command to go on"
    with _stoppable(kept), Screen() as screen:
        check(study, folder)
        screen.note("loading torch and the model ...")
        from fp4scope.conductor import run_study

        diagnosis = run_study(study, output_dir=folder, progress=screen)
    print_diagnosis(diagnosis)


@contextmanager
def _stoppable(advice: str) -> Iterator[None]:
    """Ctrl-C ends the command with one line of advice."""
    try:
        yield
    except KeyboardInterrupt:
        _complain(f"stopped; {advice}")
        sys.exit(2)


def _complain(text: str) -> None:
    """One message on stderr."""
    from fp4scope.cli.terminal import console, say

    say(console(stderr=True), f"fp4scope: {text}")


def _slug(model: str) -> str:
    """The last part of a model's name, without `.gguf`, safe as a folder's name."""
    name = model.rstrip("/").rpartition("/")[2].removesuffix(".gguf")
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in name) or "model"
