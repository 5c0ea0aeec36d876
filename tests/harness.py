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
    actual: Tensor, oracle: Tensor, same_dtype: Tensor, factor: float, what: str = "output"
) -> None:
    """`actual` errs at most `factor` times as much as PyTorch does in the same dtype.

    A few roundings of the largest value are always allowed: with few elements it is luck how
    exactly PyTorch hits them.
    """
    finite = oracle[oracle.isfinite()].abs()
    largest = finite.max().item() if finite.numel() else 0.0
    roundings = 64 if actual.dtype == torch.float64 else 2  # the oracle itself is float64
    rounding = roundings * torch.finfo(actual.dtype).eps * largest
    limit = max(factor * error(same_dtype, oracle), rounding)
    measured = error(actual, oracle)
    assert measured <= limit, f"{what}: error {measured:.3e}, allowed {limit:.3e}"


def check_op(
    op: Callable[..., Tensor],
    reference: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    grad_layout: str | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """Compare output and all gradients of `op` with the float64 `reference` within the budget.

    Args:
        op: the fused function of `inputs`.
        reference: its definition in plain PyTorch.
        inputs: float tensors; gradients are taken with respect to every one.
        grad_layout: layout of the incoming gradient (4-D outputs), None: as randn gives it.

    Returns:
        The output and the gradients of `op`.
    """

    def run(function: Callable[..., Tensor], leaves: list[Tensor], grad: Tensor | None):
        out = function(*leaves)
        if grad is None:
            grad = torch.randn_like(out.detach(), memory_format=torch.contiguous_format)
            if grad_layout is not None:
                grad = in_layout(grad, grad_layout)
        return out.detach(), torch.autograd.grad(out, leaves, grad.to(out.dtype)), grad

    leaves = [x.detach().requires_grad_() for x in inputs]
    out, grads, grad = run(op, leaves, None)
    wide = [x.detach().double().requires_grad_() for x in inputs]
    oracle, oracle_grads, _ = run(reference, wide, grad)
    narrow = [x.detach().clone().requires_grad_() for x in inputs]
    same, same_grads, _ = run(reference, narrow, grad)
    assert out.dtype == inputs[0].dtype
    assert_within_budget(out, oracle, same, 2.0)
    for i, (found, wanted, yardstick) in enumerate(
        zip(grads, oracle_grads, same_grads, strict=True)
    ):
        assert found.dtype == inputs[i].dtype
        assert_within_budget(found, wanted, yardstick, 3.0, f"gradient of input {i}")
    return out, list(grads)
