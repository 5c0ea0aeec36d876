"""Softmax weights below the normal range: zero, and no slower than others."""

from __future__ import annotations

import statistics
import time

import pytest
import torch

import attnops

pytestmark = pytest.mark.skipif(
    not attnops.backends()["anchor_attention"]["cpu"], reason="the CPU library is not built"
)

BELOW = 95.0  # e^-95 is below the normal range of float32


def attention(distance: float, layout: torch.memory_format) -> torch.Tensor:
    """Of 512 scores, the last of which lies so far above the others."""
    query = torch.ones(1, 8, 64, 64).contiguous(memory_format=layout)
    key = torch.zeros(1, 8, 512)
    key[..., -1] = distance / 8
    with attnops.use_backend("cpu"):
        return attnops.anchor_attention(query, key, torch.ones(1, 64, 512).cumsum(2), scale=1.0)


LAYOUTS = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])


@LAYOUTS
@pytest.mark.parametrize("distance", [BELOW, 1e5])
def test_far_scores_weigh_nothing(layout, distance):
    assert torch.equal(attention(distance, layout), torch.full((1, 64, 64, 64), 512.0))


def test_the_calling_thread_keeps_its_small_numbers():
    attention(BELOW, torch.channels_last)
    assert (torch.tensor([1e-39]) * 0.5).item() == pytest.approx(5e-40, rel=1e-3)


@LAYOUTS
def test_weights_below_the_normal_range_cost_no_more(layout):
    """Sums of nothing else made products take many times as long on some processors."""
    times: dict[float, list[float]] = {1.0: [], BELOW: []}
    for _ in range(15):
        for distance, taken in times.items():
            start = time.perf_counter()
            attention(distance, layout)
            taken.append(time.perf_counter() - start)
    usual, far = (statistics.median(taken) for taken in times.values())
    assert far <= 2 * usual
