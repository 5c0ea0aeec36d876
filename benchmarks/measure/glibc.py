"""How glibc treats freed memory; a process takes it from its environment when it starts."""

from __future__ import annotations

import os

# What keeps glibc from giving large freed maps back to the system after every use.
KEPT = {"MALLOC_MMAP_THRESHOLD_": str(2**31 - 1), "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}
SETTINGS = {"default": {}, "kept": KEPT}


def environment(setting: str) -> dict[str, str]:
    """This process's environment with the setting "default" or "kept"."""
    return {k: v for k, v in os.environ.items() if k not in KEPT} | SETTINGS[setting]
