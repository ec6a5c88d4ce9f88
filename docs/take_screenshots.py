"""Take the pictures of the documents: a search's report.html and the tabs of TensorBoard, by headless Chromium.

python docs/take_screenshots.py outputs/demo docs/pictures --only report
python docs/take_screenshots.py outputs/birds docs/pictures --only tensorboard
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, ImageChops

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
MOST_BYTES = 200_000
MARGIN = 24  # px below the content of a trimmed picture
TENSORBOARD_SECONDS = 90.0
# Address, width and height (px) of each tab. Without the smoothing that TensorBoard begins with, which draws lines that
# were not measured; with all runs, of which it shows none at first where there are more than 40.
TABS = {
    "timeseries": ("?smoothing=0#timeseries", 1280, 900),
    "custom_scalars": ("#custom_scalars&_smoothingWeight=0&runSelectionState={runs}", 1920, 900),
    "hparams": ("#hparams", 1920, 900),
    "images": ("#images&runSelectionState={runs}", 1280, 900),
    "text": ("#text&runSelectionState={runs}", 1280, 660),
}
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    # Where there is WebGL 2, lines are drawn in a thread of their own, which the browser's virtual time does not await.
    *("--disable-webgl2", "--virtual-time-budget=60000"),
)
# What a screenshot shows of the page: its head with the result, one stage, the confirmation.
HEAD = "<style>header nav, section:not(#result), #result > pre ~ * { display: none }</style></body>"
ONE_STAGE = "<style>body > header, .stage:not(#{stage}), h2, section:not(#stages), .stage details,"
ONE_STAGE += " .stage details ~ * {{ display: none }}</style></body>"
CONFIRMATION = (
    "<style>body > header, section:not(#result), #result > :not(#confirmation):not(#confirmation ~ *)"
    ", #confirmation ~ h3, #confirmation ~ details { display: none }</style></body>"
)


class Failure(Exception):
    """Why no pictures could be taken; shown without a traceback."""


def find_browser() -> str:
    """The path of Chromium. Raises Failure where there is none."""
    for name in BROWSERS:
        if path := shutil.which(name):
            return path
    raise Failure(f"no Chromium here (looked for {', '.join(BROWSERS)}); install it, or take the pictures by hand")


def take(browser: str, url: str, size: tuple[int, int], picture: Path, trim: bool = False) -> None:
    """Write what a window of `size` shows of a page as a small PNG; with `trim` without the white below its content."""
    with tempfile.TemporaryDirectory(prefix="screenshots-") as scratch:
        raw = Path(scratch) / "raw.png"
        command = [browser, *FLAGS, f"--user-data-dir={scratch}/profile", f"--window-size={size[0]},{size[1]}"]
        ended = subprocess.run([*command, f"--screenshot={raw}", url], capture_output=True, timeout=300, check=False)
        if not raw.is_file():
            last = ended.stderr.decode(errors="replace").strip().splitlines()[-1:]
            raise Failure(f"{browser} took no picture of {url}: {''.join(last)}")
        picture.write_bytes(shrink(raw.read_bytes(), trim))
    print(f"{picture}: {picture.stat().st_size // 1000} kB")


def shrink(png: bytes, trim: bool) -> bytes:
    """A PNG of at most MOST_BYTES: of fewer colours, and if need be smaller."""
    image = Image.open(io.BytesIO(png)).convert("RGB")
    if trim and (content := ImageChops.invert(image).getbbox()):
        image = image.crop((0, 0, image.width, min(content[3] + MARGIN, image.height)))
    while True:
        for colours in (256, 128, 64, 32):
            file = io.BytesIO()
            image.quantize(colours, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
            if file.tell() <= MOST_BYTES:
                return file.getvalue()
        image = image.resize((image.width * 4 // 5, image.height * 4 // 5), Image.Resampling.LANCZOS)


@contextmanager
def tensorboard(folder: Path) -> Iterator[str]:
    """A TensorBoard of a search's folder, by its address; ended on leaving. Raises Failure where it does not answer."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--host", "127.0.0.1"]
    server = subprocess.Popen(
        [*command, "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL
    )
    try:
        address = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + TENSORBOARD_SECONDS
        while not _answers(f"{address}/data/runs"):
            if server.poll() is not None or time.monotonic() > deadline:
                raise Failure(f"TensorBoard did not answer at {address}; try: {' '.join(command)}")
            time.sleep(0.5)
        yield address
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _answers(url: str) -> bool:
    """Whether TensorBoard answers, and has read its first runs."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.read().strip() != b"[]")
    except (urllib.error.URLError, OSError):
        return False


def take_report(browser: str, folder: Path, pictures: Path) -> None:
    """The head of a search's report: what came out. Raises Failure where there is no report."""
    _take_part(browser, folder, HEAD, pictures / "report.png")


def take_stages(browser: str, folder: Path, pictures: Path) -> None:
    """A picture of each stage of a search's report, and of what its confirmation says."""
    numbers = [int(number) for number in re.findall(r'id="stage-(\d+)"', _report(folder)) if int(number)]
    shown = {f"stage_{number}": ONE_STAGE.format(stage=f"stage-{number}") for number in numbers}
    shown["stage_confirmation"] = CONFIRMATION
    for name, style in shown.items():
        _take_part(browser, folder, style, pictures / f"{name}.png")


def take_tensorboard(browser: str, folder: Path, pictures: Path, width: int | None = None) -> None:
    """TensorBoard's tabs of a search, each at its own width or at the one given (px)."""
    with tensorboard(folder) as address:
        with urllib.request.urlopen(f"{address}/data/runs", timeout=30) as answer:
            shown = json.dumps(dict.fromkeys(json.loads(answer.read()), True))
        runs = base64.b64encode(shown.encode()).decode()
        for tab, (place, wide, high) in TABS.items():
            picture = pictures / f"tensorboard_{tab}.png"
            take(browser, f"{address}/{place.format(runs=runs)}", (width or wide, high), picture)


def _take_part(browser: str, folder: Path, style: str, picture: Path) -> None:
    """What a style leaves to be seen of a search's report."""
    head, _, tail = _report(folder).rpartition("</body>")
    with tempfile.TemporaryDirectory(prefix="screenshots-") as scratch:
        part = Path(scratch) / "part.html"
        part.write_text(head + style + tail, encoding="utf-8")
        take(browser, part.as_uri(), (1280, 900), picture, trim=True)


def _report(folder: Path) -> str:
    """A search's report."""
    report = folder / "report.html"
    if not report.is_file():
        raise Failure(f"{folder}: holds no report.html; give the folder of a finished search")
    return report.read_text(encoding="utf-8")


KINDS = ("report", "stages", "tensorboard")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(description="Take pictures of a search's report and of TensorBoard.")
    parser.add_argument("search", type=Path, help="folder of a finished search")
    parser.add_argument("pictures", type=Path, help="folder to write to")
    parser.add_argument("--only", choices=KINDS, help="what to take pictures of (default: all)")
    parser.add_argument("--width", type=int, help="of TensorBoard's pictures, in pixels (default: each tab's own)")
    args = parser.parse_args(argv)
    try:
        browser = find_browser()
        args.pictures.mkdir(parents=True, exist_ok=True)
        for kind in (args.only,) if args.only else KINDS:
            if kind == "report":
                take_report(browser, args.search, args.pictures)
            elif kind == "stages":
                take_stages(browser, args.search, args.pictures)
            else:
                take_tensorboard(browser, args.search, args.pictures, args.width)
    except Failure as failure:
        print(f"error: {failure}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
