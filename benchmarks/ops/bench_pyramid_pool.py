"""pyramid_pool against eager PyTorch (run: `attnops bench pyramid_pool`)."""

from __future__ import annotations

OP = "pyramid_pool"


def test_pyramid_pool(run_contender) -> None:
    run_contender()
