"""local_attention against eager PyTorch (run: `attnops bench local_attention`)."""

from __future__ import annotations

OP = "local_attention"


def test_local_attention(run_contender) -> None:
    run_contender()
