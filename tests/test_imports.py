"""The house: imports point downwards, and Ray stands in six rooms only."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "phenoscape_tune"

# From the ground up; a module imports from lower floors, and within its own folder.
FLOORS = [
    {"errors", "terminal", "versions"},
    {"files", "storage"},
    {"mirror"},
    {"yaml_file"},
    {"channel_keys", "key_faults", "transforms"},
    {"data_keys"},
    {"config"},
    {"layers"},
    {"settling"},
    {"ranks"},
    {"data"},
    {"spectral_stem"},
    {"weights"},
    {"augment_checks", "augment_device", "augment_kernels"},
    {"augment_blur", "augment_colour", "augment_crop", "augment_spectra"},
    {"augment", "model", "nt_xent"},
    {"export"},
    {"evaluate"},
    {"training"},
    {"search"},
    {"cli"},
    {"api"},
    {""},  # the package itself
]
RAY = {
    "training/launch.py",
    "search/callbacks.py",
    "search/cluster.py",
    "search/preflight.py",
    "search/runner.py",
    "search/trial.py",
}


def floor(module: str) -> int:
    room = module.removeprefix("phenoscape_tune").lstrip(".").split(".")[0]
    return next(number for number, rooms in enumerate(FLOORS) if room in rooms)


def imports(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            found += (
                [f"{node.module}.{alias.name}" for alias in node.names]
                if node.module == "phenoscape_tune"
                else [node.module]
            )
    return found


MODULES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_downwards(path: Path) -> None:
    own = str(path.relative_to(PACKAGE).with_suffix("")).replace("/", ".").removesuffix("__init__")
    for name in imports(path):
        if name.startswith("phenoscape_tune"):
            assert floor(name) <= floor(own), f"{path} imports {name}, which stands above it"
            if floor(name) == floor(own):
                assert name.split(".")[1:2] == own.split(".")[:1] or len(FLOORS[floor(own)]) == 1


def test_every_room_has_a_floor() -> None:
    for path in MODULES:
        floor(str(path.relative_to(PACKAGE).with_suffix("")).replace("/", ".").removesuffix("__init__"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_ray_is_imported_in_six_rooms_only(path: Path) -> None:
    uses = [name for name in imports(path) if name == "ray" or name.startswith("ray.")]
    assert bool(uses) <= (str(path.relative_to(PACKAGE)) in RAY)


def test_every_test_file_has_its_counterpart() -> None:
    alone = {
        "test_imports",
        "test_shipped",
        "test_docs",
        "test_links",
        "test_commands",
        "test_deploy",
        "test_security",
        "test_wheel",
    }
    tests = Path(__file__).parent
    for path in tests.rglob("test_*.py"):
        if path.stem not in alone and path.parent.name != "faults":  # a fault goes through the whole house
            # The benchmarks stand beside the package.
            place = PACKAGE.parent if path.parent.name == "benchmarks" else PACKAGE
            # What is asked of a module may fill several files: test_conductor_time asks of the conductor.
            words = path.stem.removeprefix("test_").split("_")
            names = ["_".join(words[:count]) for count in range(len(words), 0, -1)]
            counterparts = [place / path.relative_to(tests).parent / f"{name}.py" for name in names]
            assert any(each.exists() for each in counterparts), f"{path} tests nothing of that name"
