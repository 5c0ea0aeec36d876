"""The Markdown pages that readers get: their blocks of code, titles and links."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from checkout import ROOT

DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]

_FENCE = re.compile(
    r"(?:^<!-- not run: (?P<why>.+?) -->\n+)?"
    r"^```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_LINK = re.compile(r"\]\((?P<target>(?!\w+:)[^)#\s]*)(?:#(?P<anchor>[^)\s]+))?\)")


@dataclass(frozen=True)
class Block:
    """A fenced block: `line` is that of its first line of text; `why` it is not run, or ""."""

    language: str
    text: str
    line: int
    why: str


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(
            found["language"],
            found["text"],
            text.count("\n", 0, found.start("text")) + 1,
            found["why"] or "",
        )
        for found in _FENCE.finditer(text)
    ]


def _prose(page: Path) -> str:
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)


def links(page: Path) -> list[tuple[str, str]]:
    """(path, anchor) of every link and picture within the repository."""
    return [(found["target"], found["anchor"] or "") for found in _LINK.finditer(_prose(page))]


def anchors(page: Path) -> set[str]:
    """Those that GitHub and MkDocs both give the titles of a page."""
    titles = re.findall(r"^#+ (.+?)\s*$", _prose(page), re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", title.lower()) for title in titles]
    github = {title.replace(" ", "-") for title in plain}
    return github & {re.sub(r"[-\s]+", "-", title.strip()) for title in plain}
