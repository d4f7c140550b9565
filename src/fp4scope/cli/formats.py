"""`fp4scope formats`: the number formats and their rules."""

from fp4scope.cli.terminal import Grid, console, say, show, titled
from fp4scope.formats import FORMATS, WEIGHT_FORMATS
from fp4scope.formats.spec import ALIASES, ElementFormat

GRID_SHOWN = 32


def print_formats() -> None:
    out = console()
    table = Grid(("format", "element", "scale", "rule"), ("block", "bits/element"))
    every = [*FORMATS.values(), *WEIGHT_FORMATS.values()]
    for fmt in every:
        names = (fmt.name, fmt.element.name, fmt.scale, fmt.rule.label)
        table.add_row(*names, fmt.block, f"{fmt.bits_per_element:g}")
    show(out, titled("Number formats", table))
    short = [f"{alias} is {name}" for alias, name in ALIASES.items()]
    say(
        out,
        "Bits count the scales of blocks; that of a row adds 32 / its width. "
        f"Short names: {', '.join(short)}. WEIGHT/INPUT names two formats, as "
        "nvfp4:4over6/nvfp4; FORMAT/w4a16 quantizes weights alone, FORMAT/w16a4 inputs alone. "
        f"{', '.join(WEIGHT_FORMATS)} are for weights alone, and measured as wholes: "
        "--all-quantized, recipes.",
    )
    out.print("\nRules: the scale of a block", style="bold")
    say(
        out,
        "a: amax of the block; A: amax of the tensor; max: largest element; emax: its exponent; "
        "m: mantissa bits",
    )
    hang = " " * 13
    for rule in dict.fromkeys(fmt.rule for fmt in every):
        say(out, f"{rule.label:12} {rule.formula}", hang=hang)
        say(out, f"{'':12} {rule.source}", style="dim", hang=hang)
    out.print(
        "\nElements: round to nearest, ties to the even code (S1P2: up), saturating", style="bold"
    )
    for element in dict.fromkeys(fmt.element for fmt in FORMATS.values()):
        say(out, f"{element.name:12} {_grid(element)}", hang=hang)


def _grid(element: ElementFormat) -> str:
    """Its magnitudes, or how many and how large if they would fill the screen."""
    magnitudes = element.magnitudes
    if len(magnitudes) <= GRID_SHOWN:
        return f"±{{{', '.join(f'{m:g}' for m in magnitudes)}}}"
    smallest = magnitudes[1]
    step = f"steps of {smallest:g}" if element.integer else f"smallest {smallest:g}"
    return f"0 to ±{element.max:g} in {len(magnitudes)} magnitudes, {step}"
