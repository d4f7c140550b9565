"""Bars: what they say, and when they are met."""

from math import log

import pytest

from fp4scope.deploy.bar import Verdict, parse_bar, verdict
from fp4scope.deploy.bound import bound_of
from fp4scope.errors import StudyError
from fp4scope.stats import Estimate


@pytest.mark.parametrize(
    ("text", "measure", "limit"),
    [
        ("ppl<2%", "nll", log(1.02)),
        (" PPL < 0.5 % ", "nll", log(1.005)),
        ("mnat<20", "nll", 0.02),
        ("kl<.05", "kl", 0.05),
        ("top1>95%", "top1", 0.95),
        ("task:arc_easy<2", "task:arc_easy", 0.02),
        (" task:Own-1 < .5 ", "task:Own-1", 0.005),
    ],
)
def test_what_bars_mean(text, measure, limit):
    bar = parse_bar(text)
    assert (bar.measure, bar.limit) == (measure, pytest.approx(limit))
    assert parse_bar(bar.text) == bar


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ppl", "give a bar such as"),
        ("ppl<2", "written ppl<2%"),
        ("ppl>2%", "written ppl<2%"),
        ("kl<5%", "written kl<0.02"),
        ("top1<95%", "written top1>95%"),
        ("top1>100%", "no model"),
        ("mnat<0", "no model"),
        ("pql<2%", "did you mean ppl"),
        ("", "give a bar such as"),
        ("kl<nan", "give a bar such as"),
        ("task:arc_easy>2", "task:NAME<2"),
        ("task:<2", "task:NAME<2"),
        ("task:arc_easy<0", "points of a score"),
        ("task:arc_easy<2%", "task:NAME<2"),
    ],
)
def test_what_is_no_bar(text, said):
    with pytest.raises(StudyError, match=said):
        parse_bar(text)


def test_verdicts_need_the_whole_interval():
    bar, share = parse_bar("kl<0.02"), parse_bar("top1>95%")
    assert bar.verdict(0.01, 0.019) is Verdict.MET
    assert bar.verdict(0.01, 0.021) is Verdict.UNDECIDED
    assert bar.verdict(0.021, 0.03) is Verdict.MISSED
    assert bar.verdict(None, None) is Verdict.UNDECIDED
    assert share.verdict(0.951, 0.97) is Verdict.MET
    assert share.verdict(0.94, 0.96) is Verdict.UNDECIDED
    assert share.verdict(0.93, 0.949) is Verdict.MISSED


def test_a_bar_on_perplexity_brings_one_on_kl():
    companion = parse_bar("ppl<2%").companion
    assert companion is not None
    assert (companion.measure, companion.limit) == ("kl", pytest.approx(log(1.02)))
    assert parse_bar("kl<0.02").companion is None


def test_nothing_is_decided_on_what_was_not_measured():
    bars = [parse_bar("kl<1"), parse_bar("task:arc_easy<2")]
    kl = {"kl": Estimate(0.1, 0.01, 0.08, 0.12, 16)}
    assert verdict(bars, kl) is Verdict.UNDECIDED
    met = Estimate(0.0, 0.005, -0.01, 0.01, 400)
    assert verdict(bars, kl | {"task:arc_easy": met}) is Verdict.MET


def test_no_recipe_is_chosen_by_a_task():
    with pytest.raises(StudyError, match="fp4scope tasks"):
        bound_of("task:arc_easy<2")
