"""Fixtures of the training tests."""

from __future__ import annotations

import pytest
import torch
from tiny_training import config_file, registered

from attnops.training.engine.command import main


@pytest.fixture(autouse=True)
def tiny_network():
    """The network "tiny" has a name."""
    with registered():
        yield


@pytest.fixture
def train(tmp_path):
    """Call `attnops train` on the tiny network with options; returns the exit status.

    Runs go to tmp_path/runs.
    """
    config = config_file(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def call(*options, root="runs"):
        where = ["--trainer.default_root_dir", str(tmp_path / root)]
        return main(["--config", config, *where, *map(str, options)])

    yield call
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)


@pytest.fixture
def run(tmp_path):
    """The folder of a run by its number and the folder of runs."""
    return lambda number=1, root="runs": tmp_path / root / f"tiny-{number:04d}"
