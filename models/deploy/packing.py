"""Weights of convolutions in the layout in which they are multiplied, whatever the images' size.

Inductor lays weights out when it compiles for one size; for sizes that are free it leaves that to
every call. The layout hardly depends on the size: laid out for the one that a graph was exported
with, the weights are as they have to be for nearly all others too, and where they are not, oneDNN
lays them out anew, as without this. 3x3 convolutions of stride 1 leave oneDNN for `winograd`.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path

import torch
from torch import Tensor
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files

from .winograd import has_winograd, in_panels, share_of_products, winograd_op

MAP = (2, 64, 68)  # batch and sides of a map whose sizes a graph does not tell
LEAST_CHANNELS = 64  # of a group, on either side, for which Winograd's algorithm pays
LARGEST_SHARE = 0.85  # of the products of a direct convolution


class PackedConvolutions(CustomGraphPass):
    """Lays out the constant weights of a graph's oneDNN convolutions.

    Args:
        winograd: whether some may go to the C++ library.
    """

    def __init__(self, winograd: bool) -> None:
        self.winograd = winograd

    def __call__(self, graph: torch.fx.Graph) -> None:
        if not torch.backends.mkldnn.is_available():
            return
        convolution = torch.ops.mkldnn._convolution_pointwise.default
        shared: dict[str, torch.fx.Node] = {}
        for node in graph.find_nodes(op="call_function", target=convolution):
            x, weight, _, padding, stride, dilation, groups = node.args[:7]
            value = _constant(graph, weight)
            if value is None or value.is_mkldnn:
                continue
            if self.winograd and _suits_winograd(node, value):
                _use_winograd(graph, node, value, shared)
                continue
            packed = torch.ops.mkldnn._reorder_convolution_weight(
                value, padding, stride, dilation, groups, _hints(x, value.shape[1] * groups)
            )
            _add_constant(graph, node, packed, weight.meta)

    def uuid(self) -> bytes:
        files = (__file__, str(Path(__file__).with_name("winograd.py")))
        return get_hash_for_files(files, str(self.winograd))


def _constant(graph: torch.fx.Graph, node: torch.fx.Node) -> Tensor | None:
    """What stands in a graph as a constant."""
    return attrgetter(node.target)(graph.owning_module) if node.op == "get_attr" else None


def _add_constant(graph: torch.fx.Graph, node: torch.fx.Node, value: Tensor, meta: dict) -> None:
    """Make `value` the weight of a convolution."""
    name = f"packed_{node.name}"
    setattr(graph.owning_module, name, value)
    with graph.inserting_before(node):
        constant = graph.create_node("get_attr", name)
    constant.meta.update(meta)
    node.update_arg(1, constant)


def _hints(x: torch.fx.Node, channels: int) -> list[int]:
    """Sizes of a map that a graph is tuned for."""
    if "val" not in x.meta:  # inserted by a pass of Inductor's
        return [MAP[0], channels, *MAP[1:]]
    sizes: Sequence[int | torch.SymInt] = x.meta["val"].shape
    return [size if isinstance(size, int) else int(size.node.hint) for size in sizes]


def _suits_winograd(node: torch.fx.Node, weight: Tensor) -> bool:
    x, _, _, padding, stride, dilation, groups, attribute = node.args[:8]
    outputs, channels = weight.shape[:2]
    sides = _hints(x, channels)[2:]
    return (
        has_winograd(weight.dtype)
        and tuple(weight.shape[2:]) == (3, 3)
        and set(stride) == {1}
        and len({*padding, *dilation}) == 1
        and attribute == "none"
        and channels % 16 == 0
        and min(outputs // groups, channels) >= LEAST_CHANNELS
        and share_of_products(sides, dilation[0]) <= LARGEST_SHARE
    )


def _use_winograd(
    graph: torch.fx.Graph,
    node: torch.fx.Node,
    value: Tensor,
    shared: dict[str, torch.fx.Node],
) -> None:
    """Put the C++ library's convolution in place of oneDNN's, with the ReLU that takes its result.

    The library adds the bias in float32.

    Args:
        value: of the weight.
        shared: what was made of weights and biases, which several convolutions may have.
    """
    x, weight, bias, _, _, dilation, groups = node.args[:7]
    taking = list(node.users)
    relu = len(taking) == 1 and taking[0].target is torch.ops.aten.relu.default
    if weight.target not in shared:
        panels = in_panels(value, groups)
        shared[weight.target] = _constant_before(graph, node, "panels", panels)
    if bias is not None and bias.target not in shared:
        wide = _constant(graph, bias).float()
        shared[bias.target] = _constant_before(graph, node, "bias", wide)
    shift = None if bias is None else shared[bias.target]
    with graph.inserting_before(node):
        x = _in_channels_last(graph, x)
        arguments = (x, shared[weight.target], shift, value.shape[0], groups, dilation[0], relu)
        result = graph.call_function(winograd_op(), arguments)
    replaced = taking[0] if relu else node
    result.meta.update(replaced.meta)
    _keep_strides(result)
    replaced.replace_all_uses_with(result)
    if relu:
        graph.erase_node(replaced)
    graph.erase_node(node)


def _in_channels_last(graph: torch.fx.Graph, x: torch.fx.Node) -> torch.fx.Node:
    """A map as the library takes it: what makes others may choose their format when compiled."""
    convolution = torch.ops.mkldnn._convolution_pointwise.default
    if x.target in (torch.ops.aten.relu.default, convolution, winograd_op()):
        return x
    formatted = {"memory_format": torch.channels_last}
    made = graph.call_function(torch.ops.aten.clone.default, (x,), formatted)
    if "val" in x.meta:
        made.meta["val"] = x.meta["val"].clone(**formatted)
    return made


def _keep_strides(node: torch.fx.Node) -> None:
    """Hold the compiler to a map's channels being inside, for the op that takes it first.

    It goes by what the node says of its arguments, which still is what the convolution took, or
    the ReLU; and it chooses the strides itself where the node says nothing.
    """
    node.meta.pop("eager_input_vals", None)
    values = [a.meta.get("val") if isinstance(a, torch.fx.Node) else a for a in node.args]
    if values[0] is not None:
        values[0] = values[0].clone(memory_format=torch.channels_last)
        node.meta["eager_input_vals"] = (tuple(values), {})


def _constant_before(
    graph: torch.fx.Graph, node: torch.fx.Node, kind: str, value: Tensor
) -> torch.fx.Node:
    name = f"{kind}_{node.name}"
    setattr(graph.owning_module, name, value)
    with graph.inserting_before(node):
        constant = graph.create_node("get_attr", name)
    constant.meta["val"] = _fake_of(graph, constant)
    return constant


def _fake_of(graph: torch.fx.Graph, node: torch.fx.Node) -> Tensor:
    """A constant as the compiler sees it."""
    from torch._guards import detect_fake_mode

    mode = detect_fake_mode([n.meta["val"] for n in graph.nodes if "val" in n.meta])
    value = _constant(graph, node)
    return value if mode is None else mode.from_tensor(value, static_shapes=True)
