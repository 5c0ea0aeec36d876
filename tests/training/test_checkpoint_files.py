"""Checkpoint files are whole, whenever the process that writes them dies."""

from __future__ import annotations

import os
import random
import signal
import time

import pytest
import torch

from attnops.training.engine.files import LAST, PREVIOUS, damage, write_checkpoint
from attnops.training.engine.runs import new_run, runs, to_resume


def content(step):
    return {"step": step, "weights": torch.full((300, 1000), float(step))}


@pytest.mark.parametrize("kills", [12, pytest.param(150, marks=pytest.mark.slow)])
def test_kill_in_the_middle_of_writing(tmp_path, kills):
    generator, latest, partial = random.Random(0), -1, 0
    for _ in range(kills):
        child = os.fork()
        if child == 0:  # writes until it is killed
            step = latest
            while True:
                step += 1
                write_checkpoint(content(step), tmp_path / LAST, tmp_path / PREVIOUS)
        time.sleep(generator.uniform(0.0, 0.15))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        partial += any(tmp_path.glob("*.partial"))
        if not (tmp_path / LAST).exists():
            assert latest == -1
            continue
        assert damage(tmp_path / LAST) is None
        found = torch.load(tmp_path / LAST)
        assert found["step"] >= latest and (found["weights"] == found["step"]).all()
        latest = found["step"]
        if (tmp_path / PREVIOUS).exists():
            assert damage(tmp_path / PREVIOUS) is None
    assert latest > 0 and partial > 0  # some kills did hit the middle of a file


def test_every_byte_of_the_weights_is_checked(tmp_path):
    file = tmp_path / LAST
    write_checkpoint(content(1), file)
    whole = file.read_bytes()
    assert damage(file) is None
    generator = random.Random(1)
    for place in [generator.randrange(200, len(whole) - 500) for _ in range(20)]:
        changed = bytearray(whole)
        changed[place] ^= 1 << generator.randrange(8)
        file.write_bytes(changed)
        assert damage(file) is not None or _same(file), place
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        assert damage(file) is not None


def _same(file):
    """Whether a changed byte was one that carries nothing, such as padding."""
    try:
        found = torch.load(file)
    except Exception:
        return False
    return found["step"] == 1 and torch.equal(found["weights"], content(1)["weights"])


def test_folders_are_never_used_twice(tmp_path):
    folders = [new_run(tmp_path, "camvid") for _ in range(3)]
    (tmp_path / "camvid-0007").mkdir()
    (tmp_path / "camvid-2-0009").mkdir()
    folders.append(new_run(tmp_path, "camvid"))
    assert [f.name[-4:] for f in folders] == ["0001", "0002", "0003", "0008"]
    assert [number for number, _ in runs(tmp_path, "camvid")] == [8, 7, 3, 2, 1]


def test_where_to_go_on(tmp_path):
    assert to_resume("auto", tmp_path, "a") is None
    first, second = new_run(tmp_path, "a"), new_run(tmp_path, "a")
    write_checkpoint(content(1), first / LAST)
    assert to_resume("auto", tmp_path, "a") is None  # the latest run has none
    write_checkpoint(content(2), second / LAST)
    assert to_resume("auto", tmp_path, "a") == second / LAST
    assert to_resume(str(first), tmp_path, "a") == first / LAST
    assert to_resume(str(first / LAST), tmp_path, "b") == first / LAST
    for missing in (tmp_path / "none", new_run(tmp_path, "b")):
        with pytest.raises(FileNotFoundError, match="--resume"):
            to_resume(str(missing), tmp_path, "a")
