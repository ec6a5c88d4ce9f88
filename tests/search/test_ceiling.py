"""PASHA's rule: the noise of curves, the ceiling, and a whole search below it."""

from __future__ import annotations

import csv
import random
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from driver import (
    EPOCHS,
    Clock,
    Driver,
    Objective,
    by_name,
    learn,
    make_plan,
    open_conductor,
    search,
    stopped_search,
    unbroken_search,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import stops_within

from phenoscape_tune.config import TrainConfig, build_config
from phenoscape_tune.evaluate.objective import trial_objective
from phenoscape_tune.search.ceiling import first_ceiling, next_ceiling, noise, stable
from phenoscape_tune.search.conductor import Conductor
from phenoscape_tune.search.course import CEILING
from phenoscape_tune.search.importance import importances
from phenoscape_tune.search.marks import stage_points
from phenoscape_tune.search.parameter import Parameter
from phenoscape_tune.search.priority import CONFIRM, DEFAULTS, Stage
from phenoscape_tune.search.record import CAPPED, COMPLETED, PRUNED, TrialRecord
from phenoscape_tune.search.report import write_leaderboard
from phenoscape_tune.search.result_figures import coordinates_figure
from phenoscape_tune.search.retention import Retention, kept_at_most
from phenoscape_tune.search.rungs import Rungs
from phenoscape_tune.search.spending import Spending
from phenoscape_tune.search.story import cautions, describe_stage, tell_ceiling
from phenoscape_tune.search.study import Study
from phenoscape_tune.search.verdict import decide


def test_noise_is_the_distance_of_curves_that_change_places_twice() -> None:
    steady = [[0.1, 0.2, 0.3, 0.4], [0.2, 0.3, 0.4, 0.5]]
    once = [[0.1, 0.2, 0.3, 0.4], [0.2, 0.1, 0.2, 0.3]]
    # Means of up to three: 0.1, 0.15, 0.23, 0.40 and 0.2, 0.1, 0.27, 0.31.
    twice = [[0.1, 0.2, 0.4, 0.6], [0.2, 0.0, 0.6, 0.33]]
    assert noise(steady) == noise(once) == 0.0
    assert noise(twice) == pytest.approx(0.4 - 0.31)
    # Evaluations that change places while their means do not are no noise of what is ranked.
    assert noise([[0.1, 0.2, 0.31, 0.3, 0.31], [0.0, 0.1, 0.32, 0.29, 0.32]]) == 0.0
    assert noise([[0.5] * 4, [0.5] * 4]) == 0.0


def test_a_ranking_is_stable_where_it_stays() -> None:
    rising = [[level] * 9 for level in (0.1, 0.2, 0.3)]
    assert stable(rising, 3, 9, 1)
    assert stable(rising, 3, 9, -1)
    crossing = [[0.1] * 3 + [0.4] * 6, [0.2] * 9]
    assert not stable(crossing, 3, 9, 1)
    assert stable([*rising, [0.9] * 3], 3, 9, 1)  # what has not reached the upper rung says nothing


def test_a_swap_within_the_noise_is_none() -> None:
    one, other = [0.50, 0.53] * 4, [0.53, 0.50] * 4  # means of the last three: 0.51 and 0.52, then 0.52 and 0.51
    assert noise([one, other]) == pytest.approx(0.01)
    assert stable([one, other], 3, 8, 1)
    # The same swap of curves that cross once only is one.
    assert not stable([[0.51] * 3 + [0.52] * 5, [0.52] * 3 + [0.51] * 5], 3, 8, 1)
    # A swap by more than the noise, too.
    assert not stable([[0.1] * 3 + [0.9] * 5, one, other], 3, 8, 1)


def test_a_ceiling_rises_by_a_rung_and_never_above_the_end() -> None:
    rungs = Rungs(3, 3, 30)  # heights 3, 9, 27, 30
    crossing = [[0.1] * 3 + [0.4] * 27, [0.2] * 30]
    assert first_ceiling(rungs) == 9
    assert next_ceiling(rungs, 9, crossing, 1) == 27
    assert next_ceiling(rungs, 27, crossing, 1) == 27  # from 9 to 27 epochs nothing changes places
    assert next_ceiling(rungs, 30, crossing, 1) == 30
    assert next_ceiling(rungs, 9, [], 1) == 9
    assert first_ceiling(Rungs(3, 3, 5)) == first_ceiling(Rungs(6, 3, 5)) == 5  # no second rung: the end


# A whole search; with 9 epochs and rungs at 2, 4 and 8 the first ceiling is 4

PASHA: dict[str, Any] = {"scheduler": {"pasha": True}}


def swapping(config: TrainConfig, epoch: int) -> float:
    """Who is best at the first rung is worst at the second, and stays so."""
    value = learn(config, 9)
    return 1 - value if epoch <= 2 else value


def wobbling(steady: int) -> Objective:
    """An objective of trials whose ranks stay for the first `steady` ones; after these, ranks early and late have
    nothing to do with each other, so that the ceiling rises while several wait."""

    def objective(config: TrainConfig, epoch: int) -> float:
        draw = random.Random(f"{config.lr:.6g}/{config.temperature:.6g}/{config.seed}")
        early, late = draw.random(), draw.random()
        number = int(Path(config.out_dir).name.split("-")[1])
        return (early if number < steady or epoch <= 2 else late) + 0.001 * epoch

    return objective


def searched(conductor: Conductor) -> list[Any]:
    """The trials that no exception lets run to their ends."""
    return [r for r in conductor.records() if r.stage not in (DEFAULTS, CONFIRM) and not conductor.is_exempt(r)]


@pytest.fixture(scope="module")
def capped(tmp_path_factory: pytest.TempPathFactory) -> Driver:
    """A search whose ranking never changes, for tests that only look at it."""
    driver = Driver(open_conductor(make_plan(tmp_path_factory.mktemp("capped"), **PASHA)))
    driver.run()
    return driver


@pytest.fixture(scope="module")
def unconfirmed(tmp_path_factory: pytest.TempPathFactory) -> Conductor:
    return search(tmp_path_factory.mktemp("unconfirmed"), **PASHA, confirm=None)


def test_trials_end_at_the_second_rung_while_the_ranking_stays(capped: Driver) -> None:
    conductor = capped.conductor
    assert conductor.done
    assert {(r.status, len(r.curve)) for r in searched(conductor)} == {(PRUNED, 2), (CAPPED, 4)}
    assert all("the ceiling is epoch 4" in r.reason for r in searched(conductor) if r.status == CAPPED)
    # The defaults, a random trial a stage and the confirmation run to their ends.
    whole = [r for r in conductor.records() if r.name not in {each.name for each in searched(conductor)}]
    assert {(r.status, len(r.curve)) for r in whole} == {(COMPLETED, EPOCHS)}
    assert [conductor.ceiling(stage) for stage in conductor.stages] == [EPOCHS, 4, 4, EPOCHS]


def test_without_it_the_same_search_trains_the_survivors_on(tmp_path: Path) -> None:
    conductor = search(tmp_path)
    assert not any(record.status == CAPPED for record in conductor.records())
    assert [conductor.compared_at(stage) for stage in conductor.stages] == [EPOCHS] * 4
    assert max(len(record.curve) for record in searched(conductor)) == EPOCHS


def test_the_ceiling_rises_where_the_ranking_changes(tmp_path: Path) -> None:
    conductor = search(tmp_path, swapping, **PASHA)
    assert [conductor.ceiling(stage) for stage in conductor.stages[1:3]] == [8, 8]  # from 4 to 8 epochs it stays
    assert max(len(record.curve) for record in searched(conductor)) == 8
    assert "to which it rose from 4" in " ".join(describe_stage(conductor, conductor.stages[1]))


def test_those_that_waited_go_on_where_they_were_if_they_are_among_the_best(tmp_path: Path) -> None:
    def later(config: TrainConfig, epoch: int) -> float:
        """Each is a little better than the one before; after the eighth, who leads early is worst late."""
        number = int(Path(config.out_dir).name.split("-")[1])
        return 0.4 + 0.01 * number if number < 8 else 0.9 if epoch <= 2 else 0.1

    space = {"order": "joint", "budget": {"trials": 15}}
    driver = Driver(open_conductor(make_plan(tmp_path, **PASHA, **space)), later)
    waited: dict[str, int] = {}
    for _ in driver.reports():
        waited |= {record.name: len(record.curve) for record in driver.conductor.records() if record.waiting}
    ended = by_name(driver.conductor)
    assert not any(record.waiting for record in ended.values())
    gone_on = {task.record.name: len(task.record.curve) for task in driver.handed if task.resume}
    assert gone_on and set(gone_on.values()) == {4}
    assert gone_on.keys() <= waited.keys()
    assert all(ended[name].status == CAPPED and len(ended[name].curve) == 8 for name in gone_on)
    over = [ended[name] for name in waited.keys() - gone_on.keys() if len(ended[name].curve) == 4]
    assert {(record.status, record.reason) for record in over} == {(PRUNED, "not among the best 1/2 at epoch 4")}


def test_a_ceiling_that_rose_just_before_a_stop_lets_go_on_at_the_start(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, **PASHA)
    conductor = open_conductor(plan)
    for _ in Driver(conductor, concurrent=1).reports():
        if waiting := [record for record in conductor.records() if record.waiting]:
            break
    conductor.study.set_note(conductor.stage, CEILING, 8)  # in the journal; who goes on is not
    again = open_conductor(plan)
    task = again.next_task()
    assert task is not None
    assert (task.record.name, task.resume, len(task.record.curve)) == (waiting[0].name, True, 4)


def test_the_sampler_takes_those_that_wait_for_stopped_ones_and_not_for_running_ones(tmp_path: Path) -> None:
    parameters = {"lr": Parameter(type="loguniform", low=1e-5, high=1e-1)}
    stage, suggested = Stage(1, "lr", ("lr",), 8), []
    for name in ("waiting", "stopped"):
        study = Study(tmp_path / name, parameters, seed=3)
        study.open_stage(stage, None)
        for number in range(6):
            record = study.ask(stage, {})
            record = study.report(record, {"epoch": 1, "objective": 0.1 * number})
            if name == "waiting":
                study.pause(record, "at the ceiling")
            else:
                study.tell(record, CAPPED)
        suggested.append(study.ask(stage, {}).values["lr"])
    assert suggested[0] == suggested[1]


@pytest.mark.parametrize(("keep", "trials", "factor"), [(1, 40, 2), (1, 40, 3), (5, 48, 3)])
def test_no_trial_that_goes_on_has_lost_its_checkpoints_meanwhile(
    keep: int, trials: int, factor: int, tmp_path: Path
) -> None:
    space = {"order": "joint", "budget": {"trials": trials}, "keep": keep, "confirm": None}
    plan = make_plan(tmp_path, **PASHA, **space, rungs=Rungs(2, factor, EPOCHS))
    driver = Driver(open_conductor(plan), wobbling(trials // 2))
    conductor = driver.conductor
    retention = Retention(conductor)
    folders: dict[str, Path] = {}
    most = 0
    for name, _ in driver.reports():
        folders[name] = plan.folder / "trials" / name / "checkpoints"
        folders[name].mkdir(parents=True, exist_ok=True)
        for file in ("last.ckpt", "previous.ckpt"):
            (folders[name] / file).touch()
        retention.sweep()
        ended = {record.name for record in conductor.records() if record.ended}
        most = max(most, sum((folders[name] / "last.ckpt").exists() for name in ended))
        assert all((folders[record.name] / "last.ckpt").exists() for record in conductor.records() if record.called)
    assert any(task.resume for task in driver.handed)
    assert most <= kept_at_most(plan)
    retention.sweep()
    assert len(list(plan.folder.glob("trials/*/checkpoints/last.ckpt"))) <= keep + 2
    assert not list(plan.folder.glob("trials/*/checkpoints/previous.ckpt"))


def test_earlier_trials_are_counted_among_those_that_may_go_on(tmp_path: Path) -> None:
    poor = [
        TrialRecord(f"earlier:{number}", "joint", -1, {"lr": 1e-5, "temperature": 0.05 + number / 300}, COMPLETED,
                    (0.01,) * EPOCHS, warm=True) for number in range(60)
    ]  # fmt: skip
    plan = make_plan(tmp_path, **PASHA, order="joint", budget={"trials": 24}, confirm=None)
    conductor = open_conductor(plan, warm=poor)
    most = 0
    for _ in Driver(conductor).reports():
        most = max(most, len(conductor.may_go_on()))
    beside = max(plan.space.keep, plan.top_k) + 2
    assert kept_at_most(plan) - beside < most <= kept_at_most(plan, warm=60) - beside


def test_where_the_time_is_over_those_that_were_called_do_not_start(tmp_path: Path) -> None:
    space = {"order": "joint", "budget": {"trials": 60, "hours": 150 / 3600}, "confirm": None}
    plan, clock = make_plan(tmp_path, **PASHA, **space), Clock()
    driver = Driver(open_conductor(plan, Spending(plan.space.budget, 1, 0.0, clock=clock)), wobbling(20), 1, clock)
    late = [name for name, _ in driver.reports() if clock.now > 151]
    assert driver.conductor.done
    assert len(late) <= 1
    assert all(record.ended and not record.waiting for record in driver.conductor.records())


def test_trials_are_compared_at_equal_epochs(capped: Driver) -> None:
    """The one that ran to its end was not worth more than it was at the ceiling."""
    conductor = capped.conductor
    ranked = conductor.ranked()
    at = [trial_objective(record.curve[:4]) for record in ranked]
    assert at == sorted(at, reverse=True)
    assert [conductor.score(record) for record in ranked] == at
    assert {record.status for record in ranked} == {COMPLETED, CAPPED}
    # By the objectives of their ends the baseline would stand higher: its curve goes on rising.
    baseline = conductor.baseline
    assert baseline is not None and baseline.objective is not None
    ends = sorted((record.objective or 0.0 for record in ranked), reverse=True)
    assert ends.index(baseline.objective) < [record.name for record in ranked].index(baseline.name)


def test_a_stages_winner_is_its_best_at_the_ceiling(capped: Driver) -> None:
    conductor = capped.conductor
    for stage, before, winner in zip(conductor.stages[1:3], conductor.winners, conductor.winners[1:], strict=False):
        assert before is not None and winner is not None
        assert conductor.before(stage) == before
        reached = [record for record in conductor.records(stage) if len(record.curve) >= 4]
        assert winner == max([before, *reached], key=lambda record: trial_objective(record.curve[:4]))
    assert conductor.winners[-1] is not None and conductor.winners[-1].status == CAPPED


def test_a_winner_with_fewer_epochs_sets_where_the_next_stage_compares(tmp_path: Path) -> None:
    def late(config: TrainConfig, epoch: int) -> float:
        return learn(config, epoch) if config.temperature == 0.1 else swapping(config, epoch)

    conductor = search(tmp_path, late, **PASHA, base=build_config({"seed": 6}))
    lr, temperature = conductor.stages[1:3]
    won = conductor.before(temperature)
    assert won is not None and len(won.curve) == 4
    assert (conductor.ceiling(lr), conductor.ceiling(temperature)) == (4, 8)
    assert conductor.compared_at(temperature) == conductor.compared_at() == 4


def test_the_confirmation_repeats_the_best_at_the_ceiling_in_whole_trainings(capped: Driver) -> None:
    conductor = capped.conductor
    names = {record.of for record in conductor.records(conductor.stages[-1])}
    baseline = conductor.baseline
    assert baseline is not None
    best = [record.name for record in conductor.ranked() if record.name != baseline.name][:2]
    assert names == {baseline.name, *best}
    outcome = decide(conductor)
    assert outcome is not None and outcome.candidate is not None
    runs = [r.objective for r in conductor.records() if r.of == outcome.candidate.record.name]
    assert outcome.candidate.objective == pytest.approx(sum(value or 0.0 for value in runs) / len(runs))


def test_without_a_confirmation_baseline_and_candidate_are_compared_at_equal_epochs(unconfirmed: Conductor) -> None:
    outcome = decide(unconfirmed)
    assert outcome is not None and outcome.baseline is not None and outcome.candidate is not None
    assert outcome.baseline.objective == trial_objective(outcome.baseline.record.curve[:4])
    assert outcome.candidate.record.status == CAPPED
    assert outcome.candidate.objective == trial_objective(outcome.candidate.record.curve)
    assert outcome.candidate.seconds == pytest.approx(EPOCHS)  # of a whole training, at a second an epoch
    assert any("compared at epoch 4 of 9" in line for line in cautions(unconfirmed, outcome))


def test_the_leaderboard_has_those_that_are_compared_first_with_values_of_equal_epochs(capped: Driver) -> None:
    conductor = capped.conductor
    write_leaderboard(conductor)
    with (conductor.plan.folder / "leaderboard.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["stage"] != CONFIRM]
    ranked = conductor.ranked()
    assert [row["trial"] for row in rows[: len(ranked)]] == [record.name for record in ranked]
    assert [row["objective"] for row in rows[: len(ranked)]] == [f"{conductor.score(r):.4f}" for r in ranked]
    assert [row["rank"] for row in rows] == [str(number) for number in range(1, len(rows) + 1)]
    baseline = next(row for row in rows if row["stage"] == DEFAULTS)
    assert (baseline["epochs"], baseline["reason"]) == ("9", "objective: at epoch 4, where trials are compared")
    assert {row["status"] for row in rows[len(ranked) :]} == {"pruned"}


def test_a_stage_tells_of_its_ceiling_and_shows_values_of_equal_epochs(capped: Driver) -> None:
    conductor = capped.conductor
    stage = conductor.stages[1]
    told = " ".join(describe_stage(conductor, stage))
    assert "ended at a ceiling of 4 of 9 epochs (scheduler.pasha" in told
    assert "ran to the ceiling" in told
    for point in stage_points(conductor, stage):
        assert point.objective == trial_objective(point.record.curve[:4])
    assert tell_ceiling(conductor.plan) == "; a stage's trials end at 4 unless the ranking still changes there (pasha)"
    short = replace(conductor.plan, rungs=Rungs(8, 3, EPOCHS))
    assert tell_ceiling(short) == ""  # no second rung below the end


def test_figures_and_importances_count_the_trials_that_are_compared(tmp_path: Path) -> None:
    conductor = search(tmp_path, order="joint", **PASHA, budget={"trials": 40}, confirm=None)
    ranked = conductor.ranked()
    assert len(ranked) >= 10
    figure = coordinates_figure(conductor)
    assert figure is not None and figure.table is not None
    assert [(row[0], row[-1]) for row in figure.table.rows] == [(r.name, conductor.score(r)) for r in ranked]
    (found,) = importances(conductor)
    assert found.trials == len(ranked) - 1  # the baseline is no trial of the stage
    assert found.shares.keys() == {"lr", "temperature"}


def test_the_best_keep_their_checkpoints_though_they_did_not_run_to_their_ends(tmp_path: Path) -> None:
    conductor = search(tmp_path, **PASHA, keep=2)
    for record in conductor.records():
        folder = conductor.plan.folder / "trials" / record.name / "checkpoints"
        folder.mkdir(parents=True)
        (folder / "last.ckpt").write_bytes(b"weights")
    Retention(conductor).sweep()
    kept = {path.parents[1].name for path in conductor.plan.folder.glob("trials/*/checkpoints/last.ckpt")}
    baseline = conductor.baseline
    assert baseline is not None
    assert kept == {baseline.name, *(record.name for record in conductor.ranked()[:2])}


def test_a_failed_trial_is_not_compared_and_raises_no_ceiling(tmp_path: Path) -> None:
    def collapsing(config: TrainConfig, epoch: int) -> dict[str, float]:
        bad = config.lr > 0.01 and epoch > 1
        return {"objective": 0.99 if bad else learn(config, epoch), "feature_std": 0.0 if bad else 0.3, "rankme": 9.0}

    conductor = search(tmp_path, collapsing, **PASHA)
    assert any("collapsed" in record.reason for record in conductor.records())
    assert all("collapsed" not in record.reason for record in conductor.ranked())
    assert conductor.ceiling(conductor.stages[1]) == 4


def test_less_may_be_better(tmp_path: Path) -> None:
    conductor = search(
        tmp_path, lambda config, epoch: 1 - learn(config, epoch), **PASHA, metric_name="reference_contrast"
    )
    at = [trial_objective(record.curve[:4]) for record in conductor.ranked()]
    assert at == sorted(at)
    assert conductor.ceiling(conductor.stages[1]) == 4


# Stop and resume

RISING: dict[str, Any] = {**PASHA, "order": "joint", "budget": {"trials": 20}}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Conductor, int]:
    """A search in which trials wait, are called and go on."""
    conductor, reports = unbroken_search(tmp_path_factory.mktemp("unbroken"), wobbling(10), **RISING)
    assert (conductor.plan.folder / "study.journal").read_text().count('"called"') >= 2
    return conductor, reports


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_a_search_stopped_anywhere_ends_as_an_unbroken_one(
    unbroken: tuple[Conductor, int], data: st.DataObject
) -> None:
    expected, reports = unbroken
    stops = data.draw(stops_within(reports))
    with tempfile.TemporaryDirectory() as folder:
        conductor = stopped_search(Path(folder), stops, wobbling(10), **RISING).conductor
        assert conductor.records() == expected.records()
        assert not any(record.reason for record in conductor.records() if record.status == COMPLETED)
        assert conductor.winners == expected.winners
        assert [conductor.ceiling(s) for s in conductor.stages] == [expected.ceiling(s) for s in expected.stages]


def test_a_trial_stopped_between_the_ceilings_report_and_its_end_is_capped_not_gone_on_with(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, **PASHA)
    conductor = open_conductor(plan)
    for _ in Driver(conductor, concurrent=1).reports():
        last = conductor.records()[-1]
        if last.stage == "lr" and not conductor.is_exempt(last) and len(last.curve) == 3:
            break
    else:
        raise AssertionError("no trial of the stage had three epochs")
    config = conductor.config_of(last)
    conductor.study.report(last, {"epoch": 4, "objective": learn(config, 4)})  # in the journal; the decision is not
    again = open_conductor(plan)
    Driver(again, concurrent=1).run()
    record = by_name(again)[last.name]
    assert (record.status, len(record.curve)) == (CAPPED, 4)


def test_a_later_search_may_learn_from_capped_trials(tmp_path: Path, capped: Driver) -> None:
    known = [r for r in capped.conductor.records() if r.values and not r.of]
    warm = [replace(record, name=f"earlier:{record.name}", warm=True) for record in known]
    conductor = open_conductor(make_plan(tmp_path, **PASHA, order="joint"), warm=warm)
    Driver(conductor).run()
    joint = conductor.stages[1]
    told = conductor.study.warm_trials(joint)
    assert {record.status for record in told} == {COMPLETED, CAPPED, PRUNED}
    assert any(record.warm and record.status == CAPPED for record in conductor.ranked())
