"""SegNeXt's gating unit and its Hamburger."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from .._checks import check_choice, check_shape, check_tensors, given_python_numbers
from ..nmf import GRADIENTS, nmf
from ..strip_conv import strip_conv
from ._order import Ordered
from .functional import (
    apply_to_anchors,
    convolve,
    is_channels_inner,
    is_depthwise,
    is_pointwise,
    map_of_tokens,
    without_autocast,
)


class MSCA(Ordered):
    """Multi-scale convolutional attention: strip convolutions make a gate for the map itself.

    y = mix(strip_conv(x)) · x, with `attnops.strip_conv` and a 1x1 convolution `mix`; the gate is
    raw, without sigmoid or softmax.

    Source: Guo et al., SegNeXt (NeurIPS 2022), section 3.1, eq. (1) and (2).

    Args:
        channels: C of the map.
        local_kernel: odd side of the first, square convolution.
        strips: odd lengths of the pairs of strip convolutions.

    Shapes: `[B, C, H, W]` -> `[B, C, H, W]`.

    Raises:
        ValueError: an even kernel; an input of another shape.

    Example:
        >>> import torch
        >>> from attnops.nn import MSCA
        >>> MSCA(16)(torch.randn(2, 16, 24, 32)).shape
        torch.Size([2, 16, 24, 32])
    """

    @given_python_numbers
    def __init__(
        self, channels: int, local_kernel: int = 5, strips: Sequence[int] = (7, 11, 21)
    ) -> None:
        super().__init__()
        for k in (local_kernel, *strips):
            if k < 1 or k % 2 == 0:
                raise ValueError(f"MSCA: kernels must be odd and positive, got {k}")
        self.channels = channels

        def depthwise(height: int, width: int) -> nn.Conv2d:
            padding = (height // 2, width // 2)
            return nn.Conv2d(channels, channels, (height, width), padding=padding, groups=channels)

        self.local = depthwise(local_kernel, local_kernel)
        self.rows = nn.ModuleList(depthwise(1, k) for k in strips)
        self.columns = nn.ModuleList(depthwise(k, 1) for k in strips)
        self.mix = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        check_tensors("MSCA", x=x)
        check_shape("MSCA", "x", x, ("B", self.channels, "H", "W"))
        return convolve(self.mix, self._gate(x)) * x

    def _gate(self, x: Tensor) -> Tensor:
        local, pairs = self.local, list(zip(self.rows, self.columns, strict=True))
        if is_depthwise(local) and all(
            is_depthwise(row, height=1) and is_depthwise(column, width=1) for row, column in pairs
        ):
            strips = [((r.weight, r.bias), (c.weight, c.bias)) for r, c in pairs]
            return strip_conv(x, local.weight, local.bias, strips)
        around = local(x)
        return sum((column(row(around)) for row, column in pairs), around)


class Hamburger(Ordered):
    """Global context as a low-rank reconstruction between two 1x1 convolutions.

    h = ReLU(ham_in(x)) is factorised by `attnops.nmf` into bases A and coefficients C;
    y = ReLU(x + GroupNorm(ham_out(A·Cᵀ))). As ham_out is linear, it is applied to the R bases, not
    to the N positions. The factorisation runs in float32 in half-precision models and autocast
    regions too, where its sums over positions would overflow or its coefficients vanish.

    Source: Geng et al., Is Attention Better Than Matrix Decomposition? (ICLR 2021), section 3, as
    in SegNeXt's LightHamHead (Guo et al., NeurIPS 2022, section 3.2).

    Args:
        channels: C of the map.
        rank: R, number of bases.
        train_steps: updates in training.
        eval_steps: updates in evaluation.
        grad: "unrolled" (as published) or "one_step".
        seed: draws the bases once from this seed; None: anew in every forward, from PyTorch's
            default generator of the CPU, different for each sample, as published. Draws are
            float32 whatever PyTorch's default dtype is.
        norm_groups: groups of the GroupNorm, a divisor of C.

    Attributes:
        bases: `[1 or B, C, R]`, used as given when assigned (assigning None takes it back); else
            what `seed` gave, or None. Assign it at any time, a parameter or the result of other
            modules too: gradients reach it, but it is neither among the module's parameters nor in
            the state dict, and copies of the module get its values alone unless it is a leaf. It
            stays on its device, in its dtype, and is converted in every forward.

    Shapes: `[B, C, H, W]` -> `[B, C, H, W]`.

    Raises:
        ValueError: an unknown `grad`, a rank or steps out of range, `norm_groups` that does not
            divide C; inputs or bases of another shape.

    Example:
        >>> import torch
        >>> from attnops.nn import Hamburger
        >>> Hamburger(64, rank=16, seed=0)(torch.randn(2, 64, 16, 16)).shape
        torch.Size([2, 64, 16, 16])
    """

    @given_python_numbers
    def __init__(
        self,
        channels: int,
        rank: int = 64,
        train_steps: int = 6,
        eval_steps: int = 7,
        grad: str = "unrolled",
        seed: int | None = None,
        norm_groups: int = 32,
    ) -> None:
        super().__init__()
        check_choice("Hamburger", "grad", grad, GRADIENTS)
        if rank < 1 or train_steps < 0 or eval_steps < 0:
            raise ValueError(
                "Hamburger: rank must be at least 1 and steps not negative, got "
                f"rank={rank}, train_steps={train_steps}, eval_steps={eval_steps}"
            )
        if norm_groups < 1 or channels % norm_groups:
            raise ValueError(
                f"Hamburger: norm_groups must divide channels, got norm_groups={norm_groups}, "
                f"channels={channels}"
            )
        self.channels, self.rank, self.grad = channels, rank, grad
        self.train_steps, self.eval_steps = train_steps, eval_steps
        self.ham_in = nn.Conv2d(channels, channels, 1)
        self.ham_out = nn.Conv2d(channels, channels, 1, bias=False)
        self.norm = nn.GroupNorm(norm_groups, channels)
        self._assigned: Tensor | None = None
        self._seeded: Tensor | None = None
        if seed is not None:
            generator = torch.Generator(device="cpu").manual_seed(seed)
            self._seeded = _draw(1, channels, rank, generator)

    @property
    def bases(self) -> Tensor | None:
        return self._seeded if self._assigned is None else self._assigned

    @bases.setter
    def bases(self, value: Tensor | None) -> None:
        if value is not None:
            check_tensors("Hamburger", bases=value)
            check_shape("Hamburger", "bases", value, ("1 or B", self.channels, self.rank))
        self.__dict__["_assigned"] = value  # past Module's own, which registers parameters

    def __setattr__(self, name: str, value: object) -> None:
        if name == "bases":  # Module's own registers a parameter under the property's name
            type(self).bases.fset(self, value)
        else:
            super().__setattr__(name, value)

    def __getstate__(self) -> dict[str, object]:
        """For copies and files, which cannot hold what leads to a tensor."""
        state = dict(self.__dict__)
        if self._assigned is not None and not self._assigned.is_leaf:
            state["_assigned"] = self._assigned.detach()
        return state

    def forward(self, x: Tensor) -> Tensor:
        check_tensors("Hamburger", x=x)
        check_shape("Hamburger", "x", x, ("B", self.channels, "H", "W"))
        ham = torch.relu(convolve(self.ham_in, x))
        folds = is_pointwise(self.ham_out) and self.ham_out.bias is None
        with without_autocast(x):
            source = (ham if ham.dtype == torch.float64 else ham.float()).flatten(2)
            steps = self.train_steps if self.training else self.eval_steps
            bases, coef = nmf(source, self._initial_bases(source), steps, grad=self.grad)
            if folds:
                bases = apply_to_anchors(self.ham_out.weight.to(bases.dtype), None, bases)
            if is_channels_inner(x):
                rebuilt = map_of_tokens(coef @ bases.mT, *x.shape[2:])
            else:
                rebuilt = (bases @ coef.mT).unflatten(2, x.shape[2:])
        out = rebuilt.to(ham.dtype)
        if not folds:
            out = self.ham_out(out)
        return torch.relu(x + self.norm(out).to(x.dtype))

    def _initial_bases(self, source: Tensor) -> Tensor:
        batch = source.shape[0]
        bases = self.bases
        if bases is None:
            bases = _draw(batch, self.channels, self.rank)
        elif bases.shape[0] not in (1, batch):
            raise ValueError(
                f"Hamburger: bases are for {bases.shape[0]} samples, the input has {batch}; "
                f"expected [1 or {batch}, {self.channels}, {self.rank}]"
            )
        return bases.to(source).expand(batch, -1, -1)


def _draw(batch: int, channels: int, rank: int, generator: torch.Generator | None = None) -> Tensor:
    """Random bases with columns of length 1, the same numbers whatever defaults are set."""
    # torch.compile with a batch of any size takes no generator, not even None
    source = {} if generator is None else {"generator": generator}
    drawn = torch.rand(batch, channels, rank, device="cpu", dtype=torch.float32, **source)
    return normalize(drawn, dim=1)
