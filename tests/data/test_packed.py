import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import namedtuple
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import phenoscape_tune
from phenoscape_tune.data import decoding, packed, packing, survey
from phenoscape_tune.data.images import Images
from phenoscape_tune.data.packed import default_cache_dir, pack
from phenoscape_tune.data.pictures import read_image
from phenoscape_tune.data.recipe import Request
from phenoscape_tune.data.specimens import Specimens, find_specimens
from phenoscape_tune.data.squares import Square, fit
from phenoscape_tune.errors import UserError

SQUARE = Square(size=16, resize="pad", background=(9, 99, 199))


def write_images(root: Path, count: int = 10) -> Specimens:
    rng = np.random.default_rng(0)
    for index in range(count):
        folder = root / ("finch" if index % 2 else "wren")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (30, 20 + index, 3), dtype=np.uint8)).save(folder / f"{index:02d}.png")
    return find_specimens(root)


def pack_into(cache: Path, specimens: Specimens, square: Square = SQUARE, **options: object) -> Images:
    return pack(specimens, Request(square), cache, **({"num_workers": 3, "max_unreadable": 0.0} | options))  # type: ignore[arg-type]


def refuse_to_decode(*arguments: object, **options: object) -> None:
    raise AssertionError("an image was decoded again")


def test_packed_images_are_the_fitted_ones_in_order(tmp_path: Path) -> None:
    specimens = write_images(tmp_path / "images")
    steps: list[tuple[int, int]] = []
    found = pack_into(tmp_path / "cache", specimens, progress=lambda *step: steps.append(step))
    expected = [
        fit(read_image(specimens.root / name, SQUARE.background), 16, "pad", SQUARE.background)
        for name in specimens.names
    ]
    np.testing.assert_array_equal(found.pixels, np.stack(expected))
    assert found.pixels.dtype == np.uint8
    assert isinstance(found.pixels, np.memmap)
    assert not found.pixels.flags.writeable
    assert found.specimens.names == specimens.names
    assert found.unreadable == ()
    assert steps == [(done, 10) for done in range(1, 11)]


def test_second_call_builds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    specimens = write_images(tmp_path / "images")
    first = pack_into(tmp_path / "cache", specimens)
    before = (first.folder / "images.npy").stat()
    monkeypatch.setattr(decoding, "read_picture", refuse_to_decode)
    second = pack_into(tmp_path / "cache", specimens)
    after = (second.folder / "images.npy").stat()
    assert second.folder == first.folder
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    np.testing.assert_array_equal(second.pixels, first.pixels)


def test_labels_and_groups_cost_no_rebuild(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    specimens = write_images(tmp_path / "images")
    pack_into(tmp_path / "cache", specimens)
    monkeypatch.setattr(decoding, "read_picture", refuse_to_decode)
    table = tmp_path / "labels.csv"
    rows = [f"{name},{'odd' if index % 3 else 'even'},g{index // 2}" for index, name in enumerate(specimens.names)]
    table.write_text("\n".join(["filename,label,group", *rows]))
    found = pack_into(tmp_path / "cache", find_specimens(tmp_path / "images", table))
    assert found.specimens.classes == ("even", "odd")
    assert found.specimens.groups[:3] == ("g0", "g0", "g1")


@pytest.mark.parametrize("change", ["square", "time", "size", "removed", "order"])
def test_whatever_changes_the_pixels_is_packed_anew(tmp_path: Path, change: str) -> None:
    specimens, square = write_images(tmp_path / "images"), SQUARE
    first = pack_into(tmp_path / "cache", specimens)
    name = specimens.root / specimens.names[3]
    if change == "square":
        square = Square(16, "crop", SQUARE.background)
    elif change == "time":
        os.utime(name, ns=(1, 1))
    elif change == "size":
        stamp = name.stat().st_mtime_ns
        Image.new("RGB", (50, 50)).save(name)
        os.utime(name, ns=(stamp, stamp))
    elif change == "removed":
        name.unlink()
        specimens = find_specimens(tmp_path / "images")
    else:
        specimens = specimens.keep(range(9, -1, -1))
    second = pack_into(tmp_path / "cache", specimens, square)
    assert second.folder != first.folder
    if change == "order":
        np.testing.assert_array_equal(second.pixels, first.pixels[::-1])


def test_unreadable_images_are_left_out_and_the_share_is_judged_at_each_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path / "images", 40)
    (tmp_path / "images" / "wren" / "02.png").write_bytes(b"")
    (tmp_path / "images" / "wren" / "04.png").write_bytes(b"words")
    specimens = find_specimens(tmp_path / "images")
    with pytest.raises(UserError, match=r"2 of 40 images .*\(5\.0%; max_unreadable: 0\.04 .*02\.png: empty file"):
        pack_into(tmp_path / "cache", specimens, max_unreadable=0.04)

    monkeypatch.setattr(decoding, "read_picture", refuse_to_decode)
    notices: list[str] = []
    found = pack_into(tmp_path / "cache", specimens, max_unreadable=0.05, notice=notices.append)
    assert found.unreadable == (
        ("wren/02.png", "empty file (0 bytes)"),
        ("wren/04.png", "not an image of a known kind"),
    )
    assert found.pixels.shape == (38, 3, 16, 16)
    assert len(found.specimens.names) == 38
    assert found.specimens.labels is not None
    assert np.bincount(found.specimens.labels).tolist() == [20, 18]
    position = found.specimens.names.index("wren/06.png")
    whole = read_image(specimens.root / "wren/06.png", SQUARE.background)
    np.testing.assert_array_equal(found.pixels[position], fit(whole, 16, "pad", SQUARE.background))
    assert len(notices) == 1
    assert "2 of 40 images" in notices[0]
    assert "wren/04.png: not an image" in notices[0]
    assert "\n" not in notices[0]


def test_at_most_ten_unreadable_names_are_listed(tmp_path: Path) -> None:
    specimens = write_images(tmp_path / "images", 24)
    for name in specimens.names[:12]:
        (specimens.root / name).write_bytes(b"")
    with pytest.raises(UserError, match="and 2 more") as caught:
        pack_into(tmp_path / "cache", specimens, max_unreadable=0.1)
    assert str(caught.value).count("empty file") == 10


def test_no_readable_image_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    specimens = write_images(tmp_path / "images", 3)
    for name in specimens.names:
        (specimens.root / name).write_bytes(b"")
    with pytest.raises(UserError, match="none of the 3 images"):
        pack_into(tmp_path / "cache", specimens, max_unreadable=1.0)
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]


def test_too_little_disk_space_is_told_before_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    specimens = write_images(tmp_path / "images")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(packing.shutil, "disk_usage", lambda path: usage(10_000, 5_000, 5_000))
    monkeypatch.setattr(decoding, "read_picture", refuse_to_decode)
    with pytest.raises(UserError, match=r"cache_dir: .*cache has 5,000 bytes free; .*need 7,680"):
        pack_into(tmp_path / "cache", specimens)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_disk_that_fills_up_meanwhile_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    specimens = write_images(tmp_path / "images")
    with Path("/dev/full").open("wb") as full:
        monkeypatch.setattr(packing, "_flush", lambda file: os.write(full.fileno(), b"x"))
        with pytest.raises(UserError, match=r"cache_dir: .* has no space left"):
            pack_into(tmp_path / "cache", specimens)
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]


def test_unwritable_cache_names_the_key(tmp_path: Path) -> None:
    specimens = write_images(tmp_path / "images")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cache_dir: .*file/cache cannot be written"):
        pack_into(tmp_path / "file" / "cache", specimens)


@pytest.mark.parametrize("damage", ["short array", "no index", "torn index", "other version", "code in it"])
def test_damaged_packed_folder_is_built_again(tmp_path: Path, damage: str) -> None:
    specimens = write_images(tmp_path / "images")
    first = pack_into(tmp_path / "cache", specimens)
    expected = np.array(first.pixels)
    index = first.folder / "index.json"
    if damage == "short array":
        os.truncate(first.folder / "images.npy", 500)
    elif damage == "no index":
        index.unlink()
    elif damage == "torn index":
        os.truncate(index, 40)
    elif damage == "code in it":  # as a stranger may place it in a cache that all share

        class Touch:
            def __reduce__(self) -> tuple[object, tuple[Path]]:
                return Path.touch, (tmp_path / "executed",)

        np.save(first.folder / "images.npy", np.array([Touch()] * len(expected), dtype=object), allow_pickle=True)
    else:
        index.write_text(json.dumps(json.loads(index.read_text()) | {"version": -1}))
    np.testing.assert_array_equal(pack_into(tmp_path / "cache", specimens).pixels, expected)
    assert not (tmp_path / "executed").exists()


CHILD = """
import hashlib, sys, time
from pathlib import Path
from phenoscape_tune.data.recipe import Request
from phenoscape_tune.data.squares import Square, fit
from phenoscape_tune.data.packed import pack
from phenoscape_tune.data.specimens import find_specimens
images, cache, own, awaited, pause = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4], sys.argv[5]
steps = []
def progress(done, total):
    steps.append(done)
    if done == 5 and not awaited:
        own.touch()
    time.sleep(float(pause))
if awaited:
    own.touch()
    while not Path(awaited).exists():
        time.sleep(0.002)
found = pack(find_specimens(images), Request(Square(16, "pad", (9, 99, 199))), cache, num_workers=2, max_unreadable=0.0,
             progress=progress)
print(len(steps), hashlib.sha256(found.pixels.tobytes()).hexdigest())
assert not {"torch", "ray"} & set(sys.modules)
"""


def start_child(*arguments: object) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(Path(phenoscape_tune.__file__).parents[1])}
    command = [sys.executable, "-c", CHILD, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def test_two_processes_build_once_and_agree(tmp_path: Path) -> None:
    write_images(tmp_path / "images")
    flags = tmp_path / "first", tmp_path / "second"
    children = [
        start_child(tmp_path / "images", tmp_path / "cache", own, other, 0.05)
        for own, other in (flags, flags[::-1])
    ]  # fmt: skip
    answers = [child.communicate(timeout=60)[0].split() for child in children]
    assert [child.returncode for child in children] == [0, 0]
    assert sorted(int(steps) for steps, _ in answers) == [0, 10]
    assert answers[0][1] == answers[1][1]


def test_killed_build_is_repaired_by_the_next(tmp_path: Path) -> None:
    specimens = write_images(tmp_path / "images")
    child = start_child(tmp_path / "images", tmp_path / "cache", tmp_path / "begun", "", 0.2)
    deadline = time.monotonic() + 60
    while not (tmp_path / "begun").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    child.communicate(timeout=60)
    assert child.returncode == -signal.SIGKILL
    leftovers = list((tmp_path / "cache").glob(".building-*"))
    assert len(leftovers) == 1
    assert not list((tmp_path / "cache").glob("packed-*/"))

    found = pack_into(tmp_path / "cache", specimens)
    assert not leftovers[0].exists()
    np.testing.assert_array_equal(found.pixels, pack_into(tmp_path / "other", specimens).pixels)


def test_leftovers_of_other_dead_builds_go_and_those_of_living_ones_stay(tmp_path: Path) -> None:
    specimens = write_images(tmp_path / "images")
    cache = tmp_path / "cache"
    dead, living = cache / ".building-packed-0000000000000000-77", cache / ".building-packed-1111111111111111-78"
    for leftover in (dead, living):
        leftover.mkdir(parents=True)
    with packing._lock(cache / "packed-1111111111111111"):
        pack_into(cache, specimens)
    assert not dead.exists()
    assert living.exists()


def test_images_that_are_packed_are_not_looked_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # All are smaller than what is asked for, which only all their headers tell; the index remembers.
    specimens, square = write_images(tmp_path / "images"), Square(146, "pad", SQUARE.background)
    assert pack_into(tmp_path / "cache", specimens, square).pixels.shape == (10, 3, 30, 30)

    def refuse(path: Path) -> None:
        raise AssertionError(f"{path} was looked into")

    monkeypatch.setattr(survey, "image_size", refuse)
    monkeypatch.setattr(decoding, "read_picture", refuse)
    assert pack_into(tmp_path / "cache", specimens, square).pixels.shape == (10, 3, 30, 30)


def test_the_key_is_that_of_earlier_versions(tmp_path: Path) -> None:
    # What is packed already stays in use: the key's text is JSON, however it is written.
    specimens = write_images(tmp_path / "images", 2)
    names = ('finch/\u00e9"\\\udce9.png', *specimens.names)
    digest = hashlib.sha256()
    header = [packing.FORMAT_VERSION, str(specimens.root.resolve()), asdict(Request(SQUARE))]
    digest.update(json.dumps(header, sort_keys=True).encode())
    for name in names:
        path = specimens.root / name
        size, time_ns = (path.stat().st_size, path.stat().st_mtime_ns) if path.exists() else (-1, -1)
        digest.update(json.dumps([name, path.name, size, time_ns, path.exists()]).encode())
    expected = digest.hexdigest()[:16]
    assert packing.key_of(replace(specimens, names=names), Request(SQUARE)) == expected


def test_a_file_that_may_not_be_read_is_packed_anew_once_it_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    specimens = write_images(tmp_path / "images")
    shut = specimens.root / specimens.names[3]
    key = packing.key_of(specimens, Request(SQUARE))
    shut.chmod(0o600)
    assert packing.key_of(specimens, Request(SQUARE)) == key
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != shut)  # root may read everything
    assert packing.key_of(specimens, Request(SQUARE)) != key
    shut.chmod(0o644)
    assert packing.key_of(specimens, Request(SQUARE)) == key


def test_default_cache_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PHENOSCAPE_CACHE", str(tmp_path / "mine"))
    assert default_cache_dir() == tmp_path / "mine"
    monkeypatch.delenv("PHENOSCAPE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache_dir() == tmp_path / "xdg" / "phenoscape_tune"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / ".cache" / "phenoscape_tune"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    monkeypatch.setattr(packed.tempfile, "gettempdir", lambda: str(tmp_path))
    assert default_cache_dir().parent == tmp_path
    assert default_cache_dir().name.startswith("phenoscape_tune-")
