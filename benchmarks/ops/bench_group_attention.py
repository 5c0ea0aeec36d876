"""group_attention against eager PyTorch (run: `attnops bench group_attention`)."""

from __future__ import annotations

OP = "group_attention"


def test_group_attention(run_contender) -> None:
    run_contender()
