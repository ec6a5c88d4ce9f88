from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tensorboard.plugins.hparams import metadata
from tensorboard.plugins.hparams.api_pb2 import STATUS_FAILURE, STATUS_SUCCESS

from phenoscape_tune.config import TrainConfig
from phenoscape_tune.training.board import TrialRow, end_of, stage_tag, start_of, tag_of
from phenoscape_tune.training.loop import train_simclr
from phenoscape_tune.training.run import RunOptions


def test_all_that_a_run_reports_of_an_epoch_has_a_group(tiny: Callable[..., TrainConfig]) -> None:
    (row,) = train_simclr(tiny(max_epochs=1), lambda row: None, RunOptions(test=True), torch.device("cpu"))
    tags = [tag_of(key) for key, value in row.items() if isinstance(value, float)]
    assert {tag.split("/")[0] for tag in tags} == {"loss", "objective", "representation", "schedule", "speed"}
    assert {"loss/train_loss", "loss/val_loss", "objective/objective_mean", "schedule/lr"} <= set(tags)


def test_what_is_measured_on_a_gpu_only_and_what_is_new_have_a_group_too() -> None:
    assert [tag_of(key) for key in ("device_memory_gb", "something_new")] == [
        *("speed/device_memory_gb", "more/something_new"),
    ]


def test_the_stages_stand_before_all_else_and_in_their_order() -> None:
    stages = [stage_tag(stage) for stage in ("0 defaults", "1 lr", "2 batch_size", "4 temperature", "5 augmentation")]
    tags = [*stages, *map(tag_of, ("train_loss", "objective", "rankme", "lr", "seconds")), "step/loss", "views/x"]
    assert tags == sorted(tags)


def test_a_row_keeps_the_types_of_its_values() -> None:
    row = TrialRow(
        "1-00 lr-00-abc", "1 lr", {"lr": 0.1, "batch_size": 8, "balance": True, "weights": None, "stage": "lr"}
    )
    (value,) = start_of(row).value
    start = metadata.parse_session_start_info_plugin_data(value.metadata.plugin_data.content)
    assert start.group_name == "1-00 lr-00-abc"
    kinds = {key: (kind := each.WhichOneof("kind"), getattr(each, kind)) for key, each in start.hparams.items()}
    assert kinds == {
        "lr": ("number_value", 0.1),
        "batch_size": ("number_value", 8.0),
        "balance": ("bool_value", True),
        "weights": ("string_value", "None"),
        "stage": ("string_value", "lr"),
    }


@pytest.mark.parametrize(("failed", "status"), [(False, STATUS_SUCCESS), (True, STATUS_FAILURE)])
def test_an_end_tells_whether_the_trial_failed(failed: bool, status: int) -> None:
    (value,) = end_of(failed).value
    assert metadata.parse_session_end_info_plugin_data(value.metadata.plugin_data.content).status == status
