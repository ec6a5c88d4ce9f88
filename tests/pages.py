"""The documents as a reader's browser understands them: headings, links, pictures, blocks and commands of a page."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parent.parent
# The log and the list of changes tell what was run and named then; their links still have to lead somewhere.
HISTORY = {"CHANGELOG.md", "docs/experiments.md"}
# First words that make of `code` in a sentence a command, where more words follow.
PROGRAMS = {
    "python3",
    *("python", "pip", "uv", "make", "source", "export", "bash", "sh", "cd", "git", "tail", "ssh", "apt-get"),
    *("tensorboard", "optuna-dashboard", "ray", "sbatch", "srun", "scontrol", "docker", "kubectl", "nvidia-smi"),
}
SHELL = {"bash", "sh", "console"}
_MARKDOWN = MarkdownIt("commonmark").enable("table")


@dataclass(frozen=True)
class Command:
    """A line that a reader is told to type.

    Attributes:
        text: the line without its comment, its spaces single and its continued lines joined.
        page: the page that tells it, from the project's root.
        comment: what stands behind `#`, of the line itself or of a line of comment at the head of its block.
    """

    text: str
    page: str
    comment: str = ""


def pages() -> list[str]:
    """All pages, from the project's root."""
    return [
        path.relative_to(ROOT).as_posix() for path in [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/**/*.md"))]
    ]


def tokens(page: str) -> list[Token]:
    """The parsed page, with what stands inside of lines after the line that holds it."""
    flat: list[Token] = []
    for token in _MARKDOWN.parse((ROOT / page).read_text(encoding="utf-8")):
        flat += [token, *(token.children or [])]
    return flat


def links(page: str) -> Iterator[str]:
    """Where links and pictures of a page lead, HTML's own included."""
    for token in tokens(page):
        if token.type in ("link_open", "image"):
            yield str(token.attrGet("href") or token.attrGet("src"))
        elif token.type in ("html_block", "html_inline"):
            yield from re.findall(r"""\b(?:href|src)=["']([^"']*)["']""", token.content)


def anchors(page: str) -> set[str]:
    """What `#...` may name in a page: its headings as GitHub turns them into anchors, and HTML's ids."""
    found: dict[str, int] = {}
    names: set[str] = set()
    parsed = tokens(page)
    for token, inside in pairwise(parsed):
        if token.type == "heading_open":
            words = "".join(part.content for part in inside.children or [] if part.type in ("text", "code_inline"))
            name = re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")
            names.add(f"{name}-{found[name]}" if name in found else name)
            found[name] = found.get(name, 0) + 1
        elif token.type in ("html_block", "html_inline"):
            names.update(re.findall(r"""\b(?:id|name)=["']([^"']+)["']""", token.content))
    return names


def blocks(page: str) -> Iterator[tuple[str, str]]:
    """Language and text of each block of code."""
    for token in tokens(page):
        if token.type in ("fence", "code_block"):
            yield token.info.strip(), token.content


def commands(page: str) -> Iterator[Command]:
    """Every command of a page: the lines of its shell blocks, and code in its sentences that begins with a program."""
    for language, text in blocks(page):
        if language in SHELL:
            yield from _typed(text, page)
    for token in tokens(page):
        if token.type == "code_inline" and _is_command(token.content):
            yield Command(" ".join(token.content.split()), page)


def _typed(block: str, page: str) -> Iterator[Command]:
    heading = ""
    for line in block.replace("\\\n", " ").splitlines():
        text, _, comment = (part.strip() for part in re.sub(r"(^|\s)#", "\n", line, count=1).partition("\n"))
        if text:
            yield Command(" ".join(text.removeprefix("$ ").split()), page, f"{heading} {comment}".strip())
        elif comment:
            heading = f"{heading} {comment}".strip()


def _is_command(code: str) -> bool:
    words = [word for word in code.split() if not re.fullmatch(r"[A-Z_]+=\S*", word)]
    return len(words) > 1 and words[0] in PROGRAMS
