"""What a notebook shows of a `Diagnosis`: the answer, and its main tables."""

from fp4scope.report import labels
from fp4scope.report.answer import DISTRUST, answer
from fp4scope.report.designed import effects
from fp4scope.report.findings import Findings
from fp4scope.report.render import as_html, shown
from fp4scope.report.section import Section
from fp4scope.report.sections import units


def summary(found: Findings) -> str:
    """An HTML fragment: the answer, formats by cost, the projections."""
    said = answer(found)
    points = [*said.points, *([(DISTRUST, said.caveats)] if said.caveats else [])]
    listed = "".join(
        f"<h4>{shown(question)}</h4><ul>{''.join(f'<li>{shown(line)}</li>' for line in lines)}</ul>"
        for question, lines in points
    )
    sections: list[Section] = [said.table, *units(found, "projections"), *effects(found)]
    return (
        f"<h3>FP4 sensitivity of {shown(str(found.results.model.get('name')))}</h3>"
        f"{listed}{''.join(map(as_html, sections))}"
        f"<p>{shown(labels.SIGN)} [low, high] is a 95% interval over windows.</p>"
    )
