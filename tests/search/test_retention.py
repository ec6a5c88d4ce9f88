from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from driver import Driver, Objective, learn, make_plan, open_conductor, search

from phenoscape_tune.cli.search_copy import open_mirror
from phenoscape_tune.cli.whole_search import finish
from phenoscape_tune.config import build_config
from phenoscape_tune.search.conductor import Conductor
from phenoscape_tune.search.course import CANDIDATES
from phenoscape_tune.search.record import TrialRecord
from phenoscape_tune.search.retention import Retention, kept_at_most
from phenoscape_tune.search.verdict import decide
from phenoscape_tune.training.uploads import FETCHED
from phenoscape_tune.yaml_file import dump_mapping

FILES = {"last.ckpt", "previous.ckpt", "best.ckpt"}


def checkpoints(folder: Path) -> dict[str, set[str]]:
    """Of each trial that has any, the names of its checkpoints."""
    found: dict[str, set[str]] = {}
    for path in folder.glob("trials/*/checkpoints/*"):
        found.setdefault(path.parent.parent.name, set()).add(path.name)
    return found


def write_checkpoints(folder: Path, name: str) -> None:
    own = folder / "trials" / name / "checkpoints"
    own.mkdir(parents=True, exist_ok=True)
    for file in FILES:
        (own / file).touch()
    (own.parent / "test_scores.csv").touch()


def search_with_files(
    folder: Path,
    most: int | None = None,
    objective: Objective = learn,
    warm: Sequence[TrialRecord] = (),
    **space: Any,
) -> Iterator[tuple[Conductor, Retention]]:
    """Run a search whose trials write checkpoints before each report, with a sweep after each end."""
    conductor = open_conductor(make_plan(folder, **space), warm=warm)
    retention, ended = Retention(conductor), 0
    driver = Driver(conductor)
    names: list[str] = []

    def write_and_learn(config: Any, epoch: int) -> Any:
        names.append(Path(config.out_dir).name)
        write_checkpoints(folder, names[-1])
        return objective(config, epoch)

    driver.objective = write_and_learn
    for number, _ in enumerate(driver.reports(), start=1):
        now = sum(record.ended for record in conductor.records())
        if now > ended:
            ended = now
            retention.sweep()
        yield conductor, retention
        if number == most:
            return


def test_a_search_never_has_more_checkpoints_than_its_best_and_its_running_trials(tmp_path: Path) -> None:
    conductor = None
    for conductor, _ in search_with_files(tmp_path, keep=3):
        ended = {record.name for record in conductor.records() if record.ended}
        own = checkpoints(tmp_path)
        assert len(own.keys() & ended) <= kept_at_most(conductor.plan)
        assert own.keys() - ended == conductor.live.keys() & own.keys()
        for name in own.keys() & ended:
            assert own[name] == {"last.ckpt", "best.ckpt"}
        for name in conductor.live.keys() & own.keys():
            assert own[name] == FILES  # it may have to be resumed
    assert conductor is not None and conductor.done
    outcome = decide(conductor)
    assert outcome is not None and conductor.baseline is not None
    Retention(conductor).sweep(outcome.best.record.name)
    best = [record.name for record in conductor.ranked()[:3]]
    assert checkpoints(tmp_path).keys() == {*best, conductor.baseline.name, outcome.best.record.name}
    # All else that a trial wrote stays.
    assert len(list(tmp_path.glob("trials/*/test_scores.csv"))) == len(conductor.records())


def test_the_candidates_of_the_confirmation_are_kept_until_one_of_them_has_won(tmp_path: Path) -> None:
    conductor = None
    for conductor, _ in search_with_files(tmp_path, keep=1, confirm={"top_k": 4, "seeds": 1}):
        if conductor.stage.name == "confirm" and not conductor.done:
            candidates = {record.name for record in conductor.ranked()[:4]}
            assert candidates <= checkpoints(tmp_path).keys()
    assert conductor is not None
    outcome = decide(conductor)
    assert outcome is not None and conductor.baseline is not None
    Retention(conductor).sweep(outcome.best.record.name)
    best = conductor.ranked()[0].name
    assert checkpoints(tmp_path).keys() == {best, conductor.baseline.name, outcome.best.record.name}


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_where_the_defaults_are_best_every_candidate_has_its_checkpoints_when_it_is_repeated(
    tmp_path: Path, keep: int
) -> None:
    def defaults_are_best(config: Any, epoch: int) -> float:
        return 0.99 if (config.lr, config.temperature) == (base.lr, base.temperature) else float(learn(config, epoch))

    space: dict[str, Any] = {"keep": keep, "confirm": {"top_k": 3, "seeds": 1}}
    base = make_plan(tmp_path, **space).base
    repeated: set[str] = set()
    for conductor, _ in search_with_files(tmp_path, objective=defaults_are_best, **space):
        if conductor.stage.name == "confirm" and not conductor.done:
            # What the search itself decided to repeat, as its journal has it.
            repeated = set(conductor.study.get_note(conductor.stage, CANDIDATES))
            assert repeated <= checkpoints(tmp_path).keys()
    assert conductor.baseline is not None and conductor.ranked()[0].name == conductor.baseline.name
    assert len(repeated) == 4


def test_trials_of_an_earlier_search_take_no_place_of_those_that_have_checkpoints(tmp_path: Path) -> None:
    def better(config: Any, epoch: int) -> float:
        return float(learn(config, epoch)) + 0.5

    earlier = [record for record in search(tmp_path / "earlier", better).ranked() if record.values]
    warm = [replace(record, name=f"earlier:{record.name}", warm=True) for record in earlier]
    folder = tmp_path / "search"
    conductor = list(search_with_files(folder, warm=warm, keep=2, confirm=None))[-1][0]
    Retention(conductor).sweep()
    ranked = conductor.ranked()
    assert all(record.warm for record in ranked[:2])
    best = [record.name for record in ranked if not record.warm][:2]
    assert conductor.baseline is not None
    assert checkpoints(folder).keys() == {*best, conductor.baseline.name}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of scores that no trial here has
def test_storage_has_at_the_end_what_trials_that_were_cut_off_did_not_upload(tmp_path: Path) -> None:
    folder, remote = tmp_path / "search", tmp_path / "remote"

    def train(config: Any, epoch: int) -> float:
        own = Path(config.out_dir)
        write_checkpoints(folder, own.name)
        for name in FILES:  # of one size, whatever the epoch
            (own / "checkpoints" / name).write_bytes(bytes(500) + bytes([epoch]) * 32)
        (own / "logs" / "tensorboard").mkdir(parents=True, exist_ok=True)
        (own / "config.yaml").write_text(dump_mapping(config.to_mapping()))
        for name in ("training.log", "tensorboard/events"):
            with (own / "logs" / name).open("a") as file:
                file.write(f"epoch {epoch}\n")
        if epoch == 2:  # all that its own process uploads: of it, less than there is later
            shutil.copytree(own / "checkpoints", remote / "trials" / own.name / "checkpoints", dirs_exist_ok=True)
            (remote / "trials" / own.name / "checkpoints" / "previous.ckpt").unlink()
        return float(learn(config, epoch))

    base = build_config({"seed": 5, "max_epochs": 50, "storage": f"file://{remote}"})
    folder.mkdir()
    (folder / "search.yaml").write_text("{}")
    conductor = open_conductor(make_plan(folder, base, keep=1))
    with open_mirror(conductor) as mirror:
        retention = Retention(conductor, mirror)
        driver = Driver(conductor, train)
        for _ in driver.reports():
            retention.sweep()
        outcome = finish(conductor, mirror).outcome
    assert outcome is not None and conductor.baseline is not None
    here, there = files(folder), files(remote)
    kept = {conductor.ranked()[0].name, conductor.baseline.name, outcome.best.record.name}
    assert {Path(name).parts[1] for name in there if "checkpoints" in name} == kept
    for record in conductor.records():
        own = f"trials/{record.name}"
        for name in ("config.yaml", "test_scores.csv", "logs/training.log", "logs/tensorboard/events"):
            assert there[f"{own}/{name}"] == here[f"{own}/{name}"]
    local = {"images.lock", "study.journal.lock"}
    assert there == {name: content for name, content in here.items() if name not in local}


def files(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def test_a_resumed_search_sweeps_what_was_left_and_needs_none_of_what_is_gone(tmp_path: Path) -> None:
    unbroken = list(search_with_files(tmp_path / "unbroken", keep=1))[-1][0]
    first = list(search_with_files(tmp_path / "broken", most=40, keep=1))[-1][0]
    assert not first.done
    # Killed before its last sweep: an ended trial still has its files.
    left = next(record.name for record in first.records() if record.status == "pruned")
    write_checkpoints(tmp_path / "broken", left)
    (tmp_path / "broken" / "trials" / left / "checkpoints" / FETCHED).touch()  # and while it was fetched
    resumed = list(search_with_files(tmp_path / "broken", keep=1))[-1][0]
    assert resumed.done
    assert left not in checkpoints(tmp_path / "broken")
    assert [r.values for r in resumed.ranked()] == [r.values for r in unbroken.ranked()]


def test_what_is_not_ours_stays_and_what_cannot_be_removed_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    conductor = list(search_with_files(tmp_path, keep=1))[-1][0]
    pruned = [record.name for record in conductor.records() if record.status == "pruned"]
    write_checkpoints(tmp_path, pruned[0])
    own = tmp_path / "trials" / pruned[0] / "checkpoints"
    (own / "notes.txt").touch()
    Retention(conductor).sweep()
    assert [path.name for path in own.iterdir()] == ["notes.txt"]

    def refuse(*arguments: object, **more: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "unlink", refuse)
    Retention(conductor).sweep()
    assert "could not be removed (Permission denied)" in caplog.text
