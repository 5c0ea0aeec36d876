"""nmf against eager PyTorch (run: `attnops bench nmf`)."""

from __future__ import annotations

OP = "nmf"


def test_nmf(run_contender) -> None:
    run_contender()
