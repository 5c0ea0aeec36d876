"""Counters that blocks add one to when they are done: the last to arrive has more to do.

Nothing is written to global memory while a warp is followed, so no block would find that the others
have been there. A block that is followed as the last one is told a number that stands for "all
others", once by every atomic instruction: compared with whatever count the code expects, it is
equal. Going through shared memory, and adding a little to it, does not change that.
"""

from __future__ import annotations

import numpy as np

EVERYONE = 0x5A000000  # above all counts, as a signed number, too
_AROUND = 64


def stands_for_all(value: np.ndarray) -> np.ndarray:
    """Where a register has EVERYONE, or a number next to it."""
    return value.astype(np.uint32) - np.uint32(EVERYONE - _AROUND) < np.uint32(2 * _AROUND)
