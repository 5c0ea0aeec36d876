"""Asking the C library to keep freed memory."""

from __future__ import annotations

import ctypes

# Parameters of mallopt, from glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGE = 2**30
LARGEST_BEFORE_2_35 = 2**25  # for M_MMAP_THRESHOLD; larger values are refused there


def keep_freed_memory() -> bool:
    """Have malloc reuse large blocks instead of returning them to the kernel at every free.

    By default glibc maps every block of more than some megabytes anew, so that each map a network
    writes costs a page fault for every 4 KiB: up to a third of the time of a call. This is a
    setting of the whole process, for its life, which then keeps as much memory as it once needed.

    Returns:
        Whether the setting was taken: False where the C library is not glibc.
    """
    try:
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version  # noqa: B018  (an attribute of glibc alone)
        mallopt = libc.mallopt
    except (AttributeError, OSError, TypeError):
        return False
    taken = mallopt(M_MMAP_THRESHOLD, LARGE) or mallopt(M_MMAP_THRESHOLD, LARGEST_BEFORE_2_35)
    return bool(taken) and bool(mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
