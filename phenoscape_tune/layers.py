"""The layers of a configuration: defaults, then a file, then `key=value`; and the files that ship."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from phenoscape_tune.config import TrainConfig, known_keys, validate
from phenoscape_tune.errors import UserError
from phenoscape_tune.files import write_whole
from phenoscape_tune.key_faults import nearest
from phenoscape_tune.yaml_file import dump_mapping, load_mapping, parse_scalar


def get_key(mapping: Mapping[str, Any], key: str) -> Any:
    """The value at a dotted key; KeyError where there is none."""
    for part in key.split("."):
        mapping = mapping[part]
    return mapping


def flatten(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in mapping.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def set_key(mapping: dict[str, Any], key: str, value: Any) -> None:
    """Set the value at a dotted key, making mappings on the way."""
    *path, last = key.split(".")
    for part in path:
        if not isinstance(mapping.get(part), dict):
            mapping[part] = {}
        mapping = mapping[part]
    mapping[last] = value


def merge(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings with the upper one's values winning key by key."""
    merged = dict(lower)
    # input_size has two spellings: the upper layer's takes the place of both.
    if "input_size" in upper or "input_size" in (upper.get("transforms") or {}):
        merged.pop("input_size", None)
        if isinstance(merged.get("transforms"), Mapping):
            merged["transforms"] = {k: v for k, v in merged["transforms"].items() if k != "input_size"}
    for key, value in upper.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def parse_overrides(arguments: Sequence[str]) -> dict[str, Any]:
    """`key=value` arguments as a nested mapping. Raises UserError for an argument that has no `=`."""
    mapping: dict[str, Any] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or not key.strip():
            is_folder = Path(argument).is_dir()
            told = f"for the folder of your images write data_dir={argument}" if is_folder else "for example: lr=0.001"
            raise UserError(
                f"'{argument}' is neither an option nor key=value; {told}. A value with spaces needs quotation marks "
                'around it: "data_dir=my birds"'
            )
        set_key(mapping, key.strip(), value if _is_text(key.strip(), value) else parse_scalar(value))
    return mapping


def _is_text(key: str, value: str) -> bool:
    """Whether a value is taken as it stands: `background=#808080` is no comment, `data_dir=2024` no number."""
    field = known_keys().get(key)
    return field is not None and field.annotation in (str, str | None) and value.strip() not in ("", "null", "~")


def shipped_folder(kind: Literal["configs", "search_spaces"]) -> Path:
    """The folder of configurations or search spaces that comes with the package (wheel or checkout)."""
    package = Path(__file__).resolve().parent
    inside = package / kind
    return inside if inside.is_dir() else package.parent / kind


def find_file(name: str, kind: Literal["configs", "search_spaces"]) -> Path:
    """A path, or a name among the shipped files, with or without `.yaml`. Raises UserError naming the known ones."""
    folder = shipped_folder(kind)
    for candidate in (Path(name), Path(f"{name}.yaml"), folder / name, folder / f"{name}.yaml"):
        if candidate.is_file():
            return candidate
    # `configs/rgb.yaml` typed outside the checkout means the shipped one.
    if (folder / Path(name).name).is_file() and Path(name).parent.name == kind:
        return folder / Path(name).name
    shipped = [path.stem for path in folder.glob("*.yaml")]
    raise UserError(f"{name}: no such file, and none of the shipped {kind}: {nearest(name, shipped)}")


def load_config(path: str | None, overrides: Mapping[str, Any] | None = None) -> TrainConfig:
    """Defaults, then a configuration file, then overrides. Raises UserError with all faults."""
    file = None if path is None else find_file(path, "configs")
    own = {} if file is None else load_mapping(file)
    config, faults = validate(merge(own, overrides or {}))
    if config is None:
        # Each fault is told with the place where it was written.
        lines = [
            f"{file if file is not None and key not in (overrides or {}) else 'command line'}: {text}"
            for key, text in faults
        ]
        raise UserError("\n".join(lines))
    return config


def save_config(config: TrainConfig, path: Path) -> None:
    """Write the resolved configuration as YAML that `load_config` reads back to an equal one."""
    write_whole(path, dump_mapping(config.to_mapping()))
