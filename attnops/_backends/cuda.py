"""The CUDA C++ implementations (csrc/cuda)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._dispatch import BackendNotInstalled
from .library import load, register_ops

# Limits of the kernels' tables and 32-bit indices (csrc/cuda/pyramid_pool/plan.h).
_MAX_LEVELS, _MAX_BINS_AN_AXIS = 16, 64
_MAX_PIXELS, _MAX_PLANES = 2**31 - 1 - 4096, 2**31 - 1
# Anchors whose scores fit the registers of a warp (csrc/cuda/anchor_attention/plan.h).
_MAX_ANCHORS = 112
# Windows whose tiles fit the shared memory (csrc/cuda/local_attention/plan.h).
_MAX_KERNEL, _MAX_NEIGHBOURS = 63, 441
# Kernels whose tiles fit the shared memory (csrc/cuda/strip_conv/plan.h).
_MAX_LOCAL_SIDE, _MAX_STRIPS, _MAX_STRIP_SIDE = 11, 8, 63

# Bases that tensor cores take at a time, and channels of a tile of X that fits the shared memory
# (csrc/cuda/nmf/plan.h).
_MAX_RANK, _MAX_NMF_CHANNELS = 64, 1024


def _refuse_device(x: Tensor) -> str | None:
    return None if x.device.type == "cuda" else f"it runs CUDA tensors only, got {x.device}"


def _refuse_pyramid_pool(x: Tensor, sizes: list[int], *args: Any) -> str | None:
    if len(sizes) > _MAX_LEVELS or sum(sizes) > _MAX_BINS_AN_AXIS:
        return (
            f"it has room for {_MAX_LEVELS} levels of {_MAX_BINS_AN_AXIS} bins an axis in all, "
            f"got sizes {tuple(sizes)}"
        )
    batch, channels, height, width = x.shape
    if height * width > _MAX_PIXELS or batch * channels > _MAX_PLANES:
        return (
            f"it indexes up to {_MAX_PLANES} planes of {_MAX_PIXELS} pixels, got "
            f"{batch * channels} of {height}x{width}"
        )
    return _refuse_device(x)


def _refuse_anchor_attention(query: Tensor, key: Tensor, *args: Any) -> str | None:
    if query.dtype == torch.float64:
        return "it computes in float32, got float64"
    if key.shape[2] > _MAX_ANCHORS:
        return f"it takes up to S={_MAX_ANCHORS} anchors, got S={key.shape[2]}"
    positions = query.shape[2:].numel()
    if positions > _MAX_PIXELS:
        return f"it indexes up to {_MAX_PIXELS} positions, got {positions}"
    return _refuse_device(query)


def _refuse_local_attention(
    query: Tensor, key: Tensor, value: Tensor, kernel_size: list[int], *args: Any
) -> str | None:
    if max(kernel_size) > _MAX_KERNEL or kernel_size[0] * kernel_size[1] > _MAX_NEIGHBOURS:
        return (
            f"it takes windows of up to {_MAX_KERNEL} an axis and {_MAX_NEIGHBOURS} in all, got "
            f"{kernel_size[0]}x{kernel_size[1]}"
        )
    if query.shape[2] * query.shape[3] >= 2**31:
        return f"it indexes maps of less than 2^31 pixels, got {tuple(query.shape)}"
    return _refuse_device(query)


def _refuse_strip_conv(x: Tensor, weights: list[Tensor], *args: Any) -> str | None:
    kernel_size, *sides = (tuple(weight.shape[2:]) for weight in weights)
    rows, columns = tuple(w for _, w in sides[0::2]), tuple(h for h, _ in sides[1::2])
    longest = max([*rows, *columns], default=0)
    if max(kernel_size) > _MAX_LOCAL_SIDE or len(rows) > _MAX_STRIPS or longest > _MAX_STRIP_SIDE:
        return (
            f"it takes local kernels of up to {_MAX_LOCAL_SIDE} an axis and {_MAX_STRIPS} strips "
            f"of up to {_MAX_STRIP_SIDE}, got {kernel_size[0]}x{kernel_size[1]} and rows "
            f"{rows}, columns {columns}"
        )
    if x.shape[2] * x.shape[3] > _MAX_PIXELS:
        return f"it indexes maps of up to {_MAX_PIXELS} pixels, got {tuple(x.shape)}"
    return _refuse_device(x)


def _refuse_nmf(x: Tensor, bases: Tensor, *args: Any) -> str | None:
    if x.dtype == torch.float64:
        return "it computes in float32, got float64"
    channels, rank = bases.shape[1:]
    if rank > _MAX_RANK or channels > _MAX_NMF_CHANNELS:
        return (
            f"it takes up to R={_MAX_RANK} bases of D={_MAX_NMF_CHANNELS} channels, got R={rank}, "
            f"D={channels}"
        )
    if x.shape[2] > _MAX_PIXELS:
        return f"it indexes up to {_MAX_PIXELS} positions, got {tuple(x.shape)}"
    refused = _refuse_device(x)
    if refused:
        return refused
    needed = _nmf_shared_bytes(channels, rank)
    offered = torch.cuda.get_device_properties(x.device).shared_memory_per_block_optin
    if needed > offered:
        return f"a block needs {needed} bytes of shared memory, this device has {offered}"
    return None


def _nmf_shared_bytes(channels: int, rank: int) -> int:
    """`nmf_shared_bytes` of csrc/cuda/nmf/plan.h."""
    depth, padded = -(-channels // 64) * 64, 32 if rank <= 32 else 64
    return 4 * (32 * depth + 8 * 32 * padded + (2 * 32 + padded) * (padded + 4))


# op -> why an input cannot run, or None
OPS = {
    "pyramid_pool": _refuse_pyramid_pool,
    "anchor_attention": _refuse_anchor_attention,
    "local_attention": _refuse_local_attention,
    "strip_conv": _refuse_strip_conv,
    "nmf": _refuse_nmf,
}


def register_all() -> None:
    """Load the library and register its ops.

    Raises:
        BackendNotInstalled: the library was not built, or this PyTorch has no CUDA.
        IncompleteBackend: it lacks ops.
        ImportError: it cannot be loaded.
    """
    if torch.version.cuda is None:
        raise BackendNotInstalled("this PyTorch is built without CUDA")
    load("cuda")
    register_ops("cuda", OPS)
