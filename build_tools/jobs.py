"""How many compilers may run at once, from cores and memory."""

from __future__ import annotations

import os
from pathlib import Path

GIB = 1 << 30
# What one compiler may take, with room to spare (nvcc: 0.4 GiB seen).
CPP_JOB_BYTES = 1 * GIB
CUDA_JOB_BYTES = 2 * GIB

CGROUP = Path("/sys/fs/cgroup")


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def available_cores(cgroup: Path = CGROUP) -> int:
    """Cores this process may use: its affinity and, in a container, the quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quota = _read(cgroup / "cpu.max").split()
    if len(quota) == 2 and quota[0] != "max":
        cores = min(cores, max(1, int(quota[0]) // int(quota[1])))
    return cores or 1


def available_memory(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = CGROUP) -> int | None:
    """Bytes that can still be used: the machine's and, in a container, the limit's rest."""
    limits = []
    for line in _read(meminfo).splitlines():
        if line.startswith("MemAvailable:"):
            limits.append(int(line.split()[1]) * 1024)
    limit, used = _read(cgroup / "memory.max"), _read(cgroup / "memory.current")
    if limit.isdecimal() and used.isdecimal():
        limits.append(max(0, int(limit) - int(used)))
    return min(limits) if limits else None


def job_count(bytes_per_job: int, cores: int, memory: int | None, max_jobs: int | None) -> int:
    """Jobs that keep the cores busy without exhausting the memory; max_jobs wins when given."""
    if max_jobs is not None:
        return max_jobs
    if memory is not None:
        cores = min(cores, memory // bytes_per_job)
    return max(1, cores)
