from pathlib import Path

import pytest
from driver import make_plan, open_conductor, search
from hypothesis import given
from hypothesis import strategies as st

from phenoscape_tune.search import story
from phenoscape_tune.search.conductor import Conductor
from phenoscape_tune.search.parameter import Parameter
from phenoscape_tune.search.report import Agreement
from phenoscape_tune.search.rungs import Rungs
from phenoscape_tune.search.verdict import decide


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Conductor:
    return search(tmp_path_factory.mktemp("finished"))


@pytest.mark.parametrize(
    ("unselected", "trials", "expected"),
    [
        (0.9, 20, "Yes: an early look told who would end well."),
        (0.9, 6, "Yes: an early look told who would end well. With 6 trials this is a hint, no more."),
        (0.5, 20, "In part"),
        (0.1, 20, "No: an early look told little"),
        (-0.8, 20, "scheduler.grace_epochs, now 2"),
        (1.0, 3, "There are too few trials to say."),
    ],
)
def test_early_stopping_is_judged_by_what_it_could_not_end(
    unselected: float, trials: int, expected: str, finished: Conductor, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The survivors agree, which proves nothing.
    found = [Agreement(2, 1.0, 30, unselected, trials)]
    monkeypatch.setattr(story, "early_agreement", lambda conductor: found)
    words = " ".join(story.tell_agreement(finished))
    assert expected in words
    assert f"{trials} trials that nothing could stop" in words
    assert "survivors" in words


def test_early_stopping_that_cannot_be_judged_says_why(finished: Conductor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(story, "early_agreement", lambda conductor: [Agreement(2, None, 2, None, 1)])
    words = " ".join(story.tell_agreement(finished))
    assert "cannot be told: only 1 trial ran to the end" in words
    assert "survivors" not in words


def test_a_search_without_rungs_stops_nothing(tmp_path: Path) -> None:
    conductor = search(tmp_path, budget={"trials": 3}, confirm=None, rungs=Rungs(9, 3, 9))
    assert story.tell_agreement(conductor) == [
        "No trial could be stopped early: there is no comparison before the last epoch."
    ]


@given(st.floats(0, 1e5))
def test_a_duration_is_told_in_the_unit_that_suits_it(hours: float) -> None:
    number, unit = story.tell_hours(hours).rsplit(" ", 1)
    told = float(number.replace(",", "")) / {"h": 1, "min": 60, "s": 3600}[unit]
    assert told == pytest.approx(hours, rel=0.5, abs=1 / 3600)


def test_ranges_are_told_as_people_write_them() -> None:
    assert story.tell_range(Parameter(type="loguniform", low=1e-5, high=0.1)) == "1e-05 to 0.1 (log scale)"
    assert story.tell_range(Parameter(type="int", low=2, high=8, step=2)) == "2 to 8, in steps of 2"
    assert story.tell_range(Parameter(type="choice", values=[None, True, "x"])) == "one of null, true, x"


def test_a_stage_that_was_not_reached_says_so(tmp_path: Path) -> None:
    conductor = open_conductor(make_plan(tmp_path))
    assert [story.describe_stage(conductor, stage) for stage in conductor.stages] == [
        ["Not reached: the search ended before."]
    ] * 3


def test_an_edge_is_a_caution_with_the_range_to_try(tmp_path: Path) -> None:
    conductor = search(tmp_path, lambda config, epoch: config.lr, confirm=None)
    lines = story.cautions(conductor, decide(conductor))
    assert any("is at the upper edge of its range; try high: " in line for line in lines)


def test_without_a_log_the_configuration_tells_of_the_images(finished: Conductor) -> None:
    assert story.data_line(finished) == "no folder given; no labels file; validation 0.15, test 0.15"
