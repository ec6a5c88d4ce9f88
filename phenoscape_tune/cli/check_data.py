"""`check_data.py`: examine a folder of images before training."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from phenoscape_tune.config import TrainConfig
from phenoscape_tune.errors import UserError
from phenoscape_tune.files import write_whole
from phenoscape_tune.layers import parse_overrides

if TYPE_CHECKING:
    from rich.console import RenderableType

    from phenoscape_tune.data.checks import Checks
    from phenoscape_tune.data.measurements import Measurements

CHECK_FILE, SHEET_FILE, SPECTRA_FILE = "check.json", "contact_sheet.png", "spectra.png"
CHECK_FILES = (CHECK_FILE, SHEET_FILE, SPECTRA_FILE)
FORMAT_VERSION = 1
SHOWN_CLASSES, SHOWN_NAMES, SHOWN_CHANNELS = 20, 3, 12

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
    print(_summary(checks, folder))
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


def to_mapping(checks: Checks, config: TrainConfig) -> dict[str, Any]:
    """What goes to check.json; names that are not UTF-8 keep their bytes as lone surrogates, as Python reads them."""
    measured = checks.measured
    counts = checks.class_counts()
    known = [own["images"] for own in counts.values() if own["images"]]
    keys = ("input_size", "resize", "val_fraction", "test_fraction", "split_seed", "group_by", "labels", "batch_size")
    return {
        "version": FORMAT_VERSION,
        "folder": str(measured.specimens.root),
        "images": len(measured.specimens.names) + len(measured.unreadable),
        "readable": len(measured.specimens.names),
        "modality": measured.specimens.modality,
        "passed_over": measured.specimens.passed_over,
        "labels": measured.specimens.label_source,
        "settings": {key: getattr(config, key) for key in keys},
        "faults": [finding.check for finding in checks.faults],
        "hints": [finding.check for finding in checks.hints],
        "split": {part: len(indices) for part, indices in checks.parts.items()},
        "classes": counts,
        "class_ratio": round(max(known) / min(known), 4) if known else None,
        "unlabelled": None if measured.specimens.labels is None else int((measured.specimens.labels < 0).sum()),
        "channels": _channels(measured),
        "spectra": _spectra(measured),
        "checks": {
            finding.check: {
                "meaning": finding.meaning,
                "count": finding.count,
                "fault": finding.fault,
                "remedy": finding.remedy,
                "found": list(finding.entries),
            }
            for finding in checks.findings
        },
    }


def _channels(measured: Measurements) -> list[dict[str, Any]]:
    channels = measured.recipe.channels
    rows = [
        {"channel": channel, **dict(zip(("mean", "std", "min", "max"), map(_rounded, values), strict=True))}
        for channel, values in zip(channels.names, measured.moments.T, strict=True)
    ]
    if channels.wavelengths is None:
        return rows
    return [{**row, "wavelength_nm": wave} for row, wave in zip(rows, channels.wavelengths, strict=True)]


def _spectra(measured: Measurements) -> list[dict[str, Any]] | None:
    """Mean and standard deviation over the images of each class, a number a channel; None for RGB pictures."""
    spectra = measured.spectra
    if spectra is None:
        return None
    return [
        {"class": name, "images": count, "mean": [*map(_rounded, mean)], "std": [*map(_rounded, std)]}
        for name, count, mean, std in zip(spectra.classes, spectra.counts, spectra.mean, spectra.std, strict=True)
    ]


def _rounded(value: float) -> float:
    return round(float(value), 5)


def describe(checks: Checks, config: TrainConfig) -> list[RenderableType]:
    """The result for the terminal: what was found, classes, channels, split."""
    from rich.table import Table
    from rich.text import Text

    from phenoscape_tune.data.specimens import printable

    specimens = checks.measured.specimens
    total = len(specimens.names) + len(checks.measured.unreadable)
    parts = ", ".join(f"{len(indices):,} {part}" for part, indices in checks.parts.items())
    head = f"{specimens.root}: {total:,} {specimens.modality} images ({parts}), {specimens.label_source}"
    if specimens.passed_over:
        head += f"; {specimens.passed_over:,} of another modality beside them are passed over"
    found = Table(box=None, pad_edge=False, header_style="bold")
    found.add_column("check", no_wrap=True)
    found.add_column("found", justify="right", no_wrap=True)
    found.add_column("what, and what to do", ratio=1)
    for finding in checks.findings:
        if finding.entries:
            style = "red" if finding.fault else "yellow"
            what = Text(f"{finding.meaning}: {_examples(finding.entries)}. {_capital(finding.remedy)}.")
            found.add_row(Text(finding.check, style), Text(f"{finding.count:,}", style), what)
        else:
            found.add_row(Text(finding.check), Text("none", "green"), Text(finding.meaning, "dim"))
    shown: list[RenderableType] = [Text(printable(head)), "", found]
    counts = checks.class_counts()
    if counts:
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("class")
        columns = list(next(iter(counts.values())))
        for column in columns:
            table.add_column(column, justify="right")
        largest = sorted(counts, key=lambda name: -counts[name]["images"])
        for name in largest[:SHOWN_CLASSES]:
            table.add_row(Text(printable(name)), *(f"{counts[name][column]:,}" for column in columns))
        if len(largest) > SHOWN_CLASSES:
            table.add_row(Text(f"and {len(largest) - SHOWN_CLASSES} more, in {CHECK_FILE}", "dim"))
        shown += ["", table]
        known = [own["images"] for own in counts.values() if own["images"]]
        if known:
            shown.append(Text(f"largest class / smallest class: {max(known) / min(known):.2f}"))
    channels = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("channel (0..1)", "mean", "std", "min", "max"):
        channels.add_column(column, justify="left" if column.startswith("channel") else "right")
    names, moments = checks.measured.recipe.channels.names, checks.measured.moments.T
    # Of many channels a few, evenly spread, the first and the last among them.
    few = min(len(names), SHOWN_CHANNELS)
    for place in (number * (len(names) - 1) // max(1, few - 1) for number in range(few)):
        channels.add_row(printable(names[place]), *(f"{value:.3f}" for value in moments[place]))
    if few < len(names):
        channels.add_row(Text(f"{few} of {len(names)}, all in {CHECK_FILE}", "dim"))
    return [*shown, "", channels, ""]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _examples(entries: Sequence[dict[str, Any]]) -> str:
    """The first few entries in few words."""
    from phenoscape_tune.data.specimens import printable

    told = []
    for entry in entries[:SHOWN_NAMES]:
        if "name" in entry:
            reason = f" ({entry['reason']})" if "reason" in entry else ""
            told.append(f"{entry['name']}{reason}")
        elif "names" in entry:
            names = entry["names"]
            more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
            places = entry.get("parts", [""] * len(names))
            told.append(
                " = ".join(f"{n} ({p})" if p else n for n, p in list(zip(names, places, strict=True))[:SHOWN_NAMES])
                + more
            )
        else:
            told.append(", ".join(f"{key} {value}" for key, value in entry.items()))
    rest = f"; and {len(entries) - SHOWN_NAMES:,} more" if len(entries) > SHOWN_NAMES else ""
    return printable("; ".join(told)) + rest


def _summary(checks: Checks, folder: Path) -> str:
    from phenoscape_tune.data.specimens import printable

    def told(findings: Sequence[Any], noun: str) -> str:
        names = ", ".join(finding.check for finding in findings)
        return f"{len(findings) or 'no'} {noun}{'s' * (len(findings) != 1)}{f' ({names})' if names else ''}"

    result = f"{told(checks.faults, 'fault')}, {told(checks.hints, 'hint')}"
    pictures = SHEET_FILE if checks.measured.recipe.modality == "rgb" else f"{SHEET_FILE}, {SPECTRA_FILE}"
    return f"{result}: {printable(str(folder / CHECK_FILE))}, {pictures}"


if __name__ == "__main__":
    sys.exit(main())
