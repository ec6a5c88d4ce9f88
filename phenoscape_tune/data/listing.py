"""Which files of a folder are its images, and of which modality they are."""

from __future__ import annotations

import difflib
import os
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

from phenoscape_tune.data import pictures, tiff
from phenoscape_tune.data.envi import DATA_SUFFIXES, data_files, is_envi_header
from phenoscape_tune.data.layout import OtherChannels, UnreadableImage, printable
from phenoscape_tune.data.readers import Modality
from phenoscape_tune.errors import UserError

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
TIFF_SUFFIXES = (".tif", ".tiff")
HEADER_SUFFIX = ".hdr"
ARCHIVE_SUFFIXES = (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar")
VIDEO_SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".mpg", ".mpeg", ".wmv", ".webm")
# Of a camera or a phone, and no reader's.
PHOTO_SUFFIXES = (".heic", ".heif", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".gif", ".psd")
# TIFF files that are looked into to tell whether a folder holds pictures; packing looks into every one.
LOOKED_INTO = 32
# Of these, the most whose pixels tell whether a fourth channel is transparency.
DECODED = 4
LISTED = 10_000  # entries of a folder among which one of a similar name is looked for


@dataclass(frozen=True)
class Listing:
    """The images of one folder."""

    modality: Modality
    names: tuple[str, ...]
    """Posix paths relative to the folder, sorted; of a hyperspectral cube its header's."""
    passed_over: int = 0
    """Pictures and ENVI headers beside them that are of another modality."""
    not_read: str = ""
    """Archives, videos and photographs that no reader knows, by suffix with their number; what a user may have taken
    for images."""


def list_images(root: Path, modality: Literal["auto"] | Modality = "auto") -> Listing:
    """The images below ``root``.

    rgb: what Pillow reads, by suffix. multispectral: TIFF. hyperspectral: ENVI headers (``.hdr``), and data files that
    lack theirs, which are told as unreadable. auto: hyperspectral where there are ENVI headers, at least half as many
    as pictures; else multispectral where half of the pictures or more are TIFF files that are no pictures: of channels
    beyond RGB and alpha, or of values that Pillow does not know, such as RGB of float32; else rgb.

    Folders and files whose name begins with a dot are skipped; links are followed once. Raises UserError for a folder
    that is missing, cannot be listed or holds no image of the modality.
    """
    names = _list_files(root)
    by_suffix: dict[str, list[str]] = {}
    for name in names:
        by_suffix.setdefault(name[max(0, name.rfind(".")) :].lower(), []).append(name)

    def ending(suffixes: Sequence[str]) -> list[str]:
        return sorted(name for suffix in suffixes for name in by_suffix.get(suffix, ()))

    pictures_in_all = sum(len(by_suffix.get(suffix, ())) for suffix in PICTURE_SUFFIXES)
    cubes = [name for name in ending((HEADER_SUFFIX,)) if is_envi_header(root / name)]
    if modality == "auto":
        modality = _tell_modality(root, len(cubes), ending(TIFF_SUFFIXES), pictures_in_all)
    if modality == "hyperspectral":
        found = _list_cubes(root, cubes, ending((HEADER_SUFFIX,)), ending(tuple(s for s in DATA_SUFFIXES if s)))
        passed_over = pictures_in_all
    else:
        found = ending(TIFF_SUFFIXES if modality == "multispectral" else PICTURE_SUFFIXES)
        passed_over = pictures_in_all - len(found) + len(cubes)
    if not found:
        raise UserError(_describe_no_images(root, names, modality))
    strange = (*ARCHIVE_SUFFIXES, *VIDEO_SUFFIXES, *PHOTO_SUFFIXES)
    return Listing(modality, tuple(found), passed_over, _count_suffixes(ending(strange)))


def files_of(path: Path, modality: Modality) -> list[Path]:
    """The files that an image is read from: a cube's header, and whatever beside it may be its data."""
    return [path, *data_files(path)] if modality == "hyperspectral" else [path]


def _tell_modality(root: Path, cubes: int, tiffs: Sequence[str], pictures_in_all: int) -> Modality:
    # A single file of another kind among photographs is no reason to pass those over. Of a cube there may be two
    # pictures, its preview and a photograph.
    if cubes and 2 * cubes >= pictures_in_all:
        return "hyperspectral"
    looked_into = [root / name for name in tiffs[:: max(1, -(-len(tiffs) // LOOKED_INTO))]]
    other = sum(map(_has_other_channels, looked_into)) + _count_false_transparency(looked_into)
    return "multispectral" if other and 2 * other * len(tiffs) >= pictures_in_all * len(looked_into) else "rgb"


def _has_other_channels(path: Path) -> bool:
    """Whether a TIFF is no picture, by its header."""
    try:
        pictures.image_size(path)
    except OtherChannels:
        return True
    except UnreadableImage:
        with suppress(UnreadableImage):  # told when it is read, as what it then is
            tiff.read_layout(path)
            return True
    return False


def _count_false_transparency(paths: Sequence[Path]) -> float:
    """How many of these TIFFs mark a channel as transparency that is none; reckoned from the pixels of a few."""
    marked = [path for path in paths if _marks_transparency(path)]
    decoded = marked[:: max(1, len(marked) // DECODED)][:DECODED]
    return sum(map(_is_misread, decoded)) * len(marked) / max(1, len(decoded))


def _marks_transparency(path: Path) -> bool:
    with suppress(UnreadableImage):  # counted as such where it is read
        return pictures.marks_transparency(path)
    return False


def _is_misread(path: Path) -> bool:
    try:
        pictures.read_image(path, (0, 0, 0))
    except OtherChannels:
        return True
    except UnreadableImage:
        return False
    return False


def _list_cubes(root: Path, cubes: Sequence[str], headers: Sequence[str], data: Sequence[str]) -> list[str]:
    """ENVI headers (``cubes``), files of their suffix that cannot be opened, and data files without a header."""
    # Other formats use the suffix too (Radiance pictures); what cannot be opened is told when it is read.
    own = [*cubes, *(name for name in headers if not (root / name).is_file())]
    known = {name.lower() for name in headers}
    lone = [
        name
        for name in data
        if f"{name}{HEADER_SUFFIX}".lower() not in known
        and f"{name.removesuffix(Path(name).suffix)}{HEADER_SUFFIX}".lower() not in known
    ]
    return sorted([*own, *lone])


def _list_files(root: Path) -> list[str]:
    """Names of all files below root, in no order."""
    if not root.exists():
        raise UserError(f"data_dir: {root} does not exist{_nearest_folder(root)} Write the path of a folder of images.")
    if not root.is_dir():
        hint = " Unpack it first." if root.suffix.lower() in ARCHIVE_SUFFIXES else ""
        raise UserError(f"data_dir: {root} is a file, not a folder.{hint} Write the path of a folder of images.")
    names: list[str] = []
    seen: set[str] = set()
    waiting = deque([(os.fspath(root), "")])
    while waiting:
        folder, prefix = waiting.popleft()
        real = os.path.realpath(folder)
        if real in seen:
            continue
        seen.add(real)
        folders: list[tuple[str, bool]] = []
        try:
            # A folder may hold a million files: only what is kept of each of them is held.
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if _leads_to_folder(entry):
                        folders.append((entry.name, entry.is_symlink()))
                    elif entry.is_symlink() or entry.is_file():
                        # A broken link stays in the list, so that it is reported as unreadable instead of being missed.
                        names.append(prefix + entry.name)
        except OSError as fault:
            raise UserError(
                f"data_dir: {folder} cannot be listed ({fault.strerror}). Make it readable, or move it out."
            ) from fault
        for name, is_link in sorted(folders):
            # Links wait until every real folder is listed: a folder keeps its own name, not a link's.
            (waiting.append if is_link else waiting.appendleft)((os.path.join(folder, name), f"{prefix}{name}/"))
    return names


def _nearest_folder(root: Path) -> str:
    """The end of a sentence: the folder beside a missing one that is spelt like it, or where its path breaks off."""
    parent = root.parent
    if not parent.is_dir():
        return f", nor does {parent}."
    with suppress(OSError), os.scandir(parent) as entries:
        folders = [entry.name for entry in islice(entries, LISTED) if entry.is_dir()]
        match = difflib.get_close_matches(root.name, folders, n=1)
        return f"; did you mean {printable(str(parent / match[0]))}?" if match else "."
    return "."


def _leads_to_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that points at itself
        return False


def _describe_no_images(root: Path, others: Sequence[str], modality: Modality) -> str:
    known = {
        "rgb": f"{' '.join(PICTURE_SUFFIXES)}, and ENVI headers {HEADER_SUFFIX}",
        "multispectral": " ".join(TIFF_SUFFIXES),
        "hyperspectral": f"ENVI headers {HEADER_SUFFIX}",
    }[modality]
    if not others:
        return f"data_dir: {root} is empty. Write the path of a folder of images ({known})."
    listed = _count_suffixes(others)
    files = f"{len(others)} file{'s' if len(others) > 1 else ''}"
    hint = ""
    for suffixes, advice in (
        (ARCHIVE_SUFFIXES, "Unpack {} first."),
        (VIDEO_SUFFIXES, "Take frames from {} first."),
        (PHOTO_SUFFIXES, "Save {} and its like as JPEG, PNG or TIFF first."),
    ):
        found = next((name for name in sorted(others) if Path(name).suffix.lower() in suffixes), None)
        hint += f" {advice.format(printable(Path(found).name))}" if found else ""
    kind = "an image" if modality == "rgb" else f"a {modality} image"
    return f"data_dir: {root} holds {files}, none {kind} ({listed}); known: {known}.{hint}"


def _count_suffixes(names: Sequence[str]) -> str:
    """The commonest suffixes of files, with their numbers."""
    counts = Counter(printable(Path(name).suffix.lower()) or "no suffix" for name in names).most_common(5)
    return ", ".join(f"{suffix} ×{count}" for suffix, count in counts)
