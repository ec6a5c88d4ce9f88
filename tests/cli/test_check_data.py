from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from phenoscape_tune.cli import check_data

SETTINGS = ("input_size=32", "batch_size=8", "num_workers=2")


def run(*arguments: object) -> int:
    return check_data.main([*(str(argument) for argument in arguments), *SETTINGS])


def read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "check.json").read_text())


@pytest.fixture
def copied(birds: Path, tmp_path: Path) -> Path:
    shutil.copytree(birds, tmp_path / "birds")
    return tmp_path / "birds"


def test_a_sound_folder_is_described_and_written_down(
    birds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(birds, "--strict") == 0
    printed = capsys.readouterr().out
    result = read(tmp_path / "outputs" / "check-birds")
    assert result["images"] == result["readable"] == 72
    assert result["faults"] == []
    assert result["split"]["train"] + result["split"]["validation"] + result["split"]["test"] == 72
    assert result["classes"]["crow"]["images"] == 24
    assert result["class_ratio"] == 1
    assert [channel["channel"] for channel in result["channels"]] == ["red", "green", "blue"]
    assert result["spectra"] is None
    assert not (tmp_path / "outputs" / "check-birds" / "spectra.png").exists()
    assert result["checks"]["duplicates"]["count"] == 0
    assert (result["modality"], result["passed_over"]) == ("rgb", 0)
    assert "72 rgb images" in printed and "passed over" not in printed
    assert "no faults" in printed
    with Image.open(tmp_path / "outputs" / "check-birds" / "contact_sheet.png") as sheet:
        assert sheet.width > 900


def test_spectra_have_a_figure_and_numbers_by_class(
    cubes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    colourless = ("transforms.cj_prob=0", "transforms.random_gray_scale=0")
    folder = tmp_path / "cubes"
    shutil.copytree(cubes, folder)
    Image.new("RGB", (4, 4)).save(folder / "preview.png")
    assert run(folder, "--out", tmp_path / "out", *colourless) == 0
    printed = capsys.readouterr().out
    result = read(tmp_path / "out")
    assert (result["modality"], result["passed_over"]) == ("hyperspectral", 1)
    told = " ".join(printed.split())
    assert "32 hyperspectral images" in told and "1 images of another modality beside them are passed over" in told
    assert [row["wavelength_nm"] for row in result["channels"]] == list(range(400, 800, 20))
    assert [(row["class"], row["images"]) for row in result["spectra"]] == [("notch", 16), ("plain", 16)]
    notch, plain = (np.array(row["mean"]) for row in result["spectra"])
    band = [abs(wave - 600) < 30 for wave in range(400, 800, 20)]
    # The specimen fills no square; the background beside it, which only packing adds, is no part of the spectrum.
    wanted = 0.2 + 0.5 * np.arange(0, 400, 20) / 400
    assert plain == pytest.approx(wanted, abs=0.01)
    assert (plain - notch)[band] == pytest.approx(0.3, abs=0.02)
    assert (plain - notch)[np.invert(band)] == pytest.approx(0, abs=0.02)
    # Of twenty channels twelve are shown, the first and the last among them.
    names = [row["channel"] for row in result["channels"]]
    rows = [line.split()[0] for line in printed.splitlines() if re.match(r"\s*\S+( nm)?\s+0\.\d{3}", line)]
    assert len(rows) == 12
    assert names[0].startswith(rows[0]) and names[-1].startswith(rows[-1])
    assert "12 of 20, all in check.json" in printed
    assert "contact_sheet.png, spectra.png" in printed
    with Image.open(tmp_path / "out" / "spectra.png") as figure:
        assert figure.size == (960, 540)
    assert run(folder, "--out", tmp_path / "out", "--overwrite", "--quiet", *colourless) == 0


def test_faults_are_told_and_strict_makes_them_the_exit_code(
    copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copied / "crow" / "[red]text.jpg").write_text("no image")
    whole = (copied / "crow" / "00.jpg").read_bytes()
    (copied / "crow" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (copied / "crow" / "copy.jpg").write_bytes(whole)
    Image.new("RGB", (1, 1)).save(copied / "finch" / "dot.png")
    (copied / "owl").mkdir()
    Image.open(copied / "finch" / "01.jpg").convert("CMYK").rotate(90).save(copied / "owl" / "only.jpg")
    out = tmp_path / "out"
    assert run(copied, "--out", out) == 0
    printed = capsys.readouterr().out
    assert "[red]text.jpg" in printed.replace("\n", "")
    result = read(out)
    assert {"unreadable", "tiny", "constant", "duplicates", "small_classes"} <= set(result["faults"])
    assert [entry["name"] for entry in result["checks"]["unreadable"]["found"]] == [
        "crow/[red]text.jpg",
        "crow/cut.jpg",
    ]
    assert result["checks"]["duplicates"]["found"][0]["names"] == ["crow/00.jpg", "crow/copy.jpg"]
    assert run(copied, "--out", out) == 2
    assert "exists already" in capsys.readouterr().err
    assert run(copied, "--out", out, "--overwrite", "--strict", "--quiet") == 1
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 1
    assert "unreadable" in printed.out
    assert printed.err == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere does not exist"),
        (["empty"], "is empty"),
        (["birds", "other"], "one folder is examined at a time"),
        (["birds", "data_dir=other"], "write one of them"),
        (["birds", "input_sise=3"], "did you mean 'input_size'"),
        (["birds", "--out", "birds/check"], "lies in the folder of images"),
        (["birds", "group_by=("], "no regular expression"),
        (["birds", "labels=none.csv"], "none.csv does not exist"),
        (["text"], "none of the 1 images in .* can be read: a.jpg: not an image"),
    ],
)
def test_input_that_is_wrong_is_one_message_and_code_2(
    arguments: list[str],
    message: str,
    copied: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.jpg").write_text("no image")
    assert run(*arguments) == 2
    told = capsys.readouterr()
    assert re.search(message, told.err)
    assert "Traceback" not in told.out + told.err
    assert not (tmp_path / "outputs").exists()


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read every folder")
def test_a_folder_that_may_not_be_read_is_one_message(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copied / "crow").chmod(0)
    try:
        assert run(copied) == 2
        assert "cannot be listed" in capsys.readouterr().err
    finally:
        (copied / "crow").chmod(0o755)


def test_names_that_are_not_utf8_are_shown_and_written(
    copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = os.fsdecode(b"crow/\xff.jpg")
    try:
        shutil.copy(copied / "crow" / "00.jpg", copied / name)
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    assert run(copied, "--out", tmp_path / "out") == 0
    assert "\\udcff" in capsys.readouterr().out
    assert read(tmp_path / "out")["checks"]["duplicates"]["found"][0]["names"] == ["crow/00.jpg", name]


def test_a_folder_with_an_equals_sign_is_a_folder(birds: Path, tmp_path: Path) -> None:
    shutil.copytree(birds, tmp_path / "year=2024")
    assert run(tmp_path / "year=2024", "--quiet", "--out", tmp_path / "out") == 0


def test_the_configuration_names_the_folder_too(birds: Path, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(f"data_dir: {birds}\nval_fraction: 0.3\n")
    assert run("--config", tmp_path / "own.yaml", "--quiet", "--out", tmp_path / "out") == 0
    assert read(tmp_path / "out")["settings"]["val_fraction"] == 0.3


@pytest.mark.slow
def test_without_a_folder_the_sample_is_examined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("phenoscape_tune.cli.common.SAMPLE_PER_CLASS", 4)
    assert check_data.main(["--quiet", "batch_size=4"]) == 0
    assert read(tmp_path / "outputs" / "check-sample-specimens")["readable"] == 24


def test_help_imports_neither_torch_nor_ray() -> None:
    script = (
        "import sys; sys.argv = ['check_data.py', '--help']\n"
        "from phenoscape_tune.cli.check_data import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "assert not {'torch', 'ray', 'timm'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, timeout=60)
