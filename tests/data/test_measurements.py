from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from phenoscape_tune.data.layout import UnreadableImage
from phenoscape_tune.data.measurements import laplacian_variance, measure_image, measure_images
from phenoscape_tune.data.recipe import Recipe
from phenoscape_tune.data.sample import draw_specimen
from phenoscape_tune.data.specimens import find_specimens
from phenoscape_tune.data.squares import Square

GREY = Recipe(Square(32, "pad", (128, 128, 128)))
PICTURE = Image.fromarray(draw_specimen(0, 96, np.random.default_rng(1)))


def test_the_same_pixels_in_another_format_have_the_same_digest(tmp_path: Path) -> None:
    for name in ("a.png", "b.bmp", "c.jpg"):
        PICTURE.save(tmp_path / name)
    (tmp_path / "d.png").write_bytes((tmp_path / "a.png").read_bytes())
    a, b, c, d = (measure_image(tmp_path / name, 64, GREY) for name in ("a.png", "b.bmp", "c.jpg", "d.png"))
    assert a.pixel_digest == b.pixel_digest == d.pixel_digest != c.pixel_digest
    assert a.file_digest == d.file_digest != b.file_digest
    assert a.size == (96, 96)
    assert a.thumbnail.shape == (16, 16, 3)


def test_black_images_of_different_size_are_different(tmp_path: Path) -> None:
    for name, size in (("a.png", (40, 20)), ("b.png", (20, 40))):
        Image.new("RGB", size).save(tmp_path / name)
    a, b = (measure_image(tmp_path / name, 16, GREY) for name in ("a.png", "b.png"))
    assert a.pixel_digest != b.pixel_digest
    assert a.spread == 0


def test_blur_lowers_the_variance_and_enlarging_does_not_raise_it() -> None:
    blurred = [laplacian_variance(PICTURE.filter(ImageFilter.GaussianBlur(radius)), 96) for radius in (0, 1, 2, 4)]
    assert blurred == sorted(blurred, reverse=True)
    assert blurred[0] > 10 * blurred[2]
    larger = PICTURE.resize((768, 768), Image.Resampling.BICUBIC)
    assert laplacian_variance(larger, 96) == pytest.approx(blurred[0], rel=0.5)
    assert np.isnan(laplacian_variance(Image.new("RGB", (2, 50)), 96))


def test_the_laplacian_is_that_of_scipy() -> None:
    from scipy.ndimage import laplace

    grey = np.asarray(PICTURE.convert("L"), dtype=np.float64)
    assert laplacian_variance(PICTURE, 96) == pytest.approx(laplace(grey)[1:-1, 1:-1].var(), rel=1e-5)


def test_channel_statistics_count_images_alike(tmp_path: Path) -> None:
    Image.new("RGB", (10, 10), (255, 0, 51)).save(tmp_path / "a.png")
    Image.new("RGB", (90, 70), (0, 0, 102)).save(tmp_path / "b.png")
    measured = measure_images(find_specimens(tmp_path), 32, GREY, 2)
    assert measured.moments == pytest.approx(np.array([[0.5, 0, 0.3], [0.5, 0, 0.1], [0, 0, 0.2], [1, 0, 0.4]]))
    assert measured.sizes.tolist() == [[10, 10], [90, 70]]


def test_odd_files_are_measured_or_listed_with_a_reason(tmp_path: Path) -> None:
    PICTURE.save(tmp_path / "a.jpg")
    whole = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.jpg").write_text("no image at all\n")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    PICTURE.convert("CMYK").save(tmp_path / "cmyk.jpg")
    Image.fromarray(np.asarray(PICTURE.convert("L")).astype(np.uint16) * 257).save(tmp_path / "deep.png")
    Image.new("RGB", (1, 1), (9, 9, 9)).save(tmp_path / "dot.png")
    done: list[tuple[int, int]] = []
    measured = measure_images(find_specimens(tmp_path), 32, GREY, 3, lambda *told: done.append(told))
    assert measured.specimens.names == ("a.jpg", "cmyk.jpg", "deep.png", "dot.png")
    reasons = dict(measured.unreadable)
    assert set(reasons) == {"cut.jpg", "text.jpg", "empty.png", "gone.png"}
    assert reasons["text.jpg"] == "not an image of a known kind"
    assert reasons["empty.png"] == "empty file (0 bytes)"
    assert all(reasons.values())
    assert np.isnan(measured.sharpness[3])
    assert done[-1] == (8, 8)
    assert sorted(done) == done


def test_nothing_readable_is_no_fault_here(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no image at all\n")
    measured = measure_images(find_specimens(tmp_path), 32, GREY, 1)
    assert measured.specimens.names == ()
    assert measured.thumbnails.shape == (0, 16, 16, 3)
    with pytest.raises(UnreadableImage):
        measure_image(tmp_path / "text.jpg", 32, GREY)
