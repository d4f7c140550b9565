"""Designed sweeps: every effect apart from all others, by runs that are balanced."""

import numpy as np
import pytest

from asking import fused_model as model
from fp4scope.design import MIXED, NOTHING, design
from fp4scope.design.mixtures import levels, mixtures
from fp4scope.groups import fused_groups
from fp4scope.study import Study
from fp4scope.treatments import Setting

SETTINGS = [Setting.from_json(name) for name in ("nvfp4", "mxfp4:even")]


@pytest.mark.parametrize("groups", [1, 5, 12, 40])
def test_effects_of_half_quantized_runs_are_orthogonal_to_each_other_and_to_the_mean(groups):
    order = next(2**k for k in range(10) if 2**k > groups)
    half = 2.0 * levels(groups, 1, seed=3)[: 2 * order] - 1
    assert np.array_equal(half.T @ half, 2 * order * np.eye(groups))
    assert not half.sum(axis=0).any()


@pytest.mark.parametrize("settings", [1, 2, 3])
def test_interactions_of_two_groups_cancel_between_a_row_and_its_complement(settings):
    quantized = levels(9, settings, seed=1) > 0
    row, complement = np.split(quantized.reshape(-1, 2, settings, 9), 2, axis=1)
    assert np.array_equal(row, ~complement)
    assert np.array_equal(row, np.broadcast_to(row[:, :, :1], row.shape))  # of all rotations


def test_every_group_that_a_row_quantizes_has_every_setting_once():
    rotations = np.sort(levels(9, 3, seed=1).reshape(-1, 3, 9), axis=1)
    of_a_group = rotations.transpose(0, 2, 1).reshape(-1, 3)
    assert np.unique(of_a_group, axis=0).tolist() == [[0, 0, 0], [1, 2, 3]]


def test_some_runs_are_sparse_and_their_complements_nearly_full():
    densities = (levels(40, 1, seed=0) > 0).mean(axis=1)
    assert {0.125, 0.25, 0.75, 0.875} <= set(densities.tolist())


@pytest.mark.parametrize("runs", [2, 6, 60, 600])
@pytest.mark.parametrize("settings", [1, 2])
def test_as_many_runs_as_asked_for_whole_rows_alone(runs, settings):
    found = levels(20, settings, 0, runs)
    assert len(found) == max(1, runs // (2 * settings)) * 2 * settings


def test_the_seed_decides():
    assert np.array_equal(levels(12, 2, seed=4), levels(12, 2, seed=4))
    assert not np.array_equal(levels(12, 2, seed=4), levels(12, 2, seed=5))


def test_recipes_treat_a_group_alike_and_come_once():
    groups = fused_groups(model(2))
    found = mixtures(groups, SETTINGS, seed=0)
    assert len(set(found)) == len(found)
    assert NOTHING not in found
    assert {setting for recipe in found for setting in recipe.settings} == set(SETTINGS)
    for recipe in found:
        for group in groups:
            assert len({recipe.at(name) for name in group.names}) == 1


def test_a_study_runs_them_beside_whole_models_only_where_it_is_asked_to():
    sites = model(2)
    asked = design(Study.build(model="m", formats="nvfp4,mxfp4:even"), sites)
    assert {run.contrast.family.level for run in asked.designed} == {MIXED}
    assert len({run.name for run in asked.designed}) == len(asked.designed)
    recipes = {run.recipe for run in asked.designed}
    assert not recipes & {run.recipe for run in asked.runs if run.contrast is None}
    assert not recipes & {contrast.own for contrast in asked.contrasts if contrast.unit is None}
    few = design(Study.build(model="m", formats="nvfp4", design_runs=4), sites)
    assert 1 < len(few.designed) <= 4
