"""anchor_attention against eager PyTorch (run: `attnops bench anchor_attention`)."""

from __future__ import annotations

OP = "anchor_attention"


def test_anchor_attention(run_contender) -> None:
    run_contender()
