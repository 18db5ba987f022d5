"""Samples of a split as torch datasets: uint8 images and labels, made into a normalised batch by :class:`Batch`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from torchstone.data.preprocessing import ImageTransform, Normalise
from torchstone.data.stores import ImageStore
from torchstone.seeding import preserved_randomness, seed_cpu_at

Sample = tuple[Tensor, int]


class EvaluationImages(Dataset[Sample]):
    """Image ``index`` of a split, without randomness."""

    def __init__(self, images: ImageStore, labels: NDArray[np.int64], transform: ImageTransform) -> None:
        self.images = images
        self.labels = labels
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        return self.transform(self.images.image(index)), int(self.labels[index])


class TrainingImages(EvaluationImages):
    """Image ``index`` as epoch ``epoch`` sees it: its augmentation is a function of (seed, epoch, index).

    The transform draws from the global generators; they are seeded for each sample and restored after each batch.

    Args:
        random: whether the transform draws at all; if not, no generator is touched.
    """

    def __init__(
        self, images: ImageStore, labels: NDArray[np.int64], transform: ImageTransform, seed: int, random: bool
    ) -> None:
        super().__init__(images, labels, transform)
        self.seed = seed
        self.random = random

    def __getitem__(self, key: tuple[int, int]) -> Sample:  # type: ignore[override]
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> list[Sample]:
        """A batch; the loader calls this in place of one ``__getitem__`` a sample."""
        if not self.random:
            return [EvaluationImages.__getitem__(self, index) for _, index in keys]
        with preserved_randomness():
            return [self._drawn(epoch, index) for epoch, index in keys]

    def _drawn(self, epoch: int, index: int) -> Sample:
        seed_cpu_at("augment", self.seed, epoch, index)
        return EvaluationImages.__getitem__(self, index)


class Batch:
    """Collates samples to (float32 (B, 3, H, W) normalised, int64 (B,))."""

    def __init__(self, preprocessing: dict[str, Any]) -> None:
        self.normalise = Normalise(preprocessing)

    def __call__(self, samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
        images, labels = zip(*samples, strict=True)
        return self.normalise(torch.stack(images)), torch.tensor(labels)
