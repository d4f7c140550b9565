"""What `--stop-when` accepts, and how it says what is wrong."""

import pytest

from fp4scope.errors import StudyError
from fp4scope.study import Study, read_options
from fp4scope.study.goals import BestGoal, TimeGoal, WidthGoal, parse_goal


@pytest.mark.parametrize(
    ("text", "goal"),
    [
        ("90s", TimeGoal(90.0)),
        (" 10M ", TimeGoal(600.0)),
        ("1.5 h", TimeGoal(5400.0)),
        ("half-width=2mnat", WidthGoal(0.002)),
        ("half-width = 0.5 millinats", WidthGoal(0.0005)),
        ("half-width=0.002nats", WidthGoal(0.002)),
        ("best=10", BestGoal(10, 0.003, 0.05)),
        ("best=4,within=1mnat", BestGoal(4, 0.001, 0.05)),
        ("within=0mnat, best=4, error=0.01", None),
        ("best=4, error=1%, within=0mnat", BestGoal(4, 0.0, 0.01)),
        ("best=4,error=0.1", BestGoal(4, 0.003, 0.1)),
        ("best=4,by=kl", BestGoal(4, 0.001, 0.05, "kl")),
        ("best=4, within=2mnat, by = KL", BestGoal(4, 0.002, 0.05, "kl")),
        ("best=4,by=nll", BestGoal(4, 0.003, 0.05)),
    ],
)
def test_goals(text, goal):
    if goal is None:
        with pytest.raises(StudyError, match="unknown goal 'within'"):
            parse_goal(text)
        return
    assert parse_goal(text) == goal
    assert parse_goal(str(goal)) == goal
    assert Study.build(model="m", stop_when=text).question.stop_when == goal


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "stop_when is ''; give a time"),
        ("10", "stop_when is '10'; give a time"),
        ("0m", "stop_when is '0m'; give a time"),
        ("-3m", "stop_when is '-3m'; give a time"),
        ("soon", "stop_when is 'soon'; give a time"),
        ("10m,best=3", "nothing may follow a time"),
        ("bst=3", "unknown goal 'bst'; did you mean best"),
        ("best=0", "best is '0'; give a number of units"),
        ("best=2.5", "best is '2.5'"),
        ("best=", "best is ''"),
        ("best=3,within=3", "within is '3'; give nats or millinats per token, such as within=3m"),
        ("best=3,within=-3mnat", "within is '-3mnat'"),
        ("best=3,wthin=3mnat", "best has no 'wthin'; did you mean within"),
        ("best=3,best=4", "best is given twice"),
        ("best=3,error=0%", "error is '0%'; give a chance above 0 and below 50%"),
        ("best=3,error=5", "error is '5'"),
        ("best=3,error=50%", "error is '50%'"),
        ("best=3,by=top1", "by is 'top1'; choices: nll, kl"),
        ("best=3,by=", "by is ''; choices: nll, kl"),
        ("half-width=2", "half-width is '2'"),
        ("half-width=0mnat", "half-width is 0"),
        ("half-width=2mnat,error=5%", "half-width has no 'error'"),
    ],
)
def test_what_is_no_goal(text, message):
    with pytest.raises(StudyError) as caught:
        Study.build(model="m", stop_when=text)
    assert message in str(caught.value)


def test_in_a_file(tmp_path):
    study = Study.build(model="m", stop_when="best=10,within=2mnat")
    (tmp_path / "study.yaml").write_text(study.to_yaml())
    assert Study.build(**read_options(tmp_path / "study.yaml")) == study
    assert Study.build(model="m").question.stop_when is None


def test_only_a_decision_belongs_to_the_identity():
    """However it is written; a time and a half-width do not change what is measured."""
    plain = Study.build(model="m").identity
    for text in ("10m", "half-width=2mnat"):
        assert Study.build(model="m", stop_when=text).identity == plain
    decision = Study.build(model="m", stop_when="best=5, error=0.05").identity
    assert decision != plain
    same = Study.build(model="m", stop_when="best=5,within=0.003nat")
    assert same.identity == decision
    assert Study.build(model="m", stop_when="best=6").identity != decision
    assert Study.build(model="m", stop_when="best=5,within=3mnat,by=kl").identity != decision
