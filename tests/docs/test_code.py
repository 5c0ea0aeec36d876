"""Every block of Python in the documentation runs, a page from top to bottom."""

from __future__ import annotations

import logging
import shutil

import pytest
import torch
from checkout import ROOT
from doc_pages import DOCS, NAMES, blocks

import attnops
from attnops import models

# Pages that another test runs, with their commands.
ELSEWHERE = {"docs/training.md": "tests/training/test_training_page.py"}
MOST_NOT_RUN = 3
FILE = "segnext_tiny.pth"


def python_of(name: str) -> list:
    return [block for block in blocks(ROOT / name) if block.language == "python"]


RUN = [name for name in NAMES if python_of(name) and name not in ELSEWHERE]


@pytest.fixture
def as_before():
    """What blocks of code may set for the whole process."""
    logger = logging.getLogger("attnops")
    level, threads = logger.level, torch.get_num_threads()
    yield
    logger.setLevel(level)
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A file with the authors' names, for pages that load one."""
    path = tmp_path_factory.mktemp("published") / FILE
    net = models.create_model("segnext_t", num_classes=150)
    torch.save({"state_dict": models.export_checkpoint(net, "official")}, path)
    return path


@pytest.mark.parametrize("name", RUN)
def test_page_runs(name: str, tmp_path, monkeypatch, as_before, request) -> None:
    monkeypatch.chdir(tmp_path)
    found = python_of(name)
    if any(FILE in block.text for block in found):
        shutil.copy(request.getfixturevalue("published"), FILE)
    values = {}
    torch.manual_seed(0)
    for block in found:
        if not block.why:
            # Lines are numbered as in the page.
            code = compile("\n" * (block.line - 1) + block.text, name, "exec")
            exec(code, values)
    assert attnops._choice.current_backend() == "auto"


def test_pages_are_found() -> None:
    assert len(RUN) > 20 and all((DOCS / f"ops/{op}.md").is_file() for op in attnops.backends())
    for name, test in ELSEWHERE.items():
        assert python_of(name) and (ROOT / test).is_file()


def test_few_blocks_are_not_run() -> None:
    skipped = [block for name in NAMES for block in python_of(name) if block.why]
    assert len(skipped) <= MOST_NOT_RUN
