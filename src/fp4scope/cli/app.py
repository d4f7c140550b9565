"""`fp4scope`: its commands, and how it ends."""

import logging
import sys
import traceback
from typing import Any

import click

from fp4scope.cli.commands.decide import recipe, recommend
from fp4scope.cli.commands.measure import demo, plan, run, stats
from fp4scope.cli.commands.read import compare, explain, report
from fp4scope.cli.commands.serve import export, lint, smooth, verify
from fp4scope.cli.commands.tasks import tasks
from fp4scope.cli.options import Argument, command
from fp4scope.cli.stopped import complain, stoppable
from fp4scope.cli.streams import Watched, watched_streams
from fp4scope.errors import Fp4ScopeError


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
        with stoppable("repeat the same command"):
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
        complain(str(error))
        return 2
    except Exception as error:
        if stdout is None or error is not stdout.failed:
            traceback.print_exc()
        return 2
    return 0
