import csv
import json
import math
import random
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from driver import EPOCHS, DoesNotFit, Driver, learn, make_plan, open_conductor, search
from hypothesis import given, settings
from hypothesis import strategies as st

from phenoscape_tune.config import TrainConfig, build_config
from phenoscape_tune.search.conductor import Conductor
from phenoscape_tune.search.plan import Plan
from phenoscape_tune.search.record import COMPLETED, PRUNED
from phenoscape_tune.search.report import write_best, write_leaderboard, write_summary
from phenoscape_tune.search.report_page import build_report, write_report
from phenoscape_tune.search.rungs import Rungs
from phenoscape_tune.search.spending import Spending
from phenoscape_tune.search.verdict import Outcome, decide
from phenoscape_tune.training.capacity import Capacity

SECTIONS = ["result", "stages", "curves", "importances", "coordinates", "failures", "configuration", "train", "details"]
LR = {"type": "loguniform", "low": 1e-5, "high": 1e-1}
NARROW = {"type": "uniform", "low": 0.3, "high": 0.5}
STRENGTH = {"type": "uniform", "low": 0, "high": 1}
BATCHES = {"type": "choice", "values": [16, 32, 64, 128]}
SCRIPT = "/* plotly */"
LABELS = ["crow", "finch", "robin"] * 20


# A page, read


@dataclass
class Seen(HTMLParser):
    """What a browser would find in a page.

    Attributes:
        tags: every element with its attributes.
        words: the text of each section; "" is what stands outside of them.
        numbers: the exact values that each section shows, by the id of the nearest element that has one.
        tables: of each section its tables, as rows of cells' texts.
    """

    page: str
    tags: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    words: dict[str, str] = field(default_factory=dict)
    numbers: dict[str, list[float]] = field(default_factory=dict)
    tables: dict[str, list[list[list[str]]]] = field(default_factory=dict)
    scripts: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self._section, self._near, self._inside = "", "", ""
        self.feed(self.page)

    def __hash__(self) -> int:
        return id(self)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = {name: value or "" for name, value in attrs}
        self.tags.append((tag, known))
        if tag == "section":
            self._section = known["id"]
        if "id" in known:
            self._near = known["id"]
        if tag == "data":
            self.numbers.setdefault(self._near, []).append(float(known["value"]))
        tables = self.tables.setdefault(self._section, [])
        if tag == "table":
            tables.append([])
        if tag == "tr":
            tables[-1].append([])
        if tag in ("td", "th"):
            tables[-1][-1].append("")
        if tag in ("script", "style", "td", "th", "svg"):
            self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        if tag == self._inside:
            self._inside = ""
        if tag == "section":
            self._section = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts.append(data)
        elif self._inside != "style":
            self.words[self._section] = self.words.get(self._section, "") + data
        if self._inside in ("td", "th"):
            self.tables[self._section][-1][-1][-1] += data

    @property
    def figures(self) -> dict[str, Any]:
        given: dict[str, Any] = json.loads(next(script for script in self.scripts if script.startswith('{"figures"')))
        return given["figures"]

    def figure(self, title: str, number: int = 0) -> dict[str, Any]:
        """The figure under a caption."""
        captions = re.findall(
            r'<figcaption>([^<]*)</figcaption><div class="scroll"><div class="plot" id="(.*?)"', self.page
        )
        found: dict[str, Any] = self.figures[[name for caption, name in captions if caption == title][number]]
        return found

    def traces(self, title: str, symbol: str) -> list[dict[str, Any]]:
        return [t for t in self.figure(title)["data"] if t.get("marker", {}).get("symbol") == symbol]

    @property
    def everything(self) -> str:
        return " ".join(self.words.values())


def read(conductor: Conductor, outcome: Outcome | None = None) -> Seen:
    return Seen(build_report(conductor, outcome or decide(conductor), SCRIPT))


# Searches


def rich_row(config: TrainConfig, epoch: int) -> dict[str, float]:
    """An objective with noise; large learning rates diverge, the largest batch does not fit."""
    if config.batch_size == 128 and epoch == 2:
        raise DoesNotFit("out of memory with 64 images at a time")
    noise = random.Random(f"{config.lr}{config.temperature}{config.batch_size}{config.transforms}{epoch}{config.seed}")
    value = learn(config, epoch) - 0.1 * abs(config.transforms.cj_strength - 0.7) + noise.gauss(0, 0.004)
    value = math.nan if config.lr > 0.05 and epoch == 2 else max(0.0, value)
    tested = {"test_objective": value - 0.02} if epoch == EPOCHS and config.seed != 5 else {}
    return {"objective": value, "objective_error": 0.011, **tested}


def write_scores(conductor: Conductor) -> None:
    """The specimens' scores of the confirmations, as the trials write them."""
    for record in conductor.records():
        if record.test_objective is not None:
            folder = conductor.plan.folder / "trials" / record.name
            folder.mkdir(parents=True)
            right = np.arange(len(LABELS)) < record.test_objective * len(LABELS)
            with (folder / "test_scores.csv").open("w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                writer.writerow(["filename", "group", "label", "score"])
                writer.writerows((f"{i}.jpg", i, label, float(right[i])) for i, label in enumerate(LABELS))


def rich_plan(folder: Path) -> Plan:
    parameters = {"lr": LR, "batch_size": BATCHES, "temperature": NARROW, "transforms.cj_strength": STRENGTH}
    confirm, budget = {"top_k": 2, "seeds": 3}, {"trials": 40}
    plan = make_plan(folder, parameters=parameters, extend=True, refine=True, budget=budget, confirm=confirm)
    return replace(plan, capacity=Capacity(32, {8: 40.0, 16: 70.5, 32: 90.0}, True))


@pytest.fixture(scope="module")
def rich(tmp_path_factory: pytest.TempPathFactory) -> tuple[Conductor, Outcome, dict[str, Any], list[dict[str, str]]]:
    """A search with all that can happen, its outcome, summary.json and leaderboard.csv."""
    plan = rich_plan(tmp_path_factory.mktemp("rich") / "my search")
    plan.folder.mkdir()
    conductor = Driver(open_conductor(plan), rich_row).run()
    write_scores(conductor)
    outcome = decide(conductor)
    assert outcome is not None
    write_best(plan, outcome)
    write_leaderboard(conductor)
    write_summary(conductor, outcome)
    with (plan.folder / "leaderboard.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return conductor, outcome, json.loads((plan.folder / "summary.json").read_text(encoding="utf-8")), rows


Rich = tuple[Conductor, Outcome, dict[str, Any], list[dict[str, str]]]


@pytest.fixture(scope="module")
def seen(rich: Rich) -> Seen:
    return read(rich[0], rich[1])


# The page


def test_the_story_comes_first_and_the_sections_in_order(seen: Seen) -> None:
    assert [known["id"] for tag, known in seen.tags if tag == "section"] == SECTIONS
    linked = [known["href"] for tag, known in seen.tags if tag == "a" and known["href"].startswith("#")]
    assert linked == [f"#{name}" for name in SECTIONS]
    headings = [(tag, known.get("id")) for tag, known in seen.tags if tag in ("h1", "h2")]
    assert headings == [("h1", None), *(("h2", f"{name}-title") for name in SECTIONS)]


def assert_asks_nothing_of_the_network(seen: Seen) -> None:
    beside = {"leaderboard.csv", "summary.json", "best.yaml"}
    for tag, known in seen.tags:
        assert tag not in ("img", "iframe", "object", "embed", "base", "form", "video", "audio", "source"), tag
        assert "src" not in known, (tag, known)
        assert not {name for name in known if name.startswith("on")}
        if "href" in known:
            assert known["href"] in beside or known["href"].startswith(("#", "data:,")), known
    style = seen.page[seen.page.index("<style>") : seen.page.index("</style>")]
    assert "url(" not in style and "@import" not in style
    assert not re.search(r"https?:", seen.page.replace("http-equiv", ""))


def test_the_page_asks_nothing_of_the_network(seen: Seen) -> None:
    assert_asks_nothing_of_the_network(seen)
    policy = next(known["content"] for tag, known in seen.tags if "http-equiv" in known)
    assert policy.startswith("default-src 'none'; ")


def test_the_written_file_holds_the_script_once_and_nothing_is_left_beside_it(rich: Rich) -> None:
    from plotly.offline import get_plotlyjs

    path = write_report(rich[0], rich[1])
    assert path == rich[0].plan.folder / "report.html"
    text = path.read_text(encoding="utf-8")
    assert text.count(get_plotlyjs()) == 1
    assert 4.5e6 < path.stat().st_size < 6e6
    assert not list(path.parent.glob(".*.tmp"))
    whole = Seen(text)
    whole.page = text.replace(get_plotlyjs(), "")
    assert_asks_nothing_of_the_network(whole)
    assert text.replace(get_plotlyjs(), SCRIPT) == build_report(rich[0], rich[1], SCRIPT)


def test_every_figure_is_one_that_plotly_knows_with_words_and_numbers_for_it(seen: Seen) -> None:
    import plotly.graph_objects as go

    assert len(seen.figures) > 15
    for figure in seen.figures.values():
        go.Figure(figure)  # raises for a property that it does not have
    plots = [known for _, known in seen.tags if known.get("class") == "plot"]
    assert {known["id"] for known in plots} == set(seen.figures)
    assert all(known["role"] == "img" and len(known["aria-label"]) > 40 for known in plots)
    with_figures = {"result", "stages", "curves", "importances", "coordinates"}
    assert all(seen.tables[name] for name in with_figures)


def test_a_finished_search_that_is_opened_again_has_the_same_page(rich: Rich) -> None:
    conductor = open_conductor(rich[0].plan)
    assert conductor.settle()
    assert build_report(conductor, decide(conductor), SCRIPT) == build_report(rich[0], rich[1], SCRIPT)


# The numbers are those of the other files


def test_the_tiles_tell_the_numbers_of_the_summary(seen: Seen, rich: Rich) -> None:
    summary = rich[2]
    assert seen.numbers["tile-baseline"] == [summary["baseline"]["objective"], summary["baseline"]["sd"]]
    assert seen.numbers["tile-winner"] == [summary["winner"]["objective"], summary["winner"]["sd"]]
    assert seen.numbers["tile-gain"] == [summary["gain"]]
    low, high = summary["gain_ci95"]
    assert f"95 % interval {low:+.3f} to {high:+.3f} on the test part, 3 fresh seeds" in seen.words["result"]
    hours = seen.numbers["tile-cost"][0]
    assert hours == pytest.approx(summary["budget"]["used"]["device_hours"], abs=1e-4)
    grid = summary["budget"]["exhaustive_grid"]
    assert f"exhaustive grid of {grid['trials']:,} trials" in seen.words["result"]
    assert f"({grid['device_hours'] / hours:.1f} times as much)" in seen.words["result"]


def test_the_verdict_and_the_edges_are_those_of_the_summary(seen: Seen, rich: Rich) -> None:
    summary = rich[2]
    assert summary["verdict"][1:] in seen.words["result"]
    assert all(edge in seen.words["result"] for edge in summary["edges"])


def test_the_budget_is_that_of_the_summary(seen: Seen, rich: Rich) -> None:
    planned, used = rich[2]["budget"]["planned"], rich[2]["budget"]["used"]
    rows = {row[0]: row[1:] for row in seen.tables["details"][0][1:]}
    for key in ("trials", "confirmations", "epochs"):
        assert rows[key] == [str(planned[key]), str(used[key])]


def test_each_trial_stands_in_its_stage_as_in_the_leaderboard(seen: Seen, rich: Rich) -> None:
    shown = {}
    for table in seen.tables["stages"]:
        for row in table[1:]:
            entry = dict(zip(table[0], row, strict=True))
            if entry.get("trial") and "best before" not in entry["how it ended"]:
                shown[entry["trial"]] = entry
    searched = [row for row in rich[3] if row["stage"] != "confirm"]
    assert shown.keys() == {row["trial"] for row in searched}
    for row in searched:
        entry = shown[row["trial"]]
        assert entry["how it ended"].split(",")[0] == row["status"]
        assert entry["epochs"] == row["epochs"]
        objective = entry["kNN balanced accuracy (higher is better)"]
        assert objective == (row["objective"] or "–") or float(objective) == pytest.approx(
            float(row["objective"]), abs=1e-4
        )
        assert entry["reason"] == row["reason"]


def test_early_stopping_is_judged_by_the_summarys_agreement(seen: Seen, rich: Rich) -> None:
    (table,) = [table for table in seen.tables["curves"] if table[0][0] == "epoch"]
    for row, agreement in zip(table[1:], rich[2]["early_stopping"], strict=True):
        assert [int(row[0]), int(row[2]), int(row[4])] == [
            agreement["epoch"], agreement["unselected_trials"], agreement["trials"]
        ]  # fmt: skip
        assert float(row[1]) == pytest.approx(agreement["unselected"], abs=1e-4)
        assert float(row[3]) == pytest.approx(agreement["completed"], abs=1e-4)
    first = rich[2]["early_stopping"][0]
    words = seen.words["curves"]
    assert f"Among the {first['unselected_trials']} trials that nothing could stop" in words
    assert f"by {first['unselected']:+.2f}" in words
    assert f"Among all {first['trials']} trials that ran to the end it is {first['completed']:+.2f}" in words
    assert "survivors" in words


def test_the_confirmation_shows_each_repeat_with_means_of_the_summary(seen: Seen, rich: Rich) -> None:
    conductor, outcome, summary, _ = rich
    repeats = [record for record in conductor.records() if record.of]
    validation, test = seen.figure("On the validation part"), seen.figure("On the test part")
    dots = [y for trace in validation["data"] if "lines" in trace["mode"] for y in trace["y"]]
    assert sorted(dots) == sorted(record.objective for record in repeats if record.objective is not None)
    dots = [y for trace in test["data"] if "lines" in trace["mode"] for y in trace["y"]]
    assert sorted(dots) == sorted(r.test_objective for r in repeats if r.test_objective is not None)
    means = [(t["y"][0], t["error_y"]["array"][0]) for t in validation["data"] if "error_y" in t]
    for standing in (summary["baseline"], summary["winner"]):
        assert any(
            mean == pytest.approx(standing["objective"]) and sd == pytest.approx(standing["sd"]) for mean, sd in means
        )
    bold = [label for label in validation["layout"]["xaxis"]["ticktext"] if label.startswith("<b>")]
    assert bold == [f"<b>{outcome.best.record.name.replace('-', '<br>', 1)}</b>"]


# Stages


def test_candidates_that_were_dropped_are_told_and_shown_with_the_seeds_that_they_had(
    tmp_path: Path, seen: Seen
) -> None:
    conductor = search(tmp_path, confirm={"top_k": 3, "seeds": 3, "drop": True})
    page = read(conductor, decide(conductor))
    told = "After each seed the worst of the candidates was left out; the defaults never."
    assert told in page.everything and told not in seen.everything
    validation = page.figure("On the validation part")
    lines = sorted(len(trace["x"]) for trace in validation["data"] if "lines" in trace["mode"])
    assert lines == [2, 3, 4]
    assert sum("error_y" in trace for trace in validation["data"]) == 4


def test_a_stages_figure_marks_every_trial_by_how_it_ended(seen: Seen, rich: Rich) -> None:
    conductor = rich[0]
    title = "kNN balanced accuracy over lr"
    records = conductor.records(conductor.stages[1])
    for symbol, status in (("circle", COMPLETED), ("triangle-down-open", PRUNED)):
        (trace,) = seen.traces(title, symbol)
        expected = [(record.values["lr"], record.objective) for record in records if record.status == status]
        assert list(zip(trace["x"], trace["y"], strict=True)) == expected
        assert expected
    (failed,) = seen.traces(title, "x-thin-open")
    assert (set(failed["y"]), failed["yaxis"]) == ({"failed"}, "y2")
    assert failed["x"] == [record.values["lr"] for record in records if record.status == "failed"]
    assert "diverged at epoch 2" in failed["text"][0]
    (ring,) = seen.traces(title, "circle-open")
    assert conductor.winners[1] is not None
    assert (ring["x"], ring["y"]) == ([conductor.winners[1].values["lr"]], [conductor.winners[1].objective])
    (star,) = seen.traces(title, "star")
    assert conductor.baseline is not None
    assert (star["x"], star["y"]) == ([0.001], [conductor.baseline.objective])
    assert seen.figure(title)["layout"]["xaxis"]["type"] == "log"


def test_the_curve_joins_the_values_of_completed_trials_in_their_order(seen: Seen) -> None:
    (line,) = [t for t in seen.figure("kNN balanced accuracy over lr")["data"] if t["mode"] == "lines"]
    assert line["x"] == sorted(line["x"])
    assert len(line["x"]) > 1


def test_batch_sizes_are_places_with_names_and_tell_the_learning_rate_that_followed(seen: Seen, rich: Rich) -> None:
    figure = seen.figure("kNN balanced accuracy over batch_size")
    assert figure["layout"]["xaxis"]["ticktext"][:4] == ["16", "32", "64", "128"]
    assert "type" not in figure["layout"]["xaxis"]
    stage = next(stage for stage in rich[0].stages if stage.name == "batch_size")
    for record in rich[0].records(stage):
        told = f"{record.values['batch_size']} ran at lr {record.values['lr']:.3g}"
        assert told in seen.words["stages"]
    # Those that did not fit at once, and the one that did not fit at all.
    assert seen.traces("kNN balanced accuracy over batch_size", "cross-thin-open")
    assert seen.traces("kNN balanced accuracy over batch_size", "square-open")
    assert "images/s by size: 8: 40, 16: 70, 32: 90" in seen.words["stages"]
    (bars,) = seen.figure("Speed by batch size on this device")["data"]
    assert (bars["x"], bars["y"]) == (["8", "16", "32"], [40.0, 70.5, 90.0])


def test_a_widened_range_is_told_and_its_old_bound_drawn(seen: Seen, rich: Rich) -> None:
    widened = next(stage["widened"] for stage in rich[2]["stages"] if stage["name"] == "temperature")
    assert widened["temperature"]["low"] == 0.05
    assert "range of temperature (0.3 to 0.5), so it was widened to 0.05 to 0.5" in seen.words["result"]
    assert [line["x0"] for line in seen.figure("kNN balanced accuracy over temperature")["layout"]["shapes"]] == [0.3]


def test_the_curves_are_those_of_the_trials_with_the_rungs(seen: Seen, rich: Rich) -> None:
    conductor = rich[0]
    figure = seen.figure("Stage 1: lr")
    assert [line["x0"] for line in figure["layout"]["shapes"]] == [2, 4, 8]
    drawn = [value for trace in figure["data"] if trace["mode"] == "lines" for value in trace["y"] if value is not None]
    records = [*conductor.records(conductor.stages[1]), conductor.baseline]
    assert sorted(drawn) == sorted(value for record in records if record for value in record.curve)


def test_failures_are_listed_with_their_reasons(seen: Seen, rich: Rich) -> None:
    expected = [(r["trial"], r["status"], r["reason"]) for r in rich[3] if r["status"] in ("failed", "infeasible")]
    rows = [(row[0], row[1], row[3]) for row in seen.tables["failures"][0][1:]]
    assert sorted(rows) == sorted(expected)
    assert {row[1] for row in rows} == {"failed", "infeasible"}


def test_parallel_coordinates_hold_the_trials_that_ran_to_their_end(seen: Seen, rich: Rich) -> None:
    (trace,) = seen.figure("All searched values at once")["data"]
    ranked = rich[0].ranked()
    assert [d["label"].split("<br>")[0] for d in trace["dimensions"]] == [
        "batch_size", "lr", "temperature", "cj_strength", "kNN balanced accuracy"
    ]  # fmt: skip
    assert trace["dimensions"][-1]["values"] == [record.objective for record in ranked]
    assert trace["dimensions"][1]["values"][0] == pytest.approx(math.log10(ranked[0].values["lr"]))
    assert trace["line"]["color"][0] == max(trace["line"]["color"])
    for dimension in trace["dimensions"]:
        low, high = dimension["range"]
        assert all(low <= value <= high for value in dimension["values"])


def test_the_configuration_is_best_yaml_and_the_command_trains_it(seen: Seen, rich: Rich) -> None:
    conductor, outcome, _, _ = rich
    assert (conductor.plan.folder / "best.yaml").read_text(encoding="utf-8") in seen.words["configuration"]
    rows = {row[0]: row[2] for row in seen.tables["configuration"][0][1:]}
    assert rows.keys() == outcome.best.record.values.keys()
    assert float(rows["lr"]) == pytest.approx(outcome.best.record.values["lr"], rel=0.01)
    command = f"python scripts/train.py --config '{conductor.plan.folder / 'best.yaml'}'"
    assert command in seen.words["result"]
    assert command in seen.words["train"]


def test_versions_notes_and_data_are_told(seen: Seen, rich: Rich, tmp_path: Path) -> None:
    told = {row[0]: row[1] for table in seen.tables["details"] for row in table[1:] if len(row) == 2}
    assert rich[2]["versions"].items() <= told.items()
    plan = make_plan(
        tmp_path, budget={"trials": 3}, confirm={"top_k": 9, "seeds": 1}, base=build_config({"data_dir": "bïrds"})
    )
    conductor = Driver(open_conductor(plan)).run()
    log = tmp_path / "trials" / conductor.records()[0].name / "logs" / "training.log"
    log.parent.mkdir(parents=True)
    log.write_text("2026-01-01 10:00:00 INFO    bïrds: 90 images (60 train), labels by folder\n", encoding="utf-8")
    words = read(conductor).words["details"]
    assert "Images: bïrds: 90 images (60 train), labels by folder." in words
    assert plan.notes
    assert all(note in words for note in plan.notes)


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


# A browser


@pytest.mark.slow
def test_a_browser_draws_every_figure_without_a_complaint(rich: Rich, tmp_path: Path) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium here: that the figures are drawn was not looked at")
    path = write_report(rich[0], rich[1])
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    flags += ["--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}"]
    flags += ["--window-size=1280,1000", "--virtual-time-budget=20000", "--enable-logging=stderr", "--dump-dom"]
    ended = subprocess.run([chromium, *flags, path.as_uri()], capture_output=True, timeout=240, check=True)
    complaints = [line for line in ended.stderr.decode(errors="replace").splitlines() if "CONSOLE" in line]
    assert [line for line in complaints if "WebGL" not in line] == []
    page = ended.stdout.decode("utf-8")
    drawn = re.findall(r'<div class="plot[^"]*" id="(figure-\d+)"', page)
    assert len(drawn) == len(read(rich[0], rich[1]).figures)
    assert page.count('class="plot-container') == len(drawn)
    assert page.count("could not draw the figure") == 1  # in the script alone
    canvases = len(re.findall(r'<canvas class="gl-canvas', page))
    assert canvases >= 3, "the parallel coordinates"
    assert "WebGL is not supported" not in page.split("<script>")[0]


def test_taking_screenshots_without_a_browser_is_one_clear_message(tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "docs" / "take_screenshots.py"
    command = [sys.executable, str(script), str(tmp_path), str(tmp_path / "pictures")]
    ended = subprocess.run(command, capture_output=True, text=True, env={"PATH": str(tmp_path)}, check=False)
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert "Chromium" in ended.stderr
