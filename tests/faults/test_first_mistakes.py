"""Ten mistakes of a newcomer, through the commands: each is one message that says what to do, or no hindrance at all.

Of a full disk: test_disk_and_checkpoints.py.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from phenoscape_tune.cli import check_data, train, tune

ROOT = Path(__file__).parents[2]
TINY = [
    *("backbone=test_resnet.r160_in1k", "input_size=32", "stem=standard", "batch_size=8", "projection_dim=16"),
    *("num_workers=1", "accelerator=cpu"),
]
COMMANDS = ("tune", "train", "check_data")


def run(command: str, data: Path, folder: Path, *more: str) -> int:
    """A command on a folder of images, with its results below `folder`."""
    out = ["--out", str(folder / "out")]
    if command == "tune":
        return tune.main(["--space", "lr_temp.yaml", *out, f"data_dir={data}", *TINY, *more])
    if command == "train":
        return train.main([f"data_dir={data}", f"out_dir={folder / 'out'}", *TINY, "max_epochs=1", *more])
    return check_data.main([str(data), *out, *TINY, *more])


def refused(capsys: pytest.CaptureFixture[str], command: str, data: Path, folder: Path, *more: str) -> str:
    """The one message of a command that is refused; nothing is written."""
    capsys.readouterr()
    assert run(command, data, folder, *more) == 2
    told = capsys.readouterr()
    assert "Traceback" not in told.out + told.err
    (message,) = [line for line in told.err.splitlines() if line.startswith("error: ")]
    assert not (folder / "out").exists()
    return message


@pytest.mark.parametrize("command", COMMANDS)
def test_a_wrong_path(command: str, birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(capsys, command, birds.with_name("brids"), tmp_path)
    assert message == (
        f"error: data_dir: {birds.with_name('brids')} does not exist; did you mean {birds}? "
        "Write the path of a folder of images."
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_images_in_a_zip(command: str, birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    with zipfile.ZipFile(folder / "birds.zip", "w") as archive:
        for path in birds.glob("*/*.jpg"):
            archive.write(path, path.relative_to(birds))
    assert refused(capsys, command, folder, tmp_path).endswith("Unpack birds.zip first.")
    assert "is a file, not a folder. Unpack it first." in refused(capsys, command, folder / "birds.zip", tmp_path)


@pytest.mark.parametrize("command", COMMANDS)
def test_videos_alone(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "MVI_0001.MP4").write_bytes(b"\0\0\0\x18ftypmp42")
    assert refused(capsys, command, folder, tmp_path).endswith("Take frames from MVI_0001.MP4 first.")


def test_a_video_among_the_images_is_told(birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "data"
    shutil.copytree(birds, folder)
    (folder / "crow" / "MVI_0001.MP4").write_bytes(b"\0\0\0\x18ftypmp42")
    assert run("check_data", folder, tmp_path) == 0
    assert "72 rgb images" in (told := " ".join(capsys.readouterr().out.split())) and "not read: .mp4 ×1" in told


def test_no_labels_where_they_are_asked_for(birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    space = tmp_path / "knn.yaml"
    space.write_text("parameters: {lr: {type: uniform, low: 0.001, high: 0.01}}\nobjective: {metric: knn_accuracy}\n")
    arguments = ["--space", str(space), "--out", str(tmp_path / "out"), f"data_dir={birds / 'crow'}", *TINY]
    assert tune.main(arguments) == 2
    message = capsys.readouterr().err
    assert "knn_accuracy needs labels" in message and "or write metric: reference_contrast" in message
    for command in COMMANDS:
        missing = refused(capsys, command, birds, tmp_path, f"labels={tmp_path / 'labels.csv'}")
        assert missing.endswith("Write the path of a CSV file with the header filename,label, or leave labels out.")
    assert "write balance=false, or give labels" in refused(capsys, "train", birds / "crow", tmp_path, "balance=true")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("lr: 0.001\nbacht_size: 32\n", "bacht_size: unknown key; did you mean 'batch_size'?"),
        ("lr: 0,001\n", "lr: '0,001' is not valid"),
        ("lr: 0.001\nbatch_size 32\n", "is no `key: value` (a colon and a space after the key)"),
        (
            "lr: 0.001\n\tbatch_size: 32\n",
            "line 2: found character '\\t' that cannot start any token; indent by spaces",
        ),
    ],
)
def test_a_typo_in_a_file(
    text: str, told: str, birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    for command in COMMANDS:
        message = refused(capsys, command, birds, tmp_path, "--config", str(path))
        assert told in message and "mine.yaml" in message


@pytest.mark.slow
def test_a_gpu_where_there_is_none(
    birds: Path, ray_session: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one")
    for command in ("train", "tune"):
        message = refused(capsys, command, birds, tmp_path, "accelerator=gpu")
        assert message.endswith("this machine has no usable GPU; set accelerator=auto or accelerator=cpu")


# Mounts and networks of this command alone.
_HARD = """
mount -t tmpfs -o size=1m tmpfs "$HOME" && mount -o remount,ro "$HOME" && ip link set lo up && exec "$@"
"""


@pytest.mark.slow
def test_spaces_and_umlauts_a_read_only_home_and_no_network_are_no_hindrance(birds: Path, tmp_path: Path) -> None:
    """One real search with all three; and what does need the network says so."""
    if shutil.which("ip") is None or subprocess.run(["unshare", "--mount", "--net", "true"], check=False).returncode:
        pytest.skip("this user may not mount, or take the network away")
    home, data = tmp_path / "home", tmp_path / "Mäuse & Vögel im Süden"
    home.mkdir()
    shutil.copytree(birds, data)
    (data / "crow").rename(data / "Krähe Nr. 1")
    variables = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    variables |= {"HOME": str(home)}
    del variables["PHENOSCAPE_CACHE"]  # it would be in the home folder

    def command(script: str, *arguments: str) -> tuple[int, str]:
        words: list[Any] = ["unshare", "--mount", "--net", "sh", "-c", _HARD, "sh", sys.executable]
        words += [ROOT / "scripts" / script, *arguments, f"data_dir={data}", *TINY]
        ended = subprocess.run(words, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=550)
        return ended.returncode, ended.stdout + ended.stderr

    few = ["--trials", "3", "--max-epochs", "1", "--no-confirm"]
    code, printed = command("tune.py", "--space", "lr_temp.yaml", "--out", "Ergebnisse für Zoë", *few)
    assert code == 0, printed
    # What is told to be run can be run as it stands.
    assert f"python scripts/train.py --config '{tmp_path / 'Ergebnisse für Zoë' / 'best.yaml'}'" in printed
    assert not list(home.iterdir())
    code, printed = command("train.py", "out_dir=out", "weights=DEFAULT")
    assert code == 2 and "Traceback" not in printed
    assert "cannot be fetched" in printed and "start from random weights (weights: null)" in printed
    assert not (tmp_path / "out").exists()
