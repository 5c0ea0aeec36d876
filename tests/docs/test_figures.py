"""Figures of speed and memory stand only where `attnops bench pages` writes them, from files."""

from __future__ import annotations

import re

import pytest
from checkout import ROOT
from doc_pages import DOCS

from attnops.benchmarks.pages import first_screen
from attnops.benchmarks.pages.command import BLOCK
from attnops.benchmarks.report.records import Document

PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
FIGURE = re.compile(r"\b\d[\d.,]*\s?(?:ms|us|MiB|GiB|img/s)\b|\b\d[\d.]*x faster|\d times as fast")
CODE = re.compile(r"^```.*?^```", re.S | re.M)


def by_hand(text: str) -> list[str]:
    return FIGURE.findall(CODE.sub("", BLOCK.sub("", text)))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_figures_are_written_by_the_command(path) -> None:
    assert not by_hand(path.read_text(encoding="utf-8"))


def test_a_figure_by_hand_is_found() -> None:
    marked = "<!-- x: written by `attnops bench pages` -->\n\n3 ms\n\n<!-- end -->\n"
    assert by_hand(marked) == [] and by_hand("It takes 3 ms.") == ["3 ms"]
    assert by_hand("4.5x faster; 10.6 MiB") == ["4.5x faster", "10.6 MiB"]


def test_figures_of_the_first_screen(tmp_path) -> None:
    """The better of both formats for a block; peers beside the deployed network."""
    document = Document()
    options = [["network", first_screen.NETWORK], ["malloc", "default"]]
    for name, ms in ((first_screen.OURS, 50.0), ("OpenVINO", 140.0), ("onnxruntime", None)):
        row = document.new_row("serving", name, "cpu", shape=[1, 3, 512, 512], dtype="float32")
        row.options, row.p50, row.threads, row.device = options, ms, 2, "Processor"
    for layout, ms in (("contiguous", 20.0), ("channels_last", 10.0)):
        facts = {"shape": first_screen.MAP, "dtype": "float32", "layout": layout}
        row = document.new_row("apnb", "attnops APNB linear", "cpu", **facts)
        row.p50, row.memory_above_inputs_and_output = ms, 4.0
    document.save(tmp_path / "x.json")
    found = first_screen.tables(tmp_path)
    assert "float32 **50 ms**, OpenVINO 140 ms." in found["labels"]
    assert (
        "(2 threads: Processor; torch" in found["labels"] and "onnxruntime" not in found["labels"]
    )
    assert found["blocks"].splitlines()[2:] == [
        "| **attnops APNB, the paper's equations** | 10 ms | 4 MiB |"
    ]
    (tmp_path / "x.json").unlink()
    assert first_screen.tables(tmp_path)["labels"] == "Labels of whole networks are not measured."
