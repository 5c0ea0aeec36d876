"""The error that rounding makes in a function, modelled in float64: the same on every machine.

The error that PyTorch makes in some dtype depends on the BLAS it calls, on instruction sets and
thread counts, and so would a budget made of nothing else. Here the definition runs in float64, and
every result of every step is disturbed by as much as rounding may change it:

- an element-wise step by up to half a unit in the last place of the dtype, another half for the
  functions that float32 and float64 libraries evaluate (half precision is evaluated in float32 and
  rounded once);
- a sum of n terms t with result S by a normal deviate of variance n u^2 (sum(t^2) + S^2) / 6, u
  being half a unit in the last place of the accumulating dtype, which is float32 for half
  precision. In any order that does not depend on the values, a partial sum of k of the terms has
  the expected square k/n sum(t^2) + (k/n)^2 S^2 or less; each is rounded with a relative error of
  variance u^2/3 or less; and adding one term after the other, which no implementation should do
  worse than, gives n (sum(t^2)/2 + S^2/3) u^2/3 in total.

The disturbances travel through what follows, as roundings do, so the conditioning of the function
is in the result. What they do not contain are wrong terms, or sums in a narrower dtype: those
remain far outside (test_rounding.py).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch._decomp import get_decompositions
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten

# Kernels of several steps, taken apart.
STEPS = get_decompositions(
    [
        aten._softmax,
        aten._softmax_backward_data,
        aten._log_softmax,
        aten._log_softmax_backward_data,
        aten.gelu,
        aten.gelu_backward,
        aten.native_batch_norm,
        aten.native_group_norm,
        aten.sigmoid_backward,
    ]
)
# Steps that only move, choose or compare.
EXACT = """
    _to_copy _unsafe_view abs adaptive_max_pool2d amax arange cat clamp clone constant_pad_nd copy
    empty empty_like eye fill full full_like gather index index_select masked_fill max maximum min
    minimum neg new_empty new_empty_strided new_full new_ones new_zeros ones ones_like relu repeat
    scalar_tensor select_backward slice_backward sort stack threshold_backward where zero zeros
    zeros_like
"""
EXACT = frozenset(EXACT.split())


def unit(dtype: torch.dtype) -> float:
    """Half a unit in the last place, relative."""
    return torch.finfo(dtype).eps / 2


class Rounding(TorchDispatchMode):
    """Disturbs float64 computations as rounding to `dtype` would, by draws from `seed`."""

    def __init__(self, dtype: torch.dtype, device: torch.device, seed: int) -> None:
        super().__init__()
        is_half = dtype in (torch.float16, torch.bfloat16)
        self.result = unit(dtype) * (1 if is_half else 2)
        self.inner = unit(torch.float32 if is_half else dtype)
        self.generator = torch.Generator(device).manual_seed(seed)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        packet = func.overloadpacket
        if packet in STEPS_OF:
            return self._each(STEPS_OF[packet](self, func, args, kwargs))
        found = func(*args, **kwargs)
        name = packet.__name__
        if name.endswith("_") and not name.startswith("__"):  # in place, on a view perhaps
            return found if name[:-1] in EXACT else found.copy_(self._rounded(found))
        if name in EXACT or any(r.alias_info is not None for r in func._schema.returns):
            return found
        if packet in SUMS:
            found = self._summed(func, args, kwargs, found, SUMS[packet])
        return self._each(found)

    def _each(self, found):
        if isinstance(found, (tuple, list)):
            return type(found)(self._each(x) for x in found)
        is_wide = isinstance(found, Tensor) and found.dtype == torch.float64
        return self._rounded(found) if is_wide else found

    def _rounded(self, x: Tensor) -> Tensor:
        if x.dtype != torch.float64:
            return x
        noise = torch.rand(x.shape, generator=self.generator, device=x.device, dtype=x.dtype)
        return x * (1 + self.result * (2 * noise - 1))

    def _summed(self, func, args, kwargs, found, counts: Callable):
        """`found`, sums of as many terms as `counts` says, disturbed as such."""
        squared = [a.square() if isinstance(a, Tensor) else a for a in args]
        several = isinstance(found, tuple)
        sums = found if several else (found,)
        squares = func(*squared, **kwargs)
        squares = squares if several else (squares,)
        terms = counts(args, sums)
        disturbed = tuple(
            s if s is None else self.disturbed_sum(s, q * scale, n)
            for s, q, (n, scale) in zip(sums, squares, terms, strict=True)
        )
        return disturbed if several else disturbed[0]

    def disturbed_sum(self, found: Tensor, squares: Tensor, count: float) -> Tensor:
        noise = torch.randn(
            found.shape, generator=self.generator, device=found.device, dtype=found.dtype
        )
        spread = (count / 6 * (squares + found.square())).sqrt()
        # Where there is infinity or NaN, rounding changes nothing.
        return torch.where(spread.isfinite(), found + self.inner * spread * noise, found)

    def finely(self, function: Callable[..., Tensor], *args, **kwargs) -> Tensor:
        """The steps of one kernel, which are rounded to the accumulating dtype only."""
        before, self.result = self.result, 2 * self.inner
        try:
            with self:
                return function(*args, **kwargs)
        finally:
            self.result = before


# The number of terms of each sum, and what the squares of the operands have to be multiplied by to
# be the squares of its terms.


def _contraction(args, sums):
    return [(args[0].shape[-1], 1.0)]


def _reduction(args, sums):
    return [(args[0].numel() / max(sums[0].numel(), 1), 1.0)]


def _mean(args, sums):
    count = args[0].numel() / max(sums[0].numel(), 1)
    return [(count, 1 / max(count, 1))]


def _pool(args, sums):
    """Bins of adaptive pooling, whose sides are rounded up."""
    largest, smallest = 1, 1
    for whole, bins in zip(args[0].shape[-2:], sums[0].shape[-2:], strict=True):
        largest *= -(-whole // bins) + 1
        smallest *= max(whole // bins, 1)
    return [(largest, 1 / smallest)]


def _pool_backward(args, sums):
    """Each position is in one bin a side, or in as many as meet at it."""
    sides = zip(args[0].shape[-2:], sums[0].shape[-2:], strict=True)
    height, width = (-(-bins // whole) + 1 for bins, whole in sides)
    return [(height * width, 1.0)]


def _convolution(args, sums):
    return [(args[1][0].numel(), 1.0)]


def _convolution_backward(args, sums):
    grad, x, weight = args[:3]
    positions = grad.numel() // max(grad.shape[1], 1)
    return [(weight[0].numel() * weight.shape[0] / max(x.shape[1], 1), 1.0)] + [
        (positions, 1.0)
    ] * 2


SUMS = {
    aten.mm: _contraction,
    aten.bmm: _contraction,
    aten.mv: _contraction,
    aten.dot: _contraction,
    aten.sum: _reduction,
    aten.mean: _mean,
    aten._adaptive_avg_pool2d: _pool,
    aten._adaptive_avg_pool2d_backward: _pool_backward,
    aten.convolution: _convolution,
    aten.convolution_backward: _convolution_backward,
}


# Bilinear resizing: the positions of the samples are rounded too, so that weights err by more in
# large maps.


def _weights(
    mode: Rounding, inputs: int, outputs: int, align_corners: bool, like: Tensor
) -> Tensor:
    """What each of `outputs` samples takes of each of `inputs` values, `[outputs, inputs]`."""
    index = torch.arange(outputs, dtype=like.dtype, device=like.device)
    if align_corners:
        position = index * ((inputs - 1) / max(outputs - 1, 1))
    else:
        position = ((index + 0.5) * (inputs / outputs) - 0.5).clamp(min=0)
    noise = torch.rand(position.shape, generator=mode.generator, device=like.device)
    position = position * (1 + 2 * mode.inner * (2 * noise - 1))
    position = position.clamp(max=inputs - 1)
    distance = (position[:, None] - torch.arange(inputs, device=like.device)).abs()
    return (1 - distance).clamp(min=0)


def _resized(mode: Rounding, x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    found = rows @ x @ columns.mT
    squares = rows.square() @ x.square() @ columns.square().mT
    count = (rows != 0).sum(1).max() * (columns != 0).sum(1).max()
    return mode.disturbed_sum(found, squares, float(count))


def _resize(mode: Rounding, func, args, kwargs) -> Tensor:
    x, size, align_corners = args[:3]
    if x.numel() == 0:
        return func(*args, **kwargs)
    size = size or func(*args, **kwargs).shape[2:]
    rows, columns = (
        _weights(mode, n, m, align_corners, x) for n, m in zip(x.shape[2:], size, strict=True)
    )
    return _resized(mode, x, rows, columns)


def _resize_backward(mode: Rounding, func, args, kwargs) -> Tensor:
    grad, _, size, align_corners = args[:4]
    if grad.numel() == 0:
        return func(*args, **kwargs)
    rows, columns = (
        _weights(mode, n, m, align_corners, grad).mT
        for n, m in zip(size[2:], grad.shape[2:], strict=True)
    )
    return _resized(mode, grad, rows, columns)


STEPS_OF = {
    packet: lambda mode, func, args, kwargs: mode.finely(STEPS[func], *args, **kwargs)
    for packet in {op.overloadpacket for op in STEPS}
}
STEPS_OF[aten.upsample_bilinear2d] = _resize
STEPS_OF[aten.upsample_bilinear2d_backward] = _resize_backward
