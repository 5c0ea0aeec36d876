"""The memory that deployments work in, which they keep from call to call.

PyTorch's allocator asks malloc, and glibc's malloc gives large blocks back to the kernel when they
are freed: every map of a network is paid for in page faults. A call of a deployment takes its maps
from a pool instead (csrc/pool), as other runtimes do. Threads that are in no such call, and
processes that deploy nothing, allocate as before.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from pathlib import Path

import torch

import attnops

LIBRARY = Path(attnops.__file__).parent / "lib" / "libattnops_pool.so"
WORK, RESULT = 1, 2  # Purpose of csrc/pool/pool.h; 0: none
FIRST, LAST = (
    211,
    214,
)  # versions of PyTorch, 100 major + minor, whose allocators are laid out alike

_owners: set[int] = set()


@cache
def _pool() -> ctypes.CDLL | None:
    """The library, its allocator installed; None: it is not there, or for another PyTorch."""
    try:
        library = ctypes.CDLL(str(LIBRARY))
    except OSError:
        return None
    major, minor = (int(x) for x in torch.__version__.split(".")[:2])
    versions = {100 * major + minor, library.attnops_pool_torch()}
    if len(versions) > 1 and not all(FIRST <= version <= LAST for version in versions):
        return None
    for name in ("mapped", "used"):
        getattr(library, f"attnops_pool_{name}").restype = ctypes.c_size_t
    library.attnops_pool_install()
    return library


def keep_for(owner: object) -> bool:
    """Keep memory from now on, until the last owner is collected.

    Returns:
        Whether there is a pool: False where the C++ library was not built, or for another PyTorch.
    """
    pool = _pool()
    if pool is None:
        return False
    _owners.add(id(owner))
    weakref.finalize(owner, _leave, id(owner), pool).atexit = False
    return True


def _leave(owner: int, pool: ctypes.CDLL) -> None:
    _owners.discard(owner)
    if not _owners:
        pool.attnops_pool_release()


def for_work() -> AbstractContextManager[None]:
    """Around what allocates on this thread what is freed in it, or soon after it."""
    return _allocating(WORK)


def for_result() -> AbstractContextManager[None]:
    """Around what allocates on this thread what the caller of a deployment may keep."""
    return _allocating(RESULT)


@contextmanager
def _allocating(purpose: int) -> Iterator[None]:
    pool = _pool()
    if pool is None:
        yield
        return
    before = pool.attnops_pool_use(purpose)
    try:
        yield
    finally:
        pool.attnops_pool_use(before)


def mapped_bytes() -> int:
    """Bytes that the pool has from the kernel."""
    return 0 if _pool() is None else _pool().attnops_pool_mapped()


def used_bytes() -> int:
    """Bytes of them that hold tensors."""
    return 0 if _pool() is None else _pool().attnops_pool_used()
