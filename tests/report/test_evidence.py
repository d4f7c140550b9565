"""How the numbers behind a verdict are written."""

from fp4scope.report.evidence import columns
from fp4scope.stats import Column, Form, Hypothesis, Verdict
from fp4scope.table import Table


def test_every_form_is_written_with_its_interval():
    row = {
        "format": "nvfp4", "direction": "restore", "operands": "weights", "name": "q-proj",
        "rho": -0.5, "rho_low": -0.75, "rho_high": 0.25, "p": 0.0004, "q": 0.25, "cost": -0.012,
        "share": 0.5, "share_low": 0.25, "share_high": 0.75, "nothing": None,
    }  # fmt: skip
    chosen = (
        Column("family", "", Form.FAMILY), Column("name", "name"),
        Column("rho", "rho", Form.CORRELATION), Column("p", "p", Form.PROBABILITY),
        Column("q", "q", Form.PROBABILITY), Column("millinats", "cost", Form.MILLI),
        Column("share", "share", Form.SHARE), Column("nothing", "nothing", Form.MILLI),
    )  # fmt: skip
    hypothesis = Hypothesis(
        name="A", claim="B", verdict=Verdict.UNDECIDED, sentence="C",
        columns=chosen, evidence=Table(tuple(row), [row]),
    )  # fmt: skip
    shown = columns(hypothesis)
    assert shown["columns"] == [column.heading for column in chosen]
    minus = "\u2212"
    assert shown["rows"] == [
        [
            (("nvfp4, restore, weights", ""), "nvfp4, restore, weights"),
            (("q-proj", ""), "q-proj"),
            ((f"{minus}0.50", f"[{minus}0.75, 0.25]"), "-0.50"),
            (("<0.001", ""), "0.001"),
            (("0.250", ""), "0.250"),
            ((f"{minus}12.00", ""), "-12.00"),
            (("50.0%", "[25.0%, 75.0%]"), "50.0"),
            (("", ""), ""),
        ]
    ]
