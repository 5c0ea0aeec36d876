"""Optimiser, its parameter groups, and how the rate changes over the steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

_NORMS = (
    nn.modules.batchnorm._BatchNorm,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.modules.instancenorm._InstanceNorm,
)


@dataclass
class OptimizerOptions:
    """The optimiser and what its groups of parameters differ in.

    Args:
        name: "sgd" or "adamw".
        lr: base rate, of the backbone.
        weight_decay: of all parameters that the two options below leave.
        momentum: of sgd.
        betas: of adamw.
        head_lr: factor of the rate of everything that is not the backbone (or of `heads`).
        heads: beginnings of the names of parameters that `head_lr` is for; null: all but
            "backbone".
        bias_lr: factor of the rate of biases, on top of `head_lr`.
        decay_norms: whether weights and biases of normalisations decay.
        decay_biases: whether other biases do.
    """

    name: Literal["sgd", "adamw"] = "adamw"
    lr: float = 6e-5
    weight_decay: float = 0.01
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    head_lr: float = 10.0
    heads: list[str] | None = None
    bias_lr: float = 1.0
    decay_norms: bool = False
    decay_biases: bool = True

    def __post_init__(self) -> None:
        for name in ("lr", "head_lr", "bias_lr"):
            if not getattr(self, name) > 0:
                raise ValueError(
                    f"optimizer.{name} must be a positive number, got {getattr(self, name)!r}"
                )
        if not self.weight_decay >= 0:
            raise ValueError(f"optimizer.weight_decay must be at least 0, got {self.weight_decay}")


@dataclass
class ScheduleOptions:
    """The rate as a factor of the base rate, by the number of steps taken.

    Args:
        name: "poly": (1 - t)^power from the end of the warm-up to the last step; "step": times
            `factor` at each of `milestones`; "constant".
        power: of poly.
        min_factor: which poly does not fall below.
        warmup_steps: over which the factor rises linearly from `warmup_factor` to 1; at most half
            of the training, where that is cut short.
        warmup_factor: of the first step.
        milestones: of "step".
        factor: of "step".
    """

    name: Literal["poly", "step", "constant"] = "poly"
    power: float = 1.0
    min_factor: float = 0.0
    warmup_steps: int = 0
    warmup_factor: float = 1e-6
    milestones: list[int] = field(default_factory=list)
    factor: float = 0.1


def factor_of(options: ScheduleOptions, total: int) -> Callable[[int], float]:
    """The factor of step 0, 1, ... of `total`."""
    warmup = min(options.warmup_steps, total // 2)

    def poly(step: int) -> float:
        share = min(max(step - warmup, 0) / max(total - warmup, 1), 1.0)
        return max((1.0 - share) ** options.power, options.min_factor)

    def steps(step: int) -> float:
        return options.factor ** sum(step >= milestone for milestone in options.milestones)

    shape = {"poly": poly, "step": steps, "constant": lambda step: 1.0}[options.name]

    def factor(step: int) -> float:
        if step < warmup:
            share = step / warmup
            return options.warmup_factor + (1.0 - options.warmup_factor) * share
        return shape(step)

    return factor


def parameter_groups(network: nn.Module, options: OptimizerOptions) -> list[dict]:
    """The network's trainable parameters, by rate and decay, each group with a `name`."""
    groups: dict[tuple[float, float], dict] = {}
    for name, parameter, in_norm in _named(network):
        rate = options.lr * (options.head_lr if _is_head(name, options.heads) else 1.0)
        is_bias = name.endswith("bias") and not in_norm
        if is_bias:
            rate *= options.bias_lr
        decays = options.decay_norms if in_norm else options.decay_biases or not is_bias
        decay = options.weight_decay if decays else 0.0
        key = (rate, decay)
        label = f"lr{rate:g}_decay{decay:g}"
        group = {"params": [], "lr": rate, "weight_decay": decay, "name": label}
        groups.setdefault(key, group)["params"].append(parameter)
    if not groups:
        raise ValueError("the network has no parameter that can be trained")
    return list(groups.values())


def _named(network: nn.Module) -> Iterator[tuple[str, nn.Parameter, bool]]:
    """Name, parameter and whether it belongs to a normalisation; each once."""
    seen = set()
    for prefix, module in network.named_modules():
        for name, parameter in module.named_parameters(prefix, recurse=False):
            if parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                yield name, parameter, isinstance(module, _NORMS)


def _is_head(name: str, heads: list[str] | None) -> bool:
    if heads is None:
        return not name.startswith("backbone.")
    return any(name == head or name.startswith(f"{head}.") for head in heads)


def make_optimizer(
    network: nn.Module, options: OptimizerOptions, fused: bool
) -> torch.optim.Optimizer:
    """The optimiser of `parameter_groups`; `fused`: all parameters in one kernel."""
    groups = parameter_groups(network, options)
    if options.name == "sgd":
        return torch.optim.SGD(groups, lr=options.lr, momentum=options.momentum, fused=fused)
    return torch.optim.AdamW(groups, lr=options.lr, betas=tuple(options.betas), fused=fused)


def make_schedule(
    optimizer: torch.optim.Optimizer, options: ScheduleOptions, total: int
) -> LambdaLR:
    """The rates of all groups by the same factor."""
    return LambdaLR(optimizer, factor_of(options, total))
