"""What the tests of every network share."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import attnops
from attnops.models import DilatedResNet, SegmentationModel

IGNORED = 255
KEYS = Path(__file__).resolve().parents[1] / "data" / "keys"


def tiny_resnet(
    stem: str = "deep",
    dilation: str = "contracted",
    ceil_mode: bool = True,
    in_channels: int = 3,
) -> DilatedResNet:
    """One block a stage, 16, 32, 64 and 128 channels."""
    return DilatedResNet(
        (1, 1, 1, 1), stem, dilation, ceil_mode=ceil_mode, width=4, in_channels=in_channels
    )


def shake(model: nn.Module) -> nn.Module:
    """Give everything that starts at 0 or 1 other values, so that nothing hides behind them."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-0.2, 0.2)
                module.running_var.uniform_(0.5, 1.5)
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.2, 0.2)
            elif isinstance(module, nn.Conv2d) and not module.weight.any():
                module.weight.normal_(std=0.1)
                module.bias.normal_(std=0.1)
    return model


def parameters(model: nn.Module) -> tuple[int, int]:
    """Numbers of parameters with and without auxiliary heads."""
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    aux = sum(size for name, size in sizes.items() if name.startswith("aux"))
    return sum(sizes.values()), sum(sizes.values()) - aux


def multiply_adds(model: nn.Module, height: int, width: int) -> float:
    """Of PyTorch's convolutions and matrix products in evaluation, without those inside fused ops;
    the model is on the meta device.
    """
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.empty(1, 3, height, width, device="meta"))
    counts = counter.get_flop_counts()["Global"]
    return sum(n for op, n in counts.items() if "attnops" not in str(op)) / 2


def targets(batch: int, classes: int, height: int, width: int) -> Tensor:
    labels = torch.randint(classes, (batch, height, width))
    labels[:, :5, 2:9] = IGNORED
    return labels


def check_trains(model: SegmentationModel, images: Tensor, target: Tensor) -> None:
    """Every parameter has a finite gradient, and a short step along it takes from the loss what
    the gradient says.
    """
    model.train()
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}

    def loss() -> Tensor:
        """The same draws (dropout, bases) and the same stored statistics every time."""
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])
        torch.manual_seed(0)
        return model.loss(model(images), target)

    before = loss()
    assert before.ndim == 0 and before.isfinite()
    before.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    squares = sum(p.grad.double().square().sum().item() for p in model.parameters())
    expected = 1e-3 * before.item()
    torch.optim.SGD(model.parameters(), lr=expected / squares).step()
    assert 0.5 * expected < (before - loss()).item() < 1.5 * expected


def check_backends_agree(model: SegmentationModel, images: Tensor) -> None:
    """Logits of the C++ kernels and of plain PyTorch, in both memory layouts."""
    model.eval()
    with torch.no_grad():
        with attnops.use_backend("reference"):
            wanted = model(images)["out"]
        for layout in (torch.contiguous_format, torch.channels_last):
            found = model(images.contiguous(memory_format=layout))["out"]
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def check_autocast(model: SegmentationModel, images: Tensor) -> None:
    """Under bfloat16 autocast the logits are near those of float32, and the loss is finite."""
    model.eval()
    with torch.no_grad():
        wanted = model(images)["out"]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = model(images)["out"].float()
    assert (found - wanted).norm() < 0.1 * wanted.norm()
    model.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model(images)
        target = targets(images.shape[0], outputs["out"].shape[1], *images.shape[2:])
        loss = model.loss(outputs, target)
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def check_exports(model: SegmentationModel, images: Tensor) -> None:
    model.eval()
    program = torch.export.export(model, (images,))
    with torch.no_grad():
        found = program.module()(images)["out"]
        torch.testing.assert_close(found, model(images)["out"], rtol=1e-4, atol=1e-4)


def check_compiles(model: SegmentationModel, images: Tensor) -> None:
    """One graph, without a compiler: what is traced, not what Inductor makes of it."""
    model.eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        found = compiled(images)["out"]
        torch.testing.assert_close(found, model(images)["out"], rtol=1e-4, atol=1e-4)


every_trace = pytest.mark.parametrize(
    "trace", [check_exports, check_compiles], ids=["export", "compile"]
)


def filled(shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    """A state dict with these names and shapes, values drawn from the names' order."""
    state = {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(7)
        elif name.endswith("running_var"):
            state[name] = torch.rand(shape) + 0.5
        else:
            state[name] = torch.rand(shape)
    return state


def published_keys(name: str) -> dict[str, list[int]]:
    """Names and shapes of a published checkpoint."""
    return json.loads((KEYS / f"{name}.json").read_text())
