"""`embed.py`: the embeddings of a folder of images by a trained encoder, and what they are worth."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phenoscape_tune.cli.common import (
    DONE,
    check_folder,
    pack_progress,
    prepare_folder,
    run_command,
    warn,
)
from phenoscape_tune.cli.downstream_report import measure_downstream, tell_downstream
from phenoscape_tune.cli.trained_encoder import (
    SPLIT_KEYS,
    TrainedEncoder,
    check_channels,
    find_checkpoint,
    open_trained,
)
from phenoscape_tune.errors import UserError
from phenoscape_tune.key_faults import nearest
from phenoscape_tune.layers import parse_overrides

if TYPE_CHECKING:  # --help must not pay for torch
    import numpy as np

    from phenoscape_tune.data.images import Images
    from phenoscape_tune.model import Encoder

FORMATS = ("csv", "parquet", "safetensors")
DOWNSTREAM, NEIGHBOURS, PROJECTOR, EMBEDDINGS = "downstream.json", "neighbours.png", "projector", "embeddings"
# The description stands first: by it a folder of this command is known.
FILES = (
    *("backbone.json", "backbone.safetensors", DOWNSTREAM, NEIGHBOURS, PROJECTOR),
    *(f"{EMBEDDINGS}.{kind}" for kind in FORMATS),
)
# What may differ from the checkpoint's configuration: the images and the machine, not the network.
KEYS = (
    *("data_dir", *SPLIT_KEYS, "input_size", "resize", "background", "cache_dir", "max_unreadable"),
    *("num_workers", "batch_size", "accelerator", "precision"),
)
CHUNK = 64  # images through the network at once, at most
SPEAK_EVERY = 30  # seconds between lines of progress where there is no terminal


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="embed.py",
        usage="%(prog)s [options] CHECKPOINT [DIR] [key=value ...]",
        description="Write the embeddings of a folder of images by a trained encoder, a picture of nearest "
        "neighbours, TensorBoard's projector and the backbone for timm; with labels also kNN and linear-probe "
        "accuracy. Without DIR the images are the run's own.",
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a run's folder (its best.ckpt) or a checkpoint")
    parser.add_argument("words", nargs="*", metavar="DIR, key=value", help="folder of images; keys, e.g. labels=a.csv")
    parser.add_argument("--out", metavar="DIR", help="output folder (default: outputs/<run>-embeddings[-<DIR>])")
    parser.add_argument(
        "--format", metavar="LIST", default=",".join(FORMATS), help="files of embeddings (default: %(default)s)"
    )
    parser.add_argument("--overwrite", action="store_true", help="delete an earlier result in the same folder")
    parser.add_argument("--quiet", action="store_true", help="print the result only")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(_embed, argv)


def _embed(argv: Sequence[str]) -> int:
    args = build_parser().parse_intermixed_args(argv)
    formats = _formats(args.format)
    data_dir, overrides = _sort_words(args.words)
    path = find_checkpoint(Path(args.checkpoint).expanduser().absolute())
    run = path.parent.parent if path.parent.name == "checkpoints" else None
    name = path.stem if run is None else run.name
    if run is not None and name == "best":  # the winner of a search: each search has one
        name = f"{run.parent.name}-best"
    folder = Path(f"outputs/{name}-embeddings" + (f"-{Path(data_dir).resolve().name}" if data_dir else ""))
    folder = (Path(args.out).expanduser() if args.out else folder).absolute()
    check_folder(folder, FILES, args.overwrite, "choose another one with --out")
    if not args.quiet:
        print("loading torch ...", file=sys.stderr, flush=True)
    trained = open_trained(path, data_dir, overrides)

    from phenoscape_tune.data.parts import open_images
    from phenoscape_tune.evaluate.embeddings import readable
    from phenoscape_tune.model import restore_encoder

    encoder = restore_encoder(trained.asked, trained.state, path)
    images = open_images(trained.asked, None if args.quiet else pack_progress, lambda line: warn([line]))
    check_channels(trained, encoder, images)
    features = _features(trained, encoder, images, args.quiet)
    # Only now, with all that the user wrote checked, may an earlier result be deleted.
    prepare_folder(folder, FILES)
    _write(folder, trained, encoder, images, features, formats)
    told = measure_downstream(
        trained.asked,
        images,
        features,
        own_images=trained.own_images,
        own_parts=trained.own_parts,
        say=None if args.quiet else _say,
    )
    _show(folder, images, features, told)
    # Paths need not be UTF-8, which standard output wants.
    shown, source = readable(str(folder)), readable(str(path))
    print(f"\n{len(features):,} images, {features.shape[1]} features each, by {source} (epoch {trained.epoch})")
    tell_downstream(folder / DOWNSTREAM, told)
    print(f"written   {shown}")
    if told["queries"]:
        print(f"look      {shown}/{NEIGHBOURS}")
    print(f"          tensorboard --logdir {shown}/{PROJECTOR}")
    return DONE


def _formats(text: str) -> list[str]:
    formats = [word.strip() for word in text.split(",") if word.strip()]
    for word in formats:
        if word not in FORMATS:
            raise UserError(f"--format: '{word}' is unknown; {nearest(word, FORMATS)}")
    if not formats:
        raise UserError(f"--format: is empty; write some of {','.join(FORMATS)}")
    return formats


def _sort_words(words: Sequence[str]) -> tuple[str | None, dict[str, Any]]:
    """The folder among the words, and the keys that they set. Raises UserError for a key of another network."""
    folders = [word for word in words if "=" not in word or Path(word).expanduser().is_dir()]
    if len(folders) > 1:
        raise UserError(f"{', '.join(folders)}: one folder of images at a time")
    overrides = parse_overrides([word for word in words if word not in folders])
    for key in overrides:
        if key not in KEYS:
            raise UserError(f"command line: {key}: embed.py takes no such key; {nearest(key, KEYS)}")
    if folders and "data_dir" in overrides:
        raise UserError(f"{folders[0]} and data_dir={overrides['data_dir']}: write one of them")
    return (folders[0] if folders else overrides.pop("data_dir", None)), overrides


def _features(trained: TrainedEncoder, encoder: Encoder, images: Images, quiet: bool) -> np.ndarray:
    import numpy as np
    import torch

    from phenoscape_tune.data.batches import Batches
    from phenoscape_tune.evaluate.embeddings import embed_images
    from phenoscape_tune.training.device import autocast_dtype, default_device

    config = trained.asked
    device = default_device(config)
    encoder = encoder.to(device).to(memory_format=torch.channels_last)
    dtype = autocast_dtype(config, device, encoder, images.pixels.shape[1])
    batches = Batches(images.pixels, min(config.batch_size, CHUNK), device)
    progress = None if quiet else _Progress("embedding images")
    features = embed_images(encoder, batches, len(images.pixels), config.input_size, dtype, progress)
    if not np.isfinite(features).all():
        raise UserError(
            f"{trained.path}: gives features that are no numbers; give an earlier checkpoint, or set precision=32"
        )
    return features


class _Progress:
    """A line on standard error that stays one on a terminal; elsewhere a line now and then."""

    def __init__(self, words: str) -> None:
        self._words, self._told = words, time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        line = f"{self._words} {done:,}/{total:,}"
        if sys.stderr.isatty():
            print(f"\r{line}", end="\n" if done == total else "", file=sys.stderr, flush=True)
        elif done == total or time.monotonic() - self._told > SPEAK_EVERY:
            self._told = time.monotonic()
            _say(line)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _write(
    folder: Path, trained: TrainedEncoder, encoder: Encoder, images: Images, features: np.ndarray, formats: list[str]
) -> None:
    from phenoscape_tune.evaluate.embeddings import WRITERS
    from phenoscape_tune.export import export_backbone

    export_backbone(encoder, trained.asked, folder)
    for kind in formats:
        WRITERS[kind](folder / f"{EMBEDDINGS}.{kind}", images.specimens.names, features)


def _show(folder: Path, images: Images, features: np.ndarray, told: dict[str, Any]) -> None:
    import numpy as np

    from phenoscape_tune.evaluate.embeddings import readable
    from phenoscape_tune.evaluate.neighbours import choose_queries, draw_neighbours, nearest
    from phenoscape_tune.evaluate.projector import write_projector

    specimens = images.specimens
    labels = specimens.labels
    names = None if labels is None else [readable(specimens.classes[c]) if c >= 0 else "" for c in labels]
    queries = choose_queries(np.array(told["queries"], dtype=np.int64), labels)
    found = nearest(features, queries, specimens.groups)
    if any(map(len, found)):
        draw_neighbours(folder / NEIGHBOURS, images.pixels, queries, found, names, images.channels)
    else:
        told["queries"] = []
    (folder / PROJECTOR).mkdir()
    readable_names = [readable(name) for name in specimens.names]
    write_projector(folder / PROJECTOR, images.pixels, features, readable_names, names, images.channels)


if __name__ == "__main__":
    sys.exit(main())
