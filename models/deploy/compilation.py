"""The compiled form: torch.export, then AOTInductor with constants folded."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .inner_ops import runs_inner_ops

HINT = (2, 512, 544)  # batch and sides that the code is tuned for; it takes all
SMALLEST_SIDE = 32  # smaller maps may have a side of 1, which compilers take for something else

OPTIONS = {
    "freezing": True,  # weights packed for oneDNN, activations and sums fused into convolutions
    "cpp.dynamic_threads": True,  # as many as torch.set_num_threads says when it runs
    "cpp.threads": 16,  # that loops are split for: over rows too, not over a batch of one
}


def check_compiler() -> None:
    """Inductor can compile here.

    Raises:
        RuntimeError: it finds no C++ compiler.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        raise RuntimeError(
            "there is no C++ compiler; install g++ or clang, or name one in CXX"
        ) from None


def export(maps: nn.Module, in_channels: int) -> torch.export.ExportedProgram:
    """The graph of `maps` for images `[B, C, H, W]`, channels_last, of any batch and size."""
    batch, height, width = HINT
    images = torch.zeros(batch, in_channels, height, width)
    images = images.contiguous(memory_format=torch.channels_last)
    free = torch.export.Dim.DYNAMIC
    shapes = ({0: free, 2: free, 3: free},)
    with torch.no_grad(), _without_traceback():
        return torch.export.export(maps, (images,), dynamic_shapes=shapes, strict=False)


@contextmanager
def _without_traceback() -> Iterator[None]:
    """PyTorch logs an exception where it keeps a condition on a size as it is: no fault."""
    log = logging.getLogger("torch.fx.experimental.symbolic_shapes")

    def is_other(record: logging.LogRecord) -> bool:
        return not record.msg.startswith("Failed to reduce inequalities")

    log.addFilter(is_other)
    try:
        yield
    finally:
        log.removeFilter(is_other)


def fused_ops(program: torch.export.ExportedProgram) -> dict[str, int]:
    """How often each op of attnops or of its C++ library is called in a graph and those inside."""
    ours = ("attnops", "attnops_cpu")
    graphs = [m for m in program.graph_module.modules() if isinstance(m, torch.fx.GraphModule)]
    targets = [node.target for graph in graphs for node in graph.graph.nodes]
    ops = (t for t in targets if isinstance(t, torch._ops.OpOverload) and t.namespace in ours)
    return dict(Counter(op._opname for op in ops))


def drop_checks(program: torch.export.ExportedProgram) -> None:
    """Take the checks of dtypes out of a graph, and what is computed for them alone.

    They hold by construction; what they look at would be computed, though nothing comes of it, and
    Inductor stumbles over convolutions that nobody else takes.
    """
    modules = [m for m in program.graph_module.modules() if isinstance(m, torch.fx.GraphModule)]
    check = torch.ops.aten._assert_tensor_metadata.default
    for module in modules:
        for node in module.graph.find_nodes(op="call_function", target=check):
            module.graph.erase_node(node)
        module.graph.eliminate_dead_code()
        module.recompile()


def compile_package(program: torch.export.ExportedProgram, path: Path) -> None:
    """Compile an exported graph into the AOTInductor package `path`, which ends in .pt2."""
    import torch._inductor

    from .convolutions.packing import PackedConvolutions

    options = OPTIONS | {"post_grad_custom_pre_pass": PackedConvolutions(runs_inner_ops())}
    with torch.no_grad(), _short_messages(), _opaque_sizes():
        torch._inductor.aoti_compile_and_package(
            program, package_path=str(path), inductor_configs=options
        )


@contextmanager
def _short_messages() -> Iterator[None]:
    """Inductor writes out the arguments of an op that it meets for the first time, for a log.

    They are written with all that they are made of, twice where two of them are made of the same:
    behind sums of two maps the text doubles with each.
    """
    from torch._inductor.exc import OperatorIssue

    written = vars(OperatorIssue)["operator_str"]
    OperatorIssue.operator_str = staticmethod(lambda target, args, kwargs: f"target: {target}")
    try:
        yield
    finally:
        OperatorIssue.operator_str = written


@contextmanager
def _opaque_sizes() -> Iterator[None]:
    """Inductor simplifies every index of its loops, with the sizes of maps that stand in it.

    These are floors of floors where sizes are free, and took most of a compilation of a network at
    several scales. None of them depends on the loop's variable: a symbol each stands for them.
    """
    from sympy import Symbol, default_sort_key
    from torch._inductor.codegen import cpp
    from torch.utils._sympy.functions import FloorDiv, ModularIndexing

    stride = getattr(cpp, "stride_at_vec_range", None)
    if stride is None:
        yield
        return

    def quick(index: Any, var: Any, *length: int | None) -> Any:
        sizes = [part for part in index.atoms(FloorDiv, ModularIndexing) if not part.has(var)]
        sizes.sort(key=default_sort_key)
        names = {size: Symbol(f"size{i}", integer=True) for i, size in enumerate(sizes)}
        found = stride(index.xreplace(names), var, *length)
        return found.xreplace({name: size for size, name in names.items()})

    cpp.stride_at_vec_range = quick
    try:
        yield
    finally:
        cpp.stride_at_vec_range = stride


def check_agreement(
    compiled: Callable[[Tensor], Tensor],
    plain: Callable[[Tensor], Tensor],
    in_channels: int,
    smallest_side: int,
    tolerance: float,
    norm: float,
) -> None:
    """Compiled and uncompiled maps are the same at some sizes, sides even and odd.

    A graph is exported from one size and keeps to what was true of that one, where the code asked;
    what is compiled does not look whether it is true of another size.

    Args:
        compiled: images -> maps.
        plain: images -> maps.
        in_channels: of the images.
        smallest_side: that they can have.
        tolerance: of the difference's norm, relative to the norm of the maps.
        norm: which, 2 or infinity: single values differ much where noise adds up over a network.

    Raises:
        RuntimeError: they differ.
    """
    least = smallest_side
    for batch, height, width in ((1, least, least + 1), (1, least + 38, least + 64), (2, 131, 129)):
        size = max(height, least), max(width, least)
        images = torch.linspace(-2, 2, batch * in_channels * size[0] * size[1])
        images = images.sin().view(batch, *size, in_channels).permute(0, 3, 1, 2)
        found, wanted = compiled(images), plain(images)
        fits = found.shape == wanted.shape
        if not fits or (found - wanted).norm(norm) > tolerance * wanted.norm(norm):
            raise RuntimeError(
                f"the compiled network gives other maps than the uncompiled one for images of "
                f"{size[0]}x{size[1]}; please report it, and deploy with compile=False"
            )
