import csv
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from driver import Driver, make_plan, open_conductor, search
from shown_page import (
    SCRIPT,
    SECTIONS,
    Seen,
    assert_asks_nothing_of_the_network,
    read,
    rich_plan,
    rich_row,
    write_scores,
)

from phenoscape_tune.config import build_config
from phenoscape_tune.search.conductor import Conductor
from phenoscape_tune.search.record import COMPLETED, PRUNED
from phenoscape_tune.search.report import write_best, write_leaderboard, write_summary
from phenoscape_tune.search.report_page import build_report, write_report
from phenoscape_tune.search.verdict import Outcome, decide


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
