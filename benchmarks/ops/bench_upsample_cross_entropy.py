"""upsample_cross_entropy against eager PyTorch (run: `attnops bench upsample_cross_entropy`)."""

from __future__ import annotations

OP = "upsample_cross_entropy"


def test_upsample_cross_entropy(run_contender) -> None:
    run_contender()
