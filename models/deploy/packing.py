"""Weights of convolutions in the layout that oneDNN wants, whatever the size of the images.

Inductor lays weights out when it compiles for one size; for sizes that are free it leaves that to
every call. The layout hardly depends on the size: laid out for the one that a graph was exported
with, the weights are as they have to be for nearly all others too, and where they are not, oneDNN
lays them out anew, as without this.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter

import torch
from torch import Tensor
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files


class PackedConvolutions(CustomGraphPass):
    """Lays out the constant weights of a graph's oneDNN convolutions."""

    def __call__(self, graph: torch.fx.Graph) -> None:
        if not torch.backends.mkldnn.is_available():
            return
        convolution = torch.ops.mkldnn._convolution_pointwise.default
        for node in graph.find_nodes(op="call_function", target=convolution):
            x, weight, _, padding, stride, dilation, groups = node.args[:7]
            value = _constant(graph, weight)
            if value is None or value.is_mkldnn:
                continue
            packed = torch.ops.mkldnn._reorder_convolution_weight(
                value, padding, stride, dilation, groups, _hints(x.meta["val"].shape)
            )
            name = f"packed_{node.name}"
            setattr(graph.owning_module, name, packed)
            with graph.inserting_before(node):
                constant = graph.create_node("get_attr", name)
            constant.meta["val"] = weight.meta["val"]
            node.update_arg(1, constant)

    def uuid(self) -> bytes:
        return get_hash_for_files((__file__,))


def _constant(graph: torch.fx.Graph, node: torch.fx.Node) -> Tensor | None:
    """What stands in a graph as a constant."""
    return attrgetter(node.target)(graph.owning_module) if node.op == "get_attr" else None


def _hints(sizes: Sequence[int | torch.SymInt]) -> list[int]:
    return [size if isinstance(size, int) else int(size.node.hint) for size in sizes]
