"""What the examination of a folder of images tells: as numbers for check.json, and in words for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phenoscape_tune.config import TrainConfig

if TYPE_CHECKING:
    from rich.console import RenderableType

    from phenoscape_tune.data.checks import Checks
    from phenoscape_tune.data.measurements import Measurements

CHECK_FILE, SHEET_FILE, SPECTRA_FILE = "check.json", "contact_sheet.png", "spectra.png"
FORMAT_VERSION = 1
SHOWN_CLASSES, SHOWN_NAMES, SHOWN_CHANNELS = 20, 3, 12


def to_mapping(checks: Checks, config: TrainConfig) -> dict[str, Any]:
    """What goes to check.json; names that are not UTF-8 keep their bytes as lone surrogates, as Python reads them."""
    measured = checks.measured
    counts = checks.class_counts()
    ratio = _class_ratio(counts)
    keys = ("input_size", "resize", "val_fraction", "test_fraction", "split_seed", "group_by", "labels", "batch_size")
    return {
        "version": FORMAT_VERSION,
        "folder": str(measured.specimens.root),
        "images": len(measured.specimens.names) + len(measured.unreadable),
        "readable": len(measured.specimens.names),
        "modality": measured.specimens.modality,
        "passed_over": measured.specimens.passed_over,
        "not_read": measured.specimens.not_read,
        "labels": measured.specimens.label_source,
        "settings": {key: getattr(config, key) for key in keys},
        "faults": [finding.check for finding in checks.faults],
        "hints": [finding.check for finding in checks.hints],
        "split": {part: len(indices) for part, indices in checks.parts.items()},
        "classes": counts,
        "class_ratio": None if ratio is None else round(ratio, 4),
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


def _class_ratio(counts: Mapping[str, Mapping[str, int]]) -> float | None:
    """Images of the largest class, divided by those of the smallest that has any; None without classes."""
    known = [own["images"] for own in counts.values() if own["images"]]
    return max(known) / min(known) if known else None


def _rounded(value: float) -> float:
    return round(float(value), 5)


def describe(checks: Checks, config: TrainConfig) -> list[RenderableType]:
    """The result for the terminal: what was found, classes, channels, split."""
    from rich.table import Table
    from rich.text import Text

    from phenoscape_tune.data.layout import printable

    specimens = checks.measured.specimens
    total = len(specimens.names) + len(checks.measured.unreadable)
    parts = ", ".join(f"{len(indices):,} {part}" for part, indices in checks.parts.items())
    head = f"{specimens.root}: {total:,} {specimens.modality} images ({parts}), {specimens.label_source}"
    head += specimens.describe_others()
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
        if (ratio := _class_ratio(counts)) is not None:
            shown.append(Text(f"largest class / smallest class: {ratio:.2f}"))
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
    from phenoscape_tune.data.layout import printable

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


def summary(checks: Checks, folder: Path) -> str:
    """The result in one line: how many faults and hints there are, and the files that tell of them."""
    from phenoscape_tune.data.layout import printable

    def told(findings: Sequence[Any], noun: str) -> str:
        names = ", ".join(finding.check for finding in findings)
        return f"{len(findings) or 'no'} {noun}{'s' * (len(findings) != 1)}{f' ({names})' if names else ''}"

    result = f"{told(checks.faults, 'fault')}, {told(checks.hints, 'hint')}"
    pictures = SHEET_FILE if checks.measured.recipe.modality == "rgb" else f"{SHEET_FILE}, {SPECTRA_FILE}"
    return f"{result}: {printable(str(folder / CHECK_FILE))}, {pictures}"
