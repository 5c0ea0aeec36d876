"""The Hamburger's bases: the same numbers everywhere, assignable as anything, in no state dict."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from attnops.nn import Hamburger


def hamburger(**options):
    return Hamburger(8, rank=3, norm_groups=4, **options).eval()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_the_default_dtype_changes_no_numbers(dtype):
    generator = torch.Generator().manual_seed(5)
    wanted = normalize(torch.rand(1, 8, 3, generator=generator), dim=1)
    module, x = hamburger(), torch.randn(2, 8, 6, 5)
    torch.manual_seed(3)
    redrawn = module(x)
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype)
        found = hamburger(seed=5).bases
        torch.manual_seed(3)
        again = module(x)
    finally:
        torch.set_default_dtype(before)
    assert found.dtype == torch.float32 and torch.equal(found, wanted)
    assert torch.equal(again, redrawn)


def test_a_device_context_changes_no_numbers():
    with torch.device("meta"):
        module = hamburger(seed=5)
        free = hamburger()
        assert free(torch.randn(2, 8, 6, 5)).is_meta
    assert module.ham_in.weight.is_meta
    assert torch.equal(module.bases, hamburger(seed=5).bases)


@pytest.mark.parametrize("seed", [None, 5])
def test_a_parameter_is_used_trained_and_taken_back(seed):
    module, x = hamburger(seed=seed), torch.randn(2, 8, 6, 5)
    names, seeded = [n for n, _ in module.named_parameters()], module.bases
    bases = nn.Parameter(torch.rand(1, 8, 3))
    module.bases = bases
    assert module.bases is bases
    module(x).square().sum().backward()
    assert bases.grad.any()
    assert [n for n, _ in module.named_parameters()] == names
    assert not any("bases" in n or "assigned" in n for n in module.state_dict())
    module.load_state_dict(hamburger().state_dict())
    assert module.bases is bases
    module.bases = None
    assert module.bases is seeded


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.rand(1, 8, 3),
        lambda: nn.Parameter(torch.rand(2, 8, 3)),
        lambda: torch.rand(1, 8, 3, requires_grad=True) * 2,
    ],
    ids=["plain", "parameter", "not a leaf"],
)
def test_copies_and_files_keep_assigned_bases(make):
    module, x = hamburger(seed=5), torch.randn(2, 8, 6, 5)
    module.bases = bases = make()
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    copies = {
        "deepcopy": copy.deepcopy(module),
        "pickle": pickle.loads(pickle.dumps(module)),
        "torch.save": torch.load(buffer, weights_only=False),
        "inside another": copy.deepcopy(nn.Sequential(module))[0],
    }
    for how, other in copies.items():
        assert torch.equal(other.bases, bases), how
        assert other.bases is not bases and torch.equal(other(x), module(x)), how
        other.bases = None
        assert torch.equal(other.bases, hamburger(seed=5).bases), how
    assert module.bases is bases
    module(x).sum().backward()


def test_conversions_of_the_module_leave_bases_exact():
    """They are converted where they are used."""
    module = hamburger(seed=5)
    assigned = torch.rand(1, 8, 3)
    module.bases = assigned
    x = torch.randn(2, 8, 6, 5)
    half = copy.deepcopy(module).half()
    assert torch.equal(half.bases, assigned)
    assert half(x.half()).dtype == torch.float16
    assert torch.equal(copy.deepcopy(module).double().float()(x), module(x))


def test_a_module_is_no_tensor():
    with pytest.raises(TypeError, match="bases must be a tensor, got Linear"):
        hamburger().bases = nn.Linear(1, 1)
