import io
import itertools
import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from driver import EPOCHS, Clock, Driver, learn, make_plan, open_conductor, search
from pseudo_terminal import CODES, COLOURS, run_on_terminal, shown_lines
from rich.console import Console

from phenoscape_tune.config import TrainConfig
from phenoscape_tune.search.conductor import Conductor
from phenoscape_tune.search.display import Display, describe_capacity, describe_outcome, describe_plan, format_value
from phenoscape_tune.search.report import write_best
from phenoscape_tune.search.rungs import Rungs
from phenoscape_tune.search.space import load_space
from phenoscape_tune.search.spending import Spending
from phenoscape_tune.search.verdict import Outcome, decide
from phenoscape_tune.training.capacity import Capacity

# The plan


def test_the_plan_has_a_line_a_stage(tmp_path: Path) -> None:
    lines = describe_plan(make_plan(tmp_path), "2 CPU cores", "data: 300 images", 2)
    assert lines[0] == f"search {tmp_path}"
    assert lines[1] == "data: 300 images"
    stages = [line for line in lines if line.startswith("stage ")]
    assert stages == [
        "stage 0 defaults: none (the configuration as it is); 1 trial",
        "stage 1 lr: lr; 5 trials",
        "stage 2 temperature: temperature; 5 trials",
    ]


def test_the_plan_tells_trials_epochs_devices_and_cost(tmp_path: Path) -> None:
    lines = describe_plan(make_plan(tmp_path), "1 GPU", None, 1)
    text = "\n".join(lines)
    assert "then confirm: the best 2 and the defaults, each with 2 fresh seeds: 6 trials" in text
    assert "trials: 11 + 6 confirmations; epochs a trial: 9, compared at 2, 4, 8 (one in 2 goes on)" in text
    assert "devices: 1 GPU, 1 trial at a time" in text
    assert f"at most {17 * EPOCHS} epochs" in text


def test_the_plan_of_a_joint_search_names_all_keys(tmp_path: Path) -> None:
    lines = describe_plan(make_plan(tmp_path, order="joint"), "2 CPU cores", None, 2)
    assert any(line.startswith("stage 1 joint: lr, temperature; 10 trials") for line in lines)


def test_the_plan_tells_of_candidates_that_are_dropped(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, confirm={"top_k": 3, "seeds": 3, "drop": True})
    text = "\n".join(describe_plan(plan, "2 CPU cores", None, 2))
    told = "the best 3 and the defaults, each with 3 fresh seeds, after each seed without the worst: 9 trials"
    assert f"then confirm: {told}" in text
    assert "trials: 11 + 9 confirmations" in text
    nobody = make_plan(tmp_path, confirm={"top_k": 1, "seeds": 3, "drop": True})
    assert "without the worst" not in "\n".join(describe_plan(nobody, "2 CPU cores", None, 2))


def test_the_plan_without_confirmation_or_rungs_and_with_notes(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, rungs=Rungs(9, 3, EPOCHS), budget={"trials": 3}, confirm={"top_k": 5, "seeds": 1})
    text = "\n".join(describe_plan(plan, "2 CPU cores", None, 2))
    assert "compared at none" in text
    assert "note: confirm.top_k: 2 instead of 5: there are no more searched trials" in text
    text = "\n".join(describe_plan(make_plan(tmp_path, confirm=None), "2 CPU cores", None, 2))
    assert "then confirm" not in text
    assert "11 + 0 confirmations" in text


def test_the_plan_tells_the_objective_and_its_direction(tmp_path: Path) -> None:
    told = describe_plan(make_plan(tmp_path), "2 CPU cores", None, 2)[1]
    assert told == "objective: kNN balanced accuracy (higher is better)"
    told = describe_plan(make_plan(tmp_path, metric_name="reference_contrast"), "2 CPU cores", None, 2)[1]
    assert told == "objective: reference contrast (lower is better)"
    # A dry run does not look at the data.
    unknown = replace(make_plan(tmp_path), metric=None)
    told = describe_plan(unknown, "2 CPU cores", None, 2)[1]
    assert told == "objective: kNN balanced accuracy where there are labels, else reference contrast"


def test_the_plan_says_what_stages_do_that_are_more_than_their_keys(tmp_path: Path) -> None:
    space = load_space("full")[0].to_mapping()
    plan = make_plan(tmp_path, **{**space, "refine": True})
    stages = {line.split()[2][:-1]: line for line in describe_plan(plan, "2 CPU cores", None, 2) if "stage " in line}
    assert "lr times the root" in stages["batch_size"]
    assert "only where the batch size changed" in stages["lr_recheck"]
    assert stages["refine"].endswith("(all keys, around the winner)")
    assert stages["lr"].endswith(" trials")
    assert [line.split(";")[1].split()[0] for line in stages.values()] == [str(s.trials) for s in plan.stages]


@pytest.mark.parametrize(
    ("budget", "told"),
    [
        ({}, "epochs of training; the time is told"),
        ({"hours": 1.5}, "epochs of training, or 1.5 hours, whichever ends first (the confirmation is set aside)"),
        ({"hours": 2, "gpu_hours": 0.5}, ", or 2 hours or 0.5 GPU hours, whichever ends first"),
    ],
)
def test_the_plan_tells_the_budgets_of_time(budget: dict[str, float], told: str, tmp_path: Path) -> None:
    text = "\n".join(describe_plan(make_plan(tmp_path, budget={"trials": 11, **budget}), "2 CPU cores", None, 2))
    assert told in text


def test_the_plan_tells_what_the_device_holds(tmp_path: Path) -> None:
    capacity = Capacity(64, {8: 90.4, 32: 150.0, 64: 161.6}, out_of_memory=True)
    lines = describe_plan(replace(make_plan(tmp_path), capacity=capacity), "1 GPU", None, 1)
    assert (
        "batch sizes on this device: at most 64 images fit at once; larger batches go through the network in parts; "
        "images/s by size: 8: 90, 32: 150, 64: 162"
    ) in lines
    assert "64 images fit at once; images/s" in describe_capacity(replace(capacity, out_of_memory=False))


# The outcome


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Conductor:
    """A finished search without a test part, in a folder with a space in its name; some trials diverged."""
    plan = make_plan(tmp_path_factory.mktemp("searches") / "my search")
    plan.folder.mkdir()

    def objective(config: TrainConfig, epoch: int) -> float:
        return math.nan if config.lr > 0.02 else learn(config, epoch)

    return Driver(open_conductor(plan), objective).run()


def outcome_lines(conductor: Conductor) -> tuple[Outcome, list[str]]:
    outcome = decide(conductor)
    assert outcome is not None
    return outcome, describe_outcome(conductor, outcome, write_best(conductor.plan, outcome))


def test_the_outcome_tells_baseline_winner_gain_and_the_two_commands(finished: Conductor) -> None:
    outcome, lines = outcome_lines(finished)
    assert outcome.baseline is not None
    values = outcome.best.record.values
    folder = finished.plan.folder
    assert lines[0].startswith(f"baseline  {outcome.baseline.objective:.3f} ± ")
    assert lines[1].startswith(f"winner    {outcome.best.objective:.3f} ± ")
    assert f"lr={values['lr']:.3g}  temperature={values['temperature']:.3g}" in lines[1]
    assert outcome.best.record.name in lines[1]
    assert lines[2] == f"gain      {outcome.verdict}"
    assert lines[-3:] == [
        f"train it  python scripts/train.py --config '{folder / 'best.yaml'}'",
        f"look      '{folder / 'report.html'}'",
        f"          tensorboard --logdir '{folder}'",
    ]


def test_where_the_defaults_are_best_the_outcome_says_so(tmp_path: Path) -> None:
    def only_defaults(config: TrainConfig, epoch: int) -> float:
        return 0.9 if (config.lr, config.temperature) == (0.001, 0.1) else 0.1

    conductor = Driver(open_conductor(make_plan(tmp_path, confirm=None)), only_defaults).run()
    _, lines = outcome_lines(conductor)
    assert "the defaults" in lines[1]
    assert not any(line.startswith("edge") for line in lines)
    assert f"--config {tmp_path / 'best.yaml'}" in lines[-3]


def test_where_nothing_trained_the_outcome_says_what_to_do(tmp_path: Path) -> None:
    conductor = search(tmp_path, lambda config, epoch: math.nan)
    (line,) = describe_outcome(conductor, decide(conductor), None)
    assert line.startswith("no valid trial: none ran to its end")
    assert str(tmp_path / "leaderboard.csv") in line
    assert "searched: temperature, lr" in line


def test_a_winner_at_the_edge_of_its_range_is_told_with_the_range_to_try(tmp_path: Path) -> None:
    parameters = {"lr": {"type": "loguniform", "low": 1e-4, "high": 1e-2}}
    changes: dict[str, Any] = {"parameters": parameters, "budget": {"trials": 9}, "confirm": None}
    conductor = search(tmp_path / "narrow", lambda config, epoch: config.lr, **changes)
    outcome, lines = outcome_lines(conductor)
    (edge,) = [line for line in lines if line.startswith("edge")]
    lr = outcome.best.record.values["lr"]
    assert edge == f"edge      lr={lr:.3g} is at the upper edge of its range; try high: 0.1"
    # Of the range that was searched in the end, and not of the file's.
    conductor = search(tmp_path / "wide", lambda config, epoch: -abs(config.lr - 0.015), extend=True, **changes)
    assert conductor.ranges["lr"].high == 0.1
    outcome, lines = outcome_lines(conductor)
    assert outcome.best.record.values["lr"] > 0.01
    assert not any(line.startswith("edge") for line in lines)


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.001234567, "0.00123"), (1e-5, "1e-05"), (32, "32"), ("sgd", "sgd"), (None, "None"), (0.5, "0.5")],
)
def test_values_are_shown_in_few_characters(value: object, shown: str) -> None:
    assert format_value(value) == shown


# The live table


def shown_table(conductor: Conductor, width: int) -> list[str]:
    console = Console(width=width, file=io.StringIO(), record=True, legacy_windows=False)
    display = Display(conductor, quiet=True, concurrent=2, console=console)
    console.print(display._table())  # what the live view shows
    return console.export_text().rstrip("\n").split("\n")


def table_rows(lines: list[str]) -> list[str]:
    stage, told, header, *rows = lines
    assert stage.startswith("stage ")
    assert " trials ended, " in told
    assert header.split() == ["trial", "values", "epoch", "objective", "status"]
    return rows


@pytest.mark.parametrize("width", [80, 140])
def test_the_table_has_one_line_a_trial_at_any_width(width: int, finished: Conductor) -> None:
    lines = shown_table(finished, width)
    assert len(lines) == 3 + 12  # what runs, how far it is, the header, and twelve trials
    assert all(len(line) <= width for line in lines)
    for record, row in zip(finished.records()[-12:], table_rows(lines), strict=True):
        cells = row.split()
        assert cells[0] == (record.name if width == 140 else record.name.rsplit("-", 1)[0])
        assert f"{len(record.curve)}/{EPOCHS}" in cells
        assert record.objective is None or any(cell.startswith(f"{record.objective:.3f}") for cell in cells)


@pytest.mark.parametrize("width", [80, 140])
def test_a_wide_search_does_not_wrap_either(width: int, tmp_path: Path) -> None:
    space = load_space("full")[0].to_mapping()
    conductor = open_conductor(make_plan(tmp_path, **{**space, "order": "staged", "budget": {"trials": 11}}))
    driver = Driver(conductor, lambda config, epoch: learn(config, epoch) + 0.01 * config.transforms.min_scale)
    for _ in driver.reports():
        if conductor.stage.name == "augmentation" and len(conductor.live) == 2:
            break
    task = driver.handed[-1].record.name
    conductor.fail(task, "RuntimeError: " + "a very long reason " * 12)
    lines = shown_table(conductor, width)
    rows = table_rows(lines)
    assert len(rows) == len(conductor.records())
    assert all(len(line) <= width for line in lines)
    # What a stage varies can be read, whatever was found before it.
    for record, row in zip(sorted(conductor.records(), key=lambda r: not r.ended), rows, strict=True):
        if record.stage == "augmentation":
            for key in ("cj_strength", "min_scale"):
                assert f"{key}={record.values[f'transforms.{key}']:.3g}" in row


def test_at_full_width_the_table_shows_the_values_of_each_trial(finished: Conductor) -> None:
    rows = table_rows(shown_table(finished, 140))
    confirmations = [record for record in finished.records() if record.of]
    assert f"repeats {confirmations[0].of}, seed 6" in rows[-6]
    for record, row in zip(finished.records()[-12:-6], rows, strict=False):
        assert f"{record.stage}={record.values[record.stage]:.3g}" in row


def test_at_80_columns_the_values_can_still_be_read(finished: Conductor) -> None:
    for record, row in zip(finished.records()[-12:-6], table_rows(shown_table(finished, 80)), strict=False):
        assert f"{record.stage}={record.values[record.stage]:.3g}" in row
    confirmations = [record for record in finished.records() if record.of]
    rows = table_rows(shown_table(finished, 80))[-len(confirmations) :]
    for record, row in zip(confirmations, rows, strict=True):
        assert record.of is not None
        assert f"repeats {record.of.rsplit('-', 1)[0]}, seed {record.seed}" in row


def test_a_finished_search_has_no_time_left(finished: Conductor) -> None:
    told = shown_table(finished, 80)[1]
    assert told == f"17 of 17 trials ended, 2 at a time, best * {finished.ranked()[0].objective:.3f}"


def test_the_best_completed_trial_is_marked_and_running_ones_are_shown(tmp_path: Path) -> None:
    conductor = Driver(open_conductor(make_plan(tmp_path))).run(EPOCHS + 3)
    rows = table_rows(shown_table(conductor, 100))
    assert [row.split()[-1] for row in rows] == ["completed", "running", "running"]
    assert [row.count("*") for row in rows] == [1, 0, 0]
    assert "defaults" in rows[0]


def test_the_head_tells_the_stage_and_how_far_the_search_is(tmp_path: Path) -> None:
    conductor = Driver(open_conductor(make_plan(tmp_path))).run(EPOCHS + 3)
    stage, told, *_ = shown_table(conductor, 80)
    assert stage == "stage 1 lr: lr"
    best = conductor.ranked()[0].objective
    assert told == f"1 of 17 trials ended, 2 at a time, best * {best:.3f}, time left: not known yet"


def test_the_best_stays_in_sight_of_a_long_search(tmp_path: Path) -> None:
    conductor = search(tmp_path, lambda config, epoch: 0.9 if config.lr == 0.001 else 0.1, budget={"trials": 30})
    rows = table_rows(shown_table(conductor, 80))
    assert len(rows) == 12
    best = conductor.ranked()[0]
    assert best.name.rsplit("-", 1)[0] == rows[0].split()[0]
    assert [row.count("*") for row in rows] == [1, *[0] * 11]


@pytest.mark.parametrize("rows", [10, 24])
def test_however_many_run_the_table_fits_the_screen(rows: int, tmp_path: Path) -> None:
    conductor = open_conductor(make_plan(tmp_path, budget={"trials": 80}))
    driver = Driver(conductor, concurrent=30)
    for number, _ in enumerate(driver.reports()):
        if len(conductor.live) == 30 and number > 150:
            break
    console = Console(width=80, height=rows, file=io.StringIO(), record=True, force_interactive=True)
    console.print(Display(conductor, quiet=True, concurrent=30, console=console)._table())
    lines = console.export_text().rstrip("\n").split("\n")
    assert len(lines) == rows - 1
    assert lines[-1] == f"... and {30 - (rows - 6)} more running"
    assert any("*" in line for line in lines[3:])


def test_an_empty_search_has_an_empty_table(tmp_path: Path) -> None:
    assert table_rows(shown_table(open_conductor(make_plan(tmp_path)), 80)) == []


# In a pipe


def told(conductor: Conductor, capsys: pytest.CaptureFixture[str], quiet: bool = False) -> str:
    driver = Driver(conductor)
    with Display(conductor, quiet, 2) as display:
        for _ in driver.reports():
            display.update(epoch_done=True)
    return capsys.readouterr().out


def test_in_a_pipe_each_stage_and_each_end_has_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    conductor = open_conductor(make_plan(tmp_path))
    lines = told(conductor, capsys).splitlines()
    stages = [line for line in lines if line.startswith("stage ")]
    assert [line.split(":")[0] for line in stages] == [
        "stage 0 defaults",
        "stage 1 lr",
        "stage 2 temperature",
        "stage 3 confirm",
    ]
    ends = [line for line in lines if line.startswith("  ")]
    assert len(ends) == len(lines) - len(stages)
    assert sorted(line.split()[0] for line in ends) == sorted(record.name for record in conductor.records())
    for record in conductor.records():
        (line,) = [line for line in ends if line.split()[0] == record.name]
        assert f": {record.status}" in line
        assert f"{len(record.curve)} epochs objective {record.objective:.3f}" in line
        assert "time left" in line
        assert record.reason in line


def test_a_pipe_is_told_what_runs_where_nothing_has_ended_for_long(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr("phenoscape_tune.search.display.time.monotonic", clock)
    conductor = open_conductor(make_plan(tmp_path))
    driver = Driver(conductor, concurrent=1, clock=clock, seconds=lambda config: 120.0)
    with Display(conductor, quiet=False, concurrent=1) as display:
        for _ in itertools.islice(driver.reports(), 8):
            display.update(epoch_done=True)
    lines = capsys.readouterr().out.splitlines()
    name = conductor.records()[0].name
    assert lines[0] == "stage 0 defaults: the configuration as it is"
    assert [line.split(";")[0] for line in lines[1:]] == [f"  running: {name} 3/9", f"  running: {name} 6/9"]
    assert all("time left: about " in line for line in lines[1:])


def test_the_first_stage_is_told_before_anything_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Display(open_conductor(make_plan(tmp_path)), quiet=False, concurrent=2):
        assert capsys.readouterr().out == "stage 0 defaults: the configuration as it is\n"


def test_verbose_tells_each_epoch_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    conductor = open_conductor(make_plan(tmp_path, budget={"trials": 3}, confirm=None))
    with Display(conductor, quiet=False, concurrent=2, verbose=True) as display:
        for _ in Driver(conductor).reports():
            display.update(epoch_done=True)
    stage, *lines = capsys.readouterr().out.splitlines()
    assert stage.startswith("stage 0 defaults: ")
    lines = [line for line in lines if " epoch " in line and "objective" in line]
    told = [line for line in lines if ":" not in line]
    assert told == list(dict.fromkeys(told))
    assert (
        lines[0] == f"  {conductor.records()[0].name} epoch 1/{EPOCHS} objective {conductor.records()[0].curve[0]:.3f}"
    )
    assert sorted(told) == sorted(
        f"  {record.name} epoch {epoch}/{EPOCHS} objective {value:.3f}"
        for record in conductor.records()
        for epoch, value in enumerate(record.curve, start=1)
    )


def test_a_stages_line_tells_around_what_it_searches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    conductor = open_conductor(make_plan(tmp_path))
    stages = [line for line in told(conductor, capsys).splitlines() if line.startswith("stage ")]
    found = conductor.winners[1]
    assert found is not None and found.stage == "lr"
    assert stages[1:] == [
        "stage 1 lr: lr; from the defaults",
        f"stage 2 temperature: temperature; from lr={found.values['lr']:.3g}",
        "stage 3 confirm: the best and the defaults with fresh seeds",
    ]


def test_the_time_left_is_never_more_than_the_budget_holds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(tmp_path, budget={"trials": 11, "hours": 0.5})
    clock = Clock()
    monkeypatch.setattr("phenoscape_tune.search.display.time.monotonic", clock)
    conductor = open_conductor(plan, Spending(plan.space.budget, 1, clock=clock))
    driver = Driver(conductor, concurrent=1, clock=clock, seconds=lambda config: 15.0)
    left = []
    with Display(conductor, quiet=False, concurrent=1) as display:
        for _ in driver.reports():
            display.update(epoch_done=True)
            lines = capsys.readouterr().out.splitlines()
            left += [(clock.now, int(line.split("about ")[1].split()[0])) for line in lines if "about" in line]
    assert left
    assert all(minutes <= (1800 - now) / 60 + 0.5 for now, minutes in left)
    # Without the budget the rest would take longer.
    assert left[0][1] < (driver.conductor.plan.epochs_at_most * 15 - left[0][0]) / 60 - 1


def test_quiet_prints_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert told(open_conductor(make_plan(tmp_path)), capsys, quiet=True) == ""


def test_after_a_resume_only_what_is_new_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = make_plan(tmp_path)
    before = {record.name for record in Driver(open_conductor(plan)).run(40).records() if record.ended}
    conductor = open_conductor(plan)
    assert not conductor.settle()
    ends = {line.split()[0] for line in told(conductor, capsys).splitlines() if line.startswith("  ")}
    assert ends == {record.name for record in conductor.records()} - before
    assert before


# As a process

SHOWN = str(Path(__file__).parent / "shown_search.py")


@pytest.mark.parametrize("columns", [80, 140])
def test_a_long_search_stays_on_the_screen(columns: int, tmp_path: Path) -> None:
    code, written = run_on_terminal([SHOWN, str(tmp_path / "s"), "60", "4"], columns)
    assert code == 0, written
    assert max(map(len, shown_lines(written))) <= columns
    # Each frame stands where the one before stood.
    heights = [len(moves) // len("\x1b[1A\x1b[2K") + 1 for moves in re.findall(r"(?:\x1b\[1A\x1b\[2K)+", written)]
    assert len(heights) > 10
    assert max(heights) < 24
    assert COLOURS.search(written)


@pytest.mark.parametrize("variables", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_no_colours_where_none_are_wanted(variables: dict[str, str], tmp_path: Path) -> None:
    code, written = run_on_terminal([SHOWN, str(tmp_path / "s"), "12", "2"], 80, variables=variables)
    assert code == 0, written
    assert not COLOURS.search(written)
    assert "stage 7 confirm" in written
    if variables == {"TERM": "dumb"}:
        assert not CODES.search(written)
        assert len([line for line in written.splitlines() if line.startswith("stage ")]) == 8


@pytest.mark.parametrize("variables", [{}, {"FORCE_COLOR": "1"}])
def test_in_a_file_there_are_no_codes(variables: dict[str, str], tmp_path: Path) -> None:
    command = [sys.executable, SHOWN, str(tmp_path / "s"), "60", "2"]
    with (tmp_path / "log").open("w") as log:
        subprocess.run(command, stdout=log, check=True, env={**os.environ, "TERM": "xterm", **variables})
    text = (tmp_path / "log").read_text()
    lines = text.splitlines()
    assert "\x1b" not in text and "\r" not in text
    assert len(lines) == len(set(lines))
    ended = [line for line in lines if line.startswith("  ")]
    assert len(ended) + len([line for line in lines if line.startswith("stage ")]) == len(lines)
    assert len(ended) > 60
