"""Remedies and causes in a few words, from numbers that are known."""

from dataclasses import replace

import numpy as np
import pytest

from asking import REFERENCE, Asked, all_quantized, observed
from fp4scope.deploy.remedies import remedies_served
from fp4scope.design import CAUSES, REMEDIES, Contrast, Family, Unit, of_units
from fp4scope.design.probes import gains, remedies, variants
from fp4scope.ledger import Ledger, LocalError
from fp4scope.recipes import Recipe
from fp4scope.stats import costly_units, remedy_table
from fp4scope.stats.findings.attribution import attributions
from fp4scope.study import Direction
from fp4scope.treatments import Setting

NVFP4 = Setting.from_json("nvfp4")
WINDOWS = 16
FLIPS = np.array([1.0, -1.0] * (WINDOWS // 2)) * 1e-5
PLACE = {"precision": "W4A4", "format": "nvfp4"}


def unit(block, level=CAUSES):
    return Unit(level, "q_proj", block, frozenset([f"blocks.{block}.q_proj"]))


@pytest.fixture
def caused(results):
    """Layers with known KL alone: block, weights, inputs, gain and local error of each."""

    def make(layers):
        found, contrasts, local = [observed(REFERENCE, [3.0] * WINDOWS)], [], []
        for block, (weights, inputs, gain, error) in enumerate(layers):
            settings = {NVFP4: weights + inputs}
            own = {"weights": weights, "inputs": inputs, "noise": weights + inputs}
            settings |= {s: own[name] for name, s in variants(NVFP4).items()}
            settings |= {s: gain * 10 ** (s.noise / 10) for s in gains()}
            for setting, kl in settings.items():
                [contrast] = of_units([unit(block)], setting, Direction.ONLY)
                contrasts.append(contrast)
                asked = Asked(contrast.own, contrast, names=contrast.labels)
                found.append(observed(asked, [3.0] * WINDOWS, kl=(kl + FLIPS).tolist()))
            local.append(LocalError(projection="q_proj", block=block, error=error, **PLACE))
        measured = results(*found, study={"numerics": {"replicas": 1}})
        return replace(measured, contrasts=[], causes=contrasts, local=local)

    return make


def test_a_cause_is_the_operand_and_the_largest_factor(caused):
    layers = [(0.01, 0.01, 1.0, 0.02)] * 5  # what others are held to
    layers += [(0.09, 0.01, 5.0, 0.02), (0.01, 0.09, 1.0, 0.10), (0.05, 0.05, 1.0, 0.02)]
    found = {place[2]: cause for place, cause in attributions(caused(layers)).items()}
    assert found[0] == "both operands"
    assert found[5] == "weights; a sensitive place"
    assert found[6] == "inputs; a large error"
    assert found[7] == "both operands; the direction of the error"


def test_the_most_costly_on_some_windows_are_chosen(caused):
    measured = caused([(kl, 0.0, 1.0, 0.02) for kl in (0.01, 0.04, 0.02, 0.03)])
    rows = measured.ledger[measured.causes[0].own]
    rows.values["kl"][WINDOWS // 2 :] = [100.0] * (WINDOWS // 2)  # of block 0, and not seen
    chosen = costly_units(measured, ["projections", "layers"], 2, range(WINDOWS // 2))
    assert [(one.block, setting) for one, setting in chosen] == [(1, NVFP4), (3, NVFP4)]


@pytest.fixture
def tried(results):
    """One layer in an all-quantized model: what each remedy removes, of a damage of 0.1."""

    def make(removes, damage=0.1):
        base, own = Recipe(NVFP4), unit(2, REMEDIES)
        found = [observed(REFERENCE, [3.0] * WINDOWS)]
        whole = all_quantized("nvfp4")
        found.append(observed(whole, [3.5] * WINDOWS, kl=1.0))
        contrasts = []
        for name, other in remedies(NVFP4, [64]).items():
            recipe = Recipe(NVFP4, ((own.sites, other),))
            family = Family(REMEDIES, NVFP4, Direction.KEEP)
            contrast = Contrast(((base, 1), (recipe, -1)), own, family)
            contrasts.append(contrast)
            kl = 1.0 - damage * removes.get(name, 1.0 if name == "bf16" else 0.0) + FLIPS
            asked = Asked(recipe, contrast, names=contrast.labels)
            found.append(observed(asked, [3.5 - 1.0 + k for k in kl], kl=kl.tolist()))
        measured = results(*found, study={"numerics": {"replicas": 1}})
        ledger = measured.ledger
        sites = [replace(s, rows=8, cols=64) for s in measured.sites]
        kind = type(measured.sites)
        return replace(
            measured,
            sites=kind(sites, 3),
            contrasts=[],
            ledger=Ledger(),
            remedies=contrasts,
            remedied=ledger,
        )

    return make


def test_what_is_removed_is_a_share_of_what_keeping_saves(tried):
    rows = remedy_table(tried({"fp8": 0.9, "nvfp4/w4a16": 0.25}))
    [eight] = rows.where(remedy="fp8")
    assert eight["damage"] == pytest.approx(0.1)
    assert eight["share"] == pytest.approx(0.9)
    assert eight["share_low"] < 0.9 < eight["share_high"]
    assert eight["removed_nll"] == pytest.approx(0.09)
    assert eight["bits"] == pytest.approx(8.5 - 4.5)
    assert eight["bytes"] == pytest.approx(8 * 64 * 4.0 / 8)
    assert eight["tried"] == len(rows) - 1
    [full] = rows.where(remedy="bf16")
    assert full["share"] is None
    assert full["removed"] == full["damage"]


def named_best(measured):
    return {row["remedy"]: row["best"] for row in remedies_served(measured) if row["best"]}


def test_two_are_the_best(tried):
    removes = {"fp8": 0.9, "mxfp8:e4m3:even": 0.8, "nvfp4/w4a16": 0.25, "nvfp4/fp8": 0.5}
    best = named_best(tried(removes))
    # No engine takes nvfp4/fp8; MXFP8 stores 8.25 bits, FP8 in rows of 64 8.5.
    assert best == {"nvfp4/fp8": "same size", "mxfp8:e4m3:even": "served"}
    best = named_best(tried({"nvfp4:4over6/nvfp4": 0.7}))
    assert best == {"nvfp4:4over6/nvfp4": "same size; served"}
    assert named_best(tried({})) == {"bf16": "served"}


def test_where_nothing_is_damaged_nothing_is_best(tried):
    rows = remedies_served(tried({"fp8": 0.9}, damage=0.0))
    assert set(rows["share"]) == {None}
    assert set(rows["best"]) == {""}
