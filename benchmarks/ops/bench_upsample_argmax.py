"""upsample_argmax against eager PyTorch (run: `attnops bench upsample_argmax`)."""

from __future__ import annotations

OP = "upsample_argmax"


def test_upsample_argmax(run_contender) -> None:
    run_contender()
