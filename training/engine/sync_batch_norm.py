"""BatchNorm over all processes, on CPUs too, where PyTorch has none."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn


class _SumOverProcesses(torch.autograd.Function):
    """y = sum of x over the processes; the gradient is summed the same way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = x.clone()
        distributed.all_reduce(y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.contiguous().clone()
        distributed.all_reduce(total)
        return total


class CpuSyncBatchNorm(nn.BatchNorm2d):
    """nn.SyncBatchNorm for maps `[B, C, H, W]` on CPUs, which PyTorch's refuses.

    Mean and variance are of all processes' positions: first the mean, then the mean square of what
    differs from it, each one sum over the processes.

    Attributes:
        after: what timm's fused norms do next (dropout, activation); None: nothing.
    """

    after: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        y = self._normalised(x) if self.training else super().forward(x)
        return y if self.after is None else self.after(y)

    def _normalised(self, x: Tensor) -> Tensor:
        wide = x.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
        shape = (1, -1, 1, 1)
        count = wide.new_tensor([x.numel() / x.shape[1]])
        sums = _SumOverProcesses.apply(torch.cat([wide.sum((0, 2, 3)), count]))
        total = sums[-1].detach()
        mean = sums[:-1] / total
        centred = wide - mean.view(shape)
        variance = _SumOverProcesses.apply(centred.square().sum((0, 2, 3))) / total
        self._follow(mean.detach(), variance.detach() * total / (total - 1).clamp(min=1))
        y = centred * torch.rsqrt(variance + self.eps).view(shape)
        if self.weight is not None:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        return y.to(x.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        """Let the running statistics follow those of this batch."""
        if self.running_mean is None:
            return
        self.num_batches_tracked += 1
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean), share)
        self.running_var.lerp_(variance.to(self.running_var), share)


def synchronise(network: nn.Module, device: torch.device) -> None:
    """Let every BatchNorm of `network` take its statistics over all processes."""
    convert = _on_cpu if device.type == "cpu" else _by_timm()
    made: dict[int, nn.Module] = {}  # a norm may have several parents
    for module in list(network.modules()):
        for name, child in list(module._modules.items()):
            if isinstance(child, nn.BatchNorm2d):
                if id(child) not in made:
                    made[id(child)] = convert(child)
                setattr(module, name, made[id(child)])


def _by_timm() -> Any:
    """timm's conversion, which knows its own norms with an activation; else PyTorch's."""
    try:
        from timm.layers import convert_sync_batchnorm
    except ImportError:
        return nn.SyncBatchNorm.convert_sync_batchnorm
    return convert_sync_batchnorm


def _on_cpu(bn: nn.BatchNorm2d) -> CpuSyncBatchNorm:
    new = CpuSyncBatchNorm(bn.num_features, bn.eps, bn.momentum, bn.affine, bn.track_running_stats)
    for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        setattr(new, name, getattr(bn, name))
    following = [getattr(bn, name) for name in ("drop", "act") if hasattr(bn, name)]
    if following:  # neither has tensors
        object.__setattr__(new, "after", nn.Sequential(*following))
    new.training = bn.training
    return new


@torch.no_grad()
def take_from_first(network: nn.Module) -> None:
    """Buffers (running statistics) of the first process, in all of them."""
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return
    for buffer in network.buffers():
        distributed.broadcast(buffer, 0)
