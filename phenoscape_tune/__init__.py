"""Find the learning rate, batch size, temperature and augmentation strength to train a SimCLR encoder with.

from phenoscape_tune import TrainConfig, train, tune

result = tune("lr_temp", TrainConfig(data_dir="path/to/birds"))
print(result.verdict)
train(result.best)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from phenoscape_tune.api import TrainResult, TuneResult, train, tune
    from phenoscape_tune.config import TrainConfig
    from phenoscape_tune.errors import NoResult, UserError
    from phenoscape_tune.search.parameter import Parameter
    from phenoscape_tune.search.space import SearchSpace

__all__ = [
    "NoResult",
    "Parameter",
    "SearchSpace",
    "TrainConfig",
    "TrainResult",
    "TuneResult",
    "UserError",
    "train",
    "tune",
]

_PLACES = {
    **dict.fromkeys(("TrainResult", "TuneResult", "train", "tune"), "phenoscape_tune.api"),
    "TrainConfig": "phenoscape_tune.config",
    **dict.fromkeys(("NoResult", "UserError"), "phenoscape_tune.errors"),
    "Parameter": "phenoscape_tune.search.parameter",
    "SearchSpace": "phenoscape_tune.search.space",
}


def __getattr__(name: str) -> Any:
    # Loaded when asked for, so that importing a part of the package does not pay for the rest.
    if name in _PLACES:
        return getattr(import_module(_PLACES[name]), name)
    raise AttributeError(f"module 'phenoscape_tune' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
