from __future__ import annotations

import io
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata
from tensorboard.summary.writer import event_file_writer

from phenoscape_tune.data.channels import RGB, Channels
from phenoscape_tune.data.class_spectra import ClassSpectra
from phenoscape_tune.training.board import TrialRow
from phenoscape_tune.training.monitor import LOGGER, PROGRESS, Monitor, Progress, RunMonitor, open_monitor

pytestmark = pytest.mark.slow  # torch's TensorBoard writer


def read(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder / "logs" / "tensorboard"))
    events.Reload()
    return events


def test_rows_become_scalars_and_lines(tmp_path: Path) -> None:
    with open_monitor(tmp_path, None, 0, 100) as monitor:
        monitor.step(1, 50, 100, {"loss": 2.5})
        monitor.epoch({"epoch": 1, "train_loss": 2.0, "objective": 0.5}, 10)
        monitor.views(torch.rand(6, 3, 8, 8), RGB)
    events = read(tmp_path)
    assert [(s.step, s.value) for s in events.Scalars("objective/objective")] == [(1, 0.5)]
    assert [(s.step, s.value) for s in events.Scalars("step/loss")] == [(50, 2.5)]
    image = events.Images("views/augmented views")[0]
    assert (image.width, image.height) == (24, 16)
    log = (tmp_path / "logs" / "training.log").read_text()
    assert "epoch 1  step 50/100  loss 2.5" in log
    assert "epoch 1/10  train_loss 2  objective 0.5" in log


def test_views_of_other_channels_are_shown_in_false_colour_and_the_ultraviolet_beside_them(tmp_path: Path) -> None:
    channels = Channels(("red", "green", "blue", "uv1", "uv2", "uv3"), rgb=(0, 1, 2), uv=(3, 4, 5))
    views = torch.zeros(6, 6, 8, 8)
    views[:, 5] = 0.1  # the longest of the ultraviolet, and dark
    with open_monitor(tmp_path, None, 0, 100) as monitor:
        monitor.views(views.contiguous(memory_format=torch.channels_last), channels)
    events = read(tmp_path)
    tags = [f"views/augmented views: {names}" for names in ("red, green, blue", "uv3, uv2, uv1")]
    assert sorted(events.Tags()["images"]) == tags
    pictures = [
        np.asarray(Image.open(io.BytesIO(events.Images(tag)[0].encoded_image_string)).convert("RGB")) for tag in tags
    ]
    assert [picture.shape for picture in pictures] == [(16, 24, 3)] * 2
    assert not pictures[0].any()
    assert (pictures[1] == [255, 0, 0]).all()


def test_mean_spectra_are_a_picture(tmp_path: Path) -> None:
    waves = Channels(("400 nm", "500 nm"), wavelengths=(400.0, 500.0))
    with open_monitor(tmp_path, None, 0, 100) as monitor:
        monitor.spectra(ClassSpectra.of_images(np.eye(2), np.arange(2), ("a", "b"), waves))
    image = read(tmp_path).Images("views/mean spectra by class")[0]
    assert (image.width, image.height) == (960, 540)


def test_what_the_device_does_becomes_scalars_too(tmp_path: Path) -> None:
    use = {"utilisation": 0.75, "device_memory_gb": 11.5, "waiting_share": 0.25, "images_per_second": 640.0}
    with open_monitor(tmp_path, None, 0, 100) as monitor:
        monitor.epoch({"epoch": 3, **use}, 10)
    events = read(tmp_path)
    assert {key: [(s.step, s.value) for s in events.Scalars(f"speed/{key}")] for key in use} == {
        key: [(3, value)] for key, value in use.items()
    }


def test_advice_is_a_warning_in_the_log(tmp_path: Path) -> None:
    with open_monitor(tmp_path, None, 0, 100) as monitor:
        monitor.advise([])
        monitor.advise(["few negatives: 100 % of them", "slow convergence"])
    lines = (tmp_path / "logs" / "training.log").read_text().splitlines()
    assert [line.split(" ", 2)[2] for line in lines] == [
        "WARNING few negatives: 100 % of them",
        "WARNING slow convergence",
    ]


def test_progress_is_heard_by_whoever_listens_and_stands_in_no_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    heard: list[object] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(record.msg)

    step, listener = Progress(1, 9, 3, 7, 120.0, 2.5), Listener()
    with open_monitor(tmp_path, None, 0, 100) as monitor:
        monitor.progress(step)
        PROGRESS.addHandler(listener)
        monitor.progress(step)
        PROGRESS.removeHandler(listener)
    assert heard == [step]
    assert (tmp_path / "logs" / "training.log").read_text() == ""
    assert capsys.readouterr() == ("", "")


def test_hparams_are_on_disk_before_the_first_epoch_ends(tmp_path: Path) -> None:
    row = TrialRow("1-00 lr-00-abc", "1 lr", {"lr": 0.1, "backbone": "resnet18", "weights": None})
    monitor = RunMonitor(tmp_path, row, 0, 100)
    tag = metadata.SESSION_START_INFO_TAG
    values = metadata.parse_session_start_info_plugin_data(
        read(tmp_path).SummaryMetadata(tag).plugin_data.content
    ).hparams
    monitor.__exit__(None, None, None)
    assert values["lr"].number_value == 0.1
    assert values["backbone"].string_value == "resnet18"
    assert values["weights"].string_value == "None"


def test_a_trials_objective_stands_in_the_chart_of_its_stage_with_the_epochs_it_ran(tmp_path: Path) -> None:
    with open_monitor(tmp_path, TrialRow("1-00 lr-00-abc", "1 lr", {"lr": 0.1}), 0, 100) as monitor:
        for epoch in (1, 2):
            monitor.epoch({"epoch": epoch, "objective": epoch / 10, "objective_mean": epoch / 20}, 9)
    events = read(tmp_path)
    assert [(s.step, round(s.value, 3)) for s in events.Scalars("by stage/1 lr")] == [(1, 0.05), (2, 0.1)]
    assert events.Scalars("schedule/epoch")[-1].value == 2
    with open_monitor(tmp_path / "alone", None, 0, 100) as monitor:
        monitor.epoch({"epoch": 1, "objective": 0.1, "objective_mean": 0.1}, 9)
    alone = read(tmp_path / "alone").Tags()["scalars"]
    assert alone == ["objective/objective", "objective/objective_mean"]


@pytest.mark.parametrize(("error", "status"), [(None, 1), (SystemExit(), 1), (RuntimeError("out of memory"), 2)])
def test_a_trial_that_raised_is_a_failure_and_one_stopped_early_is_none(
    error: BaseException | None, status: int, tmp_path: Path
) -> None:
    def run() -> None:
        with open_monitor(tmp_path, TrialRow("1-00 lr-00-abc", "1 lr", {"lr": 0.1}), 0, 100):
            if error is not None:
                raise error

    if error is None:
        run()
    else:
        with pytest.raises(type(error)):
            run()
    content = read(tmp_path).SummaryMetadata(metadata.SESSION_END_INFO_TAG).plugin_data.content
    assert metadata.parse_session_end_info_plugin_data(content).status == status


def test_the_log_has_all_of_an_epoch_and_the_terminal_what_it_comes_to(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    row = {"epoch": 3, "train_loss": 4.0341, "val_loss": 3.9, "objective": 0.2933, "objective_error": 0.0357}
    row |= {"rankme": 20.03, "feature_std": 0.35, "images_per_second": 71.0, "seconds": 59.69}
    with open_monitor(tmp_path, None, 0, 100) as monitor:
        monitor.epoch(row, 60)
        monitor.step(1, 5, 9, {"loss": 2.5})
    epoch, step = caplog.records
    assert epoch.brief == "epoch 3/60  train_loss 4.034  val_loss 3.900  objective 0.293 ± 0.036  59.7 s"
    assert len(epoch.brief) <= 80
    assert step.step and not hasattr(step, "brief")
    assert "rankme 20.03  feature_std 0.35" in (tmp_path / "logs" / "training.log").read_text()


def test_a_closed_run_gets_no_lines_of_the_next_one(tmp_path: Path) -> None:
    with open_monitor(tmp_path / "a", None, 0, 100):
        LOGGER.info("first")
    with open_monitor(tmp_path / "b", None, 0, 100):
        logging.getLogger("phenoscape_tune.training.run").info("second")
    assert "second" not in (tmp_path / "a" / "logs" / "training.log").read_text()
    assert "second" in (tmp_path / "b" / "logs" / "training.log").read_text()


def test_a_resumed_run_leaves_no_seam(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Files of one second and process are read in the order of their names, and number 10 before 9.
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))

    def run(resumed_at: int, last: int, offset: float) -> None:
        with open_monitor(tmp_path, None, resumed_at, 4) as monitor:
            for epoch in range(resumed_at + 1, last + 1):
                for step in range(1, 5):
                    monitor.step(epoch, step, 4, {"loss": epoch + step / 4 + offset})
                monitor.epoch({"epoch": epoch, "objective": epoch / 10 + offset}, 5)

    run(0, 3, 0.0)
    run(2, 3, 0.5)
    run(2, 2, 0.0)  # killed before its first step
    run(1, 2, 1.0)
    events = read(tmp_path)
    points = [(s.step, round(s.value, 3)) for s in events.Scalars("objective/objective")]
    assert points == [(1, 0.1), (2, 1.2)]
    steps = [(s.step, s.value) for s in events.Scalars("step/loss")]
    assert steps == [(n, 1 + n / 4 + (1.0 if n > 4 else 0.0)) for n in range(1, 9)]


def test_ranks_that_do_not_write_have_a_monitor_with_the_same_methods(tmp_path: Path) -> None:
    public = {name for name in vars(RunMonitor) if not name.startswith("_")}
    assert public == {name for name in vars(Monitor) if not name.startswith("_")}
    with Monitor() as silent:
        silent.epoch({"epoch": 1}, 1)
    assert not list(tmp_path.iterdir())
