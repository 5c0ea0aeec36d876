"""upsample_gate against eager PyTorch (run: `attnops bench upsample_gate`)."""

from __future__ import annotations

OP = "upsample_gate"


def test_upsample_gate(run_contender) -> None:
    run_contender()
