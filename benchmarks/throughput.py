"""Images per second of SimCLR training, end to end from image files: this package against lightly + Lightning.

Contestants take turns in one process: the bare model's forward, loss, backward and optimiser step on views that lie in
memory (the limit, in float32 and in the precision that this package runs in), this package's own training epoch, and
lightly's SimCLR as its documentation writes it, in Lightning, with two loader processes. All train torchvision's
ResNet-18 layout with the standard stem and a 512-512-128 head. First epochs, which pack or warm up, are not timed.

    python benchmarks/throughput.py --size 64 --batch 64 --repeats 3
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import record
import torch
from PIL import Image

from phenoscape_tune.config import TrainConfig, build_config
from phenoscape_tune.data.parts import Parts, open_parts
from phenoscape_tune.nt_xent import nt_xent
from phenoscape_tune.training.device_use import DeviceUse
from phenoscape_tune.training.loop import train_epoch
from phenoscape_tune.training.monitor import Monitor
from phenoscape_tune.training.run import Run, RunOptions, start_run
from phenoscape_tune.training.step_clock import StepClock

RESULTS = record.RESULTS / "throughput.json"
Epoch = Callable[[], float]  # trains one epoch; returns images per second


def write_images(folder: Path, count: int, side: int) -> None:
    """JPEG files of smooth random colours, as large as a photograph's thumbnail."""
    rng = np.random.default_rng(0)
    for i in range(count):
        (folder / f"{i % 4}").mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        coarse.resize((side, side), Image.Resampling.BICUBIC).save(folder / f"{i % 4}" / f"{i:05d}.jpg", quality=90)


def waited(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def bare(config: TrainConfig, parts: Parts, device: torch.device, seconds: float = 4.0) -> Epoch:
    """Steps on one batch of views in memory, for some seconds."""
    run = start_run(config, device, RunOptions(), parts)
    size = config.input_size
    views = torch.rand(2 * config.batch_size, 3, size, size, device=device).contiguous(
        memory_format=torch.channels_last
    )

    def epoch() -> float:
        run.encoder.train()
        started, images = waited(device), 0
        while waited(device) - started < seconds:
            for _ in range(4):
                with run.autocast():
                    _, z = run.encoder(views)
                run.optimizer.zero_grad(set_to_none=True)
                nt_xent(z, config.temperature).backward()
                run.optimizer.step()
                images += config.batch_size
        return images / (waited(device) - started)

    return epoch


def ours(config: TrainConfig, parts: Parts, device: torch.device) -> Epoch:
    """This package's own epoch, evaluation left out: the others have none."""
    run: Run = start_run(config, device, RunOptions(), parts)
    monitor, clock = Monitor(), StepClock(DeviceUse(device))

    def epoch() -> float:
        run.epoch += 1
        started = waited(device)
        train_epoch(run, monitor, clock)
        images = run.batches.steps(parts.split.train) * config.batch_size
        return images / (waited(device) - started)

    return epoch


def lightly(config: TrainConfig, folder: Path, device: torch.device, workers: int, precision: Any) -> Epoch:
    """SimCLR of lightly's documentation, in Lightning; one `fit` of two epochs, of which the second is timed."""
    import pytorch_lightning as pl
    import torchvision
    from lightly.data import LightlyDataset
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead
    from lightly.transforms import SimCLRTransform
    from torch import Tensor, nn

    class SimCLR(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = nn.Sequential(*list(torchvision.models.resnet18().children())[:-1])
            self.projection_head = SimCLRProjectionHead(512, 512, 128)
            self.criterion = NTXentLoss(temperature=config.temperature)
            self.began = 0.0

        def training_step(self, batch: tuple[tuple[Tensor, Tensor], Tensor, Tensor], index: int) -> Tensor:
            (x0, x1), _, _ = batch
            z0 = self.projection_head(self.backbone(x0).flatten(start_dim=1))
            z1 = self.projection_head(self.backbone(x1).flatten(start_dim=1))
            loss: Tensor = self.criterion(z0, z1)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=config.lr)

        def on_train_epoch_start(self) -> None:
            self.began = waited(device)

        def on_train_epoch_end(self) -> None:
            self.took = waited(device) - self.began

    dataset = LightlyDataset(str(folder), transform=SimCLRTransform(input_size=config.input_size))
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=config.batch_size, shuffle=True, drop_last=True, num_workers=workers,
        persistent_workers=workers > 0,
    )  # fmt: skip

    def epoch() -> float:
        model = SimCLR()
        trainer = pl.Trainer(
            max_epochs=2, accelerator="gpu" if device.type == "cuda" else "cpu", devices=1, precision=precision,
            logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(model, loader)
        return len(loader) * config.batch_size / model.took

    return epoch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=64, help="side of a view, pixels")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--images", type=int, default=1200, help="generated image files")
    parser.add_argument("--workers", type=int, default=2, help="loader processes of lightly")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--backbone", default="resnet18")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_images(folder / "images", arguments.images, arguments.size * 3 // 2)
        common = {
            **{"data_dir": str(folder / "images"), "cache_dir": str(folder / "cache"), "out_dir": str(folder / "run")},
            **{"backbone": arguments.backbone, "stem": "standard", "input_size": arguments.size},
            **{"batch_size": arguments.batch, "val_fraction": 0.1, "test_fraction": 0.0},
        }
        native, full = build_config(common), build_config({**common, "precision": 32})
        parts = open_parts(native)
        contestants: dict[str, Epoch] = {
            "bare, its precision": bare(native, parts, device),
            "bare, fp32": bare(full, parts, device),
            "ours": ours(native, parts, device),
            "ours, fp32": ours(full, parts, device),
            "lightly, fp32": lightly(full, folder / "images", device, arguments.workers, "32-true"),
            "lightly, bf16": lightly(full, folder / "images", device, arguments.workers, "bf16-mixed"),
        }
        for epoch in contestants.values():
            epoch()
        times = [{key: epoch() for key, epoch in contestants.items()} for _ in range(arguments.repeats)]
    rows = []
    for key in contestants:
        rates = [turn[key] for turn in times]
        ratios = sorted(turn["ours"] / turn[key] for turn in times)
        row = {"contestant": key, "images_per_second": round(statistics.median(rates), 1)}
        row |= {"ours_times_as_fast": round(statistics.median(ratios), 3), "least": round(ratios[0], 3)}
        rows.append(row | {"most": round(ratios[-1], 3)})
        print(json.dumps(rows[-1]), flush=True)
    record.append(RESULTS, {**record.describe(device), **vars(arguments), "results": rows})


if __name__ == "__main__":
    main()
