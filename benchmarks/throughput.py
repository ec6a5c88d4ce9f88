"""Images per second of SimCLR training, end to end from image files: this package against lightly + Lightning.

Contestants take turns in one process, and every ratio is of one turn: the bare model's forward, loss, backward and
optimiser step on views that lie in memory (the limit), this package's own training epochs (views, data, clock and all;
no evaluation, which the others do not have either), and lightly's SimCLR as its documentation writes it, in Lightning:
LightlyDataset and SimCLRTransform in a DataLoader, SGD; in float32, which its users get, and in the precision of ours.
The layout of the ResNets is torchvision's, of ViT timm's, ours with the standard stem and AdamW. First epochs, which
pack or warm up, are not timed.

    python benchmarks/throughput.py
    python benchmarks/throughput.py --gpu             # 224 px, 16 loader processes, ViT-S too; ends where there is none
    python benchmarks/throughput.py --gpu --check-syncs     # where a training epoch of ours waits for the GPU
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import tempfile
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
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
Measured = dict[str, float]
Epoch = Callable[[], Measured]  # trains for some time; images_per_second and what else it measured
# Ratios of ours to each, and the share of the time that a GPU computes.
CPU_GOALS = {"bare": 0.92, "lightly, same precision": 1.15, "lightly, fp32": 1.7}
GPU_GOALS = {"bare": 0.95, "lightly, same precision": 3.0, "lightly, fp32": 3.0}
UTILISATION_GOAL = 0.95
CLASSES = 4
SECONDS = 4.0  # an epoch that is shorter is followed by more
SYNCHRONISES = "called a synchronizing CUDA operation"


@dataclass(frozen=True)
class Setting:
    """What is trained: `backbone` at `size` px in batches of `batch`, `images` files, a peer's `workers` processes."""

    backbone: str
    size: int
    batch: int
    images: int
    workers: int


ON_CPU = (Setting("resnet18", 64, 64, 640, 2), Setting("resnet50", 64, 32, 256, 2))
ON_GPU = tuple(Setting(name, 224, 256, 8192, 16) for name in ("resnet18", "resnet50", "vit_small_patch16_224"))


def write_images(folder: Path, count: int, side: int) -> None:
    """JPEG files of smooth random colours, as large as a photograph's thumbnail."""
    for part in range(CLASSES):
        (folder / f"{part}").mkdir(parents=True, exist_ok=True)

    def write(number: int) -> None:
        colours = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        image = Image.fromarray(colours).resize((side, side), Image.Resampling.BICUBIC)
        image.save(folder / f"{number % CLASSES}" / f"{number:05d}.jpg", quality=90)

    with ThreadPoolExecutor() as pool:
        deque(pool.map(write, range(count)), maxlen=0)


def waited(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def bare(config: TrainConfig, parts: Parts, device: torch.device) -> Epoch:
    """Steps on one batch of views in memory, for some seconds."""
    run = start_run(config, device, RunOptions(), parts)
    size = config.input_size
    views = torch.rand(2 * config.batch_size, 3, size, size, device=device).contiguous(
        memory_format=torch.channels_last
    )

    def epoch() -> Measured:
        run.encoder.train()
        started, images = waited(device), 0
        while waited(device) - started < SECONDS:
            for _ in range(20 if device.type == "cuda" else 2):
                with run.autocast():
                    _, z = run.encoder(views)
                run.optimizer.zero_grad(set_to_none=True)
                nt_xent(z, config.temperature).backward()
                run.optimizer.step()
                images += config.batch_size
        return {"images_per_second": images / (waited(device) - started)}

    return epoch


def ours(config: TrainConfig, parts: Parts, device: torch.device) -> Epoch:
    """This package's own epochs, evaluation left out: the others have none."""
    run: Run = start_run(config, device, RunOptions(), parts)
    monitor, clock = Monitor(), StepClock(DeviceUse(device))

    def epoch() -> Measured:
        started, images = waited(device), 0
        while not images or time.perf_counter() - started < SECONDS:
            run.epoch += 1
            train_epoch(run, monitor, clock)
            images += run.batches.steps(parts.split.train) * config.batch_size
        measured = {"images_per_second": images / (waited(device) - started)}
        seen = clock.row()  # the wait for data is the last epoch's
        return measured | {key: seen[key] for key in ("waiting_share", "utilisation") if key in seen}

    return epoch


def lightly(
    setting: Setting, folder: Path, device: torch.device, temperature: float, precision: Any, most: int | None
) -> Epoch:
    """SimCLR of lightly's documentation, in Lightning; one `fit` of two epochs of at most `most` batches, of which the
    second is timed."""
    import lightning
    import torchvision
    from lightly.data import LightlyDataset
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead
    from lightly.transforms import SimCLRTransform
    from torch import Tensor, nn

    for name in ("lightning.pytorch", "lightning.fabric"):  # after the import, which sets them itself
        logging.getLogger(name).setLevel(logging.ERROR)

    def build_backbone() -> tuple[nn.Module, int]:
        if setting.backbone.startswith("resnet"):
            network = getattr(torchvision.models, setting.backbone)()
            return nn.Sequential(*list(network.children())[:-1]), network.fc.in_features
        import timm

        network = timm.create_model(setting.backbone, num_classes=0, img_size=setting.size)
        return network, int(network.num_features)  # type: ignore[arg-type]

    class SimCLR(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.backbone, width = build_backbone()
            self.projection_head = SimCLRProjectionHead(width, width, 128)
            self.criterion = NTXentLoss(temperature=temperature)
            self.began = self.took = 0.0

        def training_step(self, batch: tuple[tuple[Tensor, Tensor], Tensor, Tensor], index: int) -> Tensor:
            (x0, x1), _, _ = batch
            z0 = self.projection_head(self.backbone(x0).flatten(start_dim=1))
            z1 = self.projection_head(self.backbone(x1).flatten(start_dim=1))
            loss: Tensor = self.criterion(z0, z1)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.06)

        def on_train_epoch_start(self) -> None:
            self.began = waited(device)

        def on_train_epoch_end(self) -> None:
            self.took = waited(device) - self.began

    dataset = LightlyDataset(str(folder), transform=SimCLRTransform(input_size=setting.size))
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=setting.batch, shuffle=True, drop_last=True, num_workers=setting.workers,
        persistent_workers=setting.workers > 0,
    )  # fmt: skip

    batches = min(len(loader), most or len(loader))

    def epoch() -> Measured:
        model = SimCLR()
        trainer = lightning.Trainer(
            max_epochs=2, limit_train_batches=batches, precision=precision, devices=1,
            accelerator="gpu" if device.type == "cuda" else "cpu",
            logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(model, loader)
        return {"images_per_second": batches * setting.batch / model.took}

    return epoch


def synchronisations(epoch: Epoch) -> dict[str, int]:
    """How often an epoch waits for the GPU, by the line of code that does; `epoch` has run before."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            epoch()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    seen = [warning for warning in caught if SYNCHRONISES in str(warning.message)]
    return dict(Counter(f"{Path(w.filename).parent.name}/{Path(w.filename).name}:{w.lineno}" for w in seen))


def compare(
    setting: Setting, turns: int, device: torch.device, check_syncs: bool, peer_batches: int | None = None
) -> dict[str, Any]:
    """All contestants on one setting; prints a line for each and returns the record's part."""
    print(f"{setting.backbone}, {setting.size} px, batches of {setting.batch}, {setting.images} files", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_images(folder / "images", setting.images, setting.size * 3 // 2)
        config = build_config({
            "data_dir": str(folder / "images"), "cache_dir": str(folder / "cache"), "out_dir": str(folder / "run"),
            "backbone": setting.backbone, "stem": "standard", "input_size": setting.size,
            "batch_size": setting.batch, "val_fraction": 0.1, "test_fraction": 0.0,
        })  # fmt: skip
        parts = open_parts(config)
        dtype = start_run(config, device, RunOptions(), parts).dtype
        own = ours(config, parts, device)
        contestants: dict[str, Epoch] = {"ours": own, "bare": bare(config, parts, device)}
        for epoch in contestants.values():
            epoch()
        syncs = synchronisations(own) if check_syncs else None
        if record.installed("lightly") and record.installed("lightning"):
            peers = {"lightly, fp32": "32-true"}
            if dtype == torch.bfloat16:
                peers["lightly, same precision"] = "bf16-mixed"
            for key, precision in peers.items():
                contestants[key] = lightly(
                    setting, folder / "images", device, config.temperature, precision, peer_batches
                )
        measured = []
        for number in range(1, turns + 1):
            measured.append({key: epoch() for key, epoch in contestants.items()})
            rates = ", ".join(f"{key} {found['images_per_second']:.0f}" for key, found in measured[-1].items())
            print(f"  turn {number} of {turns}, images/s: {rates}", flush=True)
    if "lightly, fp32" in contestants and dtype is None:  # ours is float32 itself
        for turn in measured:
            turn["lightly, same precision"] = turn["lightly, fp32"]
    goals = GPU_GOALS if device.type == "cuda" else CPU_GOALS
    found: dict[str, Any] = {**asdict(setting), "dtype": str(dtype or torch.float32), "turns": turns}
    found["results"] = [row_of(key, measured, goals.get(key)) for key in measured[0]]
    for row in found["results"]:
        print(f"  {json.dumps(row)}", flush=True)
    if shares := [turn["ours"]["utilisation"] for turn in measured if "utilisation" in turn["ours"]]:
        found["utilisation"] = {**record.spread(shares), "goal": UTILISATION_GOAL}
        print(f"  device utilisation: {record.told(shares)}", flush=True)
    if syncs is not None:
        found["synchronisations"] = syncs
        print(f"  waits for the GPU in an epoch: {json.dumps(syncs, indent=1)}", flush=True)
    return found


def row_of(key: str, measured: Sequence[Mapping[str, Measured]], goal: float | None) -> dict[str, Any]:
    """A contestant's result: its rate, and how many times as fast ours is, turn by turn."""
    ratios = [turn["ours"]["images_per_second"] / turn[key]["images_per_second"] for turn in measured]
    rate = statistics.median(turn[key]["images_per_second"] for turn in measured)
    found = record.spread(ratios)
    row = {"contestant": key, "images_per_second": round(rate, 1), "ours_times_as_fast": found.pop("median"), **found}
    if waiting := [turn[key]["waiting_share"] for turn in measured if "waiting_share" in turn[key]]:
        row["waiting_share"] = round(statistics.median(waiting), 4)
    return row if goal is None else row | {"goal": goal, "reached": statistics.median(ratios) >= goal}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", action="store_true", help="the settings for a GPU; ends where there is none")
    parser.add_argument("--backbones", nargs="+", help="some of them, or other models of timm (default: all)")
    parser.add_argument("--size", type=int, help="side of a view, pixels, instead of the setting's")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--images", type=int, help="generated image files")
    parser.add_argument("--workers", type=int, help="loader processes of lightly")
    parser.add_argument("--peer-batches", type=int, help="batches of an epoch of lightly, at most (default: all)")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--check-syncs", action="store_true", help="on a GPU: which lines of an epoch wait for it")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if arguments.gpu or arguments.check_syncs:
        record.need_gpu()
    device = torch.device("cuda" if arguments.gpu or arguments.check_syncs else "cpu")
    warnings.filterwarnings("ignore")
    known = {setting.backbone: setting for setting in (ON_GPU if device.type == "cuda" else ON_CPU)}
    given = {key: getattr(arguments, key) for key in ("size", "batch", "images", "workers")}
    changes = {key: value for key, value in given.items() if value is not None}
    found = []
    for backbone in arguments.backbones or list(known):
        setting = replace(known.get(backbone, next(iter(known.values()))), backbone=backbone, **changes)
        found.append(compare(setting, arguments.turns, device, arguments.check_syncs, arguments.peer_batches))
    record.append(arguments.results, {**record.describe(device), "settings": found})
    print(f"appended to {arguments.results}", flush=True)


if __name__ == "__main__":
    main()
