"""Multiplex graphs that come as folders: several sets of edges on the same nodes, each a sparse matrix in a file.

The layout is that of HeCo's data: ``p_feat.npz`` (N, F), an ``.npz`` matrix (N, N) for each view, ``labels.npy`` (N,),
and numbered splits ``train_K.npy``, ``val_K.npy``, ``test_K.npy`` of node numbers, K labels a class for training.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import load_npz

from torchstone.errors import DataError
from torchstone.extras import extra

VIEWS = ("pap", "psp")
LABELS_A_CLASS = (20, 40, 60)
PARTS = ("train", "val", "test")
FILES = (
    "p_feat.npz",
    *(f"{view}.npz" for view in VIEWS),
    "labels.npy",
    *(f"{part}_{count}.npy" for count in LABELS_A_CLASS for part in PARTS),
)
ADDRESS = "https://raw.githubusercontent.com/liun-online/HeCo/20e8ca2042838877b2c815279920218b6bbea1db/data/acm"


def is_multiplex_folder(source: str) -> bool:
    """Whether a data source is a folder of such files."""
    return (Path(source) / "p_feat.npz").is_file()


def fetch_acm(folder: Path) -> dict[str, np.ndarray]:
    """ACM as HeCo's authors give it, papers that share an author (pap) or a subject (psp), in ``folder/acm-heco``;
    what is missing there is downloaded."""
    place = folder / "acm-heco"
    for file in FILES:
        if not (place / file).is_file():
            extra("torch_geometric.data", "graph").download_url(f"{ADDRESS}/{file}", str(place), log=False)
    return read_multiplex(place)


def read_multiplex(folder: Path) -> dict[str, np.ndarray]:
    """Read such a folder.

    Args:
        folder: holds :data:`FILES`.

    The files hold bags of words whose rows are divided by their sums; they are given back as zeros and ones, and
    whether to divide is left to whoever reads them.

    Returns:
        The arrays of a graph as :mod:`torchstone.data.graphs` names them: features in compressed rows, ``y``, the edges
        of each view and of their union, row 0 the columns of the matrices, and the masks of the numbered splits (S, N).

    Raises:
        DataError: files that are missing or damaged, or matrices that do not belong together.
    """
    missing = [file for file in FILES if not (folder / file).is_file()]
    if missing:
        raise DataError(f"{folder} is no folder of a multiplex graph: it lacks {', '.join(missing)}")
    try:
        features = load_npz(folder / "p_feat.npz").tocsr()
        matrices = {view: load_npz(folder / f"{view}.npz").tocoo() for view in VIEWS}
        arrays = {file: np.load(folder / file, allow_pickle=False) for file in FILES if file.endswith(".npy")}
    except (ValueError, OSError, EOFError, KeyError) as error:
        raise DataError(f"{folder} holds a file that cannot be read ({error})") from error
    nodes, labels = features.shape[0], arrays["labels.npy"]
    shapes = {view: matrix.shape for view, matrix in matrices.items()}
    if labels.shape != (nodes,) or any(shape != (nodes, nodes) for shape in shapes.values()):
        raise DataError(
            f"{folder}: expected labels ({nodes},) and views ({nodes}, {nodes}) for features {features.shape}, got "
            f"{labels.shape} and {shapes}"
        )
    union = sum(matrix.tocsr().astype(np.int8) for matrix in matrices.values()).tocoo()
    edges = {view: _edges(matrix) for view, matrix in matrices.items()}
    return {
        "x_data": np.ones_like(features.data, dtype=np.float32),
        "x_indices": features.indices,
        "x_indptr": features.indptr,
        "x_shape": np.array(features.shape),
        "y": labels.astype(np.int64),
        "edge_index": _edges(union),
        **{f"edge_index_{view}": array for view, array in edges.items()},
        **{f"geom_{part}_mask": _masks(arrays, part, nodes, folder) for part in PARTS},
    }


def _edges(matrix: Any) -> np.ndarray:
    """(2, E): entry [i, j] of a matrix in coordinates is the edge j -> i."""
    return np.stack([matrix.col, matrix.row]).astype(np.int64)


def _masks(arrays: dict[str, np.ndarray], part: str, nodes: int, folder: Path) -> np.ndarray:
    """One part of every numbered split, (S, N)."""
    masks = np.zeros((len(LABELS_A_CLASS), nodes), dtype=bool)
    for mask, count in zip(masks, LABELS_A_CLASS, strict=True):
        members = arrays[f"{part}_{count}.npy"]
        if members.dtype.kind not in "iu" or (members.size and not 0 <= members.min() <= members.max() < nodes):
            raise DataError(f"{folder / f'{part}_{count}.npy'} must hold node numbers from 0 to {nodes - 1}")
        mask[members] = True
    return masks
