"""What is said of a key that is unknown, and of a value that is not valid; models that say it where made."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails


class MadeByName(BaseModel):
    """A model that people make in Python, by keyword: its faults are told as those of a file, in one UserError."""

    if not TYPE_CHECKING:  # type checkers read the fields

        def __init__(self, **values: Any) -> None:
            self.refuse(values, type(self).__name__)
            super().__init__(**values)

        __init__.__pydantic_base_init__ = True  # what pydantic validates by itself does not come this way

    @classmethod
    def refuse(cls, values: Mapping[str, Any], source: str) -> None:
        """Raise UserError of all faults of the values, each with the source; nothing where there are none."""
        raise NotImplementedError


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint that names the known word nearest to a misspelt one, or lists the known ones."""
    known = sorted(known)
    match = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean '{match[0]}'?" if match else f"known: {', '.join(known)}"


def describe_fault(fault: ErrorDetails, known: Mapping[str, Any]) -> str:
    """One validation fault as `key: value: what is wrong; what to write instead`."""
    # pydantic appends the branch of a union that it tried; the key is the part that the schema knows.
    location = [str(part) for part in fault["loc"]]
    key = ".".join(location)
    while location and key not in known and fault["type"] != "extra_forbidden":
        location.pop()
        key = ".".join(location)
    value = fault["input"]
    if fault["type"] == "extra_forbidden" and key in known:  # dotted, as on the command line and in a space file
        *outer, last = key.split(".")
        return f"{key}: here it stands within another key: write {'.'.join(outer)}: {{{last}: {value}}}"
    if fault["type"] == "extra_forbidden":
        return f"{key}: unknown key; {nearest(key, known)}"
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "value_error" and not key:
        return message
    if fault["type"] == "missing":
        return f"{key}: is missing"
    message = message[0].lower() + message[1:]
    if key == "storage":  # there may be a password in it
        return f"storage: {message}"
    comma = isinstance(value, str) and re.fullmatch(r"\s*[-+]?\d+,\d+\s*", value)
    point = f"; write {value.strip().replace(',', '.')}" if comma else ""
    return f"{key}: {value!r} is not valid: {message}{point}{_remedy(known.get(key))}"


def _remedy(field: Any) -> str:
    if field is None or field.default is None or not isinstance(field.default, int | float | str):
        return ""
    extra = field.json_schema_extra or {}
    bounds = f", usually {extra['advice'][0]:g} to {extra['advice'][1]:g}" if "advice" in extra else ""
    return f" (default {field.default}{bounds})"
