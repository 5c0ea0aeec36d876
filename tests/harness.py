"""What the tests of every op share: inputs in all layouts, and the error budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
LAYOUTS = (
    "contiguous",
    "channels_last",
    "sliced",
    "sliced_channels_last",
    "transposed",
    "expanded",
)


def in_layout(x: Tensor, layout: str) -> Tensor:
    """The values of `x` `[B, C, H, W]` in another memory layout ("expanded": its first sample,
    repeated).
    """
    if layout == "contiguous":
        return x.contiguous()
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "sliced":
        big = x.new_full((x.shape[0], x.shape[1] + 3, x.shape[2] + 2, 2 * x.shape[3]), torch.nan)
        view = big[:, 2:-1, 1:-1, ::2]
        return view.copy_(x)
    if layout == "sliced_channels_last":
        big = x.new_full((x.shape[0], x.shape[2] + 2, x.shape[3] + 1, x.shape[1] + 2), torch.nan)
        view = big[:, 1:-1, 1:, 2:].permute(0, 3, 1, 2)
        return view.copy_(x)
    if layout == "transposed":
        return x.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0)
    if layout == "expanded":
        return x[:1].expand_as(x)
    raise ValueError(layout)


def error(actual: Tensor, oracle: Tensor) -> float:
    """Largest absolute difference to a float64 oracle; NaN must meet NaN, infinity the same
    infinity.
    """
    actual = actual.detach().double()
    assert actual.shape == oracle.shape, f"shape {tuple(actual.shape)}, not {tuple(oracle.shape)}"
    same = (actual == oracle) | (actual.isnan() & oracle.isnan())
    difference = (actual - oracle).abs().masked_fill(same, 0.0)
    return difference.max().item() if difference.numel() else 0.0


def assert_within_budget(
    actual: Tensor, oracle: Tensor, eager_error: float, factor: float, what: str = "output"
) -> None:
    """`actual` errs at most `factor` times as much as PyTorch does in the same dtype.

    A few roundings of the largest value are always allowed: PyTorch may hit a value exactly.
    """
    finite = oracle[oracle.isfinite()].abs()
    largest = finite.max().item() if finite.numel() else 0.0
    roundings = 64 if actual.dtype == torch.float64 else 2  # the oracle itself is float64
    rounding = roundings * torch.finfo(actual.dtype).eps * largest
    limit = max(factor * eager_error, rounding)
    measured = error(actual, oracle)
    assert measured <= limit, f"{what}: error {measured:.3e}, allowed {limit:.3e}"


def _run(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], grad: Tensor
) -> tuple[Tensor, ...]:
    """Output and gradients of `function`, all detached."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = function(*leaves)
    return out.detach(), *torch.autograd.grad(out, leaves, grad.to(out.dtype))


def _eager_errors(
    reference: Callable[..., Tensor], inputs: Sequence[Tensor], grad: Tensor, draws: int = 4
) -> list[float]:
    """Errors of `reference` in the dtype of `inputs`: of its output and of each gradient.

    The largest of several draws, the given input and others a little beside it: with few elements a
    single draw says more about luck than about rounding.
    """
    errors: list[list[float]] = []
    for draw in range(draws):
        near = [x if draw == 0 else x * (1 + torch.randn_like(x) / 64) for x in inputs]
        wide = _run(reference, [x.double() for x in near], grad)
        errors.append([error(a, b) for a, b in zip(_run(reference, near, grad), wide, strict=True)])
    return [max(column) for column in zip(*errors, strict=True)]


def check_op(
    op: Callable[..., Tensor],
    reference: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    grad_layout: str | None = None,
) -> tuple[Tensor, ...]:
    """Compare output and all gradients of `op` with the float64 `reference` within the budget.

    Args:
        op: the fused function of `inputs`.
        reference: its definition in plain PyTorch.
        inputs: float tensors; gradients are taken with respect to every one.
        grad_layout: layout of the incoming gradient (4-D outputs), None: contiguous.

    Returns:
        The output and the gradients of `op`.
    """
    inputs = [x.detach() for x in inputs]
    wide = [x.double() for x in inputs]
    grad = torch.randn_like(reference(*wide), memory_format=torch.contiguous_format)
    grad = grad.to(inputs[0].dtype)  # the same incoming gradient for all
    if grad_layout is not None:
        grad = in_layout(grad, grad_layout)
    found = _run(op, inputs, grad)
    oracle = _run(reference, wide, grad)
    limits = _eager_errors(reference, inputs, grad)
    for i, (actual, wanted, limit) in enumerate(zip(found, oracle, limits, strict=True)):
        what, factor = ("output", 2.0) if i == 0 else (f"gradient of input {i - 1}", 3.0)
        assert actual.dtype == inputs[0].dtype
        assert_within_budget(actual, wanted, limit, factor, what)
    return found
