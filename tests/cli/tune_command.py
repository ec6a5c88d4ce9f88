"""The command of a small search, as a user gives it."""

from __future__ import annotations

import pytest

from phenoscape_tune.cli import tune

SPACE = """
parameters:
  temperature: {type: uniform, low: 0.05, high: 0.5}
  lr: {type: loguniform, low: 1e-4, high: 1e-1}
scheduler: {grace_epochs: 2, reduction_factor: 2}
budget: {trials: 6, max_epochs: 4}
confirm: {top_k: 1, seeds: 2}
"""
TINY = [
    *("backbone=test_resnet.r160_in1k", "input_size=32", "stem=standard", "batch_size=8", "projection_dim=16"),
    *("num_workers=1", "accelerator=cpu", "max_epochs=50"),
]


def run(*arguments: object) -> int:
    return tune.main([str(argument) for argument in arguments])


def bad(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The message of a command that is refused: exit code 2, nothing but an error."""
    assert run(*arguments) == 2
    out, err = capsys.readouterr()
    assert [line for line in err.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in out + err
    return err
