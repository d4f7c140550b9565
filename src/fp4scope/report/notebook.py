"""What a notebook shows of a `Diagnosis`: the answer, and its main tables."""

from fp4scope.report import labels
from fp4scope.report.answer import DISTRUST, answer
from fp4scope.report.designed import effects
from fp4scope.report.findings import Findings
from fp4scope.report.numbers import number
from fp4scope.report.render import as_html, shown
from fp4scope.report.section import Section
from fp4scope.report.sections import units
from fp4scope.table import Interval


def summary(found: Findings) -> str:
    """An HTML fragment: the answer, a chart, formats by cost, the projections."""
    said = answer(found)
    points = [*said.points, *([(DISTRUST, said.caveats)] if said.caveats else [])]
    listed = "".join(
        f"<h4>{shown(question)}</h4><ul>{''.join(f'<li>{shown(line)}</li>' for line in lines)}</ul>"
        for question, lines in points
    )
    sections: list[Section] = [said.table, *units(found, "projections"), *effects(found)]
    return (
        f"<h3>FP4 sensitivity of {shown(str(found.results.model.get('name')))}</h3>"
        f"{listed}{_chart(found)}{''.join(map(as_html, sections))}"
        f"<p>{shown(labels.SIGN)} [low, high] is a 95% interval over windows.</p>"
    )


_ROW, _LEFT, _WIDE = 22, 190, 420
"""Height of a row, room for names, and length of the longest bar, in pixels."""


def _chart(found: Findings) -> str:
    """A bar for what each whole model costs, with its interval."""
    wholes = [whole for whole in found.wholes if not whole.is_full_precision]
    ends = [1e3 * (w.costs["nll"].high or w.costs["nll"].mean) for w in wholes]
    most = max(ends, default=0.0)
    if most <= 0:
        return ""
    bars = "".join(
        _bar(place, whole.title, Interval.of(whole.row, "delta_nll").times(1e3), most)
        for place, whole in enumerate(wholes)
    )
    size = f'width="{_LEFT + _WIDE + 90}" height="{_ROW * len(wholes)}"'
    return (
        "<p>What quantizing everything costs, millinats per token</p>"
        f'<svg {size} font-size="12" font-family="sans-serif" fill="currentColor">{bars}</svg>'
    )


def _bar(place: int, name: str, span: Interval, most: float) -> str:
    def x(value: float) -> float:
        return round(_LEFT + _WIDE * max(0.0, value) / most, 1)

    middle = _ROW * place + _ROW // 2
    value = span.value or 0.0
    whisker = (
        ""
        if span.low is None or span.high is None
        else f'<path d="M{x(span.low)},{middle}H{x(span.high)}" stroke="currentColor"/>'
    )
    return (
        f'<text x="{_LEFT - 8}" y="{middle + 4}" text-anchor="end">{shown(name)}</text>'
        f'<rect x="{_LEFT}" y="{middle - 6}" width="{round(x(value) - _LEFT, 1)}" height="12" '
        f'fill="#0072b2" fill-opacity=".6"/>{whisker}'
        f'<text x="{x(span.high or value) + 6}" y="{middle + 4}">{number(value)}</text>'
    )
