"""Image files → squares of one size, by threads and in order; and what is said of those that cannot be read."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np

from phenoscape_tune.data.cubes import read_square
from phenoscape_tune.data.layout import OtherChannels, UnreadableImage, printable
from phenoscape_tune.data.pictures import read_picture
from phenoscape_tune.data.readers import Modality
from phenoscape_tune.data.recipe import Recipe
from phenoscape_tune.data.specimens import Specimens
from phenoscape_tune.data.squares import fit_picture
from phenoscape_tune.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")

LISTED_NAMES = 10
# Squares that are decoded and wait to be taken hold no more memory than this.
AHEAD_BYTES = 256 * 2**20

Progress = Callable[[int, int], None]
"""Is told (done, total)."""
Notice = Callable[[str], None]
"""Is told one line for the user at a time."""

Unreadable = tuple[tuple[str, str], ...]
"""(name, reason) of each image that is left out."""


def decode(path: Path, recipe: Recipe) -> np.ndarray:
    """One image as its square, of the recipe's shape and type. Raises UnreadableImage."""
    if recipe.modality != "rgb":
        return read_square(path, recipe)
    square = recipe.square
    # Twice the size keeps the reduced JPEG indistinguishable after the final, antialiased step.
    picture = read_picture(path, square.background, shortest_side=2 * square.size)
    return fit_picture(picture, square.size, square.resize, square.background)


def decode_all(
    specimens: Specimens, recipe: Recipe, num_workers: int
) -> Iterator[tuple[str, np.ndarray | UnreadableImage]]:
    """Each name with its square or why it has none, in order, by ``num_workers`` threads.

    Raises UserError where an image is whole and has other channels than the recipe's.
    """

    def attempt(name: str) -> tuple[str, np.ndarray | UnreadableImage]:
        try:
            return name, decode(specimens.root / name, recipe)
        except OtherChannels as fault:
            raise refuse_channels(specimens.root / name, fault, specimens.modality) from fault
        except UnreadableImage as fault:
            return name, fault

    ahead = min(4 * num_workers, max(1, AHEAD_BYTES // recipe.nbytes))
    with ThreadPoolExecutor(num_workers) as pool:
        yield from map_ahead(pool, attempt, specimens.names, ahead)


def refuse_channels(path: Path, fault: OtherChannels, modality: Modality) -> UserError:
    """What is raised for an image that is whole and has other channels than the rest."""
    remedy = "modality=multispectral reads such files" if modality == "rgb" else "move one kind to another folder"
    return UserError(
        f"data_dir: {path.parent / printable(path.name)}: {fault} ({modality} images). One search compares images of "
        f"the same channels: {remedy}"
    )


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
