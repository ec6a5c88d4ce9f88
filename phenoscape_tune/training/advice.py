"""The training guide's troubleshooting as behaviour: what it advises is said when a run shows the symptom, and once.

The loss is read as *progress*: 0 at chance, where every image of a batch is as near as the other view, 1 where the two
views of an image are alike and all other images orthogonal. Chance is log(2B - 1) of B images, the other end
log(1 + (2B - 2) exp(-1/t)) at temperature t, so that one threshold serves all batch sizes and temperatures.

The thresholds come from 91 recorded trainings in benchmarks/results/learning_curves.jsonl (three data sets, lr 3e-5 to
3e-2), and held for the 48 that were recorded later (lr 1e-5 to 1e-1): the tests hold that they fault no recorded run
at a learning rate of 1e-4 or more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from phenoscape_tune.config import TrainConfig, known_keys
from phenoscape_tune.evaluate.objective import collapsed

History = Sequence[Mapping[str, Any]]

# Epochs beyond warm-up, and progress since the first epoch. The slowest recorded run at 1e-4 or more had gained 0.07
# after 5 epochs and 0.11 after 10; those that had gained less than 0.08 after 10 were all at 7e-5 or less.
STUCK_EPOCHS, STUCK_GAIN = 5, 0.02
SLOW_EPOCHS, SLOW_GAIN = 10, 0.08
# A run that came so far in its first epoch (many images, pretrained weights) has less left to gain.
FAR_ENOUGH = 0.3
# The mean over fewer steps than these is mostly noise, and a network hardly moves in them.
LEAST_STEPS = 100
AVERAGED_EPOCHS = 3
# The guide's default batch; below it a view is told apart from fewer than 62 others.
LEAST_BATCH = 32
# Healthy networks never had less than 3.7 when recorded; one direction for all images is 1.
COLLAPSED_RANK = 1.5
COLLAPSED_EPOCHS = 2  # in succession, after warm-up: a network may still leave the collapsed state of its first steps
BUSY = 0.8  # the guide's "GPU Utilization: should be >80%"
WAITING = 0.1  # share of time from which the data are what holds a run up


class Advisor:
    """Looks at a run after each epoch.

    Args:
        config: of the run.
        steps_per_epoch: training steps of an epoch.
        effective_batch: images that the contrastive loss compares in a step, over all devices.
    """

    def __init__(self, config: TrainConfig, steps_per_epoch: int, effective_batch: int) -> None:
        self._config = config
        self._steps = steps_per_epoch
        self._batch = effective_batch
        self._said: set[str] = set()

    def look(self, history: History) -> list[str]:
        """What there is to say now that was not said before, a line a symptom; mostly nothing, and without rows never.

        `history` are all rows of the run so far, in their order: `train_loss` of each, and as far as it was measured
        feature_std, rankme, utilisation, waiting_share. After a resume, look once at what was there and drop the lines.
        """
        symptoms: dict[str, Callable[[History], str | None]] = {
            "few negatives": self._few_negatives,
            "collapsed": self._collapsed,
            "loss": self._not_decreasing,
            "slow": self._slow,
            "idle": self._idle,
        }
        lines: list[str] = []
        if not history:
            return lines
        for name, tell in symptoms.items():
            line = None if name in self._said else tell(history)
            if line is not None:
                self._said.add(name)
                lines.append(line)
        return lines

    def _few_negatives(self, history: History) -> str | None:
        images = self._steps * self._batch
        if self._batch >= LEAST_BATCH or images < LEAST_BATCH:  # of fewer images there is no larger batch
            return None
        config = self._config
        times = math.ceil(LEAST_BATCH * config.accumulate_grad_batches / self._batch)
        return (
            f"few negatives: with an effective batch of {self._batch} each view is told apart from only "
            f"{2 * self._batch - 2} others; increase batch_size (now {config.batch_size}), or where memory does not "
            f"suffice set accumulate_grad_batches={times}: the loss then compares {LEAST_BATCH} images or more at the "
            "memory of today's batch"
        )

    def _collapsed(self, history: History) -> str | None:
        recent = history[-COLLAPSED_EPOCHS:]
        beyond = len(history) - COLLAPSED_EPOCHS >= self._config.resolved_warmup_epochs
        if len(recent) < COLLAPSED_EPOCHS or not beyond or not all(map(_is_collapsed, recent)):
            return None
        last, config = history[-1], self._config
        return (
            f"collapsed features: all images look alike to the network (feature_std "
            f"{last.get('feature_std', math.nan):.2g}, RankMe {last.get('rankme', math.nan):.1f}), so nothing is "
            f"learned from here on; lower lr (now {config.lr:g}; try lr={config.lr / 10:g}), lengthen the warm-up (now "
            f"{config.resolved_warmup_epochs:g} epochs), set gradient_clip=1, and look whether the images are blank or "
            "all the same"
        )

    def _not_decreasing(self, history: History) -> str | None:
        if not self._has_hardly_gained(history, STUCK_EPOCHS, -math.inf, STUCK_GAIN):
            return None
        return (
            f"the loss is not decreasing: {self._fall(history)}; check data preprocessing (are the images as they "
            "should be?) and the positive pairs (TensorBoard, Images: the two views of a column must be of the same "
            f"specimen); {self._temperature()}; increase batch_size for more negatives (now {self._batch} images, "
            f"{2 * self._batch - 2} negatives); {self._learning_rate()}"
        )

    def _slow(self, history: History) -> str | None:
        if not self._has_hardly_gained(history, SLOW_EPOCHS, STUCK_GAIN, SLOW_GAIN):
            return None
        # A loss that had fallen and rises again passes through here; that is not slow.
        best = min(row["train_loss"] for row in history)
        if self._progress(best) - self._progress(history[0]["train_loss"]) >= SLOW_GAIN:
            return None
        transforms = self._config.transforms
        waiting = history[-1].get("waiting_share")
        loading = "" if waiting is None else f" ({waiting:.0%} of the time goes by waiting for images)"
        return (
            f"slow convergence: {self._fall(history)}; {self._learning_rate()}; {self._temperature()}; check the "
            f"strength of the augmentation (cj_strength {transforms.cj_strength:g}, min_scale "
            f"{transforms.min_scale:g}: less jitter and larger crops are easier); verify that data are loaded fast "
            f"enough{loading}. Learning rate and temperature are found by: python scripts/tune.py --space lr_temp.yaml"
        )

    def _idle(self, history: History) -> str | None:
        # The first epoch loads kernels, and with compile=true makes them.
        if len(history) < 2 or (share := history[-1].get("utilisation")) is None or share >= BUSY:
            return None
        config, waiting = self._config, history[-1].get("waiting_share", 0.0)
        told = f"GPU utilisation is {share:.0%} (above {BUSY:.0%} is efficient)"
        if waiting > WAITING:
            remedy = (
                f"increase num_workers (now {config.num_workers})" if not config.pack else "a faster disk or cache_dir"
            )
            return f"{told}, and {waiting:.0%} of the time goes by waiting for images: {remedy}"
        compiled = "" if config.compile else ", set compile=true"
        return (
            f"{told} without waiting for images: increase batch_size (now {config.batch_size}){compiled}, or in a "
            "search run more trials on the GPU (--concurrent)"
        )

    def _has_hardly_gained(self, history: History, epochs: int, low: float, high: float) -> bool:
        """Whether so many epochs beyond warm-up the progress since the first epoch lies in [low, high)."""
        beyond = len(history) - math.ceil(self._config.resolved_warmup_epochs)
        if beyond < epochs or self._steps * beyond < LEAST_STEPS:
            return False
        recent = self._progress(_recent_loss(history))
        gain = recent - self._progress(history[0]["train_loss"])
        return recent < FAR_ENOUGH and low <= gain < high

    def _progress(self, loss: float) -> float:
        chance = math.log(2 * self._batch - 1)
        aligned = math.log1p((2 * self._batch - 2) * math.exp(-1 / self._config.temperature))
        return (chance - loss) / (chance - aligned)

    def _fall(self, history: History) -> str:
        first, now = history[0]["train_loss"], _recent_loss(history)
        chance = math.log(2 * self._batch - 1)
        return f"from {first:.3f} to {now:.3f} in {len(history)} epochs (chance is {chance:.3f})"

    def _learning_rate(self) -> str:
        lr, (_, most) = self._config.lr, _advised("lr")
        # From a third of the guide's range upwards a higher one is the less likely remedy.
        return f"increase lr (now {lr:g}; try lr={3 * lr:.2g})" if 3 * lr <= most else f"lower lr (now {lr:g})"

    def _temperature(self) -> str:
        low, high = _advised("temperature")
        return f"adjust temperature (now {self._config.temperature:g}, usually {low:g} to {high:g})"


def _is_collapsed(row: Mapping[str, Any]) -> bool:
    return ("feature_std" in row and collapsed(row["feature_std"])) or row.get("rankme", math.inf) < COLLAPSED_RANK


def _recent_loss(history: History) -> float:
    recent = [float(row["train_loss"]) for row in history[-AVERAGED_EPOCHS:]]
    return sum(recent) / len(recent)


def _advised(key: str) -> tuple[float, float]:
    low, high = known_keys()[key].json_schema_extra["advice"]
    return low, high
