"""What a notebook shows of a `Diagnosis`: the findings, and its main tables."""

from fp4scope.report import labels
from fp4scope.report.designed import effects
from fp4scope.report.findings import Findings
from fp4scope.report.render import as_html, shown
from fp4scope.report.section import Section
from fp4scope.report.sections import costs, units
from fp4scope.report.sentences import headlines


def summary(found: Findings) -> str:
    """An HTML fragment: one sentence for each finding, the formats, the projections."""
    lines = "".join(f"<li>{shown(line)}</li>" for line in headlines(found))
    sections: list[Section] = [*costs(found), *units(found, "projections"), *effects(found)]
    return (
        f"<h3>FP4 sensitivity of {shown(str(found.results.model.get('name')))}</h3>"
        f"<ul>{lines}</ul>{''.join(map(as_html, sections))}"
        f"<p>{shown(labels.SIGN)} [low, high] is a 95% interval over windows.</p>"
    )
