"""From a model to what quantizing it costs, and what that would take."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fp4scope.cli.given import domains_of, given_of, slug, study_from
from fp4scope.cli.options import (
    Option,
    accept_option,
    command,
    json_option,
    model_argument,
    out_option,
    output_options,
    quiet_option,
    study_options,
    whole_study,
)
from fp4scope.cli.stopped import stoppable
from fp4scope.errors import StudyError

if TYPE_CHECKING:
    from fp4scope.cli.output import Wanted
    from fp4scope.study import Study

_STATISTICS = (
    "revision", "exclude", "text", "dataset", "seq_len", "windows", "bos", "dtype", "device",
    "allow_partial", "trust_remote_code", "allow_pickle",
)  # fmt: skip
_STATISTICS_SIZE = {"seq_len": 512, "windows": 64}


@command(
    lambda: [
        model_argument(required=False),
        *output_options("Folder for the results  [default: fp4scope-MODEL]"),
        accept_option("Whether whole models meet it"),
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
    if (domains := domains_of(options.get("text"))) is not None:
        study = study_from(options | {"text": str(next(iter(domains.values())))}, config)
        _diagnose_domains(study, domains, wanted, accept)
        return
    study = study_from(options, config)
    _diagnose(study, wanted, Path(f"fp4scope-{slug(study)}"), accept)


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

    with stoppable("nothing was written"):
        study = study_from(options, config)
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

    with stoppable("nothing was written"):
        study = study_from(_STATISTICS_SIZE | given_of(options))
        check(study)
        if out is not None:
            require_writable(out)
        from fp4scope.cli.stats import print_statistics

        print_statistics(study, out)


def _wanted(options: dict[str, Any]) -> "Wanted":
    """What is wanted of results, taken out of the options."""
    from fp4scope.cli.output import Wanted

    return Wanted(**{name: options.pop(name) for name in ("out", "open", "json", "quiet")})


def _diagnose(
    study: "Study",
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
    with stoppable(kept), Screen(wanted.quiet) as screen:
        bars = [parse_bar(text).text for text in accept]
        require_json(wanted.json)
        check(study, folder)
        screen.note("loading torch and the model ...")
        from fp4scope.conductor import run_study

        diagnosis = run_study(study, output_dir=folder, progress=screen, accept=bars)
    wanted.show(diagnosis, folder)


def _diagnose_domains(
    study: "Study",
    domains: dict[str, Path],
    wanted: "Wanted",
    accept: Sequence[str],
) -> None:
    from fp4scope.cli.domains import print_domains
    from fp4scope.deploy.bar import parse_bar

    if wanted.json is not None or wanted.open:
        raise StudyError("--json and --open are of one text; several leave a report each")
    folder = wanted.out or Path(f"fp4scope-{slug(study)}")
    with stoppable(f"what was measured is kept in {folder}; repeat the same command to go on"):
        bars = [parse_bar(text).text for text in accept]
        print_domains(study, domains, folder, bars, wanted.quiet)
