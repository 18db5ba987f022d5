"""Kernels that run as one: which operators a kernel takes in, and the memory that it still moves.

A fused kernel reads what was made before it and writes what is used after it; the tensors in between stay on the chip.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from fnmatch import fnmatchcase

from torchstone.errors import CallError, nearest
from torchstone.instruments.conv_efficiency.kernels import Access, Kernel, Trace

LEVELS = {
    "layers": "every operator a kernel of its own, as PyTorch runs it eagerly",
    "pointwise": "neighbouring operators without multiply-accumulates are one kernel, as compilers make them",
    "epilogues": "they join the convolution or product before them",
    "blocks": "each residual block is one kernel",
}

Group = list[int]
"""Numbers of kernels that run one after the other."""


def group(trace: Trace, level: str, blocks: Sequence[str] = ()) -> list[Group]:
    """Which kernels run as one at a level of fusion.

    Args:
        trace: the forward pass.
        level: one of :data:`LEVELS`.
        blocks: paths of the modules that are one kernel each; those of :func:`residual_blocks`, or others.
    """
    inside = [_block_of(kernel, blocks) if level == "blocks" else None for kernel in trace.kernels]
    groups: list[Group] = []
    for index, kernel in enumerate(trace.kernels):
        before = groups[-1] if groups else None
        if before is not None and _joins(trace.kernels, before, kernel, inside[before[-1]], inside[index], level):
            before.append(index)
        else:
            groups.append([index])
    return groups


def _joins(
    kernels: Sequence[Kernel], before: Group, kernel: Kernel, last: str | None, own: str | None, level: str
) -> bool:
    if own is not None or last is not None:
        return own == last
    if level == "layers" or kernel.macs:
        return False
    return level != "pointwise" or not kernels[before[-1]].macs


def _block_of(kernel: Kernel, blocks: Sequence[str]) -> str | None:
    return next((path for path in blocks if f"{kernel.module}.".startswith(f"{path}.")), None)


def moved_bytes(trace: Trace, members: Group) -> int:
    """Bytes that a kernel made of these operators reads and writes."""
    written: set[int] = set()
    reads: dict[int, set[Access]] = {}
    writes: dict[int, set[Access]] = {}
    for index in members:
        for access in trace.kernels[index].reads:
            if access.storage not in written:
                reads.setdefault(access.storage, set()).add(access)
        for access in trace.kernels[index].writes:
            written.add(access.storage)
            writes.setdefault(access.storage, set()).add(access)
    if len(members) > 1:
        needed = _read_after(trace, members[-1]) | trace.outputs
        writes = {storage: accesses for storage, accesses in writes.items() if storage in needed}
    return sum(access.bytes for accesses in (*reads.values(), *writes.values()) for access in accesses)


def _read_after(trace: Trace, last: int) -> set[int]:
    return {access.storage for kernel in trace.kernels[last + 1 :] for access in kernel.reads}


def residual_blocks(trace: Trace) -> tuple[str, ...]:
    """The modules that add to what they were given: paths of the outermost ones, whatever they are made of.

    A class counts when one of its modules adds two tensors of equal size after at least two products of its own or of
    modules inside it; then all modules of that class are blocks, also those without a residual.
    """
    products = Counter(ancestor for kernel in trace.kernels if kernel.macs for ancestor in _ancestors(kernel.module))
    adding = {
        kernel.module
        for kernel in trace.kernels
        if kernel.operator in ("add", "add_", "addcmul", "addcmul_") and kernel.module and _adds_maps(kernel)
    }
    classes = {trace.modules[path] for path in adding if products[path] >= 2}
    found = [path for path, name in trace.modules.items() if path and name in classes and products[path] >= 2]
    return tuple(path for path in found if not any(path.startswith(f"{other}.") for other in found))


def _adds_maps(kernel: Kernel) -> bool:
    largest = max(access.bytes for access in kernel.writes)
    return sum(access.bytes == largest for access in kernel.reads) >= 2


def _ancestors(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[: depth + 1]) for depth in range(len(parts))]


def matching_modules(trace: Trace, patterns: Sequence[str]) -> tuple[str, ...]:
    """Paths of the modules that glob patterns name, the outermost where one contains another.

    Raises:
        CallError: a pattern that names no module.
    """
    found: list[str] = []
    for pattern in patterns:
        paths = [path for path in trace.modules if path and fnmatchcase(path, pattern)]
        if not paths:
            close = nearest(pattern, [path for path in trace.modules if path])
            hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
            raise CallError(f"no module is called {pattern!r}{hint}")
        found += paths
    return tuple(path for path in dict.fromkeys(found) if not any(path.startswith(f"{other}.") for other in found))
