"""Writes docs/configuration.md, the table of all configuration keys, from the schema in phenoscape_tune/config.py.

python docs/write_configuration.py
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import annotated_types
from pydantic import BaseModel

from phenoscape_tune.config import TrainConfig, known_keys
from phenoscape_tune.data_keys import DataKeys

PAGE = Path(__file__).parent / "configuration.md"
HEAD = """\
# Configuration

Every key that a configuration file (`--config`), `key=value` on the command line and a search space understand. Written
by `python docs/write_configuration.py` from the schema, `phenoscape_tune/config.py`; a test holds that it is current.

Keys of a group are written nested in a file (`transforms:` and below it `cj_strength: 0.8`), and dotted elsewhere
(`transforms.cj_strength=0.8`). An unknown key, or a value that has no meaning, is refused with what to write instead; a
value outside the advised range, the training guide's, is warned of. `python scripts/train.py --dry-run` prints a
configuration with all its keys.

`--config` takes a path, or the name of a file that comes along in `configs/`: `rgb_basic.yaml`, `rgb_high_res.yaml`,
`multi_gpu.yaml`, `resume.yaml`, `multispectral.yaml`, `hyperspectral.yaml`; [config.yaml](config.yaml) is the guide's.
What wins: a flag, then `key=value`, then the space file's `budget:`, then the configuration, then the default.
"""
COLUMNS = "| key | default | values | unit | meaning |\n| --- | --- | --- | --- | --- |"


def page() -> str:
    """The whole page, ending in a line feed; the same text from the same schema."""
    keys = known_keys()
    sections = []
    for title, names in groups().items():
        rows = [_row(key, field) for name in names for key, field in keys.items() if key.split(".")[0] == name]
        sections.append("\n".join([f"## {title}\n\n{COLUMNS}", *rows]))
    return "\n\n".join([HEAD.rstrip(), *sections]) + "\n"


def groups() -> dict[str, list[str]]:
    """The keys under the heading that the schema's classes have above them, in their order."""
    found: dict[str, list[str]] = {}
    source = inspect.getsource(DataKeys) + inspect.getsource(TrainConfig)
    for heading, name in re.findall(r"^    (?:# (\w+)|(\w+): )", source, re.MULTILINE):
        if heading:
            found[heading] = names = []
        elif name in TrainConfig.model_fields:
            names.append(name)
    return found


def _row(key: str, field: Any) -> str:
    extra = field.json_schema_extra or {}
    values = describe_values(field.annotation, field.metadata)
    if "advice" in extra:
        values += "; advised: {:g} to {:g}".format(*extra["advice"])
    cells = (f"`{key}`", _default(field), values, extra.get("unit", ""), field.description or "")
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _default(field: Any) -> str:
    if field.default_factory is not None:
        return "see below"
    return f"`{_shown(field.default)}`"


def _shown(value: Any) -> str:
    """A value as YAML has it."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(_shown, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def describe_values(annotation: Any, metadata: Any = ()) -> str:
    """What a key may be: its options, or its kind with the range that has a meaning."""
    if hasattr(annotation, "__metadata__"):
        return describe_values(annotation.__origin__, [*annotation.__metadata__, *metadata])
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{_shown(value)}`" for value in inner)
    if origin is tuple:
        return f"{len(inner)} of: {describe_values(inner[0])}"
    if origin is list:
        return f"a list of: {describe_values(inner[0])}"
    if inner:  # a union
        return ", or ".join(f"{describe_values(each, metadata)}" for each in inner)
    if annotation is NoneType:
        return "`null`"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "a group of the keys below"
    kinds = {bool: "`true`, `false`", int: "whole number", float: "number", str: "text"}
    return f"{kinds[annotation]}{_bounds(metadata)}"


def _bounds(metadata: Any) -> str:
    """The bounds among pydantic's constraints, in words."""
    told = []
    for constraint in _flat(metadata):
        for name, words in (("ge", "from {}"), ("gt", "above {}"), ("le", "to {}"), ("lt", "below {}")):
            bound = getattr(constraint, name, None)
            if bound is not None:
                told.append(words.format(_shown(bound)))
    return f", {' '.join(told)}" if told else ""


def _flat(metadata: Any) -> list[Any]:
    """Constraints, with those inside of a FieldInfo."""
    flat: list[Any] = []
    for item in metadata:
        flat += _flat(item.metadata) if hasattr(item, "metadata") else [item]
    return [item for item in flat if isinstance(item, annotated_types.BaseMetadata)]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
