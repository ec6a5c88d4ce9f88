"""A picture of what the encoder will see: a row an image, itself first, then random views of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from phenoscape_tune.config import TrainConfig
from phenoscape_tune.data.channels import RGB
from phenoscape_tune.data.false_colour import pictures_of
from phenoscape_tune.data.layout import printable
from phenoscape_tune.transforms import TransformsConfig

if TYPE_CHECKING:
    from phenoscape_tune.data.recipe import Recipe
    from phenoscape_tune.data.specimens import Specimens

ROWS, PAIRS = 10, 3
CELL, GAP, APART, CAPTION, HEAD = 128, 4, 12, 220, 46  # px
INK, FAINT, PAPER = (26, 26, 26), (104, 112, 122), (255, 255, 255)
VIEW_SEED = 3  # of the streams of random numbers within one seed


def choose_rows(specimens: Specimens, most: int = ROWS) -> list[int]:
    """Indices of up to `most` images, spread evenly over the classes and over the names of each."""
    labels = np.zeros(len(specimens.names), dtype=np.int64) if specimens.labels is None else specimens.labels
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    if len(members) > most:
        members = [members[i] for i in np.linspace(0, len(members) - 1, most).astype(int)]
    share, more = divmod(most, len(members))
    chosen: list[int] = []
    for number, own in enumerate(members):
        count = min(len(own), share + (number < more))
        chosen += own[((np.arange(count) + 0.5) * len(own) / max(1, count)).astype(int)].tolist()
    return chosen


def draw_contact_sheet(specimens: Specimens, config: TrainConfig, recipe: Recipe) -> Image.Image:
    """The images that `choose_rows` chooses of readable specimens, each with `PAIRS` pairs of views.

    Images are packed and augmented as training does it, with the configuration's `transforms`; other channels than red,
    green and blue are shown in false colour, ultraviolet ones beside colours in a row of their own.
    """
    import torch

    from phenoscape_tune.augment import build_views
    from phenoscape_tune.data.decoding import decode
    from phenoscape_tune.data.layout import UnreadableImage

    squares, captions = [], []
    channels = recipe.channels
    for index in choose_rows(specimens, ROWS // len(pictures_of(channels))):
        name = specimens.names[index]
        try:
            squares.append(decode(specimens.root / name, recipe))
        except UnreadableImage:  # it was readable when it was measured
            continue
        labels = specimens.labels
        captions.append((name, "" if labels is None or labels[index] < 0 else specimens.classes[labels[index]]))
    if not squares:
        return lay_out([], [], config)
    images = torch.from_numpy(np.stack(squares))  # (n, C, S, S)
    columns = [images.float() / float(np.iinfo(recipe.dtype).max)]
    generator = torch.Generator().manual_seed(config.seed + VIEW_SEED)
    transform = build_views(config.transforms, recipe.channels, fill=tuple(columns[0].mean((0, 2, 3)).tolist()))
    for _ in range(PAIRS):
        columns += transform(images, generator).chunk(2)
    pictures = pictures_of(channels, squares)  # as bright for the views as for the images
    cells = [
        [Image.fromarray(picture(column[row].numpy())) for column in columns]  # (C, S, S) each
        for row in range(len(squares))
        for picture in pictures
    ]
    if channels != RGB:
        captions = [(name, f"{label}\n{each.title}".strip()) for name, label in captions for each in pictures]
    return lay_out(cells, captions, config)


def lay_out(
    cells: Sequence[Sequence[Image.Image]], captions: Sequence[tuple[str, str]], config: TrainConfig
) -> Image.Image:
    """Rows of pictures, captioned with the file's name and class, and in another line what is shown of other channels,
    below a line that tells the augmentation.
    """
    columns = 1 + 2 * PAIRS
    width = _left_of(columns)
    sheet = Image.new("RGB", (width, HEAD + len(cells) * (CELL + GAP) + GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    told = f"input_size {config.input_size}: {describe_steps(config.transforms)}"
    draw.text((GAP, 4), _shorten(told, draw, _font(13), width - 8), INK, _font(13))
    for column in range(columns):
        pair, view = divmod(column - 1, 2)
        head = "as packed" if column == 0 else f"pair {pair + 1}, view {view + 1}"
        draw.text((_left_of(column), 25), head, FAINT, _font(12))
    for row, (pictures, (name, label)) in enumerate(zip(cells, captions, strict=True)):
        top = HEAD + row * (CELL + GAP)
        for line, text in enumerate(_wrap(printable(name), draw, CAPTION - 3 * GAP)):
            draw.text((GAP, top + 16 * line), text, INK, _font(12))
        lines = [printable(line) for line in label.splitlines()]
        for line, text in enumerate(reversed(lines), start=1):
            draw.text(
                (GAP, top + CELL - 18 * line), _shorten(text, draw, _font(12), CAPTION - 3 * GAP), FAINT, _font(12)
            )
        for column, picture in enumerate(pictures):
            # Small inputs are shown by their pixels, large ones smoothly.
            method = Image.Resampling.NEAREST if picture.width < CELL else Image.Resampling.LANCZOS
            sheet.paste(picture.resize((CELL, CELL), method), (_left_of(column), top))
    return sheet


def describe_steps(transforms: TransformsConfig) -> str:
    """The keys of the augmentation in one line, without those of steps that are switched off."""
    values = transforms.model_dump(exclude={"input_size"})
    off = {key.removesuffix("_prob") for key, value in values.items() if key.endswith("_prob") and value == 0}
    own = {key: value for key, value in values.items() if re.sub("_(prob|strength)$", "", key) not in off}
    return ", ".join(f"{key} {value}" for key, value in own.items() if (key, value) != ("augmentation_strength", 1))


def _left_of(column: int) -> int:
    """Where a column begins; the image itself and each pair stand a little apart."""
    return CAPTION + column * (CELL + GAP) + APART * ((column + 1) // 2)


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def _shorten(text: str, draw: ImageDraw.ImageDraw, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, w: int) -> str:
    """The text, its end cut off where it is wider than `w` pixels."""
    short = text
    while short and draw.textlength(short if short == text else f"{short}...", font) > w:
        short = short[:-1]
    return text if short == text else f"{short}..."


def _wrap(text: str, draw: ImageDraw.ImageDraw, w: int, most: int = 6) -> list[str]:
    """The text in lines at most `w` pixels wide, broken anywhere: a file's name has no spaces."""
    lines: list[str] = []
    while text and len(lines) < most:
        line = text
        while len(line) > 1 and draw.textlength(line, _font(12)) > w:
            line = line[:-1]
        lines.append(line)
        text = text[len(line) :]
    return lines
