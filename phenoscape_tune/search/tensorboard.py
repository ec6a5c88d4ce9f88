"""The HPARAMS tab: the searched keys and the objective of all trials as one experiment."""

from __future__ import annotations

import time

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import metadata
from tensorboard.plugins.hparams.api_pb2 import Experiment, HParamInfo, MetricInfo, MetricName
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from phenoscape_tune.search.conductor import Plan

METRICS = {"objective_mean": "objective", "val_loss": "validation loss", "train_loss": "training loss"}


def write_experiment(plan: Plan) -> None:
    """Declare the columns of the HPARAMS tab; each trial writes its own values into its own folder."""
    # tensorboard's own `hparams.api` wants TensorFlow; its protocol buffers do not.
    experiment = Experiment(
        name=plan.folder.name,
        time_created_secs=time.time(),
        hparam_infos=[HParamInfo(name=key) for key in ("stage", *sorted(plan.space.parameters))],
        metric_infos=[MetricInfo(name=MetricName(tag=tag), display_name=name) for tag, name in METRICS.items()],
    )
    content = HParamsPluginData(experiment=experiment, version=metadata.PLUGIN_DATA_VERSION)
    value = Summary.Value(tag=metadata.EXPERIMENT_TAG, metadata=metadata.create_summary_metadata(content))
    writer = EventFileWriter(str(plan.folder / "logs" / "tensorboard"))
    writer.add_event(Event(wall_time=time.time(), summary=Summary(value=[value])))
    writer.close()
