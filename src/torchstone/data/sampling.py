"""The order of training samples as a function of (seed, epoch)."""

from __future__ import annotations

from collections.abc import Iterator

from torch.utils.data import DistributedSampler

from torchstone.data.splits import generator
from torchstone.errors import CallError


class PositionSampler(DistributedSampler[tuple[int, int]]):
    """Yields (epoch, index) in the order permutation(seed, epoch).

    A global batch is ``batch_size`` consecutive places of the permutation; process ``rank`` of ``world`` takes every
    ``world``-th of them, so all processes together see the batch that a single process would. The last, incomplete
    batch is left out. It is a DistributedSampler, so that Lightning leaves it in place and tells it the epoch.

    Args:
        size: number of training samples, at least ``batch_size``.
        batch_size: samples of a global batch, a multiple of ``world``.
        seed: the run's seed.
        rank: this process, 0..world-1.
        world: number of processes.
    """

    def __init__(self, size: int, batch_size: int, seed: int, rank: int = 0, world: int = 1) -> None:
        if not 1 <= batch_size <= size:
            raise CallError(f"batch_size must be in 1..{size}, the number of training samples; it is {batch_size}")
        if batch_size % world:
            raise CallError(f"batch_size must be a multiple of the {world} processes; it is {batch_size}")
        super().__init__(range(size), num_replicas=world, rank=rank, seed=seed, drop_last=True)  # type: ignore[arg-type]
        self.size = size
        self.batch_size = batch_size
        self.steps = size // batch_size
        self.total_size = self.steps * batch_size
        self.num_samples = self.total_size // world

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = generator("order", self.seed, self.epoch).permutation(self.size)[: self.total_size]
        batches = order.reshape(self.steps, self.batch_size)
        mine = batches[:, self.rank :: self.num_replicas].reshape(-1)
        return ((self.epoch, index) for index in mine.tolist())

    def __len__(self) -> int:
        return self.num_samples
