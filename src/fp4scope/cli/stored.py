"""`fp4scope verify FILE.gguf`: what a file that people run costs, beside recipes."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fp4scope.cli.asked import Asked
from fp4scope.cli.options import listed
from fp4scope.cli.progress import Screen
from fp4scope.cli.terminal import console, in_grid, say, show
from fp4scope.cli.verify import estimate_cell
from fp4scope.conductor.stored import Row, beside_recipes, bits_of_file, require_pair
from fp4scope.conductor.tasks import recipes_of
from fp4scope.conductor.triage import windows_of_text
from fp4scope.errors import StudyError
from fp4scope.files import replace_file
from fp4scope.models import load_model
from fp4scope.report.section import Cell, Column, Section, naming
from fp4scope.study import Study
from fp4scope.tasks import FULL, parse_recipes

BESIDE = "nvfp4,nvfp4/w4a16,q8_0,q4_0"
"""What stands beside a file where nothing is named."""


def print_stored(
    file: Path,
    model: str | None,
    asked: Asked,
    options: Mapping[str, Any],
    candidates: str | None,
    *,
    out: Path | None = None,
    quiet: bool = False,
) -> None:
    """Measure a GGUF file and recipes against the original, and print them.

    Args:
        file: The GGUF file.
        model: The original.
        asked: What was served; nothing may be.
        options: Of the study: the text, windows, device and dtype.
        candidates: Recipes that stand beside it, by commas.
        out: A file for machines.
        quiet: Whether no progress is shown.
    """
    asked.require(out)
    if model is None:
        raise StudyError(
            f"{file} names no original; give the checkpoint that it was made from: --original MODEL"
        )
    if asked.anything:
        raise StudyError(
            f"{file} is a GGUF file, of which no engine gives log-probabilities of prompts here; "
            "leave --served, --server and --ids out"
        )
    recipes = parse_recipes(listed([candidates or BESIDE]))
    study = Study.build(**{"model": model, **options})
    numerics = {"device": study.numerics.device, "dtype": study.numerics.dtype.value}
    with Screen(quiet) as progress:
        ids = torch.as_tensor(windows_of_text(study, model))
        original = load_model(model, **numerics)
        stored = load_model(str(file), **numerics)
        require_pair(original, stored)
        chosen = recipes_of(recipes, original.layout.sites)
        del chosen[FULL]
        rows = beside_recipes(original, stored, bits_of_file(file), chosen, ids, progress)
    screen = console()
    say(screen, f"{stored.name}: {stored.prior_quantization or 'no quantized tensor'}")
    say(screen, f"{original.name}: {len(ids)} windows of {ids.shape[1]} tokens")
    screen.print()
    show(screen, in_grid(_section(rows)))
    screen.print()
    say(
        screen,
        "The file is measured as it is, its embeddings and head too; recipes quantize the linears "
        "of the blocks. Its activations have 16 bits here, and 8 in llama.cpp.",
        style="dim",
    )
    if out is not None:
        content = {
            "version": 1,
            "stored": stored.prior_quantization,
            "rows": list(map(_data, rows)),
        }
        replace_file(out, json.dumps(content, allow_nan=False).encode(), "choose another file")


def _section(rows: list[Row]) -> Section:
    columns = [
        naming("File or recipe"),
        Column("Bits", "Bits"),
        Column("Costs, millinats", "Costs, mnat"),
        Column("KL, millinats", "KL, mnat"),
        Column("Same top token", "Same top"),
        Column("More than the file, millinats", "More than the file"),
    ]
    return Section(
        "Beside the original",
        columns,
        [
            [
                Cell(row.name),
                Cell(f"{row.bits:.2f}", value=row.bits),
                estimate_cell(row.nll),
                estimate_cell(row.kl),
                Cell(f"{row.top1:.1%}", value=row.top1),
                Cell() if row.more is None else estimate_cell(row.more),
            ]
            for row in rows
        ],
    )


def _data(row: Row) -> dict[str, Any]:
    more = {} if row.more is None else row.more.columns("more_than_file_nats")
    costs = row.nll.columns("cost_nats") | row.kl.columns("kl_nats")
    return {"name": row.name, "bits": row.bits, "top1": row.top1, **costs, **more}
