"""depthwise_gelu against eager PyTorch (run: `attnops bench depthwise_gelu`)."""

from __future__ import annotations

OP = "depthwise_gelu"


def test_depthwise_gelu(run_contender) -> None:
    run_contender()
