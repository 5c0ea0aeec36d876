"""Weights of convolutions in the layout in which they are multiplied, whatever the images' size.

Inductor lays weights out when it compiles for one size; for sizes that are free it leaves that to
every call. The layout hardly depends on the size: laid out for the one that a graph was exported
with, the weights are as they have to be for nearly all others too, and where they are not, oneDNN
lays them out anew, as without this. Convolutions of stride 1 leave oneDNN for the C++ library: for
`tiles` on processors with AMX; elsewhere 3x3 ones for `winograd`, 1x1 ones in float32 for
`pointwise`; and those of one channel each for `depthwise`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter, getitem
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files

from .. import feed_forward
from ..inner_ops import uses_tiles, uses_vectors
from .chains import (
    Chain,
    chain_in_tiles,
    full_chain,
    goes_into_erf,
    mean_of,
    scaled_map,
    unrounded,
)
from .depthwise import (
    depthwise_op,
    depthwise_op_with_mean,
    expanded_depthwise_op,
    expansion_of,
    has_depthwise,
    in_taps,
    is_depthwise,
)
from .pointwise import ACTIVATIONS, has_pointwise, in_rows, pointwise_op
from .tiles import LEAST_CHANNELS as LEAST_IN_TILES
from .tiles import STEP, has_tiles, in_tiles, takes_stride, tiled_op
from .winograd import has_winograd, in_panels, share_of_products, winograd_op

MAP = (2, 64, 68)  # batch and sides of a map whose sizes a graph does not tell
LEAST_IN_PANELS = 16  # channels and outputs: a panel
LEAST_CHANNELS = 64  # of a group, on either side, for which Winograd's algorithm pays
LARGEST_SHARE = 0.85  # of the products of a direct convolution


class PackedConvolutions(CustomGraphPass):
    """Lays out the constant weights of a graph's oneDNN convolutions.

    Args:
        library: whether some may go to the C++ library.
    """

    def __init__(self, library: bool) -> None:
        self.library = library

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
            if self.library and _suits_tiles(node, value):
                _use_tiles(graph, node, value, shared)
                continue
            if self.library and _suits_winograd(node, value):
                _use_winograd(graph, node, value, shared)
                continue
            if self.library and _suits_pointwise(node, value):
                _use_pointwise(graph, node, value, shared)
                continue
            if self.library and _suits_depthwise(node, value):
                _use_depthwise(graph, node, value, shared)
                continue
            packed = torch.ops.mkldnn._reorder_convolution_weight(
                value, padding, stride, dilation, groups, _hints(x, value.shape[1] * groups)
            )
            _add_constant(graph, node, packed, weight.meta)

    def uuid(self) -> bytes:
        here = Path(__file__).parent
        files = *here.glob("*.py"), Path(feed_forward.__file__), here.parent / "float_parts.py"
        facts = self.library, uses_tiles(), uses_vectors()  # what is chosen depends on them
        return get_hash_for_files(tuple(sorted(map(str, files))), str(facts))


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


def _suits_tiles(node: torch.fx.Node, weight: Tensor) -> bool:
    _, _, _, padding, stride, dilation, groups, attribute = node.args[:8]
    side = weight.shape[2]
    return (
        has_tiles(weight.dtype)
        and side in (1, 3)
        and weight.shape[3] == side
        and takes_stride(weight, stride, dilation)
        and len(set(dilation)) == 1
        and set(padding) == {dilation[0] * (side - 1) // 2}
        and attribute == "none"
        and min(weight.shape[:2]) >= LEAST_IN_TILES[weight.dtype]
        and (
            groups == 1 or all(n % STEP == 0 for n in (weight.shape[0] // groups, weight.shape[1]))
        )
        and (
            weight.dtype == torch.float32
            or not goes_into_erf(node)
            or chain_in_tiles(node, weight.dtype).activation == "gelu"
        )
    )


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


def _suits_pointwise(node: torch.fx.Node, weight: Tensor) -> bool:
    _, _, _, padding, stride, _, groups, attribute = node.args[:8]
    return (
        has_pointwise(weight.dtype)
        and tuple(weight.shape[2:]) == (1, 1)
        and set(stride) == {1}
        and set(padding) == {0}
        and groups == 1
        and attribute == "none"
        and min(weight.shape[:2]) >= LEAST_IN_PANELS
    )


def _suits_depthwise(node: torch.fx.Node, weight: Tensor) -> bool:
    return (
        has_depthwise(weight.dtype)
        and is_depthwise(weight, *node.args[3:7])
        and node.args[7] == "none"
    )


def _use_tiles(
    graph: torch.fx.Graph, node: torch.fx.Node, value: Tensor, shared: dict[str, torch.fx.Node]
) -> None:
    """Put the C++ library's product of tiles in place of a convolution and what follows."""
    chain = chain_in_tiles(node, value.dtype)
    outputs, _, side, _ = value.shape
    numbers = (outputs, side, node.args[5][0], node.args[6], ACTIVATIONS.index(chain.activation))
    scale = _take_scale(graph, node, outputs) if side == 1 and node.args[6] == 1 else None
    stride = [] if node.args[4][0] == 1 else node.args[4][:1]
    rounded = node.args[0]
    node.update_arg(0, unrounded(rounded))
    if not rounded.users:
        graph.erase_node(rounded)
    wide = chain.nodes[-1].meta.get("val", value).dtype == torch.float32
    factor = _factor(graph, chain, shared)

    def call(x: Any, weight: Any, bias: Any) -> torch.fx.Node:
        gate, residual = (_in_channels_last(graph, n) for n in (chain.gate, chain.residual))
        arguments = (x, weight, bias, gate, residual, factor, scale, *numbers, wide, *stride)
        return graph.call_function(tiled_op(), arguments)

    _use_library(graph, chain.nodes, shared, lambda: in_tiles(value), call, maps=(0, 3, 4, 6))


def _use_winograd(
    graph: torch.fx.Graph, node: torch.fx.Node, value: Tensor, shared: dict[str, torch.fx.Node]
) -> None:
    """Put the C++ library's convolution in place of oneDNN's and the ReLU that takes its result."""
    chain = Chain([node])
    chain.take_relu()
    relu = chain.activation == "relu"
    dilation, groups = node.args[5][0], node.args[6]

    def call(x: Any, weight: Any, bias: Any) -> torch.fx.Node:
        arguments = (x, weight, bias, value.shape[0], groups, dilation, relu)
        return graph.call_function(winograd_op(), arguments)

    _use_library(graph, chain.nodes, shared, lambda: in_panels(value, groups), call, maps=(0,))


def _use_pointwise(
    graph: torch.fx.Graph, node: torch.fx.Node, value: Tensor, shared: dict[str, torch.fx.Node]
) -> None:
    """Put the C++ library's 1x1 convolution in place of oneDNN's, of a map that its result is
    multiplied with, of one that is added, and of the activation that takes that.
    """
    chain = full_chain(node)
    factor, scale = _factor(graph, chain, shared), _take_scale(graph, node, value.shape[0])

    def call(x: Any, weight: Any, bias: Any) -> torch.fx.Node:
        gate, residual = (_in_channels_last(graph, n) for n in (chain.gate, chain.residual))
        number = ACTIVATIONS.index(chain.activation)
        arguments = (x, weight, bias, gate, residual, factor, scale, value.shape[0], number)
        return graph.call_function(pointwise_op(), arguments)

    _use_library(graph, chain.nodes, shared, lambda: in_rows(value), call, maps=(0, 3, 4, 6))


def _use_depthwise(
    graph: torch.fx.Graph, node: torch.fx.Node, value: Tensor, shared: dict[str, torch.fx.Node]
) -> None:
    """Put the C++ library's depthwise convolution in place of oneDNN's, the activation, and the
    mean of what comes out; of the 1x1 convolution before, too, where there is that mean.
    """
    chain = Chain([node])
    chain.take_relu()
    if chain.activation == "none" and value.dtype == torch.float32:
        chain.take_smooth()
    elif chain.activation == "none":
        chain.take_rounded_smooth(value.dtype)
    numbers = (value.shape[2], node.args[5][0], ACTIVATIONS.index(chain.activation))

    mean, before = mean_of(chain.nodes[-1]), node.args[0]
    expansion = None if mean is None else expansion_of(before)

    def call(x: Any, weight: Any, bias: Any) -> torch.fx.Node:
        if expansion is not None:
            return graph.call_function(
                expanded_depthwise_op(), (*expansion, weight, bias, *numbers)
            )
        op = depthwise_op() if mean is None else depthwise_op_with_mean()
        return graph.call_function(op, (x, weight, bias, *numbers))

    _use_library(graph, chain.nodes, shared, lambda: in_taps(value), call, maps=(0,), mean=mean)
    if expansion is not None:
        graph.erase_node(before)


def _take_scale(graph: torch.fx.Graph, node: torch.fx.Node, outputs: int) -> torch.fx.Node | None:
    """Have a convolution take the map itself where it takes its product with a scale; the scale.

    The library multiplies weights with it, which pays where a map is larger than they are.
    """
    _, _, height, width = _hints(node, outputs)
    found = scaled_map(node.args[0])
    if found is None or height * width < outputs:
        return None
    product = node.args[0]
    map, scale = found
    node.update_arg(0, map)
    graph.erase_node(product)
    return scale


def _factor(
    graph: torch.fx.Graph, chain: Chain, shared: dict[str, torch.fx.Node]
) -> torch.fx.Node | None:
    """A chain's factor as the library takes it, `[C]` in float32."""
    factor = chain.factor
    if factor is None:
        return None
    if factor.target not in shared:
        flat = _constant(graph, factor).flatten().float()
        shared[factor.target] = _constant_before(graph, chain.nodes[0], "factor", flat)
    return shared[factor.target]


def _use_library(
    graph: torch.fx.Graph,
    chain: Sequence[torch.fx.Node],
    shared: dict[str, torch.fx.Node],
    lay_out: Callable[[], Tensor],
    call: Callable[[Any, Any, Any], torch.fx.Node],
    maps: Sequence[int],
    mean: torch.fx.Node | None = None,
) -> None:
    """Put the C++ library's convolution in place of oneDNN's and of what else it does.

    The library adds the bias in float32.

    Args:
        chain: the convolution and what takes its result, one after the other.
        shared: what was made of weights and biases, which several convolutions may have.
        lay_out: the weights as the library takes them.
        call: map, weights and bias -> the library's convolution.
        maps: which of its arguments are maps.
        mean: what the second result of that convolution stands for, if it has two.
    """
    node, last = chain[0], chain[-1]
    x, weight, bias = node.args[:3]
    if weight.target not in shared:
        shared[weight.target] = _constant_before(graph, node, "weight", lay_out())
    if bias is not None and bias.target not in shared:
        wide = _constant(graph, bias).float()
        shared[bias.target] = _constant_before(graph, node, "bias", wide)
    shift = None if bias is None else shared[bias.target]
    replaced = [last] if mean is None else [last, mean]
    with graph.inserting_before(last):
        result = call(_in_channels_last(graph, x), shared[weight.target], shift)
        results = [result] if mean is None else [_part(graph, result, i) for i in range(2)]
    if mean is not None:
        result.meta["val"] = tuple(old.meta.get("val") for old in replaced)
    for old, new in zip(replaced, results, strict=True):
        new.meta.update(old.meta)
        old.replace_all_uses_with(new)
    _keep_strides(result, maps)
    for old in (*replaced[1:], *reversed(chain)):
        graph.erase_node(old)


def _part(graph: torch.fx.Graph, results: torch.fx.Node, index: int) -> torch.fx.Node:
    return graph.call_function(getitem, (results, index))


def _in_channels_last(graph: torch.fx.Graph, x: torch.fx.Node | None) -> torch.fx.Node | None:
    """A map as the library takes it: what makes others may choose their format when compiled."""
    convolution = torch.ops.mkldnn._convolution_pointwise.default
    own = (tiled_op(), winograd_op(), pointwise_op(), depthwise_op())
    if x is None or x.target in (torch.ops.aten.relu.default, convolution, *own):
        return x
    if x.target is getitem and x.args[0].target in (
        depthwise_op_with_mean(),
        expanded_depthwise_op(),
    ):
        return x
    formatted = {"memory_format": torch.channels_last}
    made = graph.call_function(torch.ops.aten.clone.default, (x,), formatted)
    if "val" in x.meta:
        made.meta["val"] = x.meta["val"].clone(**formatted)
    return made


def _keep_strides(node: torch.fx.Node, maps: Sequence[int]) -> None:
    """Hold the compiler to maps' channels being inside, for the op that takes them.

    It goes by what the node says of its arguments, which still is what the convolution took, or
    the ReLU; and it chooses the strides itself where the node says nothing.
    """
    node.meta.pop("eager_input_vals", None)
    values = [a.meta.get("val") if isinstance(a, torch.fx.Node) else a for a in node.args]
    if values[0] is None:
        return
    for index in maps:
        if values[index] is not None:
            values[index] = values[index].clone(memory_format=torch.channels_last)
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
