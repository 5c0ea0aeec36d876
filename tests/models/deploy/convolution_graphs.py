"""Graphs of oneDNN's convolutions, as the compiler's passes see them."""

from __future__ import annotations

import torch
from torch import nn

from attnops.models.deploy.convolutions.packing import PackedConvolutions

ADD, MULTIPLY = torch.ops.aten.add.Tensor, torch.ops.aten.mul.Tensor
CONVERT = torch.ops.prims.convert_element_type.default
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


class Following:
    """A graph of one convolution that keeps a map's size, of a map 9x11, and steps behind it.

    Args:
        conv: from C to O channels.
        dtype: of the convolution.
        source: of its map, which is rounded where the convolution's is another.
        other: sizes of another map.
        other_dtype: of that map.
    """

    def __init__(
        self,
        conv: nn.Conv2d,
        dtype: torch.dtype = torch.float32,
        source: torch.dtype | None = None,
        other: tuple[int, ...] | None = None,
        other_dtype: torch.dtype | None = None,
    ) -> None:
        self.graph, self.root, self.dtype = torch.fx.Graph(), nn.Module(), dtype
        self.size = (1, conv.out_channels, 9, 11)
        sizes = (1, conv.in_channels, 9, 11), other or self.size
        self.maps = [
            torch.randn(size, dtype=kind).to(memory_format=torch.channels_last)
            for size, kind in zip(sizes, (source or dtype, other_dtype or dtype), strict=True)
        ]
        x, self.other = self.graph.placeholder("x"), self.graph.placeholder("other")
        x.meta["val"], self.other.meta["val"] = self.maps
        if self.maps[0].dtype != dtype:
            x = self.graph.call_function(CONVERT, (x, dtype))
            x.meta["val"] = self.maps[0].to(dtype)
        self.conv = append(self.graph, self.root, x, conv, dtype, "0")
        self.conv.meta["val"] = torch.empty(self.size, dtype=dtype)
        self.root.factor = torch.randn(conv.out_channels, 1, 1)
        self.factor = self.graph.get_attr("factor")
        self.factor.meta["val"] = self.root.factor

    def step(self, target: torch._ops.OpOverload, *args: object) -> torch.fx.Node:
        """One more call, whose result has the dtype of its first map."""
        node = self.graph.call_function(target, args)
        dtype = (
            args[1]
            if target is CONVERT
            else next(
                n.meta["val"].dtype
                for n in args
                if isinstance(n, torch.fx.Node) and n is not self.factor
            )
        )
        node.meta["val"] = torch.empty(self.size, dtype=dtype)
        return node

    def gelu(self, map: torch.fx.Node, one: float = 1) -> torch.fx.Node:
        """A GELU by its error function."""
        half, root = (self.step(MULTIPLY, map, value) for value in (0.5, 0.7071067811865476))
        erf = self.step(torch.ops.aten.erf.default, root)
        return self.step(MULTIPLY, half, self.step(ADD, erf, one))

    def silu(self, map: torch.fx.Node, one: float = 1) -> torch.fx.Node:
        """A SiLU by its exponential."""
        aten = torch.ops.aten
        exp = self.step(aten.exp.default, self.step(aten.neg.default, map))
        return self.step(aten.div.Tensor, map, self.step(ADD, exp, one))

    def calls_left(self, *outputs: torch.fx.Node, tolerance: float = 1e-5) -> int:
        """How many calls stand for all, which give what they gave before."""
        self.graph.output(outputs)
        before = torch.fx.GraphModule(self.root, self.graph)(*self.maps)
        module = torch.fx.GraphModule(self.root, self.graph)
        PackedConvolutions(True)(module.graph)
        module.graph.lint()
        module.recompile()
        for found, wanted in zip(module(*self.maps), before, strict=True):
            assert found.dtype == wanted.dtype
            assert (found - wanted).abs().max() <= tolerance * wanted.abs().max()
        assert not list(module.graph.find_nodes(op="call_function", target=ONEDNN))
        clone = torch.ops.aten.clone.default
        calls = [n for n in module.graph.nodes if n.op == "call_function" and n.target is not clone]
        return len(calls)
