"""The attention core that APNB and AFNB share (ANN, sections 3.2 and 3.3)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from .._checks import check_choice
from ..anchor_attention import anchor_attention
from ..pyramid_pool import checked_sizes, pyramid_pool
from ._projection import FORMS, Projection, linear_convolution
from .functional import apply_to_anchors, as_matrix, folding_saves, is_pointwise, pointwise


class PyramidAttention(nn.Module):
    """Context of every position of a high-level map from pyramid anchors of a low-level map.

    context = out(softmax(query(high)ᵀ · pool(key(low)) / sqrt(Ck)) · pool(value(low)))

    Every 1x1 convolution that stands between linear steps is moved to the S anchors where that
    costs fewer multiply-adds, with the same result up to rounding:

    - mean pooling commutes with a linear projection: pool(W·x + b) = W·pool(x) + b;
    - a linear query needs no map: (Wq·x + bq)ᵀ·k = xᵀ·(Wqᵀ·k) + bqᵀ·k, C·S a position instead of
      C·Ck + Ck·S;
    - rows of the softmax sum to 1, so Wo·(V·p) + bo = (Wo·V + bo)·p, S·Co a position instead of
      S·Cv + Cv·Co.

    A convolution that is no longer the plain one that it was built as (hooked, wrapped, pruned,
    reparametrised, of other options) is not moved, but called on its map.

    Args:
        low_channels: channels of the map that gives keys and values.
        high_channels: channels of the map that gives queries.
        key_channels: Ck.
        value_channels: Cv.
        out_channels: channels of the context.
        sizes: pyramid grids.
        reduce: pooling, "mean" or "max".
        projection: "bn_relu" (released code: BatchNorm and ReLU on query and key) or "linear".
        share: which projections are one: "key_query" (needs low_channels = high_channels),
            "key_value" (needs Ck = Cv) or None.
    """

    def __init__(
        self,
        low_channels: int,
        high_channels: int,
        key_channels: int,
        value_channels: int,
        out_channels: int,
        sizes: Sequence[int],
        reduce: str,
        projection: str,
        share: str | None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        check_choice(name, "reduce", reduce, ("mean", "max"))
        check_choice(name, "projection", projection, FORMS)
        if share == "key_value" and key_channels != value_channels:
            raise ValueError(
                f"{name}: share='key_value' needs key_channels == value_channels, got "
                f"{key_channels} and {value_channels}"
            )
        self.sizes = tuple(checked_sizes(name, sizes))
        self.reduce = reduce
        self.share = share
        self.key = Projection(low_channels, key_channels, projection)
        self.query = None
        if share != "key_query":
            self.query = Projection(high_channels, key_channels, projection)
        self.value = None
        if share != "key_value":
            self.value = nn.Conv2d(low_channels, value_channels, 1)
        self.out = nn.Conv2d(value_channels, out_channels, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, low: Tensor, high: Tensor, mix: Tensor | None = None) -> Tensor:
        """Context `[B, Co, H, W]` of high `[B, Ch, H, W]` from low `[B, Cl, h, w]`.

        With `mix` `[M, Co]`, the 1x1 convolution of the context with it: `[B, M, H, W]`.
        """
        key, value = self._linear_anchors(low)
        if value is None and self.value is not None:
            value = pyramid_pool(self.value(low), self.sizes, self.reduce)
        query = None
        if key is None:
            projected = self.key(low)
            key = pyramid_pool(projected, self.sizes, self.reduce)
            query = projected if self.query is None else None
            del projected
        if value is None:
            value = key
        scale = key.shape[1] ** -0.5
        bias = None
        if query is None:
            query, key, bias = self._query(high, key, scale)
        return self._attend(query, key, value, scale, bias, mix)

    def _linear_anchors(self, low: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Anchors of key and value where these are plain 1x1 convolutions, else None.

        Through the pooled input where pooling and convolution commute; it is dropped on return,
        since it may be larger than the anchors.
        """
        value = self.value if is_pointwise(self.value) else None
        convolutions = (linear_convolution(self.key), value)
        if self.reduce == "max":
            return tuple(
                conv
                and pyramid_pool(
                    pointwise(low, conv.weight, conv.bias, lean=True), self.sizes, "max"
                )
                for conv in convolutions
            )
        if not any(convolutions):
            return None, None
        pooled = pyramid_pool(low, self.sizes)
        return tuple(
            conv and apply_to_anchors(conv.weight, conv.bias, pooled) for conv in convolutions
        )

    def _query(
        self, high: Tensor, key: Tensor, scale: float
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Queries, keys and score bias: the projected map, or `high` itself with folded keys."""
        projection = self.key if self.query is None else self.query
        conv = linear_convolution(projection)
        channels, (inner, anchors) = high.shape[1], key.shape[1:]
        if conv is None or not folding_saves(
            _positions(high),
            once=channels * inner * anchors,
            folded=channels * anchors,
            unfolded=channels * inner + inner * anchors,
        ):
            return projection(high), key, None
        bias = None if conv.bias is None else scale * (conv.bias @ key)
        return high, apply_to_anchors(as_matrix(conv.weight).t(), None, key), bias

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float,
        bias: Tensor | None,
        mix: Tensor | None,
    ) -> Tensor:
        """Attention, then the output convolution and `mix`: on the anchors, or on the map."""
        if not is_pointwise(self.out):
            context = self.out(anchor_attention(query, key, value, scale, bias=bias))
            return context if mix is None else pointwise(context, mix, None, lean=True)
        convolutions = [(self.out.weight, self.out.bias)]
        if mix is not None:
            convolutions.append((mix, None))
        inner, anchors = value.shape[1:]
        on_map = sum(weight.shape[0] * weight.shape[1] for weight, _ in convolutions)
        if folding_saves(
            _positions(query),
            once=anchors * on_map,
            folded=anchors * convolutions[-1][0].shape[0],
            unfolded=anchors * inner + on_map,
        ):
            for weight, shift in convolutions:
                value = apply_to_anchors(weight, shift, value)
            return anchor_attention(query, key, value, scale, bias=bias)
        context = anchor_attention(query, key, value, scale, bias=bias)
        for weight, shift in convolutions:
            context = pointwise(context, weight, shift, lean=True)
        return context


def _positions(x: Tensor) -> int:
    return x.shape[2] * x.shape[3]
