"""What a compiled network does with a convolution's result, one step after the other."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.experimental.symbolic_shapes import statically_known_true

ADD, MULTIPLY = torch.ops.aten.add.Tensor, torch.ops.aten.mul.Tensor
CONVERT = torch.ops.prims.convert_element_type.default
RELU, ERF = torch.ops.aten.relu.default, torch.ops.aten.erf.default
NEGATE, EXP = torch.ops.aten.neg.default, torch.ops.aten.exp.default
DIVIDE = torch.ops.aten.div.Tensor
GELU_FACTORS = (0.5, 0.5**0.5)  # of the map, and of the error function's argument


@dataclass
class Chain:
    """A convolution of a graph and the steps that alone take each other's result.

    `activation((convolution * gate) + factor * residual)`. Each step is found only where what is
    before it is taken by nothing else, so that one op can stand for all of them.

    Args:
        nodes: the convolution, then its steps, in the graph's order.
        gate: a map like the result, or nothing.
        residual: a map like the result, or nothing.
        factor: a constant `[C, 1, 1]`, or nothing.
    """

    nodes: list[Node]
    gate: Node | None = None
    residual: Node | None = None
    factor: Node | None = None
    activation: str = "none"

    def take_gate(self) -> None:
        """Go on past the product of the result with another map."""
        step = self._only_user(MULTIPLY)
        if step is not None and (other := _other_map(step, self.nodes[-1])) is not None:
            self.gate = other
            self.nodes.append(step)

    def take_residual(self, scaled: bool = False) -> None:
        """Go on past the sum with another map.

        Args:
            scaled: also if that one is multiplied by a factor for each channel before.
        """
        step = self._only_user(ADD)
        if step is None or (other := _other_map(step, self.nodes[-1])) is None:
            return
        product = _channel_product(other) if scaled and set(other.users) == {step} else None
        if product is None:
            self.residual = other
        else:
            self.factor, self.residual = product
            self.nodes.append(other)
        self.nodes.append(step)

    def take_relu(self) -> None:
        """Go on past a ReLU."""
        step = self._only_user(RELU)
        if step is not None:
            self.activation = "relu"
            self.nodes.append(step)

    def take_gelu(self) -> None:
        """Go on past a GELU that is written out by its error function, in the result's dtype."""
        last = self.nodes[-1]
        parts = [_only(last, MULTIPLY, factor) for factor in GELU_FACTORS]
        if None in parts or len(last.users) != len(parts):
            return
        half, root = parts
        erf = _sole_user(root, ERF)
        plus = None if erf is None else _sole_user(erf, ADD)
        product = None if plus is None else _sole_user(plus, MULTIPLY)
        if product is None or tuple(plus.args) != (erf, 1) or plus.kwargs:
            return
        if set(product.args) == {half, plus} and set(half.users) == {product}:
            self.activation = "gelu"
            self.nodes += [half, root, erf, plus, product]

    def take_silu(self) -> None:
        """Go on past a SiLU that is written out by its exponential, in the result's dtype."""
        last = self.nodes[-1]
        negative = [user for user in last.users if user.target is NEGATE]
        exp = _sole_user(negative[0], EXP) if len(negative) == 1 else None
        plus = None if exp is None else _sole_user(exp, ADD)
        quotient = None if plus is None else _sole_user(plus, DIVIDE)
        if quotient is None or tuple(plus.args) != (exp, 1) or plus.kwargs:
            return
        if tuple(quotient.args) == (last, plus) and set(last.users) == {*negative, quotient}:
            self.activation = "silu"
            self.nodes += [*negative, exp, plus, quotient]

    def take_smooth(self) -> None:
        """Go on past a GELU or a SiLU."""
        self.take_gelu()
        if self.activation == "none":
            self.take_silu()

    def take_rounded_smooth(self, dtype: torch.dtype) -> None:
        """Go on past one that is computed of the result in float32 and rounded to `dtype`."""
        before = list(self.nodes)
        if self._take_conversion(torch.float32):
            self.take_smooth()
        if self.activation == "none" or not self._take_conversion(dtype):
            self.nodes, self.activation = before, "none"

    def take_wide_residual(self) -> None:
        """Go on past the sum of the result in float32 with another map, scaled or not."""
        before = list(self.nodes)
        if self._take_conversion(torch.float32):
            self.take_residual(scaled=True)
        if self.residual is None:
            self.nodes = before

    def _take_conversion(self, dtype: torch.dtype) -> bool:
        step = self._only_user(CONVERT)
        if step is None or step.args[1] != dtype:
            return False
        self.nodes.append(step)
        return True

    def _only_user(self, target: torch._ops.OpOverload) -> Node | None:
        return _sole_user(self.nodes[-1], target)


def chain_in_tiles(node: Node, dtype: torch.dtype) -> Chain:
    """What the C++ library's product of tiles can stand for. A sum in float32 stays that."""
    if dtype == torch.float32:
        return full_chain(node)
    chain = Chain([node])
    chain.take_gate()
    chain.take_rounded_smooth(dtype)
    if chain.activation == "none":
        chain.take_wide_residual()
    if chain.activation == "none" and chain.residual is None:
        chain.take_residual()
        chain.take_relu()
    return chain


def full_chain(node: Node) -> Chain:
    """All that the C++ library does behind a 1x1 convolution in float32."""
    chain = Chain([node])
    chain.take_gate()
    chain.take_residual(scaled=True)
    chain.take_relu()
    if chain.activation == "none":
        chain.take_smooth()
    return chain


def scaled_map(x: Node) -> tuple[Node, Node] | None:
    """Map and scale `[B, C, 1, 1]` of which `x` is the product, if one convolution alone takes it.

    Squeeze-and-excitation multiplies so.
    """
    if x.target is not MULTIPLY or x.kwargs or len(x.users) != 1:
        return None
    if not all(isinstance(n, Node) and isinstance(n.meta.get("val"), Tensor) for n in x.args):
        return None
    for map, scale in (x.args, x.args[::-1]):
        values = map.meta["val"], scale.meta["val"]
        if values[0].dtype != values[1].dtype or {value.dim() for value in values} != {4}:
            continue
        wanted = (*values[0].shape[:2], 1, 1)
        sizes = zip(values[1].shape, wanted, strict=True)
        if all(statically_known_true(size == want) for size, want in sizes):
            return map, scale
    return None


def mean_of(x: Node) -> Node | None:
    """The mean of each channel of a map, if it is taken, once."""
    mean = torch.ops.aten.mean.dim
    found = [user for user in x.users if user.target is mean and not user.kwargs]
    over_pixels = [
        n
        for n in found
        if n.args[2:] == (True,) and sorted(d % 4 for d in n.args[1] or ()) == [2, 3]
    ]
    return over_pixels[0] if len(over_pixels) == 1 else None


def unrounded(x: Node) -> Node:
    """The map in float32 of which `x` is the rounding, if nothing else takes that; else `x`."""
    source = x.args[0] if x.target is CONVERT and len(x.users) == 1 else None
    value = None if source is None else source.meta.get("val")
    return source if isinstance(value, Tensor) and value.dtype == torch.float32 else x


def goes_into_erf(node: Node) -> bool:
    """Whether a GELU of the result will be computed: of it, or of it in float32."""
    taking = {u for user in node.users for u in (user.users if user.target is CONVERT else (user,))}
    return any(u.target is ERF for user in taking for u in user.users)


def _sole_user(node: Node, target: torch._ops.OpOverload) -> Node | None:
    """What alone takes a result, if it is a call of `target` with nothing but its arguments."""
    users = list(node.users)
    alone = len(users) == 1 and users[0].target is target and not users[0].kwargs
    return users[0] if alone else None


def _only(node: Node, target: torch._ops.OpOverload, value: float) -> Node | None:
    """The one call target(node, value)."""
    found = [user for user in node.users if user.target is target and user.args == (node, value)]
    return found[0] if len(found) == 1 else None


def _other_map(step: Node, own: Node) -> Node | None:
    """The other argument of a step, if it is a map of the same sizes and dtype."""
    others = [term for term in step.args if term is not own]
    if len(others) != 1 or not isinstance(others[0], Node):
        return None
    values = own.meta.get("val"), others[0].meta.get("val")
    if not all(isinstance(value, Tensor) for value in values):
        return None
    shapes = [value.shape for value in values]
    if values[0].dtype != values[1].dtype or len(shapes[0]) != len(shapes[1]):
        return None
    alike = all(statically_known_true(a == b) for a, b in zip(*shapes, strict=True))
    return others[0] if alike else None


def _channel_product(node: Node) -> tuple[Node, Node] | None:
    """Constant and map of which a node is the product, if the constant is `[C, 1, 1]`."""
    if node.target is not MULTIPLY or node.kwargs:
        return None
    for constant, other in (node.args, node.args[::-1]):
        if not all(isinstance(n, Node) and "val" in n.meta for n in (constant, other)):
            continue
        sizes, value = constant.meta["val"].shape, other.meta["val"]
        is_constant = constant.op == "get_attr" and tuple(sizes[1:]) == (1, 1)
        alike = value.dim() == 4 and value.dtype == node.meta["val"].dtype
        if is_constant and len(sizes) == 3 and alike and value.shape[1] == sizes[0]:
            return constant, other
    return None
