"""Computing a block again in the backward pass instead of keeping what it computed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


class BlockSequence(nn.Sequential):
    """``nn.Sequential`` that can keep only its modules' inputs for the backward pass and compute the rest again.

    Running statistics of batch norms are updated once, by the forward pass, so that training goes as it does without.

    Attributes:
        grad_checkpointing: whether it does.
    """

    grad_checkpointing = False

    def forward(self, x: Tensor, start: int = 0, end: int | None = None) -> Tensor:
        """Run the modules from ``start`` up to, not including, ``end``."""
        for module in list(self)[start:end]:
            x = checkpointed(module, x) if self.grad_checkpointing else module(x)
        return x


def checkpointed(module: nn.Module, x: Tensor) -> Tensor:
    """``module(x)``, of which only x is kept for the backward pass."""
    return checkpoint(module, x, use_reentrant=False, context_fn=lambda: _contexts(module))


def _contexts(module: nn.Module) -> tuple[Any, Any]:
    """Of the forward pass and of the recomputation."""
    return nullcontext(), _running_statistics_kept(module)


@contextmanager
def _running_statistics_kept(module: nn.Module) -> Iterator[None]:
    """Batch norms keep their statistics and still do the same operations, which the recomputation must repeat."""
    norms = [norm for norm in module.modules() if isinstance(norm, _BatchNorm)]
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
