"""The generic non-local block: the baseline of the asymmetric ones."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from .._checks import check_choice, check_shape, check_tensors, given_python_numbers
from ._projection import FORMS, Projection


class NonLocal(nn.Module):
    """Context of the embedded-Gaussian non-local block; every position attends to every position.

    context = out(softmax(q·kᵀ / sqrt(hidden_channels))·v), no residual. It runs through PyTorch's
    `scaled_dot_product_attention` with contiguous operands, its fast path.

    Source: Wang et al., Non-local Neural Networks (CVPR 2018), as section 3.1, eq. (1) to (5), of
    Zhu et al., Asymmetric Non-local Neural Networks for Semantic Segmentation (ICCV 2019) has it.

    Args:
        in_channels: C of the input.
        hidden_channels: channels of query, key and value.
        out_channels: channels of the context; None: `in_channels`.
        share: "key_query": one projection for both, as the released code and the paper's table 1
            have it; "none": one each.
        projection: "linear", or "bn_relu": BatchNorm and ReLU on query and key (released code).

    Raises:
        ValueError: unknown option.

    Example:
        >>> import torch
        >>> from attnops.nn import NonLocal
        >>> NonLocal(64, hidden_channels=16)(torch.randn(2, 64, 12, 16)).shape
        torch.Size([2, 64, 12, 16])
    """

    @given_python_numbers
    def __init__(
        self,
        in_channels: int,
        hidden_channels: int = 256,
        out_channels: int | None = None,
        share: str = "key_query",
        projection: str = "linear",
    ) -> None:
        super().__init__()
        check_choice("NonLocal", "share", share, ("key_query", "none"))
        check_choice("NonLocal", "projection", projection, FORMS)
        out_channels = in_channels if out_channels is None else out_channels
        self.in_channels = in_channels
        self.key = Projection(in_channels, hidden_channels, projection)
        self.query = None
        if share == "none":
            self.query = Projection(in_channels, hidden_channels, projection)
        self.value = nn.Conv2d(in_channels, hidden_channels, 1)
        self.out = nn.Conv2d(hidden_channels, out_channels, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, in_channels, H, W]` -> `[B, out_channels, H, W]`.

        Raises:
            ValueError: wrong number of dimensions or channels.
        """
        check_tensors("NonLocal", x=x)
        check_shape("NonLocal", "x", x, ("B", self.in_channels, "H", "W"))
        key = self._tokens(self.key(x))
        query = key if self.query is None else self._tokens(self.query(x))
        context = scaled_dot_product_attention(query, key, self._tokens(self.value(x)))
        return self.out(context.squeeze(1).transpose(1, 2).unflatten(2, x.shape[2:]))

    @staticmethod
    def _tokens(x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, 1, N, C]` with contiguous rows."""
        return x.flatten(2).transpose(1, 2).unsqueeze(1).contiguous()
