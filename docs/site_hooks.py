"""MkDocs' hooks: a page may link to any file of the repository, as it lies on the disk.

Files outside docs/ that pages name become part of the site, under repository/, and links follow
them there. So one text serves readers of the repository and of the site.
"""

from __future__ import annotations

import os
import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
ELSEWHERE = "repository"
ALWAYS = ("CONTRIBUTING.md", "CHANGELOG.md")  # in the navigation
LINK = re.compile(r"(\]\()(?!\w+:|/|#)([^)#\s]+)")


def on_config(config: Any) -> Any:
    """Put what is installed as attnops.models, ... where the reference's sources are read from."""
    sys.path.append(str(ROOT))
    from build_tools.packages import link_checkout

    link_checkout()
    return config


def _place(page: str) -> str:
    """Where a page of the site lies in the repository."""
    inside = page.removeprefix(f"{ELSEWHERE}/")
    return inside if inside != page else posixpath.join("docs", page)


def _page(place: str) -> str:
    """Where a file of the repository lies in the site."""
    inside = place.removeprefix("docs/")
    return inside if inside != place else posixpath.join(ELSEWHERE, place)


def _targets(place: str, markdown: str) -> list[str]:
    folder = posixpath.dirname(place)
    return [posixpath.normpath(posixpath.join(folder, link)) for _, link in LINK.findall(markdown)]


def on_files(files: Files, config: Any) -> Files:
    """Add what pages name outside docs/, and what these files name in turn."""
    waiting = list(ALWAYS)
    for file in files.documentation_pages():
        waiting += _targets(_place(file.src_uri), file.content_string)
    while waiting:
        place = waiting.pop()
        outside = not place.startswith(("docs/", ".."))
        if not outside or files.get_file_from_path(_page(place)) or not (ROOT / place).is_file():
            continue
        files.append(File.generated(config, _page(place), content=(ROOT / place).read_bytes()))
        if place.endswith(".md"):
            waiting += _targets(place, (ROOT / place).read_text(encoding="utf-8"))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turn links between docs/ and the rest of the repository into links within the site."""
    here = page.file.src_uri
    folder = posixpath.dirname(_place(here))

    def follow(found: re.Match[str]) -> str:
        place = posixpath.normpath(posixpath.join(folder, found[2]))
        if place.startswith("..") or not os.path.isfile(ROOT / place):
            return found[0]  # MkDocs says that it leads nowhere
        return found[1] + posixpath.relpath(_page(place), posixpath.dirname(here) or ".")

    return LINK.sub(follow, markdown)
