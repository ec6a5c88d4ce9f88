import io
import math
from pathlib import Path
from typing import Any

import pytest
from driver import make_plan, open_conductor, search
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from phenoscape_tune.errors import NoSpaceLeft
from phenoscape_tune.search.conductor import Conductor
from phenoscape_tune.search.report import decide
from phenoscape_tune.search.tensorboard import describe_result, write_experiment, write_pictures


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
    (event,) = events(conductor).Tensors("result/text_summary")
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
