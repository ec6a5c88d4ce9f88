"""YAML as users mean it: `1e-4` is a number, a key stands once, nothing is executed, faults name their line."""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from phenoscape_tune.errors import UserError

LARGEST_FILE_BYTES = 1_000_000

# YAML 1.1, as PyYAML reads it, wants a dot in the mantissa and a sign in the exponent: `1e-4` would be a string.
_FLOAT = re.compile(
    r"^[-+]?(\d[\d_]*\.[\d_]*([eE][-+]?\d+)?|\d[\d_]*[eE][-+]?\d+|\.\d[\d_]*([eE][-+]?\d+)?)$"
    r"|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$"
)
# What PyYAML's constructors raise for a value that does not fit its tag, beside its own errors.
_MISFITS = (ValueError, LookupError, AttributeError, TypeError, ArithmeticError, RecursionError)


class _StrictLoader(yaml.SafeLoader):
    """PyYAML's safe loader, with scientific notation as numbers and repeated keys as errors."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: dict[str, int] = {}
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be plain text", key_node.start_mark)
            line = key_node.start_mark.line + 1
            if key_node.value in seen and key_node.value != "<<":
                problem = (
                    f"the key '{key_node.value}' stands twice, on lines {seen[key_node.value]} and {line}: remove one"
                )
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            seen[key_node.value] = line
        return super().construct_mapping(node, deep)

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        # Aliases are of no use in files this small, and nested ones blow up to gigabytes ("billion laughs").
        if self.check_event(yaml.AliasEvent):
            event = self.get_event()
            raise yaml.composer.ComposerError(None, None, "anchors and aliases are not accepted", event.start_mark)
        return super().compose_node(parent, index)


_StrictLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:float"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
# After the integers, which the same pattern would also match.
for _first in "-+0123456789.":
    _StrictLoader.yaml_implicit_resolvers.setdefault(_first, []).append(("tag:yaml.org,2002:float", _FLOAT))


def _construct_float(loader: _StrictLoader, node: yaml.ScalarNode) -> float:
    return float(node.value.lower().replace("_", "").replace(".inf", "inf").replace(".nan", "nan"))


_StrictLoader.add_constructor("tag:yaml.org,2002:float", _construct_float)


def parse_scalar(text: str) -> Any:
    """The value of `key=value` on a command line: a YAML scalar or flow list, e.g. `0.1`, `null`, `[0.1, 2.0]`."""
    try:
        return yaml.load(text, Loader=_StrictLoader) if text.strip() else None
    except (yaml.YAMLError, *_MISFITS):
        return text


def load_mapping(path: Path) -> dict[str, Any]:
    """Read a YAML file whose top level is `key: value` lines.

    Raises UserError for a file that is missing, too large, not UTF-8, not YAML, not a mapping, or has a key twice.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if path.stat().st_size > LARGEST_FILE_BYTES:
        raise UserError(
            f"{path}: {path.stat().st_size:,} bytes are too many for a configuration; is it the right file?"
        )
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UserError(f"{path}{where}: {problem}{_remedy(error)}") from error
    except _MISFITS as error:
        raise UserError(f"{path}: cannot be read as YAML: {type(error).__name__}: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected lines of `key: value`, found a {type(content).__name__}")
    strange = [key for key in content if not isinstance(key, str)]
    if strange:
        raise UserError(f"{path}: keys must be names, found {strange[0]!r}")
    return content


def _remedy(error: yaml.YAMLError) -> str:
    """What to write instead, for the commonest slips; PyYAML tells where it noticed them, which may be lines later."""
    problem, context = (str(getattr(error, key, None) or "") for key in ("problem", "context"))
    begun = getattr(error, "context_mark", None)
    if "'\\t'" in problem:
        return "; indent by spaces, not by tabs"
    if "mapping values are not allowed" in problem:
        return "; a key is followed by a colon and a space, and has a line of its own, or stands within { }"
    if begun is None:
        return ""
    if "flow mapping" in context or "flow sequence" in context:
        opening, closing = ("{", "}") if "mapping" in context else ("[", "]")
        return f"; is the {opening} of line {begun.line + 1} closed by {closing}, and a comma between its entries?"
    if "simple key" in context:
        return f"; line {begun.line + 1} is no `key: value` (a colon and a space after the key)"
    if "block mapping" in context:
        return "; are all keys of one level indented by as many spaces?"
    if "quoted scalar" in context:
        return f"; is the quote of line {begun.line + 1} closed?"
    return ""


class _PlainDumper(yaml.SafeDumper):
    """Short lists on one line, as the guide writes them; mappings on lines of their own."""

    # Text that the loader would take for a number must be quoted.
    yaml_implicit_resolvers = _StrictLoader.yaml_implicit_resolvers

    def ignore_aliases(self, data: Any) -> bool:
        return True


_PlainDumper.add_representer(
    list, lambda dumper, items: dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=True)
)
_PlainDumper.add_representer(
    tuple, lambda dumper, items: dumper.represent_sequence("tag:yaml.org,2002:seq", list(items), flow_style=True)
)


def dump_mapping(content: dict[str, Any]) -> str:
    """YAML text of a mapping, keys in their given order, that `load_mapping` reads back to the same values."""
    return yaml.dump(content, Dumper=_PlainDumper, sort_keys=False, allow_unicode=True, width=110)
