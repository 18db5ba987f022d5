"""Layers that two or more systems share, or that anybody's network can use."""

from torchstone.layers.checks import check_images

__all__ = ["check_images"]
