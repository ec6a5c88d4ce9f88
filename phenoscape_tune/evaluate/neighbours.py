"""Images and their nearest neighbours by embedding: a table of indices, and a picture of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from phenoscape_tune.data.channels import Channels
from phenoscape_tune.data.false_colour import false_colour
from phenoscape_tune.data.images import Pixels

NEAREST = 5
QUERIES = 8
_TILE, _GAP, _MARGIN, _FRAME, _CAPTION, _TOP = 112, 14, 20, 5, 18, 78
# Blue and vermillion of Okabe and Ito (2008), which colour-blind people tell apart; a mark says the same.
_RIGHT, _WRONG, _NEUTRAL = "#0072b2", "#d55e00", "#8a929c"
_INK, _SOFT = "#1a1a1a", "#4d5560"
_JPEG = {"quality": 80, "subsampling": 0}  # thin coloured frames stay what they are

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def nearest(features: np.ndarray, queries: np.ndarray, groups: Sequence[str], k: int = NEAREST) -> list[np.ndarray]:
    """For each query the indices of its k most similar images (cosine), the nearest first; fewer where there are fewer.

    Args:
        features: (N, D) float32; queries: (q,) indices.
        groups: N specimens' names: images of the query's own specimen are none of its neighbours.
    """
    norms = np.maximum(np.linalg.norm(features, axis=1), 1e-12)  # (N,)
    names = np.asarray(groups, dtype=object)
    found = []
    for query in queries:
        similarity = features @ features[query] / norms  # (N,): the query's own norm changes no order
        others = np.flatnonzero(names != groups[query])
        found.append(others[np.argsort(-similarity[others], kind="stable")[:k]])
    return found


def choose_queries(candidates: np.ndarray, labels: np.ndarray | None, count: int = QUERIES) -> np.ndarray:
    """Up to `count` of the candidate indices, the classes in turn, evenly over each class; always the same."""
    classes = [candidates] if labels is None else [candidates[labels[candidates] == c] for c in np.unique(labels)]
    classes = [own for own in classes if len(own)]
    chosen: list[int] = []
    for turn in range(count):
        for own in classes:
            wanted = -(-count // len(classes))
            if turn < min(wanted, len(own)):
                chosen.append(int(own[turn * len(own) // min(wanted, len(own))]))
    return np.array(sorted(chosen[:count]), dtype=np.int64)


def draw_neighbours(
    file: Path | BinaryIO,
    images: Pixels,
    queries: np.ndarray,
    found: Sequence[np.ndarray],
    names: Sequence[str] | None,
    channels: Channels,
    form: str = "PNG",
) -> tuple[int, int]:
    """Write a picture: a row a query, its neighbours to the right of it, nearest first. Returns its size in pixels.

    Args:
        file: where to; a path, or what bytes can be written to.
        images: (N, C, S, S); shown in false colour where they are not red, green and blue.
        names: the class name of each image, "" for an unlabelled one; None without labels.
        channels: the C channels.
        form: PNG or JPEG.
    """
    width = 2 * _MARGIN + (NEAREST + 1) * (_TILE + _GAP) + 2 * _GAP
    row = _TILE + _CAPTION + _GAP
    canvas = Image.new("RGB", (width, _TOP + len(queries) * row + _MARGIN), "white")
    pen = ImageDraw.Draw(canvas)
    large, small = ImageFont.load_default(17), ImageFont.load_default(13)
    shown = sorted({int(index) for row in (queries, *found) for index in row})
    picture = false_colour(channels, (images[index] for index in shown))
    coloured = "" if picture.title == "red, green, blue" else f" (shown: {picture.title})"
    pen.text((_MARGIN, 14), f"The {NEAREST} nearest images by embedding{coloured}", _INK, large)
    _write_key(pen, _MARGIN, 40, names is not None, small)
    for number, (query, others) in enumerate(zip(queries, found, strict=True)):
        top = _TOP + number * row
        for place, index in enumerate((query, *others)):
            left = _MARGIN + place * (_TILE + _GAP) + (2 * _GAP if place else 0)
            tile = Image.fromarray(picture(images[index])).resize((_TILE, _TILE), Image.Resampling.LANCZOS)
            canvas.paste(tile, (left, top))
            name = names[index] if names is not None else ""
            kind = None if not place or not name or not names or not names[query] else name == names[query]
            _frame(pen, left, top, kind, query=not place)
            pen.text((left, top + _TILE + 3), _shorten(name, small), _SOFT if place else _INK, small)
        pen.line([(_MARGIN + _TILE + 1.5 * _GAP, top), (_MARGIN + _TILE + 1.5 * _GAP, top + _TILE)], "#c9ced4", 1)
    canvas.save(file, form, optimize=True, **_JPEG if form == "JPEG" else {})
    return canvas.size


def _write_key(pen: ImageDraw.ImageDraw, left: int, top: int, classes: bool, font: Font) -> None:
    pen.text((left, top), "query", _INK, font)
    if not classes:
        pen.text((left + _TILE + 3 * _GAP, top), "its neighbours, the nearest first", _SOFT, font)
        return
    left += _TILE + 3 * _GAP
    for right, words in ((True, "of the query's class"), (False, "of another class")):
        _badge(pen, left, top, right)
        pen.text((left + 24, top), words, _SOFT, font)
        left += 200


def _frame(pen: ImageDraw.ImageDraw, left: int, top: int, kind: bool | None, query: bool) -> None:
    box = (left - _FRAME, top - _FRAME, left + _TILE + _FRAME - 1, top + _TILE + _FRAME - 1)
    colour = _INK if query else _NEUTRAL if kind is None else _RIGHT if kind else _WRONG
    pen.rectangle(box, outline=colour, width=2 if kind is None else _FRAME)
    if kind is not None:
        _badge(pen, left + _TILE - 17, top, kind)


def _badge(pen: ImageDraw.ImageDraw, x: int, y: int, right: bool) -> None:
    """A tick or a cross on its colour, 17 px wide."""
    pen.rectangle((x, y, x + 17, y + 17), fill=_RIGHT if right else _WRONG)
    if right:
        pen.line([(x + 4, y + 9), (x + 7, y + 13), (x + 14, y + 5)], "white", 3, "curve")
    else:
        pen.line([(x + 4, y + 4), (x + 13, y + 13)], "white", 3)
        pen.line([(x + 4, y + 13), (x + 13, y + 4)], "white", 3)


def _shorten(name: str, font: Font) -> str:
    """A name that is no wider than a tile."""
    name = name.encode("utf-8", "replace").decode("utf-8")
    if font.getlength(name) <= _TILE:
        return name
    while name and font.getlength(name + "...") > _TILE:
        name = name[:-1]
    return name + "..."
