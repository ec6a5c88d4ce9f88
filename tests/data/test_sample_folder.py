import json
import multiprocessing
import time
from pathlib import Path

import pytest

from phenoscape_tune.data.sample_folder import MARKER, write_sample_folder
from phenoscape_tune.errors import UserError

SPECIES = ("aglais", "vanessa")


def settings(per_class: int = 2) -> dict[str, int | str]:
    return {"version": 1, "per_class": per_class}


def write_two_files(path: Path, species: int, number: int) -> None:
    path.with_suffix(".hdr").write_text(f"{species} {number}")
    path.with_suffix(".bil").write_text(f"{species} {number}")


def refuse(path: Path, species: int, number: int) -> None:
    raise AssertionError("a specimen was drawn again")


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_folder_holds_each_species_and_nothing_beside_it(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    folder = write_sample_folder(
        tmp_path / "s", settings(), SPECIES, (".hdr", ".bil"), write_two_files, lambda *done: told.append(done)
    )
    expected = [f"{name}/{name}_00{n}{suffix}" for name in SPECIES for n in (0, 1) for suffix in (".bil", ".hdr")]
    assert names(folder) == [MARKER, *expected]
    assert json.loads((folder / MARKER).read_text()) == settings()
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_a_complete_one_is_left_and_one_that_lacks_a_file_is_written_anew(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    write_sample_folder(folder, settings(), SPECIES, (".hdr", ".bil"), write_two_files)
    write_sample_folder(folder, settings(), SPECIES, (".hdr", ".bil"), refuse)
    (folder / "vanessa" / "vanessa_001.bil").unlink()
    with pytest.raises(AssertionError, match="drawn again"):
        write_sample_folder(folder, settings(), SPECIES, (".hdr", ".bil"), refuse)
    assert len(names(folder)) == 8, "an interrupted rewrite must leave the earlier sample as it was"
    write_sample_folder(folder, settings(), SPECIES, (".hdr", ".bil"), write_two_files)
    assert len(names(folder)) == 9
    write_sample_folder(folder, settings(per_class=1), SPECIES, (".hdr", ".bil"), write_two_files)
    assert len(names(folder)) == 5
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_somebodys_images_are_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "wren.tif").write_bytes(b"mine")
    with pytest.raises(UserError, match="no generated sample"):
        write_sample_folder(tmp_path / "mine", settings(), SPECIES, (".hdr", ".bil"), write_two_files)
    assert names(tmp_path) == ["mine/wren.tif"]


def test_one_that_another_process_finished_meanwhile_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "s"

    def write_last(path: Path, species: int, number: int) -> None:
        write_two_files(path, species, number)
        if path.name == "vanessa_001":
            with monkeypatch.context() as other:
                other.setattr("os.getpid", lambda: 1)
                write_sample_folder(folder, settings(), SPECIES, (".hdr", ".bil"), write_two_files)
            finished.append((folder / MARKER).stat().st_ino)

    finished: list[int] = []
    write_sample_folder(folder, settings(), SPECIES, (".hdr", ".bil"), write_last)
    assert finished == [(folder / MARKER).stat().st_ino]
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def _write_when_told(folder: str, start: float) -> None:
    time.sleep(max(0.0, start - time.time()))
    write_sample_folder(Path(folder), settings(per_class=40), SPECIES, (".hdr", ".bil"), write_two_files)


def test_two_processes_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    for attempt in range(5):
        arguments = (str(tmp_path / f"s{attempt}"), time.time() + 0.05)
        processes = [context.Process(target=_write_when_told, args=arguments) for _ in range(2)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(30)
        assert [process.exitcode for process in processes] == [0, 0]
        assert len(names(tmp_path / f"s{attempt}")) == 161
    assert len(list(tmp_path.iterdir())) == 5
