import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phenoscape_tune.search.rungs import Rungs, plan_rungs


def flat(value: float, epochs: int) -> list[float]:
    return [value] * epochs


@pytest.mark.parametrize(
    ("grace", "factor", "max_epochs", "levels"),
    [
        (3, 3, 30, (3, 9, 27)),
        (3, 3, 27, (3, 9)),
        (1, 2, 9, (1, 2, 4, 8)),
        (4, 3, 12, (4,)),
        (12, 3, 12, ()),
        (20, 3, 12, ()),
        (1, 2, 1, ()),
    ],
)
def test_rungs_stand_at_grace_times_powers_of_the_factor_below_the_end(
    grace: int, factor: int, max_epochs: int, levels: tuple[int, ...]
) -> None:
    assert Rungs(grace, factor, max_epochs).levels == levels


def test_between_rungs_every_trial_goes_on() -> None:
    rungs = Rungs(3, 3, 30)
    others = [flat(0.9, 30)] * 20
    for epoch in range(1, 30):
        assert rungs.goes_on(flat(0.1, epoch), others) == (epoch not in (3, 9, 27))


def test_the_first_trial_at_a_rung_goes_on() -> None:
    rungs = Rungs(3, 3, 30)
    assert rungs.goes_on(flat(0.0, 3), [])
    assert rungs.goes_on(flat(0.0, 3), [flat(0.9, 2)])  # nobody else has reached the rung


def test_trials_are_compared_at_equal_epochs() -> None:
    rungs = Rungs(3, 3, 30)
    late_bloomer = [0.1, 0.1, 0.1, *flat(0.9, 27)]
    assert rungs.goes_on([0.2, 0.2, 0.2], [late_bloomer] * 5)
    # One that ends at epoch 2 with a better value has not reached the rung.
    assert rungs.goes_on([0.2, 0.2, 0.2], [flat(0.9, 2)] * 5)


def test_trials_are_compared_by_the_mean_of_the_last_three_evaluations() -> None:
    rungs = Rungs(4, 2, 30)
    assert rungs.goes_on([0.0, 0.5, 0.5, 0.5], [[0.9, 0.4, 0.4, 0.6]])
    assert not rungs.goes_on([0.9, 0.4, 0.4, 0.6], [[0.0, 0.5, 0.5, 0.5]])


@pytest.mark.parametrize(
    ("others", "rank_that_goes_on"), [(0, 1), (1, 1), (2, 1), (3, 2), (5, 2), (6, 3), (8, 3), (9, 4)]
)
def test_the_best_third_goes_on_rounded_up(others: int, rank_that_goes_on: int) -> None:
    rungs = Rungs(3, 3, 30)
    curves = [flat(0.1 + 0.05 * i, 3) for i in range(others)]
    for rank in range(1, others + 2):
        better = others - rank + 1
        own = flat(0.1 + 0.05 * better - 0.025, 3)  # above `better` of them
        assert rungs.goes_on(own, curves) == (rank <= rank_that_goes_on), rank


def test_equal_trials_go_on_together() -> None:
    rungs = Rungs(3, 3, 30)
    assert rungs.goes_on(flat(0.5, 3), [flat(0.5, 3)] * 7)
    assert not rungs.goes_on(flat(0.5, 3), [flat(0.5, 3), flat(0.6, 3)])


def test_lower_is_better_turns_the_comparison_round() -> None:
    rungs = Rungs(3, 3, 30)
    others = [flat(0.5, 3), flat(0.7, 3)]
    assert rungs.goes_on(flat(0.4, 3), others, higher_is_better=False)
    assert not rungs.goes_on(flat(0.6, 3), others, higher_is_better=False)
    assert rungs.goes_on(flat(0.8, 3), others)


VALUES = st.sampled_from([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
CURVES = st.lists(st.lists(VALUES, min_size=1, max_size=9), min_size=1, max_size=12)


@given(CURVES, st.sampled_from([2, 3, 4]), st.booleans())
def test_at_every_rung_the_best_one_goes_on_and_at_least_its_share(
    curves: list[list[float]], factor: int, higher: bool
) -> None:
    rungs = Rungs(2, factor, 9)
    for level in rungs.levels:
        reached = [curve[:level] for curve in curves if len(curve) >= level]
        decisions = [rungs.goes_on(c, reached[:i] + reached[i + 1 :], higher) for i, c in enumerate(reached)]
        assert sum(decisions) >= min(len(reached), max(1, math.ceil(len(reached) / factor)))
        scores = [(1 if higher else -1) * sum(curve[-3:]) / len(curve[-3:]) for curve in reached]
        # A better one never stops where a worse one goes on.
        going = [score for score, decision in zip(scores, decisions, strict=True) if decision]
        stopping = [score for score, decision in zip(scores, decisions, strict=True) if not decision]
        assert not reached or max(scores) in going
        assert not stopping or min(going) > max(stopping)


@given(CURVES, st.randoms(use_true_random=False))
def test_a_decision_does_not_depend_on_the_order_of_the_others(curves: list[list[float]], random: object) -> None:
    rungs = Rungs(2, 2, 9)
    own, *others = curves
    decision = rungs.goes_on(own, others)
    random.shuffle(others)  # type: ignore[attr-defined]
    assert rungs.goes_on(own, others) == decision
    # Nor on how far the others have come since.
    assert rungs.goes_on(own, [curve[: len(own)] for curve in others]) == decision


def test_grace_is_beyond_the_warm_up_and_the_plan_says_so() -> None:
    rungs, notes = plan_rungs(3, 3, 60, 6)
    assert rungs.levels == (7, 21)
    assert notes == ["grace_epochs: 7 instead of 3: beyond the warm-up of 6 epochs"]


def test_a_fraction_of_an_epoch_of_warm_up_is_a_whole_one() -> None:
    assert plan_rungs(1, 3, 30, 0.5)[0].grace == 2
    assert plan_rungs(3, 3, 30, 2.0)[0].grace == 3


def test_a_grace_that_fits_stays_without_a_note() -> None:
    assert plan_rungs(3, 3, 30, 0) == (Rungs(3, 3, 30), [])


@pytest.mark.parametrize(("grace", "max_epochs", "warmup"), [(3, 1, 0), (5, 2, 1), (3, 6, 6)])
def test_a_budget_too_short_for_grace_stops_nobody_and_says_so(grace: int, max_epochs: int, warmup: float) -> None:
    rungs, notes = plan_rungs(grace, 3, max_epochs, warmup)
    assert rungs.levels == ()
    assert len(notes) == 1
    assert f"no early stopping: {max_epochs} epochs leave no room" in notes[0]
    assert all(rungs.goes_on(flat(0.0, epoch), [flat(1.0, max_epochs)] * 9) for epoch in range(1, max_epochs + 1))


def test_a_grace_as_long_as_a_trial_shrinks_and_says_so() -> None:
    rungs, notes = plan_rungs(3, 3, 3, 0)
    assert rungs.levels == (2,)
    assert notes == ["grace_epochs: 2 instead of 3: a trial has 3 epochs"]
