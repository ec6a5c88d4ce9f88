"""The order of an epoch in which classes come evenly, and no batch holds an image twice."""

from __future__ import annotations

import numpy as np


def balanced_order(part: np.ndarray, labels: np.ndarray, span: int, steps: int, rng: np.random.Generator) -> np.ndarray:
    """`steps` batches of `span` images one after the other: int64 (steps·span,), drawn from `part` (n,), n ≥ span.

    Args:
        part: int64 indices of the images to draw from, each once.
        labels: int64 (N,), the class of each image that `part` may name; -1 for an unlabelled one.
        span: images that a contrastive loss sees at once, those of all ranks together.

    Every class is drawn equally often, to one image, and spread evenly over the batches. A class that is rarer than
    its share comes in several passes, each in a fresh order; of a larger one no image comes twice. An image beside its
    own copy would be a false negative of the loss, so a batch holds no image twice: a class with fewer images than
    its share of a batch is whole in every batch, and the other classes share what it leaves. Unlabelled images keep
    their own share of `part`; only what the labelled ones have is evened out.
    """
    members = {int(label): part[labels[part] == label] for label in np.unique(labels[part])}
    names = list(members)
    counts = _share_out({label: len(own) for label, own in members.items()}, span, steps, len(part), rng)
    # Dealt like cards: of each class every batch gets the same number, to one, and every batch comes out full.
    dealt = np.repeat(np.arange(len(names)), [counts[label] for label in names])
    held = np.stack([np.bincount(dealt[step::steps], minlength=len(names)) for step in range(steps)])
    drawn = [_draw(members[label], held[:, number], rng) for number, label in enumerate(names)]
    batches = [rng.permutation(np.concatenate([own[step] for own in drawn])) for step in range(steps)]
    return np.concatenate([batches[step] for step in rng.permutation(steps)])


def _share_out(sizes: dict[int, int], span: int, steps: int, images: int, rng: np.random.Generator) -> dict[int, int]:
    """How often each class is drawn in steps·span draws: evenly, but no image more than once a batch."""
    left, counts = steps * span, {}
    if -1 in sizes:
        counts[-1] = round(left * sizes[-1] / images) if len(sizes) > 1 else left
        left -= counts[-1]
    classes = [int(label) for label in rng.permutation([label for label in sizes if label >= 0])]
    # The smallest first: what it cannot take is shared by those that follow.
    for number, label in enumerate(sorted(classes, key=lambda label: sizes[label])):
        counts[label] = min(steps * sizes[label], left // (len(classes) - number))
        left -= counts[label]
    return counts


def _draw(images: np.ndarray, held: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """Images of one class for each batch, `held` (steps,) of them, at most all: pass after pass in fresh orders."""
    order, batches = rng.permutation(images), []
    for count in held:
        if count > len(order):
            # Here one pass ends and the next begins: it begins with images that this batch has not yet.
            following = rng.permutation(images)
            seen = np.isin(following, order)
            fresh, need = following[~seen], count - len(order)
            later = rng.permutation(np.concatenate([fresh[need:], following[seen]]))
            order = np.concatenate([order, fresh[:need], later])
        batches.append(order[:count])
        order = order[count:]
    return batches
