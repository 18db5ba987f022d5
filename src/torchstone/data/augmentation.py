"""Training transforms: RGB image -> uint8 (3, size, size), made of timm's and torchvision's.

| augment | what it does |
|---|---|
| none | what evaluation does |
| light | a shift by up to 1/16 of the side, mirrored at the border |
| flip | a shift by up to 1/8 and a horizontal flip: He et al. (CVPR 2016, section 4.2) for CIFAR-10, 4 of 32 pixels |
| large-crop | a random crop of 67 % of the area or more, resized, and a horizontal flip: for masked pre-training |
| standard | timm's ImageNet transform: random resized crop, flip, colour jitter 0.4 |
| rand-... | the same with timm's RandAugment in place of the jitter, e.g. rand-m9-mstd0.5-inc1 |
| auto | light for digits; otherwise flip up to 64 pixels, standard above |
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from timm.data.auto_augment import AugmentOp, RandAugment, posterize
from torch import Tensor
from torchvision.transforms import Compose, RandomHorizontalFlip

from torchstone.data.preprocessing import ImageTransform, evaluation_transform
from torchstone.errors import unknown_name

AUGMENTS = ("auto", "none", "light", "flip", "large-crop", "standard")
RAND_AUGMENT = re.compile(r"rand(-(m\d+|n\d+|p(0?\.\d+|[01])|mstd\d+(\.\d+)?|mmax\d+|inc[01]|tweights|t3aw?))*")
SMALL = 64  # pixels up to which a crop to 8 % of the area leaves too little to see


def resolve_augment(augment: str, size: int, preferred: str | None = None) -> str:
    """The augmentation that is meant.

    Args:
        augment: a name of the table above or a RandAugment string.
        size: side of the network's input, pixels.
        preferred: what ``auto`` means for this data, if it says so.

    Raises:
        UnknownName: neither a name nor a RandAugment string of timm's grammar.
    """
    if augment == "auto":
        return preferred or ("flip" if size <= SMALL else "standard")
    if augment in AUGMENTS or RAND_AUGMENT.fullmatch(augment):
        return augment
    raise unknown_name("augmentation", augment, [*AUGMENTS, "rand-m9-mstd0.5-inc1"])


def crops_at_random(augment: str) -> bool:
    """Whether training sees random resized crops; evaluation then looks at the centre (crop_pct 0.875)."""
    return augment in ("standard", "large-crop") or augment.startswith("rand")


def training_transform(augment: str, preprocessing: dict[str, Any]) -> ImageTransform:
    """The transform of a resolved augmentation."""
    size = preprocessing["size"]
    if augment == "large-crop":
        return create_transform(
            size,
            is_training=True,
            scale=(0.67, 1.0),
            color_jitter=None,  # type: ignore[arg-type]
            interpolation=preprocessing["interpolation"],
            mean=tuple(preprocessing["mean"]),
            normalize=False,
        )
    if crops_at_random(augment):
        transform = create_transform(
            size,
            is_training=True,
            auto_augment=None if augment == "standard" else augment,
            interpolation=preprocessing["interpolation"],
            mean=tuple(preprocessing["mean"]),
            normalize=False,
        )
        _keep_one_bit(transform)
        return transform
    steps: list[Any] = [evaluation_transform(preprocessing)]
    if augment == "light":
        steps.append(RandomShift(size, max(1, size // 16)))
    if augment == "flip":
        steps += [RandomShift(size, max(1, size // 8)), RandomHorizontalFlip()]
    return Compose(steps)


class RandomShift:
    """Moves an image (3, size, size) by up to ``reach`` pixels each way; what comes into view mirrors the image.

    It equals torchvision's ``RandomCrop(size, padding=reach, padding_mode="reflect")`` without building the padding.
    """

    def __init__(self, size: int, reach: int) -> None:
        self.size, self.reach = size, reach
        self.mirrored = torch.from_numpy(np.pad(np.arange(size), reach, mode="reflect"))  # (size + 2 reach,)

    def __call__(self, image: Tensor) -> Tensor:
        top, left = torch.randint(2 * self.reach + 1, (2,)).tolist()
        rows, columns = self.mirrored[top : top + self.size], self.mirrored[left : left + self.size]
        return image.index_select(1, rows).index_select(2, columns)


def _keep_one_bit(transform: Any) -> None:
    """timm's strongest posterisation keeps no bit at all: a black image, or an error from Pillow 13 on. Keep one."""
    for step in transform.transforms:
        if isinstance(step, RandAugment):
            for operation in step.ops:
                if isinstance(operation, AugmentOp) and operation.aug_fn is posterize:
                    operation.aug_fn = _posterize_to_a_bit


def _posterize_to_a_bit(image: Image.Image, bits: int, **options: Any) -> Image.Image:
    return posterize(image, max(1, bits), **options)
