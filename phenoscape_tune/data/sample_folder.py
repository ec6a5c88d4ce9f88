"""A folder of generated specimens: whole or not there, drawn once, and never in the place of somebody's images."""

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from phenoscape_tune.errors import UserError

MARKER = ".sample.json"

Progress = Callable[[int, int], None]
"""Told (done, total)."""
WriteSpecimen = Callable[[Path, int, int], None]
"""Writes the files of one specimen: path without a suffix, index of the species, number of the specimen."""


def write_sample_folder(
    folder: Path,
    settings: Mapping[str, int | str],
    species: Sequence[str],
    suffixes: Sequence[str],
    write_specimen: WriteSpecimen,
    progress: Progress | None = None,
) -> Path:
    """Write ``settings["per_class"]`` specimens of each species as ``<folder>/<species>/<species>_<nnn><suffix>``.

    ``suffixes`` are those of the files that ``write_specimen`` makes. A complete sample with the same settings is left
    as it is; one with other settings is replaced. It is built aside and renamed, so that processes which write the same
    one at once all find it whole. Returns the folder. Raises UserError where it holds anything else, or cannot be
    written.
    """
    folder = Path(folder).expanduser()
    if _is_complete(folder, settings, species, suffixes):
        return folder
    building, earlier = (folder.parent / f".{folder.name}-{os.getpid()}{end}" for end in ("", "-earlier"))
    per_class = int(settings["per_class"])
    try:
        if folder.is_dir() and any(folder.iterdir()) and not (folder / MARKER).exists():
            raise UserError(
                f"{folder} holds files that are no generated sample. Name another folder for the sample, or data_dir "
                "for these images."
            )
        shutil.rmtree(building, ignore_errors=True)
        for index, name in enumerate(species):
            (building / name).mkdir(parents=True)
            for number in range(per_class):
                write_specimen(building / name / f"{name}_{number:03d}", index, number)
                if progress is not None:
                    progress(index * per_class + number + 1, len(species) * per_class)
        (building / MARKER).write_text(json.dumps(settings), encoding="utf-8")
        # Another process that writes the same sample may have been faster; some train on its files by now.
        if not _is_complete(folder, settings, species, suffixes):
            if (folder / MARKER).exists():
                os.replace(folder, earlier)
            try:
                os.replace(building, folder)
            except OSError:
                if not _is_complete(folder, settings, species, suffixes):
                    raise
    except OSError as fault:
        raise UserError(
            f"{folder}: the sample specimens cannot be written ({fault.strerror or fault}). Set cache_dir (or "
            "$PHENOSCAPE_CACHE) to a folder that can, or free some space."
        ) from fault
    finally:
        for leftover in (building, earlier):
            shutil.rmtree(leftover, ignore_errors=True)
    return folder


def _is_complete(
    folder: Path, settings: Mapping[str, int | str], species: Sequence[str], suffixes: Sequence[str]
) -> bool:
    try:
        found = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return found == settings and all(
        len(list((folder / name).glob(f"*{suffix}"))) == settings["per_class"]
        for name in species
        for suffix in suffixes
    )
