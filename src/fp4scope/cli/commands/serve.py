"""From a recipe to checkpoints, and whether what is served is what was predicted."""

import sys
from pathlib import Path
from typing import Any

import click

from fp4scope.cli.given import given_of, slug, study_from
from fp4scope.cli.options import (
    NUMBER,
    PATH,
    Argument,
    Option,
    command,
    json_option,
    model_argument,
    out_option,
    quiet_option,
    study_options,
)
from fp4scope.cli.stopped import stoppable
from fp4scope.errors import StudyError

_VERIFY = ("text", "dataset", "seq_len", "windows", "bos", "dtype", "device")
_VERIFY_SIZE = {"seq_len": 512, "windows": 16}
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
    study = study_from(_SMOOTH_SIZE | given_of(options))
    folder = out or Path(f"fp4scope-{slug(study)}-smooth")
    with stoppable("nothing was written"):
        from fp4scope.cli.smooth import print_smooth

        print_smooth(study, folder, quiet)


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

    with stoppable("nothing was written"):
        print_export(recipe, to, checkpoint, out, model)


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
            type=NUMBER,
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
    with stoppable("nothing was written"):
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
        given = _VERIFY_SIZE | given_of(options)
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

    with stoppable("nothing was written"):
        if print_lint(config, model, engine, json):
            sys.exit(1)
