"""The HPARAMS tab: the searched keys and the objective of all trials as one experiment."""

from __future__ import annotations

from tensorboard.plugins.hparams import api as hp
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from phenoscape_tune.search.conductor import Plan


def write_experiment(plan: Plan) -> None:
    """Declare the columns of the HPARAMS tab; each trial writes its own values into its own folder."""
    from tensorboard.compat.proto.event_pb2 import Event

    keys = ["stage", *sorted(plan.space.parameters)]
    metrics = [
        hp.Metric("objective", display_name="objective"),
        hp.Metric("val_loss", display_name="validation loss"),
        hp.Metric("train_loss", display_name="training loss"),
    ]
    summary = hp.hparams_config_pb([hp.HParam(key) for key in keys], metrics)
    writer = EventFileWriter(str(plan.folder / "logs" / "tensorboard"))
    writer.add_event(Event(step=0, summary=summary))
    writer.close()
