from __future__ import annotations

import subprocess
from pathlib import Path

import optuna
import torch

from phenoscape_tune.versions import _describe, versions


def test_versions_are_those_of_the_packages() -> None:
    assert versions()["optuna"] == optuna.__version__
    assert versions()["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert {"python", "phenoscape-tune", "ray", "timm"} <= versions().keys()


def git(folder: Path, *arguments: str) -> None:
    name = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run(["git", "-C", str(folder), *name, *arguments], check=True, capture_output=True)


def test_a_checkout_is_told_by_its_commit_and_whether_it_was_changed(tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "code.py").write_text("1")
    assert _describe(package) is None
    git(tmp_path, "init")
    assert _describe(package) is None  # nothing is committed yet
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    commit = _describe(package)
    assert commit is not None
    assert len(commit) >= 7
    (package / "code.py").write_text("2")
    assert _describe(package) == f"{commit}-dirty"
    git(tmp_path, "commit", "-am", "second")
    git(tmp_path, "tag", "v1.0")
    assert _describe(package) == "v1.0"


def test_a_package_in_another_projects_checkout_is_not_told_as_that_one(tmp_path: Path) -> None:
    package = tmp_path / ".venv" / "site-packages" / "package"
    package.mkdir(parents=True)
    git(tmp_path, "init")
    assert _describe(package) is None
