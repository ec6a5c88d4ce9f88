"""Pages of searches that are not as they should be, and of names that are no HTML."""

import math
import re
import tempfile
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from driver import EPOCHS, Driver, learn, make_plan, open_conductor, search
from hypothesis import given, settings
from hypothesis import strategies as st
from shown_page import LR, SCRIPT, SECTIONS, Seen, assert_asks_nothing_of_the_network, read

from phenoscape_tune.config import TrainConfig
from phenoscape_tune.search.conductor import Conductor
from phenoscape_tune.search.record import COMPLETED
from phenoscape_tune.search.report_page import build_report, write_report
from phenoscape_tune.search.rungs import Rungs
from phenoscape_tune.search.spending import Spending
from phenoscape_tune.search.verdict import decide

# Lower is better


@pytest.fixture(scope="module")
def lower(tmp_path_factory: pytest.TempPathFactory) -> Conductor:
    plan = make_plan(tmp_path_factory.mktemp("lower"), metric_name="reference_contrast")

    def contrast(config: TrainConfig, epoch: int) -> dict[str, float]:
        value = 6 - 3 * learn(config, epoch)
        return {"objective": value, **({"test_objective": value} if epoch == EPOCHS else {})}

    return Driver(open_conductor(plan), contrast).run()


def test_where_lower_is_better_everything_says_so(lower: Conductor) -> None:
    seen = read(lower)
    assert "higher is better" not in seen.page
    axes = [f["layout"]["yaxis"]["title"]["text"] for f in seen.figures.values() if "title" in f["layout"]["yaxis"]]
    assert axes
    assert set(axes) == {"reference contrast<br>(lower is better)"}


def test_where_lower_is_better_the_best_is_the_lowest_and_a_gain_is_positive(lower: Conductor) -> None:
    seen = read(lower)
    completed = [record.objective or 0 for record in lower.records() if record.status == COMPLETED and not record.of]
    (ring,) = seen.traces("reference contrast over temperature", "circle-open")
    assert ring["y"] == [min(completed)]
    gain = seen.numbers["tile-gain"][0]
    base, won = seen.numbers["tile-baseline"][0], seen.numbers["tile-winner"][0]
    assert won < base
    assert gain == pytest.approx(base - won, rel=0.1)  # the one of the test part, the others of validation
    assert "Clear gain" in seen.words["result"]
    (trace,) = seen.figure("All searched values at once")["data"]
    darkest = trace["line"]["color"].index(max(trace["line"]["color"]))
    assert trace["dimensions"][-1]["values"][darkest] == min(completed)
    steps = [float(row[2]) for row in seen.tables["result"][0][1:] if row[2] != "–"]
    assert steps
    assert min(steps) > 0


# Searches that are not as they should be


def test_a_search_that_failed_entirely_says_what_to_do(tmp_path: Path) -> None:
    conductor = search(tmp_path, lambda config, epoch: math.nan)
    seen = read(conductor)
    assert [known["id"] for tag, known in seen.tags if tag == "section"] == SECTIONS
    assert "No valid trial: none ran to its end" in seen.words["result"]
    assert "smaller values" in seen.words["result"]
    assert len(seen.tables["failures"][0]) == 1 + 11
    assert "train.py" not in seen.everything
    assert seen.figure("kNN balanced accuracy over lr")["layout"]["height"] < 200


def test_a_search_without_a_report_yet_can_be_shown(tmp_path: Path) -> None:
    conductor = open_conductor(make_plan(tmp_path))
    assert "No trial has run to its end yet" in read(conductor).words["result"]
    assert conductor.next_task() is not None
    assert "1 interrupted" in read(conductor).words["stages"]


@pytest.mark.parametrize("reports", [1, 8, 20, 45, 60])
def test_an_interrupted_search_shows_what_is_known(reports: int, tmp_path: Path) -> None:
    conductor = Driver(open_conductor(make_plan(tmp_path))).run(reports)
    seen = read(conductor)
    assert "The search has not ended" in seen.words["result"]
    assert "interrupted" in seen.words["failures"]
    for trace in [t for f in seen.figures.values() for t in f["data"] if t.get("type") == "scatter"]:
        assert len(trace["x"]) == len(trace["y"])


def test_a_search_of_one_trial_a_stage_has_a_page(tmp_path: Path) -> None:
    conductor = search(tmp_path, parameters={"lr": LR}, budget={"trials": 2}, confirm=None)
    seen = read(conductor)
    assert "was not asked for" in seen.words["result"]
    assert "One setting was searched" in seen.words["importances"]
    assert "not confirmed" in seen.words["result"]


def test_where_the_defaults_are_kept_the_best_of_the_search_is_shown_too(tmp_path: Path) -> None:
    conductor = search(
        tmp_path, lambda config, epoch: 0.9 if config.lr == 0.001 else 0.1, parameters={"lr": LR}, confirm=None
    )
    seen = read(conductor)
    assert "the defaults: they are kept" in seen.words["result"]
    assert seen.numbers["tile-candidate"][0] == pytest.approx(0.1)
    assert "nothing is changed" in seen.words["configuration"]


def test_a_failed_baseline_leaves_no_gain(tmp_path: Path) -> None:
    conductor = search(tmp_path, lambda config, epoch: math.nan if config.lr == 0.001 else 0.5)
    seen = read(conductor)
    assert "tile-gain" not in seen.numbers
    assert "tile-baseline" not in seen.numbers


def test_a_stage_that_the_budget_of_time_ended_says_so(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, budget={"trials": 30, "hours": 0.03})
    driver = Driver(open_conductor(plan))
    driver.conductor.spending = Spending(plan.space.budget, 2, clock=driver.clock)
    seen = read(driver.run())
    assert "by the budget of time" in seen.words["result"]
    assert "Ended early, after" in seen.words["stages"]
    rows = {row[0]: row[1:] for row in seen.tables["details"][0][1:]}
    assert rows["hours"][0] == "0.0300"
    assert float(rows["hours"][1]) <= 0.03


def test_trials_of_an_earlier_search_are_marked(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    first = search(tmp_path / "first", confirm=None)
    warm = [replace(record, name=f"first:{record.name}", warm=True) for record in first.records() if record.values]
    second = open_conductor(make_plan(tmp_path / "second", confirm=None), warm=warm)
    seen = read(Driver(second).run())
    diamonds = [*seen.traces("kNN balanced accuracy over lr", "diamond")]
    diamonds += seen.traces("kNN balanced accuracy over lr", "diamond-open")
    told = [words.split("<br>")[0] for trace in diamonds for words in trace["text"]]
    assert sorted(told) == sorted(r.name for r in second.study.warm_trials(second.stages[1]))
    assert told
    assert "of an earlier search counted too" in seen.words["result"]


def test_three_hundred_trials_fit_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # TPE would take longer than all the rest.
    monkeypatch.setattr(optuna.samplers, "TPESampler", lambda seed=None, **other: optuna.samplers.RandomSampler(seed))
    conductor = search(tmp_path, order="joint", budget={"trials": 300}, confirm=None, rungs=Rungs(1, 20, 2))
    page = build_report(conductor, decide(conductor), SCRIPT)
    assert len(page) < 1_000_000
    seen = Seen(page)
    assert max(len(figure["data"]) for figure in seen.figures.values()) < 15
    assert sum(record.name in seen.words["stages"] for record in conductor.records()) == 300


# Names that are no HTML


NASTY = ["<script>alert(1)</script>", "</script><b>", "größe & <i>Vögel</i>", "%{text}", "a\"b'c", "<!--", "\udcff.jpg"]


@settings(max_examples=15, deadline=None)
@given(words=st.text(min_size=1, max_size=40) | st.sampled_from(NASTY))
def test_any_words_are_shown_as_they_are(words: str) -> None:
    def pages(words: str) -> Seen:
        with tempfile.TemporaryDirectory() as folder:
            # pydantic takes no half characters.
            value = words.encode("utf-8", "replace").decode("utf-8")
            parameters = {"weights": {"type": "choice", "values": ["plain", value + "!"]}}
            conductor = open_conductor(
                make_plan(Path(folder), parameters=parameters, budget={"trials": 3}, confirm=None)
            )
            for task in iter(conductor.next_task, None):
                assert task is not None
                if task.record.values.get("weights") == "plain":
                    conductor.fail(task.record.name, words)
                    continue
                for epoch in range(1, EPOCHS + 1):
                    conductor.report(task.record.name, {"epoch": epoch, "objective": 0.5})
            return read(conductor)

    seen, plain = pages(words), pages("word")
    assert [tag for tag, _ in seen.tags] == [tag for tag, _ in plain.tags]
    assert_asks_nothing_of_the_network(replace_words(seen))
    shown = words.encode("utf-8", "replace").decode("utf-8").replace("\x00", "�")
    for section in ("failures", "stages"):
        assert " ".join(shown.split()) in " ".join(seen.words[section].split())
    assert [f["data"][0].keys() for f in seen.figures.values()] == [f["data"][0].keys() for f in plain.figures.values()]


def replace_words(seen: Seen) -> Seen:
    """The page without its text, which may hold anything."""
    seen.page = re.sub(r">[^<]*<", "><", seen.page[: seen.page.index("<script")])
    return seen


@pytest.mark.parametrize("name", ["<b>&'\" größe", "a b", "\udcff"])
def test_a_folder_of_any_name_gets_its_page(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    folder.mkdir()
    conductor = search(folder, budget={"trials": 3}, confirm=None)
    seen = Seen(write_report(conductor, decide(conductor)).read_text(encoding="utf-8"))
    assert f"Search {name.encode('utf-8', 'replace').decode('utf-8')}" in seen.words[""]
