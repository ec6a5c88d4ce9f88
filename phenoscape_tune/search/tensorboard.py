"""What TensorBoard shows of a search beside its trials' curves.

HPARAMS: the searched keys and the objective of all trials as one experiment. TEXT: the result in words. IMAGES: the
objective over each searched value, with how each trial ended, which the HPARAMS tab does not know.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.plugins.hparams import metadata
from tensorboard.plugins.hparams.api_pb2 import Experiment, HParamInfo, MetricInfo, MetricName
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.plugins.text import metadata as text_metadata
from tensorboard.summary.writer.record_writer import RecordWriter

from phenoscape_tune.files import naming_full_disk, removed_on_failure
from phenoscape_tune.search import story
from phenoscape_tune.search.conductor import Conductor
from phenoscape_tune.search.figures import direction
from phenoscape_tune.search.pictures import HEIGHT, WIDTH, stage_pictures
from phenoscape_tune.search.plan import Plan
from phenoscape_tune.search.report import Outcome

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
    _write(plan, [value])


def write_pictures(conductor: Conductor, outcome: Outcome | None) -> None:
    """Write the result in words and a picture for each key of each stage; about 20 kB a picture."""
    values = [_text("result", describe_result(conductor, outcome))]
    for stage in conductor.stages:
        for key, png in stage_pictures(conductor, stage):
            picture = Summary.Image(height=HEIGHT, width=WIDTH, colorspace=3, encoded_image_string=png)
            values.append(Summary.Value(tag=f"stage {stage.number} {stage.name}/{key}", image=picture))
    _write(conductor.plan, values)


def describe_result(conductor: Conductor, outcome: Outcome | None) -> str:
    """The result in Markdown, with what to know beside it."""
    folder = conductor.plan.folder
    lines = [f"**{_plain(story.headline(conductor, outcome))}**", ""]
    if outcome is not None:
        base, metric = outcome.baseline, outcome.metric
        scores = ("–" if base is None else f"{base.objective:.3f}", f"{outcome.best.objective:.3f}")
        lines += ["| | the defaults | the winner |", "| --- | --- | --- |"]
        lines.append(f"| {metric.title} ({direction(metric)}) | {scores[0]} | {scores[1]} |")
        lines += [f"| {' | '.join(map(_plain, row))} |" for row in story.changes(conductor, outcome)]
    lines += ["", *(f"- {_plain(line)}." for line in story.cautions(conductor, outcome)), ""]
    lines.append(f"The whole report, with figures: {_plain(str(folder / 'report.html'))}")
    return "\n".join(lines)


def _plain(words: str) -> str:
    """Words that Markdown leaves as they are, and that UTF-8 can hold."""
    marked = "".join(f"\\{letter}" if letter in "\\`*_<>|[]#" else letter for letter in words)
    return " ".join(marked.encode("utf-8", "replace").decode("utf-8").split())


def _text(tag: str, words: str) -> Summary.Value:
    content = TensorProto(
        dtype=DT_STRING,
        string_val=[words.encode("utf-8")],
        tensor_shape=TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)]),
    )
    shown = text_metadata.create_summary_metadata(display_name=tag, description="")
    return Summary.Value(tag=f"{tag}/text_summary", metadata=shown, tensor=content)


def _write(plan: Plan, values: Sequence[Summary.Value]) -> None:
    """Write an event file of its own. Raises NoSpaceLeft where the disk is full; there is no such file then."""
    # tensorboard's own EventFileWriter writes in a thread, whose traceback would stand above the one message.
    folder = plan.folder / "logs" / "tensorboard"
    path = folder / f"events.out.tfevents.{time.time_ns():019d}.{socket.gethostname()}.{os.getpid()}"
    events = (Event(file_version="brain.Event:2"), Event(summary=Summary(value=values)))
    with naming_full_disk(folder), removed_on_failure(path):
        folder.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            writer = RecordWriter(file)
            for event in events:
                event.wall_time = time.time()
                writer.write(event.SerializeToString())
