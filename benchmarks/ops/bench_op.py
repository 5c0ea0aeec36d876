"""An op against eager PyTorch and its other peers (run: `attnops bench OP`)."""

from __future__ import annotations


def test_op(run_contender) -> None:
    run_contender()
