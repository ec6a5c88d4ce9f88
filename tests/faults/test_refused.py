"""What cannot work is refused before the first trial, with what to write instead."""

from __future__ import annotations

from pathlib import Path

import pytest

from phenoscape_tune.cli import train, tune

SPACE = "parameters: {{lr: {{type: loguniform, low: 1.0e-4, high: 1.0e-2}}}}\nobjective: {{metric: {}}}\n"
TINY = ["backbone=test_resnet.r160_in1k", "input_size=32", "batch_size=8", "accelerator=cpu", "num_workers=1"]

# ---- row 3: an objective or monitor that is never reported, or misspelt ----


@pytest.mark.parametrize(
    ("metric", "told"),
    [
        ("knn_acuracy", "objective.metric: 'knn_acuracy' is unknown; did you mean 'knn_accuracy'?"),
        ("val_loss", "objective.metric: 'val_loss'"),
        ("foo", "known: auto, knn_accuracy, lidar, probe_accuracy, rankme, reference_contrast"),
    ],
)
def test_an_objective_that_is_not_reported(
    metric: str, told: str, tmp_path: Path, birds: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space = tmp_path / "space.yaml"
    space.write_text(SPACE.format(metric))
    assert tune.main(["--space", str(space), "--out", str(tmp_path / "x"), f"data_dir={birds}", *TINY]) == 2
    printed = capsys.readouterr().err
    assert told in printed
    assert str(space) in printed
    assert not (tmp_path / "x").exists()


def test_a_monitor_that_is_not_reported(tmp_path: Path, birds: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "x"
    arguments = [f"data_dir={birds}", f"out_dir={out}", *TINY, "early_stopping.monitor=val_los"]
    assert train.main(arguments) == 2
    assert "early_stopping.monitor: 'val_los' is not reported; did you mean 'val_loss'?" in capsys.readouterr().err
    assert not out.exists()
