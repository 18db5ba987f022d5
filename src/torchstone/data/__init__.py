"""Data sets and their tools, by data type. Names load on first use, so importing this package costs nothing.

* :func:`open_images` - digits, CIFAR-10, a folder tree or Parquet files as a Lightning data module
* :func:`open_sequences` - the same images as sequences of pixels
* :func:`open_graph_set` - many graphs with their official folds; :func:`save_graph_set` writes them
* :func:`preprocess` - images as a trained run wants to see them
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torchstone.data.graph_sets import GraphSetData, open_graph_set, save_graph_set
    from torchstone.data.images import ImageData, open_images
    from torchstone.data.preprocessing import preprocess
    from torchstone.data.sampling import PositionSampler
    from torchstone.data.sequences import SEQUENCE_SOURCES, SequenceData, open_sequences
    from torchstone.data.sources import IMAGE_SOURCES, ImageSource, open_source

_HOME = {
    "GraphSetData": "graph_sets",
    "IMAGE_SOURCES": "sources",
    "ImageData": "images",
    "ImageSource": "sources",
    "PositionSampler": "sampling",
    "SEQUENCE_SOURCES": "sequences",
    "SequenceData": "sequences",
    "open_graph_set": "graph_sets",
    "open_images": "images",
    "open_sequences": "sequences",
    "open_source": "sources",
    "preprocess": "preprocessing",
    "save_graph_set": "graph_sets",
}

__all__ = [
    "IMAGE_SOURCES",
    "SEQUENCE_SOURCES",
    "GraphSetData",
    "ImageData",
    "ImageSource",
    "PositionSampler",
    "SequenceData",
    "open_graph_set",
    "open_images",
    "open_sequences",
    "open_source",
    "preprocess",
    "save_graph_set",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
