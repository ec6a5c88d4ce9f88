"""The pages of a TIFF that are channels of its image, checked, and the values of one of them."""

from __future__ import annotations

import logging
import re
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import methodcaller
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from phenoscape_tune.data.layout import UnreadableImage, brief, check_file, check_size, copy_channels, faults_told

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, MASK, SEPARATED, YCBCR, LINEAR = 0, 1, 2, 3, 4, 5, 6, 34892
AS_THEY_STAND = (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, MASK, SEPARATED, LINEAR)
JPEG = (6, 7, 34892, 33007)
OTHER_MEANINGS = {
    PALETTE: "a palette, whose values are no intensities; write it as grey or RGB",
    YCBCR: "luma and chroma without JPEG; write it as RGB",
    8: "L*a*b* colours; write it as RGB",
    9: "L*a*b* colours; write it as RGB",
    10: "L*a*b* colours; write it as RGB",
    32803: "a camera's raw mosaic; develop it first",
}
BEGINNINGS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
FEW_CHANNELS = 16
"""Pages of at most this width, but more of them and higher than this and than twice their width, are no channels."""
# Tags without which, or read wrongly, the pixels would be other ones.
TAGS_THAT_MATTER = frozenset({254, 255, 256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 317, 320, 322, 323})
TAGS_THAT_MATTER |= {324, 325, 338, 339, 347, 512, 513, 514, 530, 32997, 42113}
TYPES = frozenset("?BHILQhilqefd")
"""Characters of the numpy types that are read; a signed byte and complex numbers are not."""


@dataclass(frozen=True)
class Page:
    """One page of height × width pixels and some samples; ``tags`` decodes them."""

    tags: TiffPage
    height: int
    """As the image is meant to be seen."""
    width: int
    samples: int
    dtype: np.dtype
    """Of the values, in the byte order of the machine; uint8 for single bits."""
    full_scale: float
    orientation: int
    """1 to 8, as in EXIF."""
    turned: bool
    """Whether the values stand for black, so that the largest is read as 0."""


class _Complaints(logging.Filter):
    """Takes what tifffile logs while this thread reads, instead of the user's standard error."""

    def __init__(self) -> None:
        super().__init__()
        self.of_thread = threading.local()

    def filter(self, record: logging.LogRecord) -> bool:
        heard: list[logging.LogRecord] | None = getattr(self.of_thread, "heard", None)
        if heard is None:
            return True
        heard.append(record)
        return False


_COMPLAINTS = _Complaints()
logging.getLogger("tifffile").addFilter(_COMPLAINTS)


@contextmanager
def complaints_heard() -> Iterator[None]:
    """Raise UnreadableImage for what tifffile only logs as an error, and then reads on with fewer pages or values."""
    of_thread = _COMPLAINTS.of_thread
    of_thread.heard = []
    try:
        yield
        for record in of_thread.heard:
            message = re.sub(r" raised \w+\(['\"](.*?)['\"]?\)?$", r" \1", record.getMessage())
            tag = re.search(r"TiffTag (\d+)", message)
            if record.levelno >= logging.ERROR and (tag is None or int(tag[1]) in TAGS_THAT_MATTER):
                raise UnreadableImage(f"damaged TIFF: {brief(message) or 'its tags make no sense'}")
    finally:
        del of_thread.heard


@contextmanager
def open_pages(path: Path) -> Iterator[tuple[TiffFile, list[Page]]]:
    """The pages of a file that are no smaller copies of others: of one size, with all of their data in the file.

    Raises UnreadableImage, also for what goes wrong within the block.
    """
    with faults_told("damaged TIFF: "):
        size = check_file(path)
        # Loaded here: --help must not wait for it.
        from tifffile import TiffFile

        # Opened here: tifffile leaves a file open that it finds damaged.
        with path.open("rb") as handle, complaints_heard():
            if handle.read(4) not in BEGINNINGS:
                raise UnreadableImage("not a TIFF")
            handle.seek(0)
            file = TiffFile(handle, _multifile=False)
            _check_chain(file, size)
            pages = [_check_page(page, size) for page in map(methodcaller("aspage"), file.pages) if not page.is_reduced]
            _check_pages(file, pages)
            yield file, pages


def _check_chain(file: TiffFile, size: int) -> None:
    """Whether the list of pages has an end: a file that is cut off has none, and tifffile may follow a loop forever."""
    form, handle = file.tiff, file.filehandle
    place = 8 if form.is_bigtiff else 4
    seen: set[int] = set()
    while True:
        handle.seek(place)
        (offset,) = struct.unpack(form.offsetformat, handle.read(form.offsetsize))
        if not offset:
            break
        if offset in seen:
            raise UnreadableImage("damaged TIFF: its list of pages leads back into itself")
        if offset + form.tagnosize > size:
            raise UnreadableImage(f"cut off: page {len(seen) + 1} is at byte {offset:,}, the file has {size:,}")
        seen.add(offset)
        handle.seek(offset)
        (tags,) = struct.unpack(form.tagnoformat, handle.read(form.tagnosize))
        place = offset + form.tagnosize + tags * form.tagsize
        if place + form.offsetsize > size:
            raise UnreadableImage(
                f"cut off: the tags of page {len(seen)} reach to byte {place:,}, the file has {size:,}"
            )
    if not seen:
        raise UnreadableImage("a TIFF without pages")


def _check_page(page: TiffPage, size: int) -> Page:
    number = f"page {page.index + 1}: " if page.index else ""
    if 0 in page.shaped or min(page.shaped) < 0:
        raise UnreadableImage(f"{number}no width or height")
    height, width, samples = page.imagelength, page.imagewidth, page.samplesperpixel
    check_size(height, width)
    if page.imagedepth != 1:
        raise UnreadableImage(f"{number}a volume of {page.imagedepth} layers")
    photometric = int(page.photometric)
    if photometric not in AS_THEY_STAND and not (photometric == YCBCR and page.compression in JPEG):
        raise UnreadableImage(f"{number}{OTHER_MEANINGS.get(photometric, f'photometric interpretation {photometric}')}")
    dtype = page.dtype
    bits = page.bitspersample
    if dtype is None or isinstance(bits, tuple) or dtype.char not in TYPES or page.sampleformat not in (1, 2, 3, 4):
        raise UnreadableImage(
            f"{number}values of {_listed(bits)} bits in sample format {_listed(page.sampleformat)} "
            "are not read; write uint8, uint16 or float32"
        )
    if photometric == WHITE_IS_ZERO and dtype.kind not in "ub":
        raise UnreadableImage(f"{number}signed or float values whose white is 0")
    _check_data(page, size, number)
    full = 1.0 if dtype.kind == "f" else 2.0 ** (bits - (dtype.kind == "i")) - 1
    orientation = page.tags.valueof(274, 1)
    orientation = orientation if orientation in range(1, 9) else 1
    if orientation >= 5:
        height, width = width, height
    # A mask of bool that tifffile stores as it is, and by default declares to be white where it is False.
    turned = photometric == WHITE_IS_ZERO and not (bits == 1 and page.software.startswith("tifffile"))
    dtype = np.dtype("u1") if dtype.kind == "b" else dtype
    return Page(page, height, width, samples, dtype, full, orientation, turned)


def _listed(value: object) -> str:
    return ", ".join(map(str, map(int, value))) if isinstance(value, tuple) else str(int(value))  # type: ignore[call-overload]


def _check_data(page: TiffPage, size: int, number: str) -> None:
    """Whether every strip or tile is there: tifffile would fill in what is missing."""
    offsets, counts = np.array(page.dataoffsets, np.int64), np.array(page.databytecounts, np.int64)
    needed = int(np.prod(page.chunked))
    if len(offsets) != needed or len(counts) != needed:
        raise UnreadableImage(
            f"{number}{needed} strips or tiles are needed, {min(len(offsets), len(counts))} are listed"
        )
    missing = int(((offsets <= 0) | (counts <= 0)).sum())
    if missing:
        raise UnreadableImage(f"{number}{missing} of {needed} strips or tiles have no data")
    ends = offsets + counts
    if page.is_contiguous:
        if int(counts.sum()) < page.nbytes:
            raise UnreadableImage(f"{number}{counts.sum():,} bytes of data, where {page.nbytes:,} are needed")
        ends = np.append(ends[:-1], offsets[0] + page.nbytes)
    if int(ends.max()) > size:
        raise UnreadableImage(f"cut off: the data reach to byte {int(ends.max()):,}, the file has {size:,}")


def _check_pages(file: TiffFile, pages: Sequence[Page]) -> None:
    if not pages:
        raise UnreadableImage("a TIFF of reduced copies only")
    first = pages[0]
    for number, page in enumerate(pages, start=1):
        if (page.height, page.width) != (first.height, first.width):
            raise UnreadableImage(
                f"pages of two sizes: {first.width} × {first.height} and {page.width} × {page.height} pixels "
                f"(page {number}); one image has one size"
            )
    # What tifffile writes of an array (H, W, C) unless told otherwise: H pages of W × C.
    many = max(FEW_CHANNELS, 2 * first.width)
    if first.samples == 1 and first.width <= FEW_CHANNELS and min(len(pages), first.height) > many:
        raise UnreadableImage(
            f"{len(pages)} pages of {first.width} × {first.height} pixels look like an array of height × width × "
            f"{first.width} channels; write it channels first, or in Python with planarconfig='contig'"
        )
    # Software that writes one page for many, as ImageJ does beyond 4 GB, tells the number in a description.
    told = 1
    if file.is_imagej:
        told = int((file.imagej_metadata or {}).get("images", 1))
    elif file.is_stk:
        told = int(file.pages.first.tags[33629].count)
    elif file.is_shaped and '"truncated": true' in file.pages.first.description:
        told = max(2, len(pages) + 1)
    if told > len(pages):
        raise UnreadableImage(f"lists {len(pages)} of its pages only; write every page into the list")


def read_samples(path: Path, page: Page, samples: Sequence[int]) -> np.ndarray:
    """(n, H, W) of some samples of a page, in its type, turned as the image is meant to be seen."""
    tags = page.tags
    out = np.empty((len(samples), tags.imagelength, tags.imagewidth), page.dtype)
    if tags.is_final:
        _copy_mapped(path, tags, samples, out)
    else:
        _decode(tags, samples, out)
    if page.turned:
        np.subtract(out.dtype.type(page.full_scale), out, out=out)
    return _turn(out, page.orientation)


def _copy_mapped(path: Path, page: TiffPage, samples: Sequence[int], out: np.ndarray) -> None:
    assert page.dtype is not None  # or the page had been refused
    order = page.parent.byteorder + page.dtype.char
    # (planes, depth 1, H, W, samples of a pixel), of which planes or samples is 1
    values = np.memmap(path, order, "r", page.dataoffsets[0], page.shaped)
    if page.shaped[0] == 1:
        copy_channels(values[0, 0], samples, out)
    else:
        for place, sample in enumerate(samples):
            out[place] = values[sample, 0, :, :, 0]


def _decode(page: TiffPage, samples: Sequence[int], out: np.ndarray) -> None:
    """Strip by strip or tile by tile; of planes, only those that are asked for."""
    planes = page.shaped[0]
    a_plane = len(page.dataoffsets) // planes
    tables = {"jpegtables": page.jpegtables, "jpegheader": page.jpegheader} if page.compression in JPEG else {}
    places: dict[int, list[tuple[int, int]]] = {}
    for place, sample in enumerate(samples):
        plane, within = (sample, 0) if planes > 1 else (0, sample)
        places.setdefault(plane, []).append((place, within))
    for plane, wanted in places.items():
        for index in range(plane * a_plane, (plane + 1) * a_plane):
            page.parent.filehandle.seek(page.dataoffsets[index])
            data = page.parent.filehandle.read(page.databytecounts[index])
            segment, (_, _, top, left, _), shape = page.decode(data, index, **tables)
            rows, columns = min(shape[1], out.shape[1] - top), min(shape[2], out.shape[2] - left)
            assert segment is not None  # only where there are no data
            piece = segment[0, :rows, :columns]
            if piece.shape != (rows, columns, page.shaped[4]):  # what is smaller would be spread over all of it
                raise UnreadableImage(f"damaged TIFF: strip or tile {index + 1} is of another size")
            for place, within in wanted:
                out[place, top : top + rows, left : left + columns] = piece[:, :, within]


def _turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """(n, H, W) as it is meant to be seen; EXIF's orientations 5 to 8 swap height and width."""
    if orientation >= 5:
        pixels = pixels.transpose(0, 2, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, :, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[:, ::-1]
    return pixels
