"""A search that varies what is read of the images: every choice is opened, and compared, before the first trial."""

from __future__ import annotations

from phenoscape_tune.augment_checks import meaningless, transform_faults
from phenoscape_tune.config import TrainConfig
from phenoscape_tune.data.decoding import Notice, Progress
from phenoscape_tune.data.parts import Parts, open_parts, settle
from phenoscape_tune.errors import UserError
from phenoscape_tune.evaluate.objective import Metric
from phenoscape_tune.search.parameter import Scalar
from phenoscape_tune.search.searched_transforms import step_of
from phenoscape_tune.search.space import SearchSpace
from phenoscape_tune.settling import vary

CHOOSERS = ("channels", "bands", "value_scaling", "use_segmentation_mask", "crop_to_mask")


def open_choices(
    space: SearchSpace,
    base: TrainConfig,
    parts: Parts,
    metric: Metric,
    progress: Progress | None = None,
    notice: Notice | None = None,
) -> int:
    """Pack the images of every searched choice of what is read of them; the largest number of channels of all.

    Args:
        base: the search's configuration, settled on its images.
        parts: of the base.
        metric: by which trials are compared.

    Raises UserError, naming the choice, where its channels are not there or a step of the augmentation has no meaning
    for them, where it leaves other images readable than the base, and where trials would be compared without labels:
    such a score tells how easy the images are, and each choice has others.
    """
    most = parts.channels
    for key in CHOOSERS:
        parameter = space.parameters.get(key)
        if parameter is None:
            continue
        if not metric.needs_labels:
            raise UserError(
                f"parameters.{key}: is searched, and trials are compared by {metric.title}, which depends on what is "
                f"read of the images; give labels, or search {key} by hand: one search for each"
            )
        for value in parameter.values or []:
            opened = _open_choice(space, base, key, value, progress, notice)
            if opened.fingerprint != parts.fingerprint:
                raise UserError(
                    f"parameters.{key}: {value}: {len(opened.images.pixels)} images can be read, and "
                    f"{len(parts.images.pixels)} as the configuration is, so that trials would be compared on "
                    "different images; repair or remove those that only some choices can read"
                )
            most = max(most, opened.channels)
    return most


def _open_choice(
    space: SearchSpace,
    base: TrainConfig,
    key: str,
    value: Scalar,
    progress: Progress | None,
    notice: Notice | None,
) -> Parts:
    where = f"parameters.{key}: {value}"
    tried = vary(base, {key: value}, where)
    try:
        opened = open_parts(tried, progress, notice)
    except UserError as fault:
        raise UserError(f"{where}: {fault}") from None
    channels = opened.images.channels
    reasons = meaningless(channels)
    faults = transform_faults(settle(tried, opened.images.recipe).transforms, channels)
    faults += [
        f"{name}: is searched too: {reasons[step_of(name)]}; leave it, or {value}, out of the space"
        for name in sorted(space.parameters)
        if step_of(name) in reasons
    ]
    if faults:
        raise UserError("\n".join(f"{where}: {fault}" for fault in faults))
    return opened
