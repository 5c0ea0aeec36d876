"""The site that `make docs` builds: no warning, and no link that leads nowhere or elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

import pytest
from checkout import ROOT

pytestmark = pytest.mark.slow


class Page(HTMLParser):
    """What a page links to, loads and names."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.loaded: list[str] = []
        self.names: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.names |= {values[key] for key in ("id", "name") if values.get(key)}
        target = values.get("href") or values.get("src")
        if target:
            self.targets.append(target)
            if tag in ("script", "img", "link"):
                self.loaded.append(target)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("mkdocs")
    pytest.importorskip("material")
    pytest.importorskip("mkdocstrings_handlers.python")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet"]
    done = subprocess.run(
        [*command, "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site):
    found = {path: Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}
    return {path: page for path, page in found.items() if path.name != "404.html"}


def test_links_stay_in_the_site_and_lead_somewhere(pages) -> None:
    checked = 0
    for path, page in pages.items():
        for target in page.targets:
            parts = urlsplit(target)
            if parts.scheme:
                continue
            there = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert there.exists(), f"{path}: {target}"
            if parts.fragment and there in pages:
                assert unquote(parts.fragment) in pages[there].names, f"{path}: {target}"
            checked += 1
    assert checked > 1000


def test_pages_load_nothing_from_elsewhere(pages) -> None:
    for page in pages.values():
        assert not [target for target in page.loaded if urlsplit(target).scheme]


def test_reference_is_made_from_the_docstrings(site) -> None:
    for path in site.glob("api/*.html"):
        text = path.read_text(encoding="utf-8")
        assert 'class="doc doc-object' in text
        assert "doc-module" not in text, "a module hides the function of its name"
    text = (site / "api" / "ops.html").read_text(encoding="utf-8")
    assert 'id="attnops.strip_conv.strip_conv"' in text
    assert "A depthwise convolution, plus pairs of strip convolutions of its result" in text
