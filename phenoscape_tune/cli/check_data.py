"""`check_data.py`: examine a folder of images before training."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from phenoscape_tune.cli.common import (
    DONE,
    OTHER_FAULT,
    check_folder,
    ensure_data,
    prepare_folder,
    resolve_config,
    run_command,
    warn,
)
from phenoscape_tune.cli.data_report import CHECK_FILE, SHEET_FILE, SPECTRA_FILE, describe, summary, to_mapping
from phenoscape_tune.config import TrainConfig
from phenoscape_tune.errors import UserError
from phenoscape_tune.files import write_whole
from phenoscape_tune.layers import parse_overrides

if TYPE_CHECKING:
    from phenoscape_tune.data.checks import Checks

CHECK_FILES = (CHECK_FILE, SHEET_FILE, SPECTRA_FILE)

Meter = Callable[[int, int], None]


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="check_data.py",
        usage="check_data.py [DIR] [options] [key=value ...]",
        description="Examine a folder of images before training: unreadable, tiny, constant, blurred, duplicate "
        "images, classes, leakage between the parts of the split, channels. Writes check.json, contact_sheet.png, a "
        "picture of augmented views, and for spectral images spectra.png, the mean spectrum of each class. Without DIR "
        "it examines generated sample specimens.",
    )
    parser.add_argument("arguments", nargs="*", metavar="DIR, key=value", help="folder; any configuration key")
    parser.add_argument("--config", metavar="FILE", help="configuration: a path, or a name in configs/")
    parser.add_argument("--out", metavar="OUT", help="folder of the result (default: outputs/check-<name of DIR>)")
    parser.add_argument("--overwrite", action="store_true", help="delete an earlier check in the same folder")
    parser.add_argument("--strict", action="store_true", help="exit with code 1 if faults are found (not for hints)")
    parser.add_argument("--quiet", action="store_true", help="print the result in one line")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(_check, argv)


def _check(argv: Sequence[str]) -> int:
    args = build_parser().parse_intermixed_args(argv)
    from phenoscape_tune.data.parts import settle

    config = ensure_data(_resolve(args), args.quiet)
    assert config.data_dir is not None
    data_dir = Path(config.data_dir)
    name = data_dir.resolve().name or "root"
    folder = Path(args.out or Path("outputs") / f"check-{name}").expanduser().absolute()
    if folder.resolve().is_relative_to(data_dir.resolve()) and data_dir.is_dir():
        raise UserError(
            f"--out: {folder} lies in the folder of images, where the contact sheet would be taken for one of them; "
            "name a folder elsewhere"
        )
    check_folder(folder, CHECK_FILES, args.overwrite, "name another with --out")
    checks = examine(config, args.quiet)
    config = settle(config, checks.measured.recipe)
    prepare_folder(folder, CHECK_FILES)
    try:
        # The picture last: by check.json the folder is known, and may be overwritten.
        write_whole(folder / CHECK_FILE, json.dumps(to_mapping(checks, config), indent=1) + "\n")
        _draw(checks, config, folder, args.quiet)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); name another with --out") from error
    if not args.quiet:
        from rich.console import Console

        console = Console()
        for part in describe(checks, config):
            console.print(part, highlight=False)
    print(summary(checks, folder))
    return OTHER_FAULT if args.strict and checks.faults else DONE


def _resolve(args: argparse.Namespace) -> TrainConfig:
    # A folder may have an equals sign in its name.
    folders = [text for text in args.arguments if "=" not in text or Path(text).is_dir()]
    overrides = parse_overrides([text for text in args.arguments if text not in folders])
    if len(folders) > 1:
        raise UserError(
            f"command line: {' '.join(folders)}: one folder is examined at a time; write options as key=value"
        )
    if folders:
        if "data_dir" in overrides:
            raise UserError(f"command line: {folders[0]} and data_dir={overrides['data_dir']}: write one of them")
        overrides["data_dir"] = folders[0]
    return resolve_config(args.config, overrides)


def examine(config: TrainConfig, quiet: bool = True) -> Checks:
    """Everything that is found in `config.data_dir`. Raises UserError where no image can be found or read."""
    from phenoscape_tune.data.checks import check_images
    from phenoscape_tune.data.decoding import refuse_unreadable
    from phenoscape_tune.data.measurements import measure_images
    from phenoscape_tune.data.parts import make_request
    from phenoscape_tune.data.specimens import find_specimens
    from phenoscape_tune.data.survey import answer

    assert config.data_dir is not None
    labels = None if config.labels is None else Path(config.labels)
    specimens = find_specimens(Path(config.data_dir), labels, config.group_by, config.modality)
    recipe = answer(specimens, make_request(config, specimens), config.num_workers, lambda line: warn([line]))
    with _meter("reading images", quiet) as meter:
        measured = measure_images(specimens, config.input_size, recipe, config.num_workers, meter)
    if not measured.specimens.names:
        raise refuse_unreadable(measured.unreadable, specimens)
    with _meter("comparing images", quiet) as meter:
        return check_images(measured, config, meter)


@contextmanager
def _meter(title: str, quiet: bool) -> Iterator[Meter | None]:
    """What shows (done, total) of a long work on standard error; nothing where that is no terminal."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield None
        return
    with Progress(*Progress.get_default_columns(), console=console, transient=True) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _draw(checks: Checks, config: TrainConfig, folder: Path, quiet: bool) -> None:
    if not quiet:
        print("drawing augmented views ...", file=sys.stderr, flush=True)
    from phenoscape_tune.cli.contact_sheet import draw_contact_sheet

    draw_contact_sheet(checks.measured.specimens, config, checks.measured.recipe).save(folder / SHEET_FILE)
    if (spectra := checks.measured.spectra) is not None:
        from PIL import Image

        from phenoscape_tune.data.spectra_figure import render_spectra

        Image.fromarray(render_spectra(spectra)).save(folder / SPECTRA_FILE)


if __name__ == "__main__":
    sys.exit(main())
