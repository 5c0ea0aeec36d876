"""The documentation: links, the site's navigation, pages of ops, tables that are generated."""

from __future__ import annotations

import inspect
import re

import pytest
import yaml
from checkout import ROOT
from doc_pages import DOCS, NAMES, PAGES, anchors, links

import attnops
from attnops import models
from attnops.benchmarks.__main__ import OPS
from attnops.benchmarks.pages import command, costs, support

CONFIGURATION = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
PICTURES = sorted(DOCS.glob("pictures/*.png")) + sorted(DOCS.glob("pictures/*.svg"))


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str) -> None:
    page = ROOT / name
    for target, anchor in links(page):
        path = page.parent / target if target else page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), f"{target}#{anchor}"


def test_links_are_found() -> None:
    """The test above would pass on none."""
    training = links(DOCS / "training.md")
    assert ("data.md", "") in training and ("data.md", "data-sets") in training
    assert sum(len(links(page)) for page in PAGES) > 150


def test_navigation_names_every_page() -> None:
    """Each once; those of others than docs/ stand in the site's folder for them."""
    found = re.findall(r"[ :-] ([\w/]+\.md)$", CONFIGURATION, re.MULTILINE)
    named = [page for page in found if not page.startswith("repository/")]
    assert sorted(named) == sorted(set(named))
    missing = {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")} - set(named)
    assert not missing, "mkdocs.yml, nav"
    assert all((DOCS / page).is_file() for page in named)


@pytest.mark.parametrize("op", OPS)
def test_page_of_an_op_has_every_argument(op: str) -> None:
    """Name and default of each, in the order of the signature."""
    text = (DOCS / "ops" / f"{op}.md").read_text(encoding="utf-8")
    section = text.split("## Arguments")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (?:`(.*?)`)? ?\| (.+) \|$", section, re.MULTILINE)
    parameters = inspect.signature(getattr(attnops, op)).parameters.values()
    expected = [(p.name, "" if p.default is p.empty else repr(p.default)) for p in parameters]
    assert [(name, default) for name, default, _ in rows] == expected
    titles = ("Layouts, dtypes, backends", "Cost", "When it is not worth it", "Limits and errors")
    for title in titles:
        assert f"\n## {title}\n" in text


def test_reference_has_every_public_name() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in DOCS.glob("api/*.md"))
    shown = set(re.findall(r"^::: (\S+)$", text, re.MULTILINE))
    modules = {"__version__", "nn", "reference", "checkpoints"}
    for module in (attnops, attnops.nn, models):
        prefix = f"{module.__name__}."
        # A module of the same name hides a function from who only reads sources.
        inside = {f"{prefix}{name}" for name in shown_last(shown, prefix)}
        names = {f"{prefix}{name}" for name in module.__all__ if name not in modules}
        assert names <= inside, names - inside
    for op in OPS:
        assert f"attnops.{op}.{op}" in shown


def shown_last(shown: set[str], prefix: str) -> set[str]:
    return {name.rpartition(".")[2] for name in shown if name.startswith(prefix)}


def test_gallery_shows_every_example() -> None:
    text = (DOCS / "gallery.md").read_text(encoding="utf-8")
    for path in [*ROOT.glob("examples/*.py"), *DOCS.glob("pictures/draw_*.py")]:
        assert f"{path.name})" in text


def test_pictures_are_small_and_used() -> None:
    shown = {(page.parent / target).resolve() for page in PAGES for target, _ in links(page)}
    assert set(PICTURES) <= shown
    sizes = [path.stat().st_size for path in PICTURES]
    assert max(sizes) < 60_000 and sum(sizes) < 500_000


class TestGeneratedTables:
    def test_they_are_current(self) -> None:
        """Else run `attnops bench pages`."""
        pytest.importorskip("triton")
        stale = [p for p, text in command.pages().items() if not command.is_current(p, text)]
        assert not stale

    def test_every_op_and_backend_has_its_row(self) -> None:
        assert set(support.CALLS) == set(OPS)
        assert set(support.BACKENDS) == set(attnops.backends()["nmf"])

    def test_registered_agrees_with_what_is_loaded_here(self) -> None:
        pytest.importorskip("triton")
        for op, states in attnops.backends().items():
            for backend, found in states.items():
                lacks = found.reason == f"{op} has no {backend} implementation"
                assert not lacks or support.registered(op, backend) == (False, False)
                if found:
                    assert support.registered(op, backend)[0]

    def test_strongest_evidence_counts(self) -> None:
        key = ("nmf", "triton", "float32", "forward")
        assert support.state(key, {key}, {key}) == "measured"
        assert support.state(key, set(), {key}) == "compiled"
        assert support.state(key, set(), set()) == "emulated"
        assert support.state(("nmf", "cpu", "float64", "forward"), set(), set()) == "tested"

    def test_ratio_is_of_the_better_formats(self) -> None:
        row = {"shape": [1, 2], "direction": "forward", "memory_above_inputs": 1.0}
        times = {"attnops": (2.0, 4.0), "eager": (90.0, 10.0), "compiled": (6.0, 7.0)}
        rows = [
            row | {"name": name, "layout": layout, "p50": ms}
            for name, pair in times.items()
            for layout, ms in zip(("contiguous", "channels_last"), pair, strict=True)
        ]
        (cells,) = costs.grid(rows)
        assert cells[1:6] == ["2 (contiguous)", "10 (channels last)", "6 (contiguous)", "5", "3"]


def test_the_citation_names_the_version():
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {attnops.__version__}\n" in text


def test_issue_templates_ask_for_what_the_environment_command_prints():
    for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"):
        form = yaml.safe_load(path.read_text(encoding="utf-8"))
        parts = {part["id"]: part for part in form["body"]}
        assert "python -m attnops.env" in parts["environment"]["attributes"]["description"]
