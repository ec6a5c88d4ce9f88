"""One trial of a search, in the process of a Ray actor: its task becomes a run, and each epoch is reported to Tune."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ray import tune

from phenoscape_tune.config import TrainConfig, build_config
from phenoscape_tune.data.parts import Parts, data_key, open_parts
from phenoscape_tune.errors import UserError
from phenoscape_tune.search.study import FAILED, INFEASIBLE

ENDED = "ended"  # key of a trial's last words


# Of this process: finding and checking 100,000 files again would take seconds a trial.
_opened: dict[tuple[object, ...], Parts] = {}


def _images(config: TrainConfig) -> Parts:
    """The images of a search, opened once a process; they do not change while it runs."""
    key = data_key(config)
    if key not in _opened:
        _opened.clear()
        _opened[key] = open_parts(config)
    return _opened[key]


def run_trial(task: dict[str, Any]) -> None:
    """Train one trial and report each epoch to Tune; runs in a Ray actor."""
    import torch

    torch.set_num_threads(task["threads"])
    from phenoscape_tune.training.launch import launch
    from phenoscape_tune.training.memory import OutOfMemory
    from phenoscape_tune.training.run import Diverged, RunOptions

    config = build_config(task["config"], task["name"])
    last = Path(config.out_dir) / "checkpoints" / "last.ckpt"
    options = RunOptions(
        resume=last if task["resume"] and last.is_file() else None,
        reported_epochs=task["reported_epochs"],
        test=task["test"],
        hparams=task["hparams"],
        metric=task["metric"],
        reference_seed=task["reference_seed"],
    )
    try:
        launch(config, tune.report, options, _images(config))
    except (Diverged, UserError) as error:
        tune.report({ENDED: FAILED, "reason": str(error)})
    except OutOfMemory as error:
        tune.report({ENDED: INFEASIBLE, "reason": str(error)})
        raise  # what is left in this process's memory must not fail the next trial
    except Exception as error:
        # The process may be in any state: raised, the error makes Ray end it and start a fresh one.
        first_line = (str(error).splitlines() or [""])[0]
        tune.report({ENDED: FAILED, "reason": f"{type(error).__name__}: {first_line}"[:300]})
        raise
