"""Several processes train as one with all their images."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
import tiny_training
import torch
from timm.layers import BatchNormAct2d
from tiny_networks import CLASSES, tiny_network
from tiny_training import config_file, state_of
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from attnops.models import create_model
from attnops.models._losses import averaged_over_processes
from attnops.training.engine.optimization import OptimizerOptions, make_optimizer
from attnops.training.engine.sync_batch_norm import CpuSyncBatchNorm, synchronise, take_from_first
from attnops.training.metrics import SegmentationMetrics

SCRIPT = Path(tiny_training.__file__)
SIZE, BATCH, STEPS = (33, 49), 4, 3


def network_of(name):
    torch.manual_seed(0)
    if name == "tiny":
        return create_model("tiny", num_classes=CLASSES, dropout=0.0, seed=3).double()
    network = tiny_network(name)
    for module in network.modules():
        if isinstance(module, torch.nn.modules.dropout._DropoutNd):
            module.p = 0.0
    return network.double()


def steps_of(name, rank, world, file):
    """Train on this process's part of every batch; the first one writes what came out."""
    network = network_of(name)
    trained = network
    if world > 1:
        synchronise(network, torch.device("cpu"))
        trained = DistributedDataParallel(network, broadcast_buffers=False)
    optimizer = make_optimizer(network, OptimizerOptions(lr=1e-3, name="sgd"), fused=False)
    generator = torch.Generator().manual_seed(1)
    part = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
    for _ in range(STEPS):
        images = torch.randn(BATCH, 3, *SIZE, generator=generator, dtype=torch.float64)
        target = torch.randint(CLASSES, (BATCH, *SIZE), generator=generator)
        target[0, :30] = 255  # many more in the part of the first process
        target[3, :2] = 255
        optimizer.zero_grad()
        with averaged_over_processes():
            network.loss(trained(images[part]), target[part]).backward()
        optimizer.step()
    take_from_first(network)
    if rank == 0:
        torch.save(network.state_dict(), file)


def in_processes(function, world, folder):
    """Call function(rank) in processes of one gloo group."""
    children = []
    for rank in range(world):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                meeting = f"file://{folder / 'meeting'}"
                distributed.init_process_group(
                    "gloo", init_method=meeting, rank=rank, world_size=world
                )
                function(rank)
                distributed.destroy_process_group()
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * world


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", ["tiny", "deeplab"], ids=["sync_batch_norm", "no_batch_norm"])
def test_two_processes_are_one_with_twice_the_batch(tmp_path, name):
    steps_of(name, 0, 1, tmp_path / "one.pt")
    in_processes(lambda rank: steps_of(name, rank, 2, tmp_path / "two.pt"), 2, tmp_path)
    one, two = torch.load(tmp_path / "one.pt"), torch.load(tmp_path / "two.pt")
    start = network_of(name).state_dict()
    assert one.keys() == two.keys() == start.keys()
    for key in one:
        torch.testing.assert_close(two[key], one[key], rtol=1e-9, atol=1e-12, msg=key)
    assert any(not torch.equal(one[key], start[key]) for key in one)


@pytest.mark.parametrize("kind", [torch.nn.BatchNorm2d, BatchNormAct2d], ids=["torch", "timm"])
def test_statistics_over_processes(tmp_path, kind):
    """Values, gradients and running statistics of one BatchNorm over the whole batch."""
    x = torch.randn(6, 5, 4, 3, dtype=torch.float64)
    grad = torch.randn_like(x)
    whole = kind(5, momentum=0.3).double()
    torch.nn.init.uniform_(whole.weight)
    leaf = x.clone().requires_grad_()
    wanted = whole(leaf)
    wanted.backward(grad)

    def part(rank):
        norm = kind(5, momentum=0.3).double()
        norm.weight.data.copy_(whole.weight)
        holder = torch.nn.Sequential(norm)
        synchronise(holder, torch.device("cpu"))
        assert isinstance(holder[0], CpuSyncBatchNorm) and holder[0].weight is norm.weight
        mine = slice(0, 2) if rank == 0 else slice(2, 6)
        inner = x[mine].clone().requires_grad_()
        y = holder(inner)
        y.backward(grad[mine])
        torch.testing.assert_close(y, wanted[mine])
        torch.testing.assert_close(inner.grad, leaf.grad[mine])
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            torch.testing.assert_close(getattr(holder[0], name), getattr(whole, name))
        distributed.all_reduce(norm.weight.grad)
        torch.testing.assert_close(norm.weight.grad, whole.weight.grad)
        torch.testing.assert_close(holder.eval()(x), whole.eval()(x))

    in_processes(part, 2, tmp_path)


def test_scores_are_summed_over_processes_exactly(tmp_path):
    generator = torch.Generator().manual_seed(2)
    labels = torch.randint(CLASSES, (5, 40, 50), generator=generator)
    target = torch.randint(CLASSES, (5, 40, 50), generator=generator)
    target[labels > 3] = 255
    counts = torch.zeros(CLASSES, CLASSES, dtype=torch.int64)
    valid = target != 255
    counts.index_put_((target[valid], labels[valid]), torch.tensor(1), accumulate=True)
    union = counts.sum(0) + counts.sum(1) - counts.diagonal()
    score = (counts.diagonal() / union.double())[union > 0].mean()

    def part(rank):
        metrics = SegmentationMetrics(CLASSES, 255)
        for i in range(4) if rank == 0 else [4]:
            metrics.update(labels[i : i + 1], target[i : i + 1])
        found = metrics.compute()
        assert torch.equal(found["confusion"], counts)
        torch.testing.assert_close(found["mIoU"], score)

    in_processes(part, 2, tmp_path)


def command_of(folder, root, *options, launcher=()):
    environment = dict(os.environ, OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
    command = [*(launcher or (sys.executable,)), str(SCRIPT), "--config", config_file(folder)]
    command += ["--trainer.default_root_dir", str(folder / root), *options]
    command += ["--model.options.dropout", "0", "--model.options.seed", "3"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return state_of(folder / root / "tiny-0001" / "last.ckpt"), done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("torchrun", [False, True], ids=["lightning", "torchrun"])
def test_the_command_in_two_processes(tmp_path, torchrun):
    """Weights within rounding; the validation's confusion matrix is summed exactly."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    devices = [] if torchrun else ["--trainer.devices", "2"]
    options = [*devices, "--data.batch_size", "2", "--model.optimizer.name", "sgd"]
    two, text_of_two = command_of(tmp_path, "two", *options, launcher=launcher if torchrun else ())
    one, text = command_of(tmp_path, "one", "--model.optimizer.name", "sgd")
    assert one["attnops"]["consumed"] == two["attnops"]["consumed"] == 48
    for key, value in one["state_dict"].items():
        torch.testing.assert_close(two["state_dict"][key], value, rtol=1e-3, atol=1e-5, msg=key)
    assert [x.name for x in (tmp_path / "two").iterdir()] == ["tiny-0001"]
    scores = [
        [line for line in t.splitlines() if line.startswith("validation")]
        for t in (text, text_of_two)
    ]
    assert len(scores[0]) == len(scores[1]) == 2


@pytest.mark.slow
def test_ctrl_c_in_two_processes(tmp_path):
    """All end with the same step, and the run goes on."""
    environment = dict(os.environ, OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
    command = [sys.executable, "-u", str(SCRIPT), "--config", config_file(tmp_path)]
    command += ["--trainer.default_root_dir", str(tmp_path / "runs"), "--trainer.devices", "2"]
    command += ["--trainer.max_steps", "2000", "--checkpoint.every_n_steps", "1000"]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    ) as process:
        for line in process.stdout:
            if line.startswith("step 4/"):
                os.killpg(process.pid, signal.SIGINT)
                break
        _, error = process.communicate(timeout=120)
    assert process.returncode == 130 and "Traceback" not in error, error
    step = state_of(tmp_path / "runs" / "tiny-0001" / "last.ckpt")["global_step"]
    assert 4 <= step < 100 and f"stopped after step {step}" in error
