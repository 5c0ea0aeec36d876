"""What this processor can do, as far as PyTorch tells."""

from __future__ import annotations

import platform

import torch


def instruction_sets() -> set[str]:
    """The architecture and the instruction sets."""
    if not hasattr(torch.cpu, "get_capabilities"):  # before PyTorch 2.11
        return {platform.machine(), torch.backends.cpu.get_cpu_capability()}
    found = torch.cpu.get_capabilities()
    return {str(found.get("architecture"))} | {name for name, has in found.items() if has is True}


def emulates_bfloat16() -> bool:
    """Whether products in bfloat16 are slower than in float32."""
    found = instruction_sets()
    return "x86_64" in found and "avx2" in found and not found & {"avx512_bf16", "amx_bf16"}
