"""A recommendation as files: `recommendation.html`, which works offline, the same as Markdown, its
numbers and its figure.
"""

import shlex
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import replace
from os import fsencode
from os.path import relpath
from pathlib import Path
from urllib.parse import quote

from fp4scope.deploy.bar import Verdict
from fp4scope.deploy.recommendation import Recommendation
from fp4scope.files import replace_file, text_bytes
from fp4scope.names import markdown as escaped
from fp4scope.names import visible
from fp4scope.report.decision import decision_section, engine_lines
from fp4scope.report.files import ON_DARK, write_figures
from fp4scope.report.page import document
from fp4scope.report.predicted import draw_predicted, predicted_table, proof_sections
from fp4scope.report.recommendation import (
    RECIPE,
    held_line,
    measured_on,
    next_commands,
    outcome,
    sized,
    verdict_lines,
)
from fp4scope.report.render import as_html, as_markdown, shown
from fp4scope.report.section import Section
from fp4scope.report.theme import DARK

PAGE = "recommendation.html"
REPORT = "recommendation.md"
FIGURE = "predicted"
_FIGURE_SHOWS = "Predicted against measured, with intervals; on the line both are equal"
_KEPT = "What stays in higher precision"
_PROOF = "Predicted and measured"
_RUNS = "Pages of its runs"
_PLACES = "OUT is the folder of this page, DIR that of the checkpoint, TEXT a text of yours."
_CLASSES = {
    Verdict.MET: "supported",
    Verdict.MISSED: "contradicted",
    Verdict.UNDECIDED: "undecided",
}
_ADVICE = "see to it that the folder can be written to, then run the same command again"


def write_recommendation(found: Recommendation, folder: Path) -> None:
    """Write the page, the same as Markdown, the table of both as CSV, and the figure.

    Raises:
        OutputError: One could not be written.
    """
    table = predicted_table(found.parts)
    replace_file(folder / f"{FIGURE}.csv", text_bytes(table.to_csv()), _ADVICE)
    write_figures([(FIGURE, draw_predicted(table))], folder, ("svg", "png"))
    write_figures([(FIGURE + ON_DARK, draw_predicted(table, DARK))], folder, ("svg",))
    for name, text in {REPORT: markdown(found, folder), PAGE: page(found, folder)}.items():
        replace_file(folder / name, text_bytes(text), _ADVICE)


def markdown(found: Recommendation, folder: Path) -> str:
    """It as Markdown, which has its figure from `figures` in the folder."""
    decision, *proof = _sections(found)
    commands = "\n".join(f"    {visible(command)}" for command in _commands(found))
    links = [f"[{escaped(name)}]({address})" for name, address in _links(found, folder)]
    parts = [
        f"# {escaped(_title(found))}: {outcome(found)}",
        escaped(measured_on(found)),
        "\n".join(f"- {escaped(line)}" for line in verdict_lines(found)),
        *([commands, escaped(_PLACES)] if commands else []),
        f"## {_KEPT}",
        as_markdown(decision),
        f"## {_PROOF}",
        *map(as_markdown, proof),
        escaped(held_line(found)),
        f"![{_FIGURE_SHOWS}](figures/{FIGURE}.svg)",
        *([f"## {_RUNS}", ", ".join(links)] if links else []),
    ]
    return "\n\n".join(parts) + "\n"


def page(found: Recommendation, folder: Path) -> str:
    """It as an HTML page, complete in itself but for the pages of its runs.

    Its figure is the one in the folder.
    """
    decision, *proof = _sections(found)
    pill = f'<span class="verdict {_CLASSES[found.outcome]}">{shown(outcome(found))}</span>'
    header = (
        f'<h1>{shown(_title(found))} {pill}</h1>\n<p class="lead">{shown(measured_on(found))}</p>'
    )
    lines = "".join(f"<li>{shown(line)}</li>" for line in verdict_lines(found))
    commands = "<br>\nthen ".join(f"<code>{shown(line)}</code>" for line in _commands(found))
    after = (
        f'<p class="next"><strong>Next</strong> {commands}</p>\n<p class="note">{_PLACES}</p>\n'
        if commands
        else ""
    )
    links = " · ".join(
        f'<a href="{shown(address)}">{shown(name)}</a>' for name, address in _links(found, folder)
    )
    main = (
        f"<ul>{lines}</ul>\n{after}"
        f"<section><h2>{_KEPT}</h2>\n{as_html(decision)}</section>\n"
        f"<section><h2>{_PROOF}</h2>\n{''.join(map(as_html, proof))}"
        f'<p class="note">{shown(held_line(found))}</p>\n{_picture(folder)}</section>\n'
        + (f"<section><h2>{_RUNS}</h2>\n<p>{links}</p></section>" if links else "")
    )
    return document(_title(found), header, main)


def _title(found: Recommendation) -> str:
    name = found.written.model.name
    model = Path(name).name if Path(name).is_absolute() else name
    return f"{model}: {sized(found.chosen.decision.size)}"


def _commands(found: Recommendation) -> list[str]:
    return [shlex.join(words) for _, words in next_commands(found, Path("OUT") / RECIPE)]


def _sections(found: Recommendation) -> Iterator[Section]:
    """What each group gets; what was predicted and measured, windows of the verdict first."""
    decision = found.chosen.decision
    note = " ".join(f"{line}." for line in engine_lines(found.decider, decision))
    yield replace(decision_section(found.decider, decision), note=note)
    parts = {part: found.parts[part] for part in sorted(found.parts, key=_is_refine)}
    yield from proof_sections(parts, found.bars, decision.recipe)


def _is_refine(part: str) -> bool:
    return part.startswith("refine")


def _links(found: Recommendation, folder: Path) -> Iterator[tuple[str, str]]:
    """Pages of runs that are there: a name, and an address from the folder."""
    for run in found.runs:
        if (run / "report.html").exists():
            way = Path(relpath(run.resolve(), folder.resolve()))
            name = way.as_posix() if way.parts and way.parts[0] != ".." else run.resolve().name
            yield name, quote(fsencode((way / "report.html").as_posix()))


def _picture(folder: Path) -> str:
    """The written figure, light or dark as the reader's screen is."""
    light, dark = (
        f"data:image/svg+xml;base64,{b64encode(drawn.read_bytes()).decode()}"
        for drawn in (folder / "figures" / f"{name}.svg" for name in (FIGURE, FIGURE + ON_DARK))
    )
    return (
        f'<p><picture><source srcset="{dark}" '
        'media="screen and (prefers-color-scheme: dark)">'
        f'<img src="{light}" alt="{_FIGURE_SHOWS}" width="720"></picture></p>\n'
        f'<p class="note">{_FIGURE_SHOWS}.</p>'
    )
