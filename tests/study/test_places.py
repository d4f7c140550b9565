"""Where windows are measured."""

import pytest

from fp4scope.errors import StudyError
from fp4scope.study import Place, Study

SAID = {
    1: Place(),
    "1": Place(),
    "ray:1": Place(),
    4: Place(4),
    "ray:4": Place(4),
    " ray ": Place(None),
    "head:6379": Place(None, "head:6379"),
    "10.0.0.1:6379": Place(None, "10.0.0.1:6379"),
    "ray://head:10001": Place(None, "ray://head:10001"),
    "[::1]:6379": Place(None, "[::1]:6379"),
}


@pytest.mark.parametrize("said", SAID)
def test_what_is_said_is_what_is_meant_and_is_written_so_that_it_is_read_again(said):
    place = Place.parse(said)
    assert place == SAID[said]
    assert Place.parse(str(place)) == place
    assert place.is_here == (place == Place())


@pytest.mark.parametrize(
    ("said", "endpoint"),
    [("head:6379", ("head", 6379)), ("ray://head:10001", ("head", 10001)),
     ("[::1]:6379", ("::1", 6379))],
)  # fmt: skip
def test_an_address_has_a_host_and_a_port(said, endpoint):
    place = Place.parse(said)
    assert place.endpoint == endpoint
    assert place.takes_client == said.startswith("ray://")


ODD = ["", "0", -1, "ray:0", "ray:", "rays", "4097", True, None, 1.5, "head", "a b:1", "9" * 12]
ODD += ["\x1b[31mx:1", "http://x:1"]


@pytest.mark.parametrize("odd", ODD)
def test_anything_else_is_refused_with_what_there_is(odd):
    with pytest.raises(StudyError, match=r"workers is .*; give 1"):
        Study.build(model="x", workers=odd)


def test_another_number_of_workers_is_the_same_study():
    one, many = (Study.build(model="x", workers=w) for w in (1, "ray:8"))
    assert one.identity == many.identity
    assert many.flat()["workers"] == "ray:8"
    assert Study.build(**many.flat()) == many
