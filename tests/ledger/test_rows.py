"""Measures and rows: digits that mean something, and rows that come again."""

import pytest

from fp4scope.design import NOTHING
from fp4scope.ledger import MEASURES, Ledger, Rows
from fp4scope.recipes import Recipe
from fp4scope.treatments import Setting

NVFP4 = Recipe(Setting.from_json("nvfp4"))


@pytest.mark.parametrize(
    ("name", "value", "settled"),
    [
        ("nll", 1234.567891234, 1234.56789),
        ("nll", 1 / 3, 0.333333333),
        ("kl", 2 / 3, 0.666667),
        ("kl", -1.23456789e-12, -1.23457e-12),
        ("rerun_kl", 2 / 3, 0.666667),
        ("gradient", -200 / 3, -66.6667),
        ("top1", 123456789012, 123456789012),
        ("rerun_top1", 123456789012, 123456789012),
    ],
)
def test_a_measure_keeps_the_digits_that_mean_something(name, value, settled):
    assert MEASURES[name].settled(value) == settled
    assert MEASURES[name].settled(settled) == settled


def filled():
    rows = Rows()
    rows.put(5, 0, 10, {"nll": 1.0, "kl": 2.0})
    rows.put(2, 0, 10, {"nll": 3.0})
    rows.put(5, 1, 10, {"nll": 4.0})
    return rows


def test_what_comes_twice_is_there_once():
    once, twice = filled(), filled()
    twice.put(5, 0, 10, {"nll": 1.0, "kl": 2.0})
    twice.put(5, 1, 10, {"nll": 4.0})
    assert twice == once
    assert once.indices == [5, 2, 5]
    assert once.values == {"nll": [1.0, 3.0, 4.0], "kl": [2.0, None, None]}


def test_other_measures_of_a_row_join_it_and_a_later_value_counts():
    rows = filled()
    rows.put(2, 0, 10, {"nll": 30.0, "gradient": 7.0})
    assert rows.values == {
        "nll": [1.0, 30.0, 4.0], "kl": [2.0, None, None], "gradient": [None, 7.0, None],
    }  # fmt: skip


def test_rows_that_share_lists_do_not_change_each_other():
    indices, replicas, tokens = [0, 1], [0, 0], [10, 10]
    one = Rows(indices, replicas, tokens, {"nll": [1.0, 2.0]})
    other = Rows(indices, replicas, tokens, {"nll": [3.0, 4.0]})
    one.put(2, 1, 10, {"nll": 5.0})
    one.put(0, 0, 10, {"nll": 6.0})
    assert (one.indices, one.values["nll"]) == ([0, 1, 2], [6.0, 2.0, 5.0])
    assert other == Rows([0, 1], [0, 0], [10, 10], {"nll": [3.0, 4.0]})


def test_results_keep_what_is_wanted_in_the_order_of_the_text():
    ledger = Ledger(counted=3)
    into = ledger.open(NVFP4)
    for window, replica in ((4, 1), (4, 0), (1, 0), (1, 2)):
        into.put(window, replica, 10, {"nll": window + replica / 3, "kl": 1.0})
    into.put(9, 0, 10, {"gradient": 1.0})
    ledger.open(NOTHING).put(0, 0, 10, {"nll": 1.0})
    wanted = [(NVFP4, 0, "nll"), (NVFP4, 0, "kl"), (NVFP4, 1, "nll"), (NOTHING, 0, "kl")]
    found = ledger.settled(wanted)
    assert found.counted == 3
    assert list(found) == [NVFP4]  # nothing that is wanted of the other
    assert found[NVFP4] == Rows(
        [1, 4, 4], [0, 0, 1], [10] * 3, {"nll": [1.0, 4.0, 4.33333333], "kl": [1.0, 1.0, None]}
    )
    assert into.indices == [4, 4, 1, 1, 9]


def test_a_subject_without_rows_is_not_there():
    ledger = Ledger()
    assert ledger.rows(NVFP4) is None
    assert (len(ledger), list(ledger)) == (0, [])
    rows = ledger.open(NVFP4)
    assert ledger.open(NVFP4) is ledger[NVFP4] is ledger.rows(NVFP4) is rows
