"""How TensorBoard is told of a run: the group in which a curve stands, and a trial's row in the HPARAMS tab.

Nothing of torch here: a search's driver writes to TensorBoard too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import metadata
from tensorboard.plugins.hparams.api_pb2 import STATUS_FAILURE, STATUS_SUCCESS
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo, SessionStartInfo

# TensorBoard shows groups, and what is in one, in alphabetical order.
_GROUPS = {
    "loss": ("train_loss", "val_loss"),
    "objective": ("objective", "objective_mean", "objective_error", "test_objective", "test_error"),
    "representation": ("rankme", "feature_std"),
    "schedule": ("epoch", "lr"),
    "speed": (
        *("images_per_second", "seconds", "waiting_share"),
        *("utilisation", "device_memory_gb", "process_memory_gb"),
    ),
}
_GROUP_OF = {key: group for group, keys in _GROUPS.items() for key in keys}
BY_STAGE = "by stage"
VIEWS, NEIGHBOURS = "views/augmented views", "views/nearest neighbours"


@dataclass(frozen=True)
class TrialRow:
    """A search's trial beside the others.

    Attributes:
        title: its name in the HPARAMS tab, whose rows are sorted by it.
        stage: its stage, which has a chart of its own: `1 lr`.
        values: what the columns of the HPARAMS tab hold.
    """

    title: str
    stage: str
    values: Mapping[str, Any]


def tag_of(key: str) -> str:
    """Where a value that is measured once an epoch is shown: `loss/train_loss`."""
    return f"{_GROUP_OF.get(key, 'more')}/{key}"


def stage_tag(stage: str) -> str:
    """Where the objective of a stage's trials is shown, a line a trial: `by stage/1 lr`."""
    return f"{BY_STAGE}/{stage}"


def start_of(row: TrialRow) -> Summary:
    """What makes a row of the HPARAMS tab of a run."""
    start = SessionStartInfo(group_name=row.title)
    for key, value in row.values.items():
        if isinstance(value, bool):
            start.hparams[key].bool_value = value
        elif isinstance(value, int | float):
            start.hparams[key].number_value = value
        else:
            start.hparams[key].string_value = str(value)
    return _session(metadata.SESSION_START_INFO_TAG, session_start_info=start)


def end_of(failed: bool) -> Summary:
    """What tells the HPARAMS tab that a run has ended; by `failed` it can be filtered there."""
    end = SessionEndInfo(status=STATUS_FAILURE if failed else STATUS_SUCCESS)
    return _session(metadata.SESSION_END_INFO_TAG, session_end_info=end)


def _session(tag: str, **told: Any) -> Summary:
    content = HParamsPluginData(version=metadata.PLUGIN_DATA_VERSION, **told)
    return Summary(value=[Summary.Value(tag=tag, metadata=metadata.create_summary_metadata(content))])
