"""What a TIFF calls its channels, and where they lie in the spectrum, as OME, ImageJ, GDAL and others write it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from phenoscape_tune.data.envi_header import to_nanometres
from phenoscape_tune.data.layout import UnreadableImage, printable

if TYPE_CHECKING:
    from tifffile import TiffFile

    from phenoscape_tune.data.tiff_pages import Page

GDAL_METADATA, GDAL_NO_DATA, PAGE_NAME = 42112, 42113, 285


def channel_names(file: TiffFile, pages: Sequence[Page], count: int) -> tuple[str, ...] | None:
    """A name for each of the ``count`` channels, where the file has one for all of them; None otherwise."""
    for source in (_of_ome, _of_imagej, _of_gdal, _of_pages):
        names = source(file, pages, count)
        if names is not None and len(names) == count and all(names):
            return tuple(printable(" ".join(name.split())) for name in names)
    return None


def channel_wavelengths(pages: Sequence[Page], count: int) -> tuple[float, ...] | None:
    """Nanometres, where GDAL wrote a wavelength for each channel, as it does from ENVI; None otherwise."""
    items = _gdal_items(pages)
    values = [items.get(("wavelength", sample)) for sample in range(count)]
    if any(value is None for value in values):
        return None
    try:
        return to_nanometres([value or "" for value in values], items.get(("wavelength_units", 0), ""))
    except UnreadableImage:  # as with names
        return None


def no_data_value(pages: Sequence[Page]) -> float | None:
    """What GDAL's tag says stands for no data. Raises UnreadableImage where it is no number."""
    text = pages[0].tags.tags.valueof(GDAL_NO_DATA)
    if text is None:
        return None
    try:
        return float(str(text).strip().strip("\0").replace(",", "."))
    except ValueError:
        raise UnreadableImage(f"the tag GDAL_NODATA holds {str(text)[:40]!r}, which is no number") from None


def _of_ome(file: TiffFile, pages: Sequence[Page], count: int) -> list[str] | None:
    """The channels of the first image, where they are the pages in this order."""
    if not file.is_ome:
        return None
    pixels = next((node for node in _parse(file.ome_metadata or "").iter() if node.tag.endswith("}Pixels")), None)
    if pixels is None or pixels.get("SizeZ", "1") != "1" or pixels.get("SizeT", "1") != "1":
        return None
    channels = [node for node in pixels if node.tag.endswith("}Channel")]
    if any(node.get("SamplesPerPixel", "1") != "1" for node in channels):
        return None
    names = [node.get("Name", "") for node in channels]
    order = {
        int(node.get("IFD", "0")): int(node.get("FirstC", "0")) for node in pixels if node.tag.endswith("}TiffData")
    }
    if len(order) == len(names):
        names = [names[order[place]] for place in sorted(order)]
    return names


def _of_imagej(file: TiffFile, pages: Sequence[Page], count: int) -> list[str] | None:
    labels = (file.imagej_metadata or {}).get("Labels") if file.is_imagej else None
    return [str(label) for label in labels] if isinstance(labels, list) else None


def _of_gdal(file: TiffFile, pages: Sequence[Page], count: int) -> list[str] | None:
    items = _gdal_items(pages)
    names = []
    for sample in range(count):
        # GDAL appends the wavelength to the names that it takes over from ENVI.
        wavelength, unit = (items.get((key, sample), "") for key in ("wavelength", "wavelength_units"))
        names.append(items.get(("DESCRIPTION", sample), "").removesuffix(f" ({wavelength} {unit})"))
    return names


def _of_pages(file: TiffFile, pages: Sequence[Page], count: int) -> list[str] | None:
    return [str(page.tags.tags.valueof(PAGE_NAME, "")) for page in pages]


def _gdal_items(pages: Sequence[Page]) -> dict[tuple[str, int], str]:
    """Value by name and channel of the items of GDAL's metadata."""
    text = pages[0].tags.tags.valueof(GDAL_METADATA)
    if not isinstance(text, str):
        return {}
    found = {}
    for node in _parse(text.strip("\0")).iter("Item"):
        sample = node.get("sample", "")
        if sample.isdecimal():
            found[node.get("name", ""), int(sample)] = node.text or ""
    return found


def _parse(text: str) -> ElementTree.Element:
    """The document; an empty one where it cannot be parsed: a name is not worth an image."""
    try:
        return ElementTree.fromstring(text)
    except ElementTree.ParseError:
        return ElementTree.Element("nothing")
