"""What was done to a network to deploy it."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Report:
    """Facts about a deployment; `str` of it is for reading.

    Attributes:
        network: class of the network.
        dtype: of convolutions and fused ops, "float32" or "bfloat16".
        norms: BatchNorms that an evaluation of the network meets.
        folded: of them, those that became part of a convolution.
        compiled: whether the network runs as compiled code.
        reason: why it does not.
        fused_ops: calls of ops, of attnops or of deployments alone, in one evaluation.
        in_parts: whether products in float32 are made of those of bfloat16 parts, by AMX.
        memory_kept: whether the process keeps freed memory (`keep_freed_memory`).
        working_memory_kept: whether deployments keep the memory that they work in.
    """

    network: str
    dtype: str
    norms: int
    folded: int
    compiled: bool
    reason: str = ""
    fused_ops: dict[str, int] = field(default_factory=dict)
    in_parts: bool = False
    memory_kept: bool = False
    working_memory_kept: bool = False

    def __str__(self) -> str:
        form = "compiled by AOTInductor" if self.compiled else f"not compiled: {self.reason}"
        parts = " (products in three bfloat16 parts)" if self.in_parts else ""
        ops = ", ".join(f"{name} {n}x" for name, n in sorted(self.fused_ops.items())) or "none"
        lines = [
            f"{self.network} in {self.dtype}{parts}, {form}",
            f"BatchNorms folded into convolutions: {self.folded} of {self.norms}",
            f"fused ops: {ops}",
            f"working memory: {_kept(self.working_memory_kept)}",
            f"freed memory: {_kept(self.memory_kept)}",
        ]
        return "\n".join(lines)


def _kept(kept: bool) -> str:
    return "kept" if kept else "as malloc has it"
