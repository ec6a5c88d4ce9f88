from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from phenoscape_tune.data import decoding, unpacked
from phenoscape_tune.data.batches import Batches
from phenoscape_tune.data.images import Images
from phenoscape_tune.data.packed import pack
from phenoscape_tune.data.recipe import Recipe, Request
from phenoscape_tune.data.specimens import Specimens, find_specimens
from phenoscape_tune.data.squares import Square
from phenoscape_tune.data.unpacked import UnpackedPixels, open_unpacked
from phenoscape_tune.errors import UserError
from tests.data.test_packed import SQUARE, refuse_to_decode, write_images


def opened(cache: Path, specimens: Specimens, square: Square = SQUARE, **options: object) -> Images:
    settings = {"num_workers": 3, "keep_workers": True, "max_unreadable": 0.0} | options
    return open_unpacked(specimens, Request(square), cache, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_pixels_are_those_of_packed_images(tmp_path: Path, num_workers: int) -> None:
    specimens = write_images(tmp_path / "images")
    packed = pack(specimens, Request(SQUARE), tmp_path / "cache", num_workers=2, max_unreadable=0.0)
    found = opened(tmp_path / "cache", specimens, num_workers=num_workers)
    assert found.folder is None
    assert found.specimens.names == packed.specimens.names
    assert found.pixels.shape == packed.pixels.shape
    assert len(found.pixels) == 10
    chosen = np.array([7, 0, 3, 3])
    np.testing.assert_array_equal(found.pixels[chosen], packed.pixels[chosen])
    np.testing.assert_array_equal(found.pixels[4], packed.pixels[4])
    assert found.pixels[chosen].dtype == np.uint8
    assert found.pixels[chosen[:0]].shape == (0, 3, 16, 16)
    part = np.arange(9)
    for mine, other in zip(*(list(shuffled(one.pixels, part)) for one in (found, packed)), strict=True):
        assert torch.equal(mine, other)
    ordered = [list(Batches(one.pixels, 4, torch.device("cpu")).in_order(part)) for one in (found, packed)]
    assert [len(batch) for batch in ordered[0]] == [4, 4, 1]
    assert all(torch.equal(*pair) for pair in zip(*ordered, strict=True))


def shuffled(pixels: object, part: np.ndarray) -> object:
    return Batches(pixels, 4, torch.device("cpu")).shuffled(part, seed=1, epoch=1)  # type: ignore[arg-type]


def test_two_batches_are_decoded_ahead_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = UnpackedPixels(write_images(tmp_path / "images", 40), Recipe(SQUARE), num_workers=2)
    begun: list[str] = []
    decode = unpacked.decode
    monkeypatch.setattr(unpacked, "decode", lambda path, square: (begun.append(path.name), decode(path, square))[1])
    batches = pixels.in_batches([np.arange(start, start + 4) for start in range(0, 40, 4)])
    assert begun == []
    assert next(batches).shape == (4, 3, 16, 16)
    wait_for(lambda: len(begun) == 15)  # 4 taken, 8 that wait, and as many as were submitted while 4 were taken: 3
    batches.close()
    assert len(begun) <= 16


def wait_for(true: object, seconds: float = 10) -> None:
    waited = threading.Event()
    for _ in range(int(seconds * 100)):
        if true():  # type: ignore[operator]
            return
        waited.wait(0.01)
    raise AssertionError("did not come true")


@pytest.mark.parametrize("keep", [True, False])
def test_threads_stay_from_pass_to_pass_where_asked(tmp_path: Path, keep: bool) -> None:
    pixels = UnpackedPixels(write_images(tmp_path / "images"), Recipe(SQUARE), num_workers=2, keep_workers=keep)
    first = decoders()
    threads = []
    for _ in range(2):
        list(pixels.in_batches([np.arange(5), np.arange(5, 10)]))
        if not keep:
            wait_for(lambda: decoders() == first)
        threads.append(decoders() - first)
    assert threads[0] == threads[1]
    assert bool(threads[0]) == keep
    del pixels
    wait_for(lambda: decoders() == first)


def decoders() -> set[int | None]:
    return {thread.ident for thread in threading.enumerate() if thread.name.startswith("decode")}


def test_unreadable_images_are_found_once_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path / "images", 40)
    (tmp_path / "images" / "wren" / "02.png").write_bytes(b"")
    specimens = find_specimens(tmp_path / "images")
    notices: list[str] = []
    steps: list[tuple[int, int]] = []
    with pytest.raises(UserError, match=r"1 of 40 images .*02\.png: empty file"):
        opened(tmp_path / "cache", specimens, progress=lambda *step: steps.append(step))
    assert steps == [(done, 40) for done in range(1, 41)]
    monkeypatch.setattr(decoding, "read_picture", refuse_to_decode)
    found = opened(tmp_path / "cache", specimens, max_unreadable=0.05, notice=notices.append)
    assert found.unreadable == (("wren/02.png", "empty file (0 bytes)"),)
    assert len(found.pixels) == len(found.specimens.names) == 39
    assert "1 of 40 images" in notices[0]
    assert not list((tmp_path / "cache").glob("packed-*"))


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"unreadable": [1]}', '{"unreadable": 3}'])
def test_a_damaged_record_is_made_anew(tmp_path: Path, damage: str) -> None:
    specimens = write_images(tmp_path / "images")
    opened(tmp_path / "cache", specimens)
    (record,) = (tmp_path / "cache").glob("readable-*.json")
    record.write_text(damage)
    assert opened(tmp_path / "cache", specimens).unreadable == ()
    assert json.loads(record.read_text())["unreadable"] == []


def test_no_cache_folder_is_needed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert len(opened(tmp_path / "file" / "cache", write_images(tmp_path / "images")).pixels) == 10


def test_an_image_that_went_meanwhile_is_named(tmp_path: Path) -> None:
    specimens = write_images(tmp_path / "images")
    found = opened(tmp_path / "cache", specimens)
    (specimens.root / specimens.names[6]).unlink()
    with pytest.raises(UserError, match=rf"data_dir: .*{specimens.names[6]}: .*could be read when the run began"):
        found.pixels[np.arange(10)]
    np.testing.assert_array_equal(found.pixels[np.arange(5)].shape, (5, 3, 16, 16))


def test_nothing_readable_is_refused(tmp_path: Path) -> None:
    specimens = write_images(tmp_path / "images", 3)
    for name in specimens.names:
        (specimens.root / name).write_bytes(b"")
    with pytest.raises(UserError, match="none of the 3 images"):
        opened(tmp_path / "cache", specimens, max_unreadable=1.0)
