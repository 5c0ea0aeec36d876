"""merge_scales against eager PyTorch (run: `attnops bench merge_scales`)."""

from __future__ import annotations

OP = "merge_scales"


def test_merge_scales(run_contender) -> None:
    run_contender()
