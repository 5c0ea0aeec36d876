"""Integer targets of every dtype, as labels that are compared as 64-bit integers."""

from __future__ import annotations

import torch
from torch import Tensor

# What every implementation gets: labels of classes that are not there stay negative or too large.
_NO_LABEL, _NO_CLASS = -1, -2


def int64_labels(target: Tensor, ignore_index: int) -> tuple[Tensor, int]:
    """`target` as int64, and the label to ignore, which has 32 bits.

    A pixel has the label to ignore exactly if its value in `target` is `ignore_index`; where no
    value of the dtype is, none has it. Unsigned values from 2^63 on become negative labels.
    """
    labels = target.long()
    if target.dtype == torch.uint64:
        fits = 0 <= ignore_index < 2**64
        wanted = ignore_index - 2**64 if fits and ignore_index >= 2**63 else ignore_index
        exact = wanted >= 0
    else:
        fits, wanted, exact = -(2**63) <= ignore_index < 2**63, ignore_index, True
    if fits and exact and -(2**31) <= wanted < 2**31:
        return labels, wanted
    others = torch.where(labels < 0, _NO_CLASS, labels)
    return (torch.where(labels == wanted, _NO_LABEL, others) if fits else others), _NO_LABEL
