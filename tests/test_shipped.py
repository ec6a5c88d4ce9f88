"""Every configuration and search space that ships is parsed, planned and found from any folder."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from phenoscape_tune.cli import train, tune
from phenoscape_tune.config import advice, build_config
from phenoscape_tune.layers import find_file, load_config, merge, save_config, shipped_folder
from phenoscape_tune.search.space import load_space
from phenoscape_tune.yaml_file import load_mapping

SPACES = sorted(path.stem for path in shipped_folder("search_spaces").glob("*.yaml"))
CONFIGS = sorted(path.stem for path in shipped_folder("configs").glob("*.yaml"))


GUIDE = (Path(__file__).parent / "training-guide.md").read_text(encoding="utf-8")
ON_SAMPLE_SPECIMENS = {"sample", "multispectral", "hyperspectral"}
# What makes a shipped configuration train in seconds on a few small images and without a GPU; the rest is its own.
TINY: dict[str, Any] = {
    **{"backbone": "test_resnet.r160_in1k", "weights": None, "input_size": 32, "stem": "standard"},
    **{"accelerator": "cpu", "devices": 1, "batch_size": 4, "projection_dim": 16, "max_epochs": 1, "num_workers": 1},
}


def test_the_configurations_of_the_guides_commands_ship() -> None:
    named = set(re.findall(r"--config configs/(\w+)\.yaml", GUIDE))
    assert named == {"rgb_basic", "rgb_high_res", "multi_gpu", "resume"}
    assert named <= set(CONFIGS)


def test_a_shipped_configuration_says_what_the_guide_says() -> None:
    basic = load_config("rgb_basic").to_mapping()
    guide = load_mapping(Path(__file__).parent.parent / "docs" / "config.yaml")  # test_docs: the guide's, to the letter
    assert {key: basic[key] for key in guide} == guide
    several = load_config("multi_gpu")
    assert (several.accelerator, several.devices, several.strategy) == ("gpu", 2, "ddp")
    large = load_config("rgb_high_res")
    assert (large.input_size, large.gradient_checkpointing) == (384, True)
    assert large.precision in (16, "bf16")
    assert large.batch_size < load_config("rgb_basic").batch_size


def test_a_run_is_resumed_with_what_it_was_started_with() -> None:
    basic, resume = load_config("rgb_basic").to_mapping(), load_config("resume").to_mapping()
    assert {key for key, value in basic.items() if resume[key] != value} == {"out_dir"}
    assert resume["out_dir"] == "outputs/experiment"  # of the guide's --resume outputs/experiment/checkpoints/last.ckpt


@pytest.mark.parametrize("name", CONFIGS)
def test_a_shipped_configuration_stays_within_the_guides_ranges(name: str) -> None:
    assert advice(load_config(name)) == []
    own = load_mapping(find_file(name, "configs"))
    assert own.get("data_dir") == (None if name in ON_SAMPLE_SPECIMENS else "path/to/your/data")


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_a_shipped_configuration_trains(name: str, birds: Path, tmp_path: Path) -> None:
    import torch

    from phenoscape_tune.data.spectral_sample import write_hyperspectral_sample, write_multispectral_sample
    from phenoscape_tune.training.loop import train_simclr

    images = birds
    if name in ("multispectral", "hyperspectral"):
        write = write_multispectral_sample if name == "multispectral" else write_hyperspectral_sample
        images = write(tmp_path / "specimens", per_class=8, size=32)
    folders = {"data_dir": str(images), "out_dir": str(tmp_path / "run")}
    config = build_config(merge(load_mapping(find_file(name, "configs")), {**TINY, **folders}))
    (row,) = train_simclr(config, lambda row: None, device=torch.device("cpu"))
    assert math.isfinite(row["train_loss"])
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()


@pytest.mark.slow
def test_the_guides_resume_command_goes_on_with_a_run_that_was_started_with_other_values(
    birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out_dir = tmp_path / "experiment"
    changed = [f"{key}={'null' if value is None else value}" for key, value in {**TINY, "data_dir": birds}.items()]
    assert train.main(["--config", "configs/rgb_basic.yaml", f"out_dir={out_dir}", *changed]) == 0
    command = ["--config", "configs/resume.yaml", "--resume", str(out_dir / "checkpoints" / "last.ckpt")]
    assert train.main([*command, *changed, "max_epochs=2"]) == 0
    assert "goes on after epoch 1" in capsys.readouterr().out
    assert train.main([*command, "max_epochs=3"]) == 2
    assert "backbone: was 'test_resnet.r160_in1k', is 'resnet50'" in capsys.readouterr().err


def test_the_documented_spaces_ship() -> None:
    assert {"lr", "lr_temp", "full", "joint", "augmentation", "demo"} <= set(SPACES)


@pytest.mark.parametrize("name", SPACES)
def test_a_space_is_found_by_name_anywhere_and_planned(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for spelling in (name, f"{name}.yaml"):
        load_space(spelling)
        assert tune.main(["--space", spelling, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "stage 0 defaults:" in printed
    others = {"augmentation": "augmentation: transforms.augmentation_strength", "joint": "joint: batch_size, lr"}
    assert f"stage 1 {others.get(name, 'lr: lr')}" in printed
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_is_found_by_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config(f"configs/{name}.yaml")
    assert train.main(["--config", name, "--dry-run"]) == 0
    (tmp_path / "again.yaml").write_text(capsys.readouterr().out)
    assert load_config("again.yaml") == config


def test_a_misspelt_name_names_the_nearest() -> None:
    with pytest.raises(Exception, match="lr_tmp.*did you mean 'lr_temp'"):
        find_file("lr_tmp", "search_spaces")


def test_the_guides_commands_run_dry_with_only_the_scripts_name_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = re.findall(r"^python scripts/simclr_birdcolour\.py ((?:.*\\\n)*.*)$", GUIDE, re.MULTILINE)
    assert len(commands) == 5
    (tmp_path / "config.yaml").write_text((Path(__file__).parent.parent / "docs" / "config.yaml").read_text())
    # The run that the guide's last command goes on with.
    folder = tmp_path / "outputs" / "experiment"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "last.ckpt").touch()
    save_config(load_config("resume"), folder / "config.yaml")
    monkeypatch.chdir(tmp_path)
    for command in commands:
        arguments = command.replace("\\\n", " ").split()
        assert train.main([*arguments, "--dry-run"]) == 0, command
        printed = build_config(yaml.safe_load(capsys.readouterr().out))
        named = load_config(arguments[1]).model_copy(update={"out_dir": printed.out_dir})
        assert printed == named, command
