"""Encoded images -> upright 8-bit RGB, whatever the file's colour mode.

* Orientation: the EXIF tag is applied, so a phone's portrait photo stands upright.
* Palette, grey, bilevel, CMYK, YCbCr: converted to RGB.
* Transparency: composed over white.
* 16 bits a channel: scaled to 8 (65535 -> 255). Integers beyond 16 bits and floating point have no defined white, so
  such images are refused.
* Animations: the first frame.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

TRANSPARENT_MODES = ("RGBA", "LA", "PA", "RGBa", "La")
END_OF_JPEG = b"\xff\xd9"
TAIL = 2048  # bytes at a file's end in which a complete JPEG shows its end marker


class UnreadableImage(Exception):
    """Bytes that are no image, or not all of one; the message is the reason."""


def decode(encoded: bytes | Path) -> Image.Image:
    """Decode an image file, or the bytes of one.

    Raises:
        UnreadableImage: not an image, truncated, or pixels without a defined range.
    """
    try:
        with _open(encoded) as image:
            image.load()
            return to_rgb(_upright(image))
    except Exception as error:  # decoders meet damaged bytes with almost any exception
        raise UnreadableImage(_reason(encoded, error)) from error


def image_size(encoded: bytes | Path) -> tuple[int, int]:
    """(height, width) from the header, without decoding.

    Raises:
        UnreadableImage: the bytes do not begin like an image.
    """
    try:
        with _open(encoded) as image:
            return image.height, image.width
    except Exception as error:
        raise UnreadableImage(_reason(encoded, error)) from error


def verify(encoded: bytes | Path) -> None:
    """Find out whether an image is whole, decoding only where its format has no cheaper answer.

    A JPEG that has its end marker and a PNG whose chunks have the right checksums are taken as whole.

    Raises:
        UnreadableImage: as :func:`decode`.
    """
    try:
        with _open(encoded) as image:
            if image.format in ("JPEG", "MPO") and _tail(encoded).rstrip(b"\0").endswith(END_OF_JPEG):
                return
            if image.format == "PNG":
                image.verify()
                return
    except Exception as error:
        raise UnreadableImage(_reason(encoded, error)) from error
    decode(encoded)


def to_rgb(image: Image.Image) -> Image.Image:
    """An 8-bit RGB image of the same size.

    Raises:
        ValueError: floating-point pixels, or integers outside 0..65535.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _from_16_bits(image).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels have no defined range; save the image with 8 or 16 bits a channel")
    if image.mode in TRANSPARENT_MODES or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _from_16_bits(image: Image.Image) -> Image.Image:
    pixels = np.asarray(image)  # (H, W)
    if pixels.min() < 0 or pixels.max() > 65535:
        raise ValueError("integer pixels outside 0..65535 have no defined range; save the image with 8 or 16 bits")
    return Image.fromarray(np.rint(pixels / 257).astype(np.uint8))  # 65535 = 257 * 255


def _upright(image: Image.Image) -> Image.Image:
    if image.format == "JPEG" and "exif" not in image.info and "xmp" not in image.info:
        return image
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # a damaged orientation tag says nothing about the pixels
        return image


def _open(encoded: bytes | Path) -> Image.Image:
    return Image.open(BytesIO(encoded) if isinstance(encoded, bytes) else encoded)


def _tail(encoded: bytes | Path) -> bytes:
    if isinstance(encoded, bytes):
        return encoded[-TAIL:]
    with open(encoded, "rb") as file:
        file.seek(max(0, encoded.stat().st_size - TAIL))
        return file.read()


def _reason(encoded: bytes | Path, error: Exception) -> str:
    empty = not encoded if isinstance(encoded, bytes) else encoded.is_file() and encoded.stat().st_size == 0
    if empty:
        return "empty"
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image"
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).rstrip(".")
