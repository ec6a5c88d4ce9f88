import io
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from driver import Driver, make_plan, open_conductor, search
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.plugins.custom_scalar import metadata as layout_metadata
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams import metadata
from tensorboard.plugins.hparams.backend_context import _sort_and_reduce_to_hparams_limit
from torch.utils.tensorboard import SummaryWriter

from phenoscape_tune.config import build_config
from phenoscape_tune.errors import NoSpaceLeft
from phenoscape_tune.search.conductor import Conductor
from phenoscape_tune.search.report import write_best
from phenoscape_tune.search.space import load_space
from phenoscape_tune.search.tensorboard import describe_result, write_experiment, write_pictures
from phenoscape_tune.search.verdict import decide
from phenoscape_tune.training.board import VIEWS, stage_tag, tag_of


def events(conductor: Conductor) -> EventAccumulator:
    return EventAccumulator(str(conductor.plan.folder / "logs" / "tensorboard")).Reload()


def test_each_stages_picture_is_shown_beside_the_columns_of_hparams(tmp_path: Path) -> None:
    conductor = search(tmp_path, lambda config, epoch: math.nan if config.lr > 0.02 else 0.5)
    write_experiment(conductor.plan)
    write_pictures(conductor, decide(conductor))
    found = events(conductor)
    assert found.Tags()["images"] == ["stage 1 lr/lr", "stage 2 temperature/temperature"]
    for tag in found.Tags()["images"]:
        (event,) = found.Images(tag)
        picture = Image.open(io.BytesIO(event.encoded_image_string))
        assert picture.size == (event.width, event.height)
        assert len(picture.convert("RGB").getcolors(100_000) or []) > 20
        assert len(event.encoded_image_string) < 60_000
    assert found.summary_metadata["_hparams_/experiment"].plugin_data.plugin_name == "hparams"


def test_the_result_is_told_in_words(tmp_path: Path) -> None:
    conductor = search(tmp_path)
    outcome = decide(conductor)
    assert outcome is not None
    write_pictures(conductor, outcome)
    (event,) = events(conductor).Tensors("result/verdict")
    words = event.tensor_proto.string_val[0].decode("utf-8")
    assert words == describe_result(conductor, outcome)
    assert f"| temperature | 0.1 | {outcome.best.record.values['temperature']:.3g} |" in words
    assert f"| {outcome.best.objective:.3f} |" in words
    assert "report.html" in words


def test_a_search_that_failed_or_has_hardly_begun_is_told_too(tmp_path: Path) -> None:
    for name in ("failed", "begun"):
        (tmp_path / name).mkdir()
    failed = search(tmp_path / "failed", lambda config, epoch: math.nan)
    write_pictures(failed, None)
    assert events(failed).Tags()["images"] == ["stage 1 lr/lr", "stage 2 temperature/temperature"]
    begun = open_conductor(make_plan(tmp_path / "begun"))
    write_pictures(begun, None)
    assert events(begun).Tags()["images"] == []


def test_words_cannot_break_the_table(tmp_path: Path) -> None:
    folder = tmp_path / "a|b_<c> \udcff"
    folder.mkdir()
    conductor = search(folder, budget={"trials": 3}, confirm=None)
    assert describe_result(conductor, decide(conductor)).endswith("a\\|b\\_\\<c\\> ?/report.html")


def test_choices_of_any_kind_are_drawn(tmp_path: Path) -> None:
    parameters = {"weights": {"type": "choice", "values": [None, "größe <b>"]}}
    conductor = search(tmp_path, parameters=parameters, budget={"trials": 3}, confirm=None)
    write_pictures(conductor, decide(conductor))
    assert events(conductor).Tags()["images"] == ["stage 1 other/weights"]


def layout_of(conductor: Conductor) -> list[tuple[str, list[tuple[str, list[str]]]]]:
    """What TensorBoard shows: the last layout, as (category, [(chart, tags)])."""
    content = events(conductor).Tensors(layout_metadata.CONFIG_SUMMARY_TAG)[-1].tensor_proto.string_val[0]
    layout = Layout.FromString(content)
    return [(c.title, [(chart.title, list(chart.multiline.tag)) for chart in c.chart]) for c in layout.category]


def test_a_chart_for_each_stage_and_in_the_end_none_for_those_that_did_not_run(tmp_path: Path) -> None:
    space = load_space("full")[0].to_mapping() | {"budget": {"trials": 12}}
    plan = make_plan(tmp_path, **space)
    conductor = Driver(open_conductor(plan), lambda config, epoch: 0.9 if config.batch_size == 32 else 0.1).run()
    write_experiment(conductor.plan)
    (title, charts), *rest = layout_of(conductor)
    assert title == "Stage by stage: kNN balanced accuracy (higher is better), a line a trial"
    assert [name.split(":")[0] for name, _ in charts] == [f"Stage {number}" for number in range(8)]
    for (_, (tag,)), stage in zip(charts, conductor.stages, strict=True):
        assert re.match(tag, stage_tag(stage.label))
        assert not any(re.match(tag, stage_tag(other.label)) for other in conductor.stages if other != stage)
    assert [name for name, _ in rest] == ["All trials", "Speed and memory"]
    shown = [tag for _, charts in rest for _, tags in charts for tag in tags]
    assert any(re.match(tag, tag_of("objective_mean")) for tag in shown)
    write_pictures(conductor, decide(conductor))
    ran = [stage.number for stage in conductor.stages if conductor.records(stage)]
    assert len(ran) < 8
    assert [name.split(":")[0] for name, _ in layout_of(conductor)[0][1]] == [f"Stage {number}" for number in ran]


def test_the_columns_are_the_stage_and_the_keys_and_can_be_filtered(tmp_path: Path) -> None:
    space = load_space("full")[0].to_mapping() | {"budget": {"trials": 12}}
    base = build_config({"batch_size": 48, "max_epochs": 50})
    plan = make_plan(tmp_path, base, **space)
    write_experiment(plan)
    (value,) = [
        value
        for path in (plan.folder / "logs" / "tensorboard").iterdir()
        for event in EventFileLoader(str(path)).Load()
        for value in event.summary.value
        if value.tag == metadata.EXPERIMENT_TAG
    ]
    experiment = metadata.parse_experiment_plugin_data(value.metadata.plugin_data.content)
    _sort_and_reduce_to_hparams_limit(experiment)  # as TensorBoard does
    columns = {info.name: info for info in experiment.hparam_infos}
    names = [info.display_name or info.name for info in experiment.hparam_infos]
    assert names == ["stage", "batch_size", "lr", "temperature", "cj_strength", "min_scale"]
    stages = [*(stage.name for stage in plan.stages), "confirm"]
    assert list(columns["stage"].domain_discrete) == stages
    # Of the defaults too, which are none of the choices: what is not listed is hidden.
    assert list(columns["batch_size"].domain_discrete) == [16, 32, 48, 64, 128]
    # The loss must not rank trials.
    assert [info.name.tag for info in experiment.metric_infos] == [
        "objective/objective_mean",
        "objective/objective_error",
        "schedule/epoch",
    ]


def test_the_winners_own_pictures_and_its_configuration_are_shown_again(tmp_path: Path) -> None:
    conductor = search(tmp_path)
    outcome = decide(conductor)
    assert outcome is not None
    trials = conductor.plan.folder / "trials"
    for number, record in enumerate(conductor.records()):
        board = SummaryWriter(str(trials / record.name / "logs" / "tensorboard"))
        board.add_image(VIEWS, np.full((3, 4, 4), number, dtype=np.uint8))
        board.add_image("other", np.zeros((3, 4, 4), dtype=np.uint8))
        board.close()
    write_best(conductor.plan, outcome)
    write_pictures(conductor, outcome)
    found = events(conductor)
    assert [tag for tag in found.Tags()["images"] if tag.startswith("result/")] == ["result/winner's augmented views"]
    (shown,) = found.Images("result/winner's augmented views")
    pixels = np.asarray(Image.open(io.BytesIO(shown.encoded_image_string)))
    assert conductor.records()[pixels[0, 0, 0]].name == outcome.best.record.name
    (text,) = found.Tensors("result/winner's configuration")
    lines = text.tensor_proto.string_val[0].decode().splitlines()
    assert f"    lr: {outcome.best.record.values['lr']}" in lines
    assert not any("#" in line for line in lines)


def test_the_plan_is_told_from_the_start(tmp_path: Path) -> None:
    plan = make_plan(tmp_path)
    write_experiment(plan)
    (event,) = events(open_conductor(plan)).Tensors("the search/plan")
    lines = event.tensor_proto.string_val[0].decode().splitlines()
    assert lines[2:6] == [
        "| 0 defaults | – | 1 |",
        "| 1 lr | lr: 1e-05 to 0.1 (log scale) | 5 |",
        "| 2 temperature | temperature: 0.05 to 0.5 | 5 |",
        "| 3 confirm | – | 6 |",
    ]
    assert "- A trial runs 9 epochs at most, compared after 2, 4, 8 epochs; one in 2 goes on." in lines


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_told_with_the_folder_and_leaves_no_part_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    conductor = search(tmp_path, budget={"trials": 3}, confirm=None)
    open_ = Path.open

    def open_full(path: Path, *rest: Any, **more: Any) -> Any:
        if "tfevents" in path.name:
            path.symlink_to("/dev/full")
        return open_(path, *rest, **more)

    monkeypatch.setattr(Path, "open", open_full)
    folder = conductor.plan.folder / "logs" / "tensorboard"
    for write in (lambda: write_experiment(conductor.plan), lambda: write_pictures(conductor, decide(conductor))):
        with pytest.raises(NoSpaceLeft, match=f"No space left on the disk of {folder}"):
            write()
        assert not list(folder.iterdir())
    assert "Traceback" not in capfd.readouterr().err
    monkeypatch.undo()
    write_pictures(conductor, decide(conductor))
    assert events(conductor).Tags()["images"]
