"""Options of commands, generated from the fields of a study: names, help, defaults and panels.

They are generated when a command first needs them: the list of commands answers without pydantic.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import click
from click.shell_completion import CompletionItem

from fp4scope.files import at_home


class _Path(click.Path):
    """A path, with `~` where no shell has expanded it."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:  # noqa: ANN401
        return at_home(Path(os.fsdecode(super().convert(value, param, ctx))))


PATH = _Path(path_type=Path)
"""A path that a shell completes; what is wrong with it is said later, in our own words."""
NUMBER, POSITIVE = click.IntRange(min=0), click.IntRange(min=1)
OUTPUT = "Output"
"""The panel of what a command leaves and shows."""
_COLUMN = 30
"""Characters for names of options; help of those that are longer begins in the next line."""


def listed(values: Sequence[str]) -> list[str]:
    """What stands between commas, or comes repeated.

    Example:
        >>> listed(["nvfp4, fp8", "bf16"])
        ['nvfp4', 'fp8', 'bf16']
    """
    return [word.strip() for value in values for word in value.split(",") if word.strip()]


class Argument(click.Argument):
    """An argument with a line of help."""

    panel = "Arguments"

    def __init__(self, *declared: Any, help: str, **more: Any) -> None:  # noqa: ANN401
        super().__init__(*declared, **more)
        self._help = help

    def get_help_record(self, ctx: click.Context) -> tuple[str, str]:
        return self.human_readable_name, self._help


class Option(click.Option):
    """An option in a panel of its command's help."""

    def __init__(self, *declared: Any, panel: str = "Options", **more: Any) -> None:  # noqa: ANN401
        super().__init__(*declared, **more)
        self.panel = panel


class Command(click.Command):
    """A command whose help has a panel for each kind of option.

    Args:
        function: Its name and its docstring are the command's.
        parameters: Makes its arguments and options.
        examples: What help shows last: what follows the command's name, as a user writes it.
    """

    def __init__(
        self,
        function: Callable[..., None],
        parameters: Callable[[], Iterable[click.Parameter]],
        examples: Sequence[str],
    ) -> None:
        super().__init__(function.__name__, callback=function, help=function.__doc__)
        self._parameters = parameters
        self.examples = [f"fp4scope {self.name} {example}".rstrip() for example in examples]

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Made once."""
        self.params = self.params or list(self._parameters())
        return super().get_params(ctx)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The panels in the order of their first options."""
        panels: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            if (record := parameter.get_help_record(ctx)) is not None:
                panels.setdefault(getattr(parameter, "panel", "Options"), []).append(record)
        for title, records in panels.items():
            with formatter.section(title):
                formatter.write_dl(records, col_max=_COLUMN)
        if self.examples:
            with formatter.section("Examples"):
                for example in self.examples:
                    formatter.write(f"{'':{formatter.current_indent}}{example}\n")


def command(
    parameters: Callable[[], Iterable[click.Parameter]], *examples: str
) -> Callable[[Callable[..., None]], Command]:
    """Make a command of a function, with examples for its help."""
    return lambda function: Command(function, parameters, examples)


def model_argument(*, required: bool) -> Argument:
    """The model; where it is not required, --config may name one."""
    from fp4scope.study import SECTIONS

    field = SECTIONS["model"].model_fields["name"]
    return Argument(
        ["model"],
        required=required,
        help=_sentence(field.description or ""),
        shell_complete=lambda ctx, param, word: [CompletionItem(word, type="file")],
    )


def accept_option(help: str) -> Option:
    """A bar on what quantizing costs."""
    more = "'ppl<2%', 'mnat<20', 'kl<0.02', 'top1>95%'; repeatable"
    return Option(["--accept"], multiple=True, metavar="BAR", help=f"{help}: {more}")


def out_option(help: str, name: str = "out") -> Option:
    """Where a command writes."""
    return Option(
        ["-o", "--out", "--output-path", name],
        type=PATH,
        metavar="PATH",
        help=help,
        panel=OUTPUT,
    )


def quiet_option(help: str) -> Option:
    """Less on the screen."""
    return Option(["-q", "--quiet"], is_flag=True, help=help, panel=OUTPUT)


def json_option(help: str) -> Option:
    """Something for machines."""
    return Option(["--json"], type=PATH, metavar="PATH", help=f"{help}; -: to stdout", panel=OUTPUT)


def open_option() -> Option:
    """The page at once."""
    return Option(["--open"], is_flag=True, help="Open report.html in the browser", panel=OUTPUT)


def output_options(out: str) -> Iterator[Option]:
    """What a command that leaves results does with them.

    Args:
        out: Help of the folder's option.
    """
    yield out_option(out)
    yield open_option()
    yield json_option("Also the findings and tables, as JSON")
    yield quiet_option("No progress and no tables, findings alone")


def whole_study(**defaults: Any) -> Iterator[Option]:  # noqa: ANN401
    """A study from a file, under a name, and option by option.

    Args:
        defaults: Defaults of the command's own, which its help shows.
    """
    from fp4scope.study import PRESETS

    given = "options given here win"
    yield Option(["--config"], metavar="FILE", type=PATH, help=f"A study.yaml; {given}")
    said = f"paper: the study of arXiv 2603.08747; {given}"
    yield Option(["--preset"], metavar="|".join(PRESETS), help=said)
    yield from study_options(**defaults)


def study_options(*names: str, **defaults: Any) -> Iterator[Option]:  # noqa: ANN401
    """Options for fields of a study, in the panels of their sections.

    Args:
        names: The fields by flat name; all of them where none is given.
        defaults: Defaults of the command's own, which its help shows.
    """
    from fp4scope.study import PLACES, Study

    known = Study.build(model="-").flat() | defaults
    for name, (section, field) in PLACES.items():
        if name != "model" and (not names or name in names):
            yield _option(name, section, field, known[name])


def _option(name: str, section: str, field: str, default: Any) -> Option:  # noqa: ANN401
    from fp4scope.formats import FORMATS
    from fp4scope.study import SECTIONS

    kind = SECTIONS[section]
    said, own = kind.model_fields[field], kind.option(field)
    help = _sentence(said.description or "")
    if said.examples:
        help += f", e.g. {' or '.join(said.examples)}"
    if shown := _shown(default) or own.absent:
        help += f"  [default: {shown}]"
    spelt = [f"--{word.replace('_', '-')}" for word in (name, *own.also)]
    named = FORMATS if own.value.startswith("FORMAT") else ()
    words = [*_words(said.annotation), *named]
    flag: dict[str, Any] = {"is_flag": True} if said.annotation is bool else {"type": str}
    return Option(
        [*spelt, name],
        panel=kind.title(),
        help=help,
        default=None,
        metavar=own.value or _metavar(said.annotation),
        multiple=own.repeated,
        shell_complete=_completion(own.value == "FILE", words),
        **flag,
    )


def _completion(
    file: bool, words: Sequence[str]
) -> Callable[[click.Context, click.Parameter, str], list[CompletionItem]]:
    """What a shell may go on with: files, or the next word of a list."""

    def complete(ctx: click.Context, param: click.Parameter, typed: str) -> list[CompletionItem]:
        if file:
            return [CompletionItem(typed, type="file")]
        before, comma, last = typed.rpartition(",")
        return [CompletionItem(f"{before}{comma}{w}") for w in words if w.startswith(last)]

    return complete


def _metavar(annotation: Any) -> str:  # noqa: ANN401
    """What may stand for a value of this type: words of closed sets, N for numbers."""
    words = list(_words(annotation))
    return ("," if get_origin(annotation) is tuple else "|").join(words)


def _words(annotation: Any) -> Iterator[str]:  # noqa: ANN401
    from fp4scope.study import Choice

    if isinstance(annotation, type) and issubclass(annotation, Choice):
        yield from annotation.words()
    elif annotation is int:
        yield "N"
    elif get_origin(annotation) is Literal:
        yield from get_args(annotation)
    else:
        for part in get_args(annotation):
            yield from _words(part)


def _shown(value: Any) -> str:  # noqa: ANN401
    """A default as a user would write it; nothing for what is off, empty or not given."""
    if isinstance(value, list):
        return ",".join(map(str, value))
    return "" if value is None or isinstance(value, bool) else str(value)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
