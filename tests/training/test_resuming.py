"""Runs that are cut off go on as if they had not been."""

from __future__ import annotations

import csv
import math
import os
import random
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_training
import torch
from tiny_training import config_file, same_state, state_of

from attnops.training import load_trained
from attnops.training.engine.module import Segmentation

SCRIPT = Path(tiny_training.__file__)


def killed(folder: Path, after_step: int, *options: str) -> int:
    """Start a run in a process of its own, kill -9 it when it shows that step; the step it was at.

    It may be over before; then the number of its last step.
    """
    command = [sys.executable, "-u", str(SCRIPT), "--config", config_file(folder)]
    command += ["--trainer.default_root_dir", str(folder / "runs"), *options]
    environment = dict(os.environ, OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
    step = 0
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        for line in process.stdout:
            if line.startswith("step "):
                step = int(line.split()[1].split("/")[0])
                if step >= after_step:
                    process.kill()
                    break
        error = process.stderr.read()
    assert process.returncode in (0, -signal.SIGKILL), error
    return step


def test_a_killed_run_goes_on_exactly(train, run, tmp_path):
    # the checkpoint of step 3 is written after that step is shown
    step = killed(tmp_path, random.Random(os.getpid()).randint(4, 9))
    assert 4 <= step < 12
    assert train("--resume", "auto") == 0
    assert not run(2).exists(), "a resumed run stays in its folder"
    assert train(root="whole") == 0
    assert same_state(state_of(run() / "last.ckpt"), state_of(run(1, "whole") / "last.ckpt"))
    assert state_of(run() / "last.ckpt")["global_step"] == 12
    with open(run() / "metrics.csv") as one, open(run(1, "whole") / "metrics.csv") as other:
        curves = [[(r["step"], r["train/loss"]) for r in csv.DictReader(f)] for f in (one, other)]
    assert curves[0] == curves[1] and len(curves[0]) == 12


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again(train, run, tmp_path):
    generator = random.Random(os.getpid())
    options = ["--resume", "auto", "--trainer.max_steps", "40", "--model.ema_decay", "0.9"]
    options += ["--trainer.accumulate_grad_batches", "2", "--data.num_workers", "2"]
    for _ in range(6):
        killed(tmp_path, generator.randint(1, 40), *options)
    assert train(*options) == 0
    assert train(*options[2:], root="whole") == 0
    assert same_state(state_of(run() / "last.ckpt"), state_of(run(1, "whole") / "last.ckpt"))


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--model.ema_decay", 0.9),
        ("--trainer.accumulate_grad_batches", 2, "--trainer.gradient_clip_val", 0.1),
        ("--model.optimizer.name", "sgd", "--trainer.precision", "bf16-mixed"),
    ],
    ids=["plain", "ema", "accumulated", "bf16"],
)
def test_ctrl_c_ends_the_step_and_saves(train, run, monkeypatch, capfd, options):
    plain = Segmentation.training_step

    def interrupted(self, batch, batch_idx):
        if batch_idx == 8:
            os.kill(os.getpid(), signal.SIGINT)
        return plain(self, batch, batch_idx)

    monkeypatch.setattr(Segmentation, "training_step", interrupted)
    handler = signal.getsignal(signal.SIGINT)
    assert train(*options) == 130
    assert signal.getsignal(signal.SIGINT) is handler
    steps = 5 if "--trainer.accumulate_grad_batches" in options else 9
    assert state_of(run() / "last.ckpt")["global_step"] == steps
    assert "--resume auto" in capfd.readouterr().err
    monkeypatch.setattr(Segmentation, "training_step", plain)
    assert train("--resume", "auto", *options) == 0
    assert train(*options, root="whole") == 0
    assert same_state(state_of(run() / "last.ckpt"), state_of(run(1, "whole") / "last.ckpt"))


def test_a_validation_that_was_cut_off_is_made_up_for(train, run, monkeypatch):
    """At step 6, whose checkpoint is written before it."""
    plain = Segmentation.validation_step

    def cut_off(self, batch, batch_idx):
        if self.trainer.global_step == 6 and batch_idx == 1:
            raise RuntimeError("cut off")
        return plain(self, batch, batch_idx)

    monkeypatch.setattr(Segmentation, "validation_step", cut_off)
    with pytest.raises(RuntimeError, match="cut off"):
        train()
    assert state_of(run() / "last.ckpt")["global_step"] == 6
    monkeypatch.setattr(Segmentation, "validation_step", plain)
    assert train("--resume", "auto") == 0
    assert train(root="whole") == 0
    assert same_state(state_of(run() / "last.ckpt"), state_of(run(1, "whole") / "last.ckpt"))
    one, other = (scores(f / "metrics.csv") for f in (run(), run(1, "whole")))
    assert one == other and list(one) == ["6", "12"]


def scores(file):
    """Step -> mIoU."""
    with open(file) as text:
        return {r["step"]: r["val/mIoU"] for r in csv.DictReader(text) if r["val/mIoU"]}


def test_a_run_that_is_out_of_time_is_saved(train, run):
    assert train("--trainer.max_steps", 100_000, "--trainer.max_time", "00:00:00:02") == 0
    state = state_of(run() / "last.ckpt")
    with open(run() / "metrics.csv") as text:
        assert 0 < state["global_step"] == int(list(csv.DictReader(text))[-1]["step"]) < 100_000


def test_a_loss_that_is_no_number_does_not_reach_the_checkpoints(train, run, capfd, monkeypatch):
    plain = Segmentation.training_step

    def diverging(self, batch, batch_idx):
        return plain(self, batch, batch_idx) * (math.nan if batch_idx >= 7 else 1.0)

    monkeypatch.setattr(Segmentation, "training_step", diverging)
    assert train() == 1
    assert "the loss at step 9 is nan" in capfd.readouterr().err
    state = state_of(run() / "last.ckpt")
    assert state["global_step"] == 6
    assert all(x.isfinite().all() for x in state["state_dict"].values())


def test_a_finished_run_has_nothing_left_to_do(train, run):
    assert train("--trainer.max_steps", 3) == 0
    before = (run() / "last.ckpt").read_bytes()
    assert train("--trainer.max_steps", 3, "--resume", "auto") == 0
    assert (run() / "last.ckpt").read_bytes() == before


@pytest.mark.parametrize("how", ["truncated", "flipped", "empty"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(train, run, capfd, how):
    assert train() == 0
    last, previous = run() / "last.ckpt", run() / "previous.ckpt"
    assert state_of(previous)["global_step"] == 9
    content = bytearray(last.read_bytes())
    if how == "flipped":
        content[len(content) // 2] ^= 1
    else:
        del content[len(content) // 2 if how == "truncated" else 0 :]
    wanted = state_of(last)
    last.unlink()  # best.ckpt may be another name of the file
    last.write_bytes(content)
    assert train("--resume", "auto") == 0
    error = capfd.readouterr().err
    assert f"{last} is damaged" in error and str(previous) in error
    assert same_state(state_of(last), wanted)
    for file in (last, previous):
        file.write_bytes(b"nothing")
    assert train("--resume", "auto") == 2
    error = capfd.readouterr().err
    assert str(last) in error and str(previous) in error and "start anew" in error


# TensorBoard writes from a thread, whose exception it hands on.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_full_disk_loses_no_checkpoint(train, run, capfd):
    """Files may not grow past a limit, as on a disk with too little room."""
    assert train("--trainer.max_steps", 6) == 0
    before = (run() / "last.ckpt").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))  # TensorBoard has no room either
    try:
        assert train("--resume", "auto") == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    error = capfd.readouterr().err
    assert "no checkpoint could be written" in error and "Make room" in error
    assert "tensorboard cannot be written" in error
    assert (run() / "last.ckpt").read_bytes() == before
    assert not list(run().glob("*.partial"))
    assert train("--resume", "auto") == 0
    assert state_of(run() / "last.ckpt")["global_step"] == 12


def test_another_network_is_refused(train, run, capfd):
    assert train("--trainer.max_steps", 3) == 0
    assert train("--resume", "auto", "--model.options.dropout", 0.5) == 2
    assert "dropout was 0.2, now 0.5" in capfd.readouterr().err


def test_averaged_weights_are_what_a_checkpoint_gives(train, run):
    assert train("--model.ema_decay", 0.9) == 0
    state = state_of(run() / "last.ckpt")
    network, info = load_trained(run() / "last.ckpt")
    weight = network.classify.weight
    assert info.num_classes == 7 and not network.training
    assert torch.equal(weight, state["state_dict"]["network.classify.weight"])
    assert not torch.equal(weight, state["current_model_state"]["network.classify.weight"])
