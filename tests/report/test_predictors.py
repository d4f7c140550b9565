"""The table of what predicts cost."""

from unittest.mock import Mock

from fp4scope.report.causes import predictors
from fp4scope.report.findings import Findings
from fp4scope.report.render import as_markdown
from fp4scope.table import Table


def test_a_gradient_is_ranked_against_what_it_estimates():
    shared = {"format": "nvfp4", "precision": "W4A4", "among": "layers", "units": 9, "ceiling": 0.9}
    rows = [
        shared | {"measure": m, "predictor": p, "rho": rho, "rho_low": rho, "rho_high": rho}
        for m, p, rho in (
            ("kl", "gain", 0.51), ("nll", "gain", 0.12), ("kl", "gradient", 0.03),
            ("nll", "gradient", 0.74),
        )
    ]  # fmt: skip
    [section] = predictors(Mock(spec=Findings, predictors=Table([*rows[0]], rows)))
    text = as_markdown(section)
    assert "| gain | KL | 0.510" in text
    assert "| gradient | NLL | 0.740" in text
    assert "0.03" not in text
    assert "0.12" not in text
