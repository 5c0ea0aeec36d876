"""The limit of a device: measured copy bandwidth and matrix rate, and the floor they give."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch

from .timing import Call, Timing, time_cpu, time_cuda


@dataclass(frozen=True)
class Rates:
    """What this device did in this run, for one dtype."""

    dtype: str
    copy_gb_s: float  # bytes read plus bytes written
    matmul_gflop_s: float

    def floor_ms(self, moved_bytes: float, macs: float) -> float:
        """Least time of an op that moves these bytes and does these multiply-adds."""
        moving = moved_bytes / (1e9 * self.copy_gb_s)
        computing = 2 * macs / (1e9 * self.matmul_gflop_s)
        return 1e3 * max(moving, computing)


def exact_float32() -> None:
    """Switch TensorFloat-32 off: a float32 row is float32 for every contender."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def _time(device: torch.device, call: Call) -> Timing:
    if device.type == "cuda":
        return time_cuda(call)
    return time_cpu({"call": call}, seconds=0.5, least=5)["call"]


SMALLEST, LARGEST = 2**16, 2**29  # bytes that a copy of an op's size moves


def size_class(moved: float) -> int:
    """The power of two that is nearest to a number of bytes, within what is measured."""
    return min(max(2 ** round(math.log2(max(moved, 1))), SMALLEST), LARGEST)


def measure_copy(device: torch.device, moved: int) -> float:
    """Gigabytes a second of a copy that reads and writes `moved` bytes in all, again and again.

    Buffers that fit the caches stay in them, as those of an op of that size do.
    """
    source = torch.ones(moved // 8, device=device)
    call = partial(torch.empty_like(source).copy_, source)
    return moved / time_cpu({"call": call}, seconds=0.1, least=5)["call"].p20 / 1e6


def measure_rates(device: torch.device, dtype: torch.dtype) -> Rates:
    """Copy bandwidth (a tensor far larger than the caches) and rate of a large matrix product.

    On a CPU the product is made by the BLAS and as convolutions, 1x1 and 3x3, whose weights are
    laid out before: which has the best kernels differs from processor to processor, and the fastest
    counts. Of the repeats the fastest fifth counts: a floor is what the device can do undisturbed.
    """
    on_gpu = device.type == "cuda"
    moved = (1024 if on_gpu else 256) * 2**20
    source = torch.ones(moved // dtype.itemsize, dtype=dtype, device=device)
    copied = _time(device, partial(torch.empty_like(source).copy_, source))
    del source
    side = 8192 if on_gpu else 1536
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    times = [_time(device, partial(torch.mm, a, b, out=torch.empty_like(a))).p20 / side**3]
    if not on_gpu:
        times += [_convolution_ms(kernel, dtype) for kernel in (1, 3)]
    return Rates(
        dtype=str(dtype).removeprefix("torch."),
        copy_gb_s=2 * moved / copied.p20 / 1e6,
        matmul_gflop_s=2 / min(times) / 1e6,
    )


@torch.no_grad()
def _convolution_ms(kernel: int, dtype: torch.dtype) -> float:
    """Milliseconds a multiply-add of a large convolution by oneDNN."""
    channels, height, width = 768, 64, 64
    conv = torch.nn.Conv2d(channels, channels, kernel, padding=kernel // 2, bias=False).to(dtype)
    conv = conv.eval().to(memory_format=torch.channels_last)
    image = torch.randn(1, channels, height, width).to(dtype, memory_format=torch.channels_last)
    call = partial(conv, image)
    if torch.backends.mkldnn.is_available():
        weight = torch.ops.mkldnn._reorder_convolution_weight(
            conv.weight, conv.padding, conv.stride, conv.dilation, 1, list(image.shape)
        )
        more = (conv.padding, conv.stride, conv.dilation, 1, "none", [], "")
        call = partial(torch.ops.mkldnn._convolution_pointwise, image, weight, None, *more)
    return _time(torch.device("cpu"), call).p20 / (height * width * channels**2 * kernel**2)
