"""Graphs of oneDNN's convolutions, as the compiler's passes see them."""

from __future__ import annotations

import torch
from torch import nn

ONEDNN = torch.ops.mkldnn._convolution_pointwise.default


def convolutions(*options: tuple[nn.Conv2d, bool], dtype: torch.dtype) -> torch.fx.GraphModule:
    """A chain of them, with ReLU or without."""
    graph, root = torch.fx.Graph(), nn.Module()
    x = graph.placeholder("x")
    x.meta["val"] = torch.empty(1, options[0][0].in_channels, 9, 11, dtype=dtype)
    for i, (conv, relu) in enumerate(options):
        x = append(graph, root, x, conv, dtype, str(i))
        if relu:
            x = graph.call_function(torch.ops.aten.relu.default, (x,))
    graph.output(x)
    return torch.fx.GraphModule(root, graph)


def append(
    graph: torch.fx.Graph,
    root: nn.Module,
    x: torch.fx.Node,
    conv: nn.Conv2d,
    dtype: torch.dtype,
    name: str,
) -> torch.fx.Node:
    """One more of them, of `x`; its weights are constants of `root`."""
    for kind in ("weight", "bias"):
        setattr(root, f"{kind}{name}", getattr(conv, kind).detach().to(dtype))
    weight, bias = (graph.get_attr(f"{kind}{name}") for kind in ("weight", "bias"))
    numbers = (list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups)
    return graph.call_function(ONEDNN, (x, weight, bias, *numbers, "none", [], ""))
