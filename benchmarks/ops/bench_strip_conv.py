"""strip_conv against eager PyTorch (run: `attnops bench strip_conv`)."""

from __future__ import annotations

OP = "strip_conv"


def test_strip_conv(run_contender) -> None:
    run_contender()
