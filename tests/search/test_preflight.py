from __future__ import annotations

import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from PIL import Image

from phenoscape_tune.config import TrainConfig, build_config
from phenoscape_tune.errors import UserError
from phenoscape_tune.search import preflight
from phenoscape_tune.search.cluster import Node, cluster_nodes
from phenoscape_tune.search.preflight import check_nodes, describe_machine, examine_machine, judge

NODES = [Node(letter, f"{letter}.lan", 4, 0) for letter in "abcde"]
SAME = {"versions": {"torch": "2.15.0", "numpy": "2.4.0", "source": "1a2b"}, "data": [72, "f00"], "data_dir": "/birds"}


@pytest.fixture
def config(birds: Path) -> TrainConfig:
    return build_config({"data_dir": str(birds)})


def answer(**changes: Any) -> dict[str, Any]:
    return {**SAME, "faults": [], "warnings": [], **changes}


def question(folder: Path, config: TrainConfig) -> dict[str, Any]:
    meeting = folder / "meeting"
    meeting.mkdir(parents=True)
    (meeting / "driver").write_text("once")
    return {"meeting": str(meeting), "nonce": "once", "config": config.to_mapping()}


def test_machines_that_are_alike_are_not_spoken_of() -> None:
    assert judge(NODES, ["a", "b"], SAME, {node.id: answer() for node in NODES}) == ([], [])


def test_all_faults_are_told_each_with_its_machines() -> None:
    answers = {node.id: answer() for node in NODES}
    answers["a"] = answer(versions={**SAME["versions"], "torch": "2.14.0"}, faults=["output folder: /out: no"])
    answers["b"] = answer(versions={**SAME["versions"], "torch": "2.14.0"}, data=[70, "ba5"])
    faults, warnings = judge(NODES, [node.id for node in NODES], SAME, answers)
    assert warnings == []
    assert [fault.split(":")[0] for fault in faults] == ["node a.lan", "node a.lan, b.lan", "node b.lan"]
    assert "torch is 2.14.0, 2.15.0 where the search was started" in faults[1]
    assert "70 images, here 72" in faults[2]


def test_the_machines_of_a_fault_are_counted_where_they_are_many() -> None:
    faults, _ = judge(NODES, [node.id for node in NODES], SAME, {node.id: answer(faults=["x"]) for node in NODES})
    assert faults == ["node a.lan, b.lan, c.lan and 2 more: x"]


def test_what_a_machine_without_trials_lacks_is_a_warning() -> None:
    answers = {"a": answer(faults=["x"]), "b": answer()}
    assert judge(NODES[:2], ["b"], SAME, answers) == ([], ["node a.lan: x"])


@pytest.mark.parametrize(
    ("versions", "refused"),
    [
        ({"source": "1a2b-dirty"}, True),
        ({"source": None}, False),  # no git there: nothing is known
        ({"numpy": "2.3.0"}, False),
        ({"torch": None}, True),
    ],
)
def test_which_versions_must_be_the_same(versions: dict[str, str | None], refused: bool) -> None:
    known = {key: value for key, value in {**SAME["versions"], **versions}.items() if value is not None}
    faults, _ = judge(NODES[:1], ["a"], SAME, {"a": answer(versions=known)})
    assert bool(faults) == refused


def test_images_are_compared_by_their_names_and_sizes(birds: Path, config: TrainConfig, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(birds, copy)
    other = config.model_copy(update={"data_dir": str(copy)})
    same = describe_machine(config)
    assert describe_machine(other)["data"] == same["data"]
    Image.new("RGB", (9, 9)).save(copy / "crow" / "00.jpg")
    assert describe_machine(other)["data"][0] == same["data"][0]
    assert describe_machine(other)["data"] != same["data"]


def test_a_folder_of_the_same_name_is_not_the_same_folder(config: TrainConfig, tmp_path: Path) -> None:
    asked = question(tmp_path, config)
    assert examine_machine(asked, "a")["faults"] == []
    assert (tmp_path / "meeting" / "a").read_text() == "once"
    (tmp_path / "meeting" / "driver").write_text("another search's")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preflight, "SEEN_SECONDS", 0.1)
        [fault] = examine_machine(asked, "a")["faults"]
    assert fault.startswith(f"output folder: {tmp_path}: is not the folder of that name")


def test_the_scratch_folder_is_the_machines_own(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = question(tmp_path, config)
    monkeypatch.setenv("PHENOSCAPE_CACHE", str(tmp_path / "there"))
    assert examine_machine(asked, "a")["faults"] == []
    assert (tmp_path / "there").is_dir()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PHENOSCAPE_CACHE", str(tmp_path / "file"))
    [fault] = examine_machine(asked, "a")["faults"]
    assert fault.startswith(f"cache_dir: {tmp_path / 'file'} cannot be written")
    named = {**asked, "config": {**asked["config"], "cache_dir": str(tmp_path / "file" / "deeper")}}
    [fault] = examine_machine(named, "a")["faults"]
    assert str(tmp_path / "file" / "deeper") in fault


def test_a_machine_without_the_images_says_so(tmp_path: Path) -> None:
    gone = build_config({"data_dir": str(tmp_path / "gone")})
    found = examine_machine(question(tmp_path, gone), "a")
    assert "data_dir" in found["faults"][0] and str(tmp_path / "gone") in found["faults"][0]
    assert "torch" in found["versions"]


@pytest.mark.slow
def test_a_machine_that_fits_answers(ray_session: None, config: TrainConfig, tmp_path: Path) -> None:
    nodes = cluster_nodes()
    assert [node.cpus for node in nodes] == [2]
    found = check_nodes(nodes, [nodes[0].id], config, tmp_path / "not" / "yet")
    assert not [line for line in found.warnings if "MiB" not in line]
    assert list(tmp_path.iterdir()) == []  # nothing is left of it


@pytest.mark.slow
def test_a_machine_without_the_package_is_told_what_to_install(
    ray_session: None, config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Ray passes functions by the name of their module; this one's is known to this process alone.
    module = types.ModuleType("only_here")
    exec("def answer(question):\n    return question\n", module.__dict__)
    monkeypatch.setitem(sys.modules, "only_here", module)
    monkeypatch.setattr(preflight, "_answer", ray.remote(num_cpus=0, max_retries=0)(module.answer))
    nodes = cluster_nodes()
    with pytest.raises(UserError, match="cannot import phenoscape_tune .*only_here.*install it there in the"):
        check_nodes(nodes, [nodes[0].id], config, tmp_path)


@pytest.mark.slow
def test_a_machine_that_is_gone_is_a_fault(ray_session: None, config: TrainConfig, tmp_path: Path) -> None:
    [node] = cluster_nodes()
    gone = replace(node, id="e" * len(node.id), name="gone.lan")
    with pytest.raises(UserError, match="node gone.lan: could not be asked"):
        check_nodes([node, gone], [node.id, gone.id], config, tmp_path)
