"""`fp4scope`: the commands and their options.

Heavy modules are imported inside the commands, so that `--help` answers at once.
"""

import logging
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fp4scope.cli.options import (
    PATH,
    Argument,
    Option,
    command,
    json_option,
    listed,
    model_argument,
    open_option,
    out_option,
    output_options,
    quiet_option,
    study_options,
    whole_study,
)
from fp4scope.cli.streams import Watched, watched_streams
from fp4scope.errors import Fp4ScopeError, StudyError
from fp4scope.names import visible

if TYPE_CHECKING:
    from fp4scope.cli.output import Wanted

_STATISTICS = (
    "revision", "exclude", "text", "dataset", "seq_len", "windows", "bos", "dtype", "device",
    "allow_partial", "trust_remote_code", "allow_pickle",
)  # fmt: skip
_PALETTE = {"formats": "nvfp4,fp8"}
"""What every engine loads layer by layer, beside full precision."""
_STATISTICS_SIZE = {"seq_len": 512, "windows": 64}
_NUMBER, _POSITIVE = click.IntRange(min=0), click.IntRange(min=1)


def _accept(help: str) -> Option:
    """A bar on what quantizing costs."""
    more = "'ppl<2%', 'mnat<20', 'kl<0.02', 'top1>95%'; repeatable"
    return Option(["--accept"], multiple=True, metavar="BAR", help=f"{help}: {more}")


@command(
    lambda: [
        model_argument(required=False),
        *output_options("Folder for the results  [default: fp4scope-MODEL]"),
        _accept("Whether whole models meet it"),
        *whole_study(),
    ],
    "Qwen/Qwen2.5-0.5B -o out",
    "./model --text my.txt --windows 64 --formats nvfp4,mxfp4:even",
    "model.gguf --sweep projections --direction keep",
    "./model --text prose=a.txt,code=b.py,chat=c.jsonl -o out",
    "./model --sweep '' --keep 're:.*[qkv]_proj' --keep '*.23.mlp.*'",
    "./model --method designed --formats nvfp4,fp8 -o out/choose",
    "./model --preset paper",
)
def run(config: Path | None, accept: tuple[str, ...], **options: Any) -> None:  # noqa: ANN401
    """Diagnose a model: formats, projections, layers, activations. A rerun goes on."""
    wanted = _wanted(options)
    if (domains := _domains(options.get("text"))) is not None:
        study = _study(options | {"text": str(next(iter(domains.values())))}, config)
        _diagnose_domains(study, domains, wanted, accept)
        return
    study = _study(options, config)
    _diagnose(study, wanted, Path(f"fp4scope-{_slug(study.model.name)}"), accept)


@command(
    lambda: [
        model_argument(required=False),
        json_option("The forecast, as JSON"),
        quiet_option("No progress"),
        *whole_study(),
    ],
    "Qwen/Qwen2.5-0.5B",
    "Qwen/Qwen3-30B-A3B --random-weights",
)
def plan(config: Path | None, json: Path | None, quiet: bool, **options: Any) -> None:  # noqa: ANN401
    """What such a run would take and reach: memory, time, intervals."""
    from fp4scope.cli.output import require_json
    from fp4scope.preflight import check

    with _stoppable("nothing was written"):
        study = _study(options, config)
        require_json(json)
        check(study)
        from fp4scope.cli.plan import print_plan

        print_plan(study, json, quiet)


@command(
    lambda: [
        *output_options("Folder for the results  [default: fp4scope-demo]"),
        Option(
            ["--from-hub"],
            is_flag=True,
            help="Take the original model from the hub instead of the wheel",
        ),
    ],
    "",
    "--open",
)
def demo(from_hub: bool, **options: Any) -> None:  # noqa: ANN401
    """Diagnose a real 135M model on a laptop, without a network."""
    from fp4scope.cli.demo import INTRODUCTION, demo_study
    from fp4scope.cli.terminal import console, say

    wanted = _wanted(options)
    if not wanted.quiet:
        say(console(stderr=True), INTRODUCTION)
    _diagnose(demo_study(from_hub), wanted, Path("fp4scope-demo"))


@command(
    lambda: [
        model_argument(required=True),
        out_option("A CSV file to write"),
        *study_options(*_STATISTICS, **_STATISTICS_SIZE),
    ],
    "./model --text my.txt -o outliers.csv",
)
def stats(out: Path | None, **options: Any) -> None:  # noqa: ANN401
    """Activation outliers of every linear: max, P99.9, their ratio."""
    from fp4scope.files import require_writable
    from fp4scope.preflight import check

    with _stoppable("nothing was written"):
        study = _study(_STATISTICS_SIZE | _given(options))
        check(study)
        if out is not None:
            require_writable(out)
        from fp4scope.cli.stats import print_statistics

        print_statistics(study, out)


@command(
    lambda: [
        Argument(["out"], type=PATH, help="A folder with results, as `run` leaves it"),
        Option(["--figures"], is_flag=True, help="Also the paper's figures, each as PDF and SVG"),
        Option(["--card"], is_flag=True, help="Also card.md, lines to paste into a model card"),
        _accept("Whether whole models meet it, in place of the run's own bar"),
        open_option(),
    ],
    "out --open",
    "out --figures",
    "out --card",
)
def report(out: Path, figures: bool, card: bool, accept: tuple[str, ...], open: bool) -> None:
    """Write report.html, a page by itself, from results."""
    from fp4scope.cli.output import open_page
    from fp4scope.deploy.bar import parse_bar
    from fp4scope.diagnosis import load
    from fp4scope.report import write_report
    from fp4scope.report.card import write_card

    with _stoppable("the results are as they were"):
        bars = [parse_bar(text).text for text in accept]
        found = load(out)
        if bars:
            found.results.protocol["accept"] = bars
        written = write_report(found, out, with_figures=figures)
        for path in [*written, write_card(found, out)] if card else written:
            print(visible(str(path)))
    if open:
        open_page(out)


@command(
    lambda: [
        Argument(
            ["outputs"], nargs=-1, type=PATH, help="Folders of runs; others are held to the first"
        ),
        Option(
            ["--fail-if"],
            multiple=True,
            metavar="CONDITION",
            help="Exit with 1 if it holds for an output after the first: 'cost(nvfp4) > 40', "
            "'change.low > 0' (millinats), beyond-noise; repeatable",
        ),
        out_option("A Markdown file, or a page where it ends in .html"),
        json_option("The comparison, as JSON"),
    ],
    "out/0.5b out/1.5b out/7b -o sizes.md",
    "out/main out/pr --fail-if 'cost(nvfp4) > 40'",
)
def compare(
    outputs: tuple[Path, ...], fail_if: tuple[str, ...], out: Path | None, json: Path | None
) -> None:
    """Runs side by side: sizes, formats, checkpoints, what changed."""
    from fp4scope.cli.compare import print_comparison

    with _stoppable("nothing was written"):
        failed = print_comparison(list(outputs), list(fail_if), out, json)
    for line in failed:
        _complain(f"fail-if {line}")
    if failed:
        sys.exit(1)


@command(
    lambda: [
        Argument(["out"], type=PATH, help="A folder with results of a run with --causes"),
        Argument(["unit"], required=False, help="A projection, or a layer such as 3.down_proj"),
    ],
    "out down_proj",
)
def explain(out: Path, unit: str | None) -> None:
    """Why a projection or layer costs what it does."""
    from fp4scope.cli.explain import print_explanation

    with _stoppable("the results are as they were"):
        print_explanation(out, unit)


@command(
    lambda: [
        Argument(["out"], type=PATH, help="A folder with results, as `run` leaves it"),
        *_bounds(),
        Option(
            ["--measured"],
            metavar="NAME",
            help="Choose nothing: write this recipe, which the run measured (run --recipe), so "
            "that it can be exported",
        ),
        out_option("The recipe's file  [default: OUT/recipe.yaml]", name="path"),
    ],
    "out/choose --accept 'ppl<2%'",
    "out/choose --max-size 400MB --palette nvfp4,bf16",
    "out/mine --measured mine -o mine.yaml",
)
def recipe(out: Path, path: Path | None, measured: str | None, **options: Any) -> None:  # noqa: ANN401
    """Decide from a run what each linear gets."""
    from fp4scope.cli.recipe import print_measured, print_recipe
    from fp4scope.files import require_writable

    with _stoppable("nothing was written"):
        if path is not None:
            require_writable(path)
        if measured is not None:
            if given := [name for name, value in options.items() if value]:
                raise StudyError(
                    f"--measured chooses nothing, so --{given[0].replace('_', '-')} does not go "
                    "with it"
                )
            print_measured(out, measured, path)
            return
        print_recipe(out, out=path, **options)


@command(
    lambda: [
        Argument(
            ["model"],
            required=False,
            help="Hub id, local folder or GGUF file; or OUT, a folder of `run` or `recommend`",
        ),
        out_option("Folder for the studies and recipe.yaml  [default: OUT, or fp4scope-MODEL]"),
        quiet_option("No progress"),
        *_bounds(),
        *whole_study(**_PALETTE),
    ],
    "Qwen/Qwen2.5-0.5B --accept 'ppl<2%' -o out/qwen05",
)
def recommend(
    out: Path | None,
    quiet: bool,
    config: Path | None,
    model: str | None,
    accept: tuple[str, ...],
    max_bits: float | None,
    max_size: str | None,
    palette: str | None,
    engine: str | None,
    serve_on: str | None,
    **options: Any,  # noqa: ANN401
) -> None:
    """Choose a recipe, and measure it on other text."""
    from fp4scope.cli.exits import leave
    from fp4scope.cli.recommend import print_going_on, print_recommendation
    from fp4scope.deploy.bound import bound_of, required
    from fp4scope.deploy.palette import default_formats
    from fp4scope.study import is_run

    bound = required(bound_of(accept, max_bits, max_size))
    choice = {"palette": palette, "engine": engine, "serve_on": serve_on}
    kept = "what was measured is kept in {}; repeat the same command to go on"
    if model is not None and config is None and is_run(model):
        folder = out or Path(model)
        with _stoppable(kept.format(folder)):
            given = _given(options)
            found = print_going_on(Path(model), folder, bound, given, quiet=quiet, **choice)
    else:
        own = {} if config else {"formats": default_formats(engine, serve_on)}
        domains = _domains(options.get("text"))
        if domains is not None:
            options["text"] = str(next(iter(domains.values())))
        study = _study(own | _given({"model": model} | options), config)
        folder = out or Path(f"fp4scope-{_slug(study.model.name)}")
        with _stoppable(kept.format(folder)):
            found = print_recommendation(study, folder, bound, texts=domains, quiet=quiet, **choice)
    leave(found)


def _bounds() -> list[click.Parameter]:
    """What a recipe may cost or store, and what it may choose from."""
    return [
        Option(
            ["--accept"],
            multiple=True,
            metavar="BAR",
            help="The smallest recipe that is predicted to meet it: 'ppl<2%', 'mnat<20', "
            "'kl<0.02'; repeatable",
        ),
        Option(
            ["--max-bits"],
            type=float,
            metavar="N",
            help="The best recipe with at most so many bits for each weight of the linears",
        ),
        Option(["--max-size"], metavar="SIZE", help="The best recipe of such a checkpoint: 4GB"),
        Option(
            ["--palette"],
            metavar="FORMATS",
            help="What to choose from, e.g. nvfp4,fp8,bf16  [default: what was measured and the "
            "engine loads, and full precision]",
        ),
        Option(
            ["--engine"],
            type=click.Choice(["vllm", "sglang", "trtllm", "any"]),
            help="What has to load every layer as it is chosen  [default: any, without --palette]",
        ),
        Option(
            ["--serve-on"],
            metavar="sm90",
            help="A GPU on which engines serve FP4 weight-only; then W4A16 is chosen from",
        ),
    ]


@command(
    lambda: [
        Argument(["recipe"], type=PATH, help="A recipe.yaml, as `recipe` writes it"),
        Option(
            ["--to"],
            required=True,
            type=click.Choice(["compressed-tensors", "modelopt", "vllm-online", "llm-compressor"]),
            help="The program that reads it",
        ),
        Option(
            ["--checkpoint"],
            type=PATH,
            metavar="DIR",
            help="Write a packed checkpoint there (compressed-tensors and modelopt)",
        ),
        out_option("A file for the configuration  [default: shown]"),
        Option(
            ["--model"],
            metavar="MODEL",
            help="Where the recipe's model is: hub id, local folder or GGUF file",
        ),
    ],
    "recipe.yaml --to compressed-tensors --checkpoint model-fp4",
    "recipe.yaml --to vllm-online -o online.json",
)
def export(
    recipe: Path, to: str, checkpoint: Path | None, out: Path | None, model: str | None
) -> None:
    """Write a recipe as engines load it, or a packed checkpoint."""
    from fp4scope.cli.export import print_export

    with _stoppable("nothing was written"):
        print_export(recipe, to, checkpoint, out, model)


_VERIFY = ("text", "dataset", "seq_len", "windows", "bos", "dtype", "device")
_VERIFY_SIZE = {"seq_len": 512, "windows": 16}


@command(
    lambda: [
        Argument(
            ["checkpoint"],
            type=PATH,
            required=False,
            help="A folder of `export` or of another program, or a GGUF file; without it, "
            "--candidates are tried",
        ),
        Option(
            ["--original", "--model", "model"],
            metavar="MODEL",
            help="The model in full precision  [default: where the checkpoint's recipe says]",
        ),
        Option(
            ["--served"],
            type=PATH,
            metavar="FILE",
            help="Log-probabilities of tokens that an engine served (docs/recipes.md)",
        ),
        Option(
            ["--server"],
            metavar="URL",
            help="Ask an OpenAI-compatible server that gives log-probabilities of prompts",
        ),
        Option(
            ["--served-model"],
            metavar="NAME",
            help="What the server calls the model  [default: the first that it lists]",
        ),
        Option(
            ["--top-logprobs", "top"],
            type=_NUMBER,
            default=0,
            metavar="N",
            help="Also ask for the N likeliest tokens, which bound KL from below  [default: 0]",
        ),
        Option(
            ["--candidates"],
            metavar="RECIPES",
            help="What may be served, without a checkpoint, or stands beside a GGUF file: formats "
            "as nvfp4/w4a16, files of recipes; by commas  [default: fp8, nvfp4 and mxfp4:even, "
            "these also w4a16]",
        ),
        Option(
            ["--ids", "ids_out"],
            type=PATH,
            metavar="FILE",
            help="Only write the windows of token ids that are to be served",
        ),
        Option(
            ["--reference"],
            type=PATH,
            metavar="FILE",
            help="The original as the same engine serves it  [default: as its forward here gives]",
        ),
        Option(["--save"], type=PATH, metavar="FILE", help="Keep what a server gave"),
        out_option("A JSON file for the verdict"),
        quiet_option("No progress"),
        *study_options(*_VERIFY, **_VERIFY_SIZE),
    ],
    "model-fp4 --server http://localhost:8000",
    "model-fp4 --ids ids.json --text my.txt",
    "their-nvfp4 --original ./model --served served.json",
    "--original ./model --server http://localhost:8000",
)
def verify(
    checkpoint: Path | None,
    model: str | None,
    candidates: str | None,
    served: Path | None,
    server: str | None,
    served_model: str | None,
    top: int,
    ids_out: Path | None,
    reference: Path | None,
    save: Path | None,
    out: Path | None,
    quiet: bool,
    **options: Any,  # noqa: ANN401
) -> None:
    """Is served what was predicted, and whose fault if not.

    Exits with 1 where it is not, and with 3 where so many windows cannot tell.
    """
    with _stoppable("nothing was written"):
        if checkpoint is None and model is None:
            raise StudyError("give a checkpoint, or the model that may be served: --original MODEL")
        file = checkpoint is not None and checkpoint.suffix.lower() == ".gguf"
        if checkpoint is not None and candidates is not None and not file:
            raise StudyError(
                f"{checkpoint} says itself what is served; leave it out to try --candidates"
            )
        from fp4scope.cli.asked import Asked
        from fp4scope.cli.exits import leave

        asked = Asked(
            served=served,
            server=server,
            served_model=served_model,
            top=top,
            reference=reference,
            ids_out=ids_out,
            save=save,
        )
        given = _VERIFY_SIZE | _given(options)
        if file and checkpoint is not None:
            from fp4scope.cli.stored import print_stored

            print_stored(checkpoint, model, asked, given, candidates, out=out, quiet=quiet)
            return
        if checkpoint is None:
            from fp4scope.cli.candidates import print_candidates

            verdict = print_candidates(model or "", asked, given, candidates, out, quiet)
        else:
            from fp4scope.cli.verify import print_verdict

            verdict = print_verdict(checkpoint, model, asked, given, out=out, quiet=quiet)
    leave(verdict)


_TASKS = (
    "revision", "exclude", "lm_head", "dataset", "calibration_text", "calibration_windows",
    "calibration_seq_len", "bos", "dtype", "device", "scales", "seed", "allow_partial",
    "trust_remote_code", "allow_pickle",
)  # fmt: skip


@command(
    lambda: [
        model_argument(required=True),
        Option(
            ["--tasks"],
            multiple=True,
            required=True,
            metavar="TASKS",
            help="Names that lm-eval knows, its configurations (.yaml), or NAME=FILE.jsonl with "
            "lines of HumanEval; by commas or repeated",
        ),
        Option(
            ["--recipes"],
            multiple=True,
            required=True,
            metavar="RECIPES",
            help="What is held against full precision: formats as nvfp4 or mxfp4:even/w4a16, and "
            "files that hold recipes; by commas or repeated",
        ),
        Option(["--limit"], type=_POSITIVE, metavar="N", help="Documents of each task at most"),
        Option(["--num-fewshot"], type=_NUMBER, metavar="N", help="Examples before each document"),
        Option(["--chat"], is_flag=True, help="Ask through the model's chat template"),
        Option(
            ["--batch-size"],
            type=_POSITIVE,
            default=1,
            metavar="N",
            help="Requests in a forward  [default: 1]",
        ),
        Option(
            ["--replicas"],
            type=_NUMBER,
            default=1,
            metavar="N",
            help="Second runs of every recipe, perturbed by one unit in the last place, which tell "
            "the noise  [default: 1]",
        ),
        Option(
            ["--problem"],
            metavar="FIELD",
            help="Documents that have this field in common are one problem  [default: by prompt]",
        ),
        Option(
            ["--run-code"],
            is_flag=True,
            help="Run programs that the model writes: in processes of their own, under limits",
        ),
        Option(
            ["--accept"],
            multiple=True,
            metavar="BAR",
            help="Whether recipes meet it, in points of a score: 'task:arc_easy<2'; repeatable",
        ),
        out_option("Folder for tasks.json and tasks.csv  [default: fp4scope-MODEL]"),
        quiet_option("No progress"),
        *study_options(*_TASKS),
    ],
    "Qwen/Qwen2.5-0.5B --tasks arc_easy --recipes nvfp4 -o out",
    "m.gguf --tasks humaneval=he.jsonl --run-code --recipes nvfp4",
)
def tasks(
    tasks: tuple[str, ...],
    recipes: tuple[str, ...],
    num_fewshot: int | None,
    out: Path | None,
    quiet: bool,
    limit: int | None,
    batch_size: int,
    chat: bool,
    replicas: int,
    problem: str | None,
    run_code: bool,
    accept: tuple[str, ...],
    **options: Any,  # noqa: ANN401
) -> None:
    """What recipes lose on tasks, through lm-eval."""
    study = _study(options)
    folder = out or Path(f"fp4scope-{_slug(study.model.name)}")
    with _stoppable(f"what was scored is kept in {folder}; repeat the same command to go on"):
        from fp4scope.cli.tasks import print_tasks
        from fp4scope.tasks import Wish

        wish = Wish(
            tasks=listed(tasks),
            recipes=listed(recipes),
            limit=limit,
            batch_size=batch_size,
            fewshot=num_fewshot,
            chat=chat,
            replicas=replicas,
            problem=problem,
            run_code=run_code,
            accept=accept,
        )
        print_tasks(study, wish, folder, quiet)


_SMOOTH = ("revision", "text", "dataset", "seq_len", "windows", "bos", "dtype", "device")
_SMOOTH_SIZE = {"seq_len": 512, "windows": 64}


@command(
    lambda: [
        model_argument(required=True),
        out_option("Folder for the new model  [default: fp4scope-MODEL-smooth]"),
        quiet_option("No progress"),
        *study_options(*_SMOOTH, **_SMOOTH_SIZE),
    ],
    "Qwen/Qwen2.5-0.5B --text calibration.txt -o qwen-smooth",
)
def smooth(out: Path | None, quiet: bool, **options: Any) -> None:  # noqa: ANN401
    """The same model by weights that are easier to quantize."""
    study = _study(_SMOOTH_SIZE | _given(options))
    folder = out or Path(f"fp4scope-{_slug(study.model.name)}-smooth")
    with _stoppable("nothing was written"):
        from fp4scope.cli.smooth import print_smooth

        print_smooth(study, folder, quiet)


@command(
    lambda: [
        Argument(["config"], help="A quantization configuration, or a checkpoint's folder"),
        Argument(["model"], required=False, help="Its model, if that is not in the same folder"),
        Option(
            ["--engine"],
            default="any",
            type=click.Choice(["vllm", "sglang", "trtllm", "any"]),
            help="What will serve it  [default: any]",
        ),
        json_option("What was found, as JSON"),
    ],
    "./model-nvfp4 --engine vllm",
    "config.json Qwen/Qwen2.5-0.5B",
)
def lint(config: str, model: str | None, engine: str, json: Path | None) -> None:
    """What is wrong with a quantization config."""
    from fp4scope.cli.lint import print_lint

    with _stoppable("nothing was written"):
        if print_lint(config, model, engine, json):
            sys.exit(1)


@command(lambda: [])
def formats() -> None:
    """The number formats: grid, block, scale, effective bits, rule."""
    from fp4scope.cli.formats import print_formats

    print_formats()


@command(
    lambda: [
        Argument(["shell"], type=click.Choice(["bash", "zsh", "fish"]), help="Your shell"),
    ],
    "bash > ~/.local/share/bash-completion/completions/fp4scope",
    "zsh > ~/.zfunc/_fp4scope",
    "fish > ~/.config/fish/completions/fp4scope.fish",
)
def completion(shell: str) -> None:
    """A script that completes commands and options in a shell."""
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    if kind is not None:
        print(kind(app, {}, "fp4scope", "_FP4SCOPE_COMPLETE").source())


class _Group(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order in which one needs them."""
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401
        """With Ctrl-C wherever it comes: click's own way has exit code 1."""
        with _stoppable("repeat the same command"):
            return super().invoke(ctx)


_COMMANDS = (
    run, plan, demo, stats, report, explain, compare, recipe, recommend, smooth, export, verify,
    tasks, lint, formats, completion,
)  # fmt: skip


@click.group(
    cls=_Group,
    commands={str(one.name): one for one in _COMMANDS},
    invoke_without_command=True,
    context_settings={
        "max_content_width": 120,
        "token_normalize_func": lambda word: word.replace("_", "-"),
    },
)
@click.version_option(
    None, "-V", "--version", package_name="fp4scope", message="%(package)s %(version)s"
)
@click.pass_context
def app(ctx: click.Context) -> None:
    """Which parts of a language model MXFP4 and NVFP4 break, by how much, with error bars."""
    if ctx.invoked_subcommand is None:
        print(ctx.get_help())


def main() -> None:
    """Run the command line. Our own errors become one message on stderr.

    Whatever ends a command before its answer has exit code 2, faults of the program too: 1 is an
    answer.
    """
    # torchao, where it is installed, tells of this at its import what only its authors can mend.
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
    with watched_streams() as stdout:
        code = _exit_code(stdout)
        failed = stdout and stdout.failed
        if failed and not isinstance(failed, BrokenPipeError):
            print(f"fp4scope: cannot write to stdout: {failed.strerror}", file=sys.stderr)
    sys.exit(2 if failed else code)


def _exit_code(stdout: Watched | None) -> int | str | None:
    try:
        app(prog_name="fp4scope")
        if stdout is not None:
            stdout.flush()
    except SystemExit as stop:
        return stop.code
    except Fp4ScopeError as error:
        _complain(str(error))
        return 2
    except Exception as error:
        if stdout is None or error is not stdout.failed:
            traceback.print_exc()
        return 2
    return 0


def _study(options: dict[str, Any], config: Path | None = None) -> Any:  # noqa: ANN401
    from fp4scope.study import Study, read_options

    given = _given(options)
    known = read_options(config) if config is not None else {}
    # A text given here replaces whichever way the file names one.
    if "text" in given or "dataset" in given:
        known = {k: v for k, v in known.items() if k not in ("text", "dataset")}
    merged = known | given
    if not merged.get("model"):
        raise StudyError("which model? give a hub id, a local folder or a GGUF file, or --config")
    return Study.build(**merged)


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """Those options that were given."""
    return {name: value for name, value in options.items() if value not in (None, ())}


def _wanted(options: dict[str, Any]) -> "Wanted":
    """What is wanted of results, taken out of the options."""
    from fp4scope.cli.output import Wanted

    return Wanted(**{name: options.pop(name) for name in ("out", "open", "json", "quiet")})


def _diagnose(
    study: Any,  # noqa: ANN401
    wanted: "Wanted",
    default: Path,
    accept: Sequence[str] = (),
) -> None:
    """Measure a study and show what was found.

    Args:
        study: It.
        wanted: Where to, and what is shown.
        default: The folder where none is given.
        accept: Bars that whole models are held to.
    """
    from fp4scope.cli.output import require_json
    from fp4scope.cli.progress import Screen
    from fp4scope.deploy.bar import parse_bar
    from fp4scope.preflight import check

    folder = wanted.out or default
    kept = f"what was measured is kept in {folder}; repeat the same command to go on"
    with _stoppable(kept), Screen(wanted.quiet) as screen:
        bars = [parse_bar(text).text for text in accept]
        require_json(wanted.json)
        check(study, folder)
        screen.note("loading torch and the model ...")
        from fp4scope.conductor import run_study

        diagnosis = run_study(study, output_dir=folder, progress=screen, accept=bars)
    wanted.show(diagnosis, folder)


def _domains(text: str | None) -> dict[str, Path] | None:
    """Texts by domain, if several are named."""
    if text is None or "=" not in text or "," not in text:
        return None
    from fp4scope.conductor.domains import parse_domains

    return parse_domains(text)


def _diagnose_domains(
    study: Any,  # noqa: ANN401
    domains: dict[str, Path],
    wanted: "Wanted",
    accept: Sequence[str],
) -> None:
    from fp4scope.cli.domains import print_domains
    from fp4scope.deploy.bar import parse_bar

    if wanted.json is not None or wanted.open:
        raise StudyError("--json and --open are of one text; several leave a report each")
    folder = wanted.out or Path(f"fp4scope-{_slug(study.model.name)}")
    with _stoppable(f"what was measured is kept in {folder}; repeat the same command to go on"):
        bars = [parse_bar(text).text for text in accept]
        print_domains(study, domains, folder, bars, wanted.quiet)


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
