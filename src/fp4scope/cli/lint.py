"""`fp4scope lint`: what is wrong with a quantization configuration."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fp4scope.cli.output import STDOUT, require_json, write_json
from fp4scope.cli.terminal import console, say
from fp4scope.deploy.configs import Config, read_config
from fp4scope.deploy.engines import ENGINES
from fp4scope.deploy.linears import config_of, linears_of, model_linears, stored_tensors
from fp4scope.deploy.lint import Finding, coverage, lint
from fp4scope.deploy.lint_scales import lint_scales
from fp4scope.errors import ModelError, StudyError
from fp4scope.files import named, refusing
from fp4scope.recipes import Sites
from fp4scope.study.given import Given


def print_lint(config: str, model: str | None, engine: str, json: Path | None) -> bool:
    """Lint, print, and write.

    Args:
        config: A file, a folder with one, or a model of the Hub.
        model: Where its model is; the configuration's own folder by default.
        engine: One of `ENGINES`, or `any`.
        json: A file for machines.

    Returns:
        Whether there are errors.

    Raises:
        StudyError: The configuration or the engine is not known.
        ModelError: The model cannot be reached.
    """
    require_json(json)
    path = Path(config).expanduser()
    with refusing(f"cannot read {named(config)}", StudyError):
        folder = path if path.is_dir() else path.parent
        data = config_of(path) if path.is_dir() else Given.read(path).data
    if data is None:
        raise StudyError(f"{named(path)} says nothing of a quantization; give its config.json")
    read = read_config(data)
    tensors = stored_tensors(folder) if model is None or path.is_dir() else {}
    if model is None and not path.exists():
        model = config  # of the Hub
    linears = linears_of(tensors) if tensors else model_linears(model or _model_in(folder))
    if not len(linears):
        raise ModelError(f"{model or named(folder)} has no linears that are known; give MODEL")
    found = [*lint(read, linears, engine), *lint_scales(read, linears, tensors)]
    if json is not None:
        write_json(json, _data(read, linears, engine, found))
    if json != STDOUT:
        _print(read, linears, engine, found)
    return any(finding.error for finding in found)


def _model_in(folder: Path) -> str:
    if not (folder / "config.json").is_file():
        raise StudyError(f"{named(folder)} holds no model; give MODEL after the configuration")
    return str(folder)


def _print(config: Config, linears: Sites, engine: str, found: Sequence[Finding]) -> None:
    from rich.table import Table

    screen = console()
    table = Table("projection", "format", "linears", "parameters", box=None)
    for projection, form, count, share in coverage(config, linears, engine):
        table.add_row(projection, form, str(count), f"{share:.1%}")
    screen.print(table)
    for finding in found:
        where = ", ".join(ENGINES[e].split(" ")[0] for e in finding.engines)
        kind = "error" if finding.error else "warning"
        say(screen, f"{kind} [{finding.check}]{where and f' in {where}'}: {finding.text}")
        if finding.rule:
            say(screen, f"    rule: {finding.rule}")
        if finding.names:
            more = f" and {len(finding.names) - 3} more" if len(finding.names) > 3 else ""
            say(screen, f"    linears: {', '.join(finding.names[:3])}{more}")
        say(screen, f"    instead: {finding.advice}")
    errors = sum(finding.error for finding in found)
    say(screen, f"{errors} errors, {len(found) - errors} warnings ({config.dialect})")


def _data(config: Config, linears: Sites, engine: str, found: Sequence[Finding]) -> dict[str, Any]:
    keys = ("projection", "format", "linears", "share")
    rows = coverage(config, linears, engine)
    return {
        "version": 1,
        "dialect": config.dialect,
        "engine": engine,
        "findings": [finding.to_json() for finding in found],
        "coverage": [dict(zip(keys, row, strict=True)) for row in rows],
    }
