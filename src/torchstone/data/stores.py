"""Where images are kept: as files, as encoded bytes, or as pixels. Each store gives image ``i`` as an RGB picture.

Bytes and pixels lie in one flat buffer with offsets: forked loader workers share it without copying, because no Python
object's reference count lies in its pages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from torchstone.data.decoding import UnreadableImage, decode
from torchstone.errors import DataError


class ImageStore(Protocol):
    def __len__(self) -> int: ...

    def image(self, index: int) -> Image.Image:
        """Image ``index`` in RGB."""
        ...

    def select(self, indices: NDArray[np.int64]) -> ImageStore:
        """The store of these images alone, in this order."""
        ...


class EncodedImages(ImageStore, Protocol):
    """A store whose images are still encoded."""

    def encoded(self, index: int) -> bytes:
        """The encoded image, whole."""
        ...

    def source(self, index: int) -> bytes | Path:
        """Where to read the image from without reading more than is needed."""
        ...

    def identity(self, index: int) -> bytes:
        """What tells this image from another, without reading a file: its bytes, or a file's name and size."""
        ...

    def select(self, indices: NDArray[np.int64]) -> EncodedImages: ...


@dataclass(frozen=True)
class FileStore:
    """Image files below a folder, read when they are asked for."""

    root: Path
    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.names)

    def source(self, index: int) -> Path:
        return self.root / self.names[index]

    def encoded(self, index: int) -> bytes:
        return self.source(index).read_bytes()

    def identity(self, index: int) -> bytes:
        return f"{self.names[index]} {self.source(index).stat().st_size}".encode()

    def image(self, index: int) -> Image.Image:
        try:
            return decode(self.source(index))
        except UnreadableImage as error:
            raise DataError(f"{self.source(index)} cannot be read: {error}") from error

    def select(self, indices: NDArray[np.int64]) -> FileStore:
        return FileStore(self.root, [self.names[index] for index in indices])


@dataclass(frozen=True)
class EncodedStore:
    """Encoded images one after the other in a buffer, decoded when they are asked for."""

    buffer: NDArray[np.uint8]
    starts: NDArray[np.int64]  # (N,)
    stops: NDArray[np.int64]  # (N,)

    def __len__(self) -> int:
        return len(self.starts)

    def encoded(self, index: int) -> bytes:
        return self.buffer[self.starts[index] : self.stops[index]].tobytes()

    source = encoded
    identity = encoded

    def image(self, index: int) -> Image.Image:
        try:
            return decode(self.encoded(index))
        except UnreadableImage as error:
            raise DataError(f"encoded image {index} cannot be read: {error}") from error

    def select(self, indices: NDArray[np.int64]) -> EncodedStore:
        return EncodedStore(self.buffer, self.starts[indices], self.stops[indices])


@dataclass(frozen=True)
class PixelStore:
    """Decoded images of any sizes one after the other in a buffer."""

    buffer: NDArray[np.uint8]
    starts: NDArray[np.int64]  # (N,)
    shapes: NDArray[np.int64]  # (N, 2): height, width

    @classmethod
    def of_array(cls, images: NDArray[np.uint8]) -> PixelStore:
        """Images of one size: (N, H, W, 3)."""
        count, height, width, _ = images.shape
        return cls.of_flat(images.reshape(-1), np.tile(np.array([height, width], dtype=np.int64), (count, 1)))

    @classmethod
    def of_flat(cls, buffer: NDArray[np.uint8], shapes: NDArray[np.int64]) -> PixelStore:
        stops = np.cumsum(3 * shapes[:, 0] * shapes[:, 1])
        return cls(buffer, np.concatenate([np.zeros(1, dtype=np.int64), stops[:-1]]), shapes)

    def __len__(self) -> int:
        return len(self.starts)

    def pixels(self, index: int) -> NDArray[np.uint8]:
        """(H, W, 3), a view."""
        start = self.starts[index]
        height, width = self.shapes[index]
        return self.buffer[start : start + 3 * height * width].reshape(height, width, 3)

    def image(self, index: int) -> Image.Image:
        return Image.fromarray(self.pixels(index))

    def select(self, indices: NDArray[np.int64]) -> PixelStore:
        return PixelStore(self.buffer, self.starts[indices], self.shapes[indices])
