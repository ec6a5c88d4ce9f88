"""What TensorBoard shows of a search beside its trials' curves.

HPARAMS: the searched keys and the objective of all trials as one experiment. CUSTOM SCALARS: a chart a stage, a line a
trial. TEXT: the plan, the result in words, the winner's configuration. IMAGES: the winner's views and nearest
neighbours, and the objective over each searched value, with how each trial ended, which the HPARAMS tab does not know.
"""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Sequence

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.plugins.custom_scalar import metadata as layout_metadata
from tensorboard.plugins.custom_scalar.layout_pb2 import Category, Chart, Layout, MultilineChartContent
from tensorboard.plugins.hparams import metadata
from tensorboard.plugins.hparams.api_pb2 import (
    DATA_TYPE_FLOAT64,
    DATA_TYPE_STRING,
    Experiment,
    HParamInfo,
    MetricInfo,
    MetricName,
)
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.plugins.text import metadata as text_metadata
from tensorboard.summary.writer.record_writer import RecordWriter

from phenoscape_tune.files import naming_full_disk, removed_on_failure
from phenoscape_tune.layers import get_key
from phenoscape_tune.search import story
from phenoscape_tune.search.conductor import Conductor
from phenoscape_tune.search.figures import direction
from phenoscape_tune.search.marks import short
from phenoscape_tune.search.pictures import HEIGHT, WIDTH, stage_pictures
from phenoscape_tune.search.plan import Plan
from phenoscape_tune.search.priority import Stage
from phenoscape_tune.search.study import confirm_stage
from phenoscape_tune.search.verdict import Outcome
from phenoscape_tune.training.board import VIEWS, stage_tag, tag_of

# Losses are no columns: they fall with the temperature, and must not rank trials.
METRICS = {"objective_mean": "objective", "objective_error": "standard error", "epoch": "epochs"}
# Of all trials, in CUSTOM SCALARS, below the charts of the stages: by group, the title of each chart and its keys.
CHARTS: dict[str, dict[str, tuple[str, ...]]] = {
    "All trials": {
        "objective (mean of the last three epochs)": ("objective_mean",),
        "validation loss (not to compare trials by)": ("val_loss",),
        "RankMe of the features (near 1: collapsed)": ("rankme",),
        "learning rate": ("lr",),
    },
    "Speed and memory": {
        "images per second": ("images_per_second",),
        "share of the time spent waiting for data": ("waiting_share",),
        "utilisation of the GPU": ("utilisation",),
        "memory, GiB": ("device_memory_gb", "process_memory_gb"),
    },
}


def write_experiment(plan: Plan) -> None:
    """Declare the columns of the HPARAMS tab and the charts, and tell the plan; each trial writes its own values into
    its own folder."""
    charts = _charts(plan, [stage for stage in _stages(plan) if stage.trials])
    _write(plan, [_columns(plan), charts, _text("the search/plan", describe_stages(plan))])


def _stages(plan: Plan) -> list[Stage]:
    stages = list(plan.stages)
    return [*stages, confirm_stage(len(stages), plan.confirmations)] if plan.confirmations else stages


def _columns(plan: Plan) -> Summary.Value:
    # tensorboard's own `hparams.api` wants TensorFlow; its protocol buffers do not.
    stage = HParamInfo(name="stage", type=DATA_TYPE_STRING, differs=True)
    stage.domain_discrete.extend(each.name for each in _stages(plan))
    experiment = Experiment(
        name=plan.folder.name,
        time_created_secs=time.time(),
        # Columns that are said to differ come first, then all stand in alphabetical order: so the stage is the first.
        hparam_infos=[stage, *(_column(plan, key) for key in sorted(plan.space.parameters))],
        metric_infos=[MetricInfo(name=MetricName(tag=tag_of(key)), display_name=name) for key, name in METRICS.items()],
    )
    content = HParamsPluginData(experiment=experiment, version=metadata.PLUGIN_DATA_VERSION)
    return Summary.Value(tag=metadata.EXPERIMENT_TAG, metadata=metadata.create_summary_metadata(content))


def _column(plan: Plan, key: str) -> HParamInfo:
    """A searched key: its name, and what its trials can be filtered by."""
    values = plan.space.parameters[key].values
    info = HParamInfo(name=key, display_name=str(short(key)), type=DATA_TYPE_FLOAT64)
    if values is None:
        return info
    # The defaults' own value need be none of the choice's, and what is not listed is hidden.
    listed = [*values, get_key(plan.base.to_mapping(), key)]
    if any(isinstance(value, bool) or not isinstance(value, int | float) for value in listed):
        return HParamInfo(name=key, display_name=str(short(key)))  # of several types: TensorBoard has no filter for it
    info.domain_discrete.extend(sorted(set(listed)))
    return info


def _charts(plan: Plan, stages: Sequence[Stage]) -> Summary.Value:
    """The CUSTOM SCALARS tab: a chart for each of these stages, whose lines are its trials; then all trials."""
    by_stage = [_chart(story.stage_title(stage), stage_tag(stage.label)) for stage in stages]
    rest = [
        Category(title=name, chart=[_chart(told, *map(tag_of, keys)) for told, keys in charts.items()])
        for name, charts in CHARTS.items()
    ]
    title = f"Stage by stage: {plan.objective.title} ({direction(plan.objective)}), a line a trial"
    layout = Layout(version=0, category=[Category(title=title, chart=by_stage), *rest])
    return Summary.Value(
        tag=layout_metadata.CONFIG_SUMMARY_TAG,
        metadata=layout_metadata.create_summary_metadata(),
        tensor=_tensor(layout.SerializeToString()),
    )


def _chart(title: str, *tags: str) -> Chart:
    return Chart(title=title, multiline=MultilineChartContent(tag=[f"{re.escape(tag)}$" for tag in tags]))


def describe_stages(plan: Plan) -> str:
    """The plan in Markdown: what each stage varies, in which range, by how many trials."""
    lines = ["| stage | varies | trials |", "| --- | --- | --- |"]
    for stage in _stages(plan):
        ranges = [f"{key}: {story.tell_range(plan.space.parameters[key])}" for key in stage.keys]
        lines.append(f"| {stage.label} | {_plain('; '.join(ranges)) or '–'} | {stage.trials} |")
    metric, rungs = plan.objective, plan.rungs
    told = f"compared after {', '.join(map(str, rungs.levels))} epochs; one in {rungs.factor} goes on"
    told += story.tell_ceiling(plan)
    lines += [
        "",
        f"- Objective: {_plain(metric.title)}, {direction(metric)}, on the validation part.",
        f"- A trial runs {rungs.max_epochs} epochs{f' at most, {told}' if rungs.levels else ''}.",
        f"- Images: {_plain(str(plan.base.data_dir))}. Seed {plan.seed}.",
    ]
    return "\n".join([*lines, *(f"- {_plain(note)}." for note in plan.notes)])


def write_pictures(conductor: Conductor, outcome: Outcome | None) -> None:
    """Write the result in words and in pictures: the winner's own, and one, about 20 kB, for each key of each stage."""
    ran = [stage for stage in conductor.stages if conductor.records(stage)]
    # The charts that were declared at the start give way to those of the stages that ran.
    values = [_text("result/verdict", describe_result(conductor, outcome)), _charts(conductor.plan, ran)]
    if outcome is not None:
        values += _configuration(conductor, outcome) + _winners_pictures(conductor, outcome)
    for stage in conductor.stages:
        for key, png in stage_pictures(conductor, stage):
            values.append(_image(f"stage {stage.label}/{key}", png, WIDTH, HEIGHT))
    _write(conductor.plan, values, step=1)


def _configuration(conductor: Conductor, outcome: Outcome) -> list[Summary.Value]:
    path = conductor.plan.folder / "best.yaml"
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    # Four spaces: no fence that a value could close. Its comment is the verdict, which stands above.
    block = "\n".join(f"    {line}" for line in lines if not line.startswith("#"))
    return [_text("result/winner's configuration", f"best.yaml, of {_plain(outcome.best.record.name)}:\n\n{block}")]


def _winners_pictures(conductor: Conductor, outcome: Outcome) -> list[Summary.Value]:
    """What the winner's own log has, among those of many trials, shown again; nothing where its log is not here."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    name = outcome.best.record.name
    folder = conductor.plan.folder / "trials" / name / "logs" / "tensorboard"
    if not folder.is_dir():
        return []
    group = VIEWS.split("/")[0]
    events = EventAccumulator(str(folder), size_guidance={"images": 1, "scalars": 1}).Reload()
    values = []
    for tag in events.Tags()["images"]:
        if tag.startswith(f"{group}/"):
            last = events.Images(tag)[-1]
            shown = f"result/winner's {tag.removeprefix(f'{group}/')}"
            values.append(_image(shown, last.encoded_image_string, last.width, last.height))
    return values


def _image(tag: str, encoded: bytes, width: int, height: int) -> Summary.Value:
    picture = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=encoded)
    return Summary.Value(tag=tag, image=picture)


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
    shown = text_metadata.create_summary_metadata(display_name=tag, description="")
    return Summary.Value(tag=tag, metadata=shown, tensor=_tensor(words.encode("utf-8")))


def _tensor(content: bytes) -> TensorProto:
    one = TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)])
    return TensorProto(dtype=DT_STRING, string_val=[content], tensor_shape=one)


def _write(plan: Plan, values: Sequence[Summary.Value], step: int = 0) -> None:
    """Write an event file of its own. Raises NoSpaceLeft where the disk is full; there is no such file then."""
    # tensorboard's own EventFileWriter writes in a thread, whose traceback would stand above the one message.
    folder = plan.folder / "logs" / "tensorboard"
    path = folder / f"events.out.tfevents.{time.time_ns():019d}.{socket.gethostname()}.{os.getpid()}"
    events = (Event(file_version="brain.Event:2"), Event(summary=Summary(value=values), step=step))
    with naming_full_disk(folder), removed_on_failure(path):
        folder.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            writer = RecordWriter(file)
            for event in events:
                event.wall_time = time.time()
                writer.write(event.SerializeToString())
