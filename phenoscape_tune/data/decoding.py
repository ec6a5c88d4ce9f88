"""Image files → squares of one size, by threads and in order; and what is said of those that cannot be read."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from phenoscape_tune.data.layout import UnreadableImage
from phenoscape_tune.data.pictures import fit, read_image
from phenoscape_tune.data.specimens import Specimens, printable
from phenoscape_tune.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")

CHANNELS = 3
LISTED_NAMES = 10

Progress = Callable[[int, int], None]
"""Is told (done, total)."""
Notice = Callable[[str], None]
"""Is told one line for the user at a time."""

Unreadable = tuple[tuple[str, str], ...]
"""(name, reason) of each image that is left out."""


@dataclass(frozen=True)
class Square:
    """How each image is brought onto its square; see ``readers.fit``."""

    size: int
    """Side of the square in pixels."""
    resize: str
    """One of pad, crop and squash."""
    background: tuple[int, int, int]
    """Red, green, blue (0..255) under transparent pixels and beside padded images."""


def decode(path: Path, square: Square) -> np.ndarray:
    """One image as its square: uint8 (3, size, size). Raises UnreadableImage."""
    # Twice the size keeps the reduced JPEG indistinguishable after the final, antialiased step.
    image = read_image(path, square.background, shortest_side=2 * square.size)
    return fit(image, square.size, square.resize, square.background)


def decode_all(
    specimens: Specimens, square: Square, num_workers: int
) -> Iterator[tuple[str, np.ndarray | UnreadableImage]]:
    """Each name with its square uint8 (3, size, size) or why it has none, in order, by ``num_workers`` threads."""

    def attempt(name: str) -> tuple[str, np.ndarray | UnreadableImage]:
        try:
            return name, decode(specimens.root / name, square)
        except UnreadableImage as fault:
            return name, fault

    with ThreadPoolExecutor(num_workers) as pool:
        yield from map_ahead(pool, attempt, specimens.names, 4 * num_workers)


def map_ahead(
    pool: ThreadPoolExecutor, work: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Generator[Result, None, None]:
    """The result of ``work`` for each item, in order; at most ``ahead`` of them (at least one) wait to be taken.

    Unlike ``pool.map``, memory holds a few results however many items there are, and what was begun for nobody is
    given up.
    """
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def refuse_unreadable(unreadable: Unreadable, specimens: Specimens) -> UserError:
    """What is raised where none of the images can be read."""
    return UserError(
        f"data_dir: none of the {len(specimens.names)} images in {specimens.root} can be read: "
        f"{list_reasons(unreadable)}."
    )


def judge_unreadable(unreadable: Unreadable, specimens: Specimens, max_unreadable: float) -> str | None:
    """A line that says what is left out; None where all images are readable.

    Raises UserError where their share is above ``max_unreadable`` (0..1).
    """
    if not unreadable:
        return None
    total = len(specimens.names)
    share = len(unreadable) / total
    counted = f"{len(unreadable)} of {total} images in {specimens.root} cannot be read"
    if share > max_unreadable:
        raise UserError(
            f"data_dir: {counted} ({share:.1%}; max_unreadable: {max_unreadable:g} allows {max_unreadable:.1%}): "
            f"{list_reasons(unreadable)}. Repair or remove them, or raise max_unreadable."
        )
    return f"{counted} and are left out: {list_reasons(unreadable)}"


def list_reasons(unreadable: Unreadable) -> str:
    """The first unreadable images with their reasons, and how many there are beside them."""
    listed = "; ".join(f"{printable(name)}: {reason}" for name, reason in unreadable[:LISTED_NAMES])
    return listed + (f"; and {len(unreadable) - LISTED_NAMES} more" if len(unreadable) > LISTED_NAMES else "")
