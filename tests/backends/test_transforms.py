"""Forward mode, torch.func and double backward through every op."""

from __future__ import annotations

import pytest
import torch
from op_calls import CALLS
from torch import nn
from torch.autograd import forward_ad, gradcheck

import attnops

every_op = pytest.mark.parametrize("name", CALLS)


def tensors_of(name: str, layout: str = "contiguous") -> list[torch.Tensor]:
    return CALLS[name].tensors(layout, torch.float64)


def directions(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in tensors]


def by_differences(name: str, tensors, tangents, step: float = 1e-6) -> torch.Tensor:
    """The directional derivative of the definition, from two of its values."""
    call, op = CALLS[name].call, attnops.reference
    if name == "nmf one_step":  # the bases and the coefficients before the last update stay
        x, bases = tensors
        found, _ = op.nmf(x, bases, 2)
        before = op.nmf(x, bases, 1)[1]

        def last(x):
            return before * (x.mT @ found) / (before @ (found.mT @ found) + 1e-6)

        return (last(x + step * tangents[0]) - last(x - step * tangents[0])) / (2 * step)
    ahead, behind = (
        call(op, *(t + sign * step * d for t, d in zip(tensors, tangents, strict=True)))
        for sign in (1, -1)
    )
    return (ahead - behind) / (2 * step)


@every_op
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_jvp_is_the_directional_derivative(name, layout):
    tensors = tensors_of(name, layout)
    tangents = directions(tensors)
    _, found = torch.func.jvp(
        lambda *t: CALLS[name].call(attnops, *t), tuple(tensors), tuple(tangents)
    )
    torch.testing.assert_close(found, by_differences(name, tensors, tangents), rtol=1e-6, atol=1e-8)


@every_op
@pytest.mark.parametrize("grad_enabled", [True, False])
@pytest.mark.parametrize("which", ["first", "last"])
def test_dual_tensors(name, grad_enabled, which):
    """One tensor alone is dual: the others, such as frozen weights, are not."""
    tensors = tensors_of(name)
    index = 0 if which == "first" else len(tensors) - 1
    if name == "nmf one_step" and which == "last":
        pytest.skip("the bases are constants")
    tangents = [torch.zeros_like(t) for t in tensors]
    tangents[index] = directions(tensors)[index]
    with forward_ad.dual_level(), torch.set_grad_enabled(grad_enabled):
        given = list(tensors)
        given[index] = forward_ad.make_dual(tensors[index], tangents[index])
        out = CALLS[name].call(attnops, *given)
        found = forward_ad.unpack_dual(out).tangent
    assert found is not None
    torch.testing.assert_close(found, by_differences(name, tensors, tangents), rtol=1e-6, atol=1e-8)


@every_op
def test_reverse_transformations_agree_with_autograd(name):
    tensors = tensors_of(name)
    leaves = [t.clone().requires_grad_() for t in tensors]
    out = CALLS[name].call(attnops, *leaves)
    cotangent = directions([out.detach()])[0]
    expected = torch.autograd.grad(out, leaves, cotangent, allow_unused=True)
    expected = [
        torch.zeros_like(t) if g is None else g for g, t in zip(expected, tensors, strict=True)
    ]
    arguments = tuple(range(len(tensors)))

    def scalar(*t):
        return (CALLS[name].call(attnops, *t) * cotangent).sum()

    for found in (
        torch.func.grad(scalar, arguments)(*tensors),
        torch.func.vjp(lambda *t: CALLS[name].call(attnops, *t), *tensors)[1](cotangent),
        torch.func.jacrev(scalar, arguments)(*tensors),
        torch.func.jacfwd(scalar, arguments)(*tensors),
    ):
        torch.testing.assert_close(found, tuple(expected))


@every_op
@pytest.mark.parametrize("in_dim", [0, 2])
def test_vmap_is_a_loop(name, in_dim):
    """Over the tensors of a list of examples, the batch axis of the op's own left in place."""
    examples = [CALLS[name].tensors(dtype=torch.float64, seed=s) for s in range(3)]
    dims = tuple(min(in_dim, t.dim()) for t in examples[0])
    stacked = [
        torch.stack(t, dim=d) for t, d in zip(zip(*examples, strict=True), dims, strict=True)
    ]
    found = torch.func.vmap(lambda *t: CALLS[name].call(attnops, *t), in_dims=dims)(*stacked)
    expected = torch.stack([CALLS[name].call(attnops, *t) for t in examples])
    torch.testing.assert_close(found, expected)


def test_vmap_over_targets_and_labels():
    logits = torch.randn(3, 2, 4, 2, 3, dtype=torch.float64)
    target = torch.randint(4, (3, 2, 5, 7))
    found = torch.func.vmap(attnops.upsample_cross_entropy)(logits, target)
    expected = [attnops.upsample_cross_entropy(x, t) for x, t in zip(logits, target, strict=True)]
    torch.testing.assert_close(found, torch.stack(expected))
    labels = torch.func.vmap(lambda x: attnops.upsample_argmax(x, (5, 7)))(logits)
    expected = [attnops.upsample_argmax(x, (5, 7)) for x in logits]
    torch.testing.assert_close(labels, torch.stack(expected))


@pytest.mark.parametrize(
    "name", [n for n in CALLS if n not in ("nmf one_step", "pyramid_pool max")]
)
def test_gradcheck_with_forward_mode(name):
    leaves = [t.requires_grad_() for t in tensors_of(name)]
    assert gradcheck(
        lambda *t: CALLS[name].call(attnops, *t),
        leaves,
        check_forward_ad=True,
        check_batched_grad=True,
        fast_mode=True,
    )


def gradients_at_once(name: str, vmapped: bool) -> tuple[list, list]:
    """Gradients for three incoming ones, together and one by one."""
    leaves = [t.requires_grad_() for t in tensors_of(name)]
    out = CALLS[name].call(attnops, *leaves)
    many = torch.stack([d for s in range(3) for d in directions([out.detach() + s])]) * 2

    def gradient(cotangent, **options):
        found = torch.autograd.grad(
            out, leaves, cotangent, retain_graph=True, allow_unused=True, **options
        )
        return [g for g in found if g is not None]

    expected = [torch.stack(g) for g in zip(*map(gradient, many), strict=True)]
    if vmapped:
        return torch.func.vmap(gradient)(many), expected
    return gradient(many, is_grads_batched=True), expected


@every_op
@pytest.mark.parametrize("vmapped", [True, False])
def test_gradients_for_many_at_once(name, vmapped):
    found, expected = gradients_at_once(name, vmapped)
    torch.testing.assert_close(found, expected)


@every_op
def test_hessian_vector_products(name):
    """Forward over reverse: the derivative of the gradient, against differences of gradients."""
    tensors = tensors_of(name)
    tangents = directions(tensors)
    step = 1e-5

    def gradient(*t):
        return torch.func.grad(
            lambda *t: CALLS[name].call(attnops, *t).pow(2).sum(), tuple(range(len(t)))
        )(*t)

    _, found = torch.func.jvp(gradient, tuple(tensors), tuple(tangents))
    if name == "nmf one_step":
        # What is differentiated treats as constants what the differences would move.
        assert all(f.isfinite().all() for f in found)
        return
    ahead, behind = (
        gradient(*(t + sign * step * d for t, d in zip(tensors, tangents, strict=True)))
        for sign in (1, -1)
    )
    expected = tuple((a - b) / (2 * step) for a, b in zip(ahead, behind, strict=True))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@every_op
def test_tangents_of_incoming_gradients_are_refused(name):
    """The op's own gradient has no forward-mode derivative; it must not be silently zero."""
    leaves = [t.requires_grad_() for t in tensors_of(name)]
    out = CALLS[name].call(attnops, *leaves)
    with forward_ad.dual_level():
        cotangent = forward_ad.make_dual(torch.ones_like(out), torch.ones_like(out))
        with pytest.raises(NotImplementedError, match=f"attnops.reference.{CALLS[name].op}"):
            torch.autograd.grad(out, leaves[:1], cotangent)


class Frozen(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = attnops.nn.LocalDistribution(4)

    def forward(self, x):
        return self.attention(x)


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("make", [
    lambda: attnops.nn.APNB(8, 4, 4, sizes=(1, 2)),
    lambda: attnops.nn.MSCA(8, strips=(3,)),
    lambda: attnops.nn.LocalDistribution(8),
    lambda: attnops.nn.Hamburger(8, rank=2, norm_groups=2, seed=0),
])  # fmt: skip
def test_modules_in_forward_mode(make, frozen):
    torch.manual_seed(0)
    module = make().double().eval().requires_grad_(not frozen)
    x = torch.rand(1, 8, 16, 17, dtype=torch.float64)
    tangent = torch.randn_like(x)
    _, found = torch.func.jvp(module, (x,), (tangent,))
    with torch.no_grad():
        ahead, behind = (module(x + s * 1e-6 * tangent) for s in (1, -1))
    torch.testing.assert_close(found, (ahead - behind) / 2e-6, rtol=1e-5, atol=1e-7)


def test_parameters_by_functional_call():
    module = attnops.nn.LocalDistribution(4).double().eval()
    x = torch.randn(2, 4, 16, 17, dtype=torch.float64)

    def loss(parameters):
        return torch.func.functional_call(module, parameters, (x,)).square().sum()

    parameters = {n: p.detach() for n, p in module.named_parameters()}
    found = torch.func.grad(loss)(parameters)
    module(x).square().sum().backward()
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad)


class TestCompiled:
    """In graphs: right where torch.compile sees the transformation, else a clear error."""

    @every_op
    def test_transformations_inside(self, name):
        tensors = tensors_of(name)
        tangents = directions(tensors)

        def derivative(tensors, tangents):
            return torch.func.jvp(
                lambda *t: CALLS[name].call(attnops, *t), tuple(tensors), tuple(tangents)
            )[1]

        torch._dynamo.reset()
        compiled = torch.compile(derivative, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(tensors, tangents), derivative(tensors, tangents))

    def test_dual_tensors_into_a_graph_are_refused(self):
        pool = torch.compile(attnops.pyramid_pool, backend="aot_eager", fullgraph=True)
        x = torch.ones(1, 1, 4, 4)
        errors = (NotImplementedError, torch._dynamo.exc.Unsupported)  # newer PyTorch's own
        refused = pytest.raises(errors, match=r"attnops\.reference\.pyramid_pool|dual tensor")
        with forward_ad.dual_level(), refused:
            pool(forward_ad.make_dual(x, x))

    def test_the_op_itself_is_in_graphs_without_transformations(self):
        program = torch.export.export(
            Frozen().eval(), (torch.ones(1, 4, 16, 17, requires_grad=True),), strict=True
        )
        assert "attnops.upsample_gate" in str(program.graph)
