"""A step of every family: fast heads against the reference, 20 steps, nothing labelled."""

from __future__ import annotations

import pytest
import torch
from tiny_networks import CLASSES, FAMILIES, SIZE, tiny_network

import attnops
from attnops.training.engine.module import balanced
from attnops.training.engine.optimization import (
    OptimizerOptions,
    ScheduleOptions,
    make_optimizer,
    make_schedule,
)

IGNORED = 255
EPSILON = torch.finfo(torch.float32).eps


def network_of(family, dtype=torch.float32):
    """Without what draws random numbers, which would differ between the dtypes."""
    model = tiny_network(family)
    for module in model.modules():
        if isinstance(module, torch.nn.modules.dropout._DropoutNd):
            module.p = 0.0
        if isinstance(getattr(module, "drop_path", None), float):
            module.drop_path = 0.0
    return model.to(dtype)


def batch_of(step=0, dtype=torch.float32, size=SIZE):
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(2, 3, *size, generator=generator, dtype=torch.float64).to(dtype)
    target = torch.randint(CLASSES, (2, *size), generator=generator)
    target[:, :7, 3:50] = IGNORED
    return images, target


def loss_and_gradients(family, backend, dtype, step=0):
    """The loss, and all gradients as one vector, by name in order."""
    model = network_of(family, dtype)
    images, target = batch_of(step, dtype)
    with attnops.use_backend(backend):
        loss = model.loss(model(images), target)
        loss.backward()
    used = [p.grad.double().flatten() for p in model.parameters() if p.grad is not None]
    return loss.detach().double(), torch.cat(used)


@pytest.mark.parametrize("family", FAMILIES)
def test_fast_heads_train_as_the_reference_does(family):
    """In float64, where nothing hides: the same loss and gradients."""
    loss, gradients = loss_and_gradients(family, "auto", torch.float64)
    wanted, plain = loss_and_gradients(family, "reference", torch.float64)
    torch.testing.assert_close(loss, wanted, rtol=1e-12, atol=0)
    assert len(gradients) == len(plain) and plain.norm() > 0
    assert (gradients - plain).norm() <= 1e-10 * plain.norm()


@pytest.mark.parametrize("family", FAMILIES)
def test_fast_heads_are_as_exact_as_the_reference(family):
    """In float32, against float64: at most twice its error in the loss, thrice in the gradients.

    Rounding may switch a ReLU, which moves the gradients of either by more; not in every batch.
    """
    for step in range(3):
        loss, gradients = loss_and_gradients(family, "auto", torch.float32, step)
        reference, plain = loss_and_gradients(family, "reference", torch.float32, step)
        exact, oracle = loss_and_gradients(family, "reference", torch.float64, step)
        floor = 4 * EPSILON * exact.abs()
        assert (loss - exact).abs() <= 2 * torch.maximum((reference - exact).abs(), floor)
        floor = 4 * EPSILON * oracle.norm()
        allowed = 3 * torch.maximum((plain - oracle).norm(), floor)
        if (gradients - oracle).norm() <= allowed:
            return
    raise AssertionError(f"gradients of {family} are off in three batches: {allowed}")


def curve(family, backend, steps, nudge=0.0):
    model = network_of(family).train()
    if nudge:
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(1 + nudge)
    optimizer = make_optimizer(model, OptimizerOptions(lr=1e-4, head_lr=1.0), fused=True)
    schedule = make_schedule(optimizer, ScheduleOptions(), steps)
    losses, size = [], (48, 64) if family == "segnext" else SIZE
    images, target = batch_of(size=size)
    with attnops.use_backend(backend):
        for _ in range(steps):
            optimizer.zero_grad()
            loss = model.loss(model(images), target)
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.detach())
    return torch.stack(losses).double()


SLOW = [
    pytest.param(family, marks=pytest.mark.slow) for family in FAMILIES if family != "ann_mmseg"
]


@pytest.mark.parametrize("family", ["ann_mmseg", *SLOW])
def test_twenty_steps_agree(family):
    """The curves differ by what a nudge of the weights in their last bits does to the reference."""
    steps = 20
    reference = curve(family, "reference", steps)
    nudged = curve(family, "reference", steps, nudge=2 * EPSILON)
    fast = curve(family, "auto", steps)
    assert reference[-1] < reference[0]
    spread = (nudged - reference).abs().max()
    assert (fast - reference).abs().max() <= 10 * torch.clamp(spread, min=EPSILON * reference[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_without_labels_changes_nothing_but_what_decays(family):
    model = network_of(family)
    images, target = batch_of()
    optimizer = make_optimizer(model, OptimizerOptions(weight_decay=0.0), fused=True)
    before = {name: p.clone() for name, p in model.named_parameters()}
    loss = model.loss(model(images), torch.full_like(target, IGNORED))
    loss.backward()
    optimizer.step()
    assert loss.item() == 0.0
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_balanced_class_weights():
    """By hand: the median of 1, 4 and 16 is 4; a class without pixels weighs 1."""
    found = balanced([16, 0, 4, 1])
    torch.testing.assert_close(found, torch.tensor([0.5, 1.0, 1.0, 2.0]))
    found = balanced([16, 0, 4, 1], power=1.0)
    torch.testing.assert_close(found, torch.tensor([0.25, 1.0, 1.0, 4.0]))
    assert balanced([16, 4, 1], power=0.0).tolist() == [1.0, 1.0, 1.0]
    assert balanced([0, 0]).tolist() == [1.0, 1.0]
