"""The C++ library's max pooling of deployed networks against PyTorch's."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import max_pool2d

import attnops
from attnops.models.backbones.pooling import MaxPool3x3
from attnops.models.deploy.pooling import LibraryPool, use_library_pools

pytestmark = pytest.mark.skipif(
    not attnops.backends()["nmf"]["cpu"], reason="the C++ library was not built"
)

SIZES = [(64, 13, 14), (33, 1, 1), (5, 2, 3), (100, 4, 31), (1, 7, 8), (16, 1, 9)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
def test_pools_as_pytorch_does(stride: int, ceil_mode: bool, dtype: torch.dtype) -> None:
    for channels, height, width in SIZES:
        x = torch.randn(2, channels, height, width).to(dtype)
        x = x.contiguous(memory_format=torch.channels_last)
        x[0, 0, 0, 0], x[1, -1, -1, -1] = float("nan"), float("-inf")
        found = torch.ops.attnops_cpu.max_pool(x, stride, ceil_mode)
        wanted = max_pool2d(x, 3, stride, 1, ceil_mode=ceil_mode)
        torch.testing.assert_close(found, wanted, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
def test_compiles_for_all_sizes(stride: int, ceil_mode: bool) -> None:
    pool = LibraryPool(MaxPool3x3(stride, ceil_mode)).eval()
    sizes = {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    example = torch.randn(1, 8, 20, 21)  # contiguous: the library takes contiguous channels
    exported = torch.export.export(pool, (example,), dynamic_shapes=(sizes,)).module()
    targets = [str(node.target) for node in exported.graph.nodes]
    assert "attnops_cpu.max_pool.default" in targets
    for height, width in ((20, 21), (33, 32), (7, 64)):
        x = torch.randn(1, 8, height, width).contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(exported(x), pool(x), rtol=0, atol=0)


def test_takes_the_place_of_what_does_as_it_was_built() -> None:
    watched = MaxPool3x3(2)
    watched.register_forward_hook(lambda module, inputs, result: result + 1)
    network = torch.nn.Sequential(MaxPool3x3(2), watched, torch.nn.MaxPool2d(2))
    use_library_pools(network)
    assert [type(module) for module in network] == [LibraryPool, MaxPool3x3, torch.nn.MaxPool2d]


def test_refuses_what_it_cannot_pool() -> None:
    pool = torch.ops.attnops_cpu.max_pool
    with pytest.raises(RuntimeError, match="contiguous channels"):
        pool(torch.randn(1, 8, 4, 4), 2, False)
    x = torch.randn(1, 8, 4, 4).contiguous(memory_format=torch.channels_last)
    with pytest.raises(RuntimeError, match="stride of 1 or 2"):
        pool(x, 3, False)
    with pytest.raises(RuntimeError, match="contiguous channels"):
        pool(x[:0], 2, False)
