"""Find the learning rate, batch size, temperature and augmentation strength to train a SimCLR encoder with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from phenoscape_tune.config import TrainConfig
    from phenoscape_tune.search.space import SearchSpace

__all__ = ["SearchSpace", "TrainConfig"]


def __getattr__(name: str) -> Any:
    # Loaded when asked for, so that importing a part of the package does not pay for the rest.
    if name == "TrainConfig":
        from phenoscape_tune.config import TrainConfig

        return TrainConfig
    if name == "SearchSpace":
        from phenoscape_tune.search.space import SearchSpace

        return SearchSpace
    raise AttributeError(f"module 'phenoscape_tune' has no attribute '{name}'")
