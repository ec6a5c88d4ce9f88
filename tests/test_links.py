"""Every link of the documents leads somewhere, and every page and picture is led to."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from pages import ROOT, anchors, links, pages

MOST_BYTES = 250_000  # of a picture: a clone has them all


def fault(page: str, link: str) -> str | None:
    """What is wrong with a link of a page, if anything."""
    parts = urlsplit(link)
    if parts.scheme:
        # Whether others' pages still stand is not asked: the tests need no network.
        host = parts.hostname or ""
        fine = parts.scheme in ("http", "https") and "." in host and not any(map(str.isspace, link))
        return None if fine else "is no web address"
    place = (ROOT / page).parent / unquote(parts.path) if parts.path else ROOT / page
    if not place.resolve().is_relative_to(ROOT):
        return "leads out of the project"
    if not _is_spelt(place.resolve()):
        return "there is no such file"
    if parts.fragment and unquote(parts.fragment) not in anchors(place.resolve().relative_to(ROOT).as_posix()):
        return f"{place.name} has no heading of that name; it has {', '.join(sorted(anchors(page)))}"
    return None


def _is_spelt(place: Path) -> bool:
    """Whether a file is there, spelt the same: some file systems are not particular, others are."""
    return place == ROOT or (place.exists() and place.name in {path.name for path in place.parent.iterdir()})


@pytest.mark.parametrize("page", pages())
def test_links_lead_somewhere(page: str) -> None:
    wrong = [f"{link}: {told}" for link in links(page) if (told := fault(page, link))]
    assert not wrong, f"{page}: " + "; ".join(wrong)


@pytest.mark.parametrize(
    ("link", "told"),
    [
        ("docs/gone.md", "no such file"),
        ("Docs/cluster.md", "no such file"),
        ("docs/cluster.md#gone", "no heading"),
        ("#gone", "no heading"),
        ("../outside.md", "out of the project"),
        ("htps://example.org", "no web address"),
        ("https://example", "no web address"),
        ("docs/cluster.md#what-was-run-here-and-what-was-not", None),
        ("https://arxiv.org/abs/2002.05709", None),
    ],
)
def test_a_wrong_link_is_found(link: str, told: str | None) -> None:
    found = fault("README.md", link)
    assert found is None if told is None else told in (found or "")


def test_every_page_and_picture_is_led_to() -> None:
    led_to = {
        ((ROOT / page).parent / unquote(urlsplit(link).path)).resolve()
        for page in pages()
        for link in links(page)
        if not urlsplit(link).scheme
    }
    for page in pages():
        if page.startswith("docs/"):
            assert ROOT / page in led_to, f"no page leads to {page}"
    for picture in (ROOT / "docs" / "pictures").iterdir():
        assert picture in led_to, f"no page shows {picture.name}"
        assert picture.stat().st_size <= MOST_BYTES, f"{picture.name} has more than {MOST_BYTES} bytes"


def test_the_readme_and_the_index_name_every_page() -> None:
    index = {link.partition("#")[0] for link in links("docs/README.md")}
    for page in pages():
        if page.startswith("docs/") and page != "docs/README.md":
            assert page.removeprefix("docs/") in index, f"docs/README.md does not name {page}"
    assert "docs/README.md" in set(links("README.md"))
