"""Graphs as the citation files of GNN-to-MLP distillation hold them: a sparse adjacency and sparse attributes.

An ``.npz`` file with compressed rows ``adj_data``, ``adj_indices``, ``adj_indptr``, ``adj_shape``, the same of
``attr_``, and ``labels``. Such a graph is standardised as the field does: without weights, directions and self-loops,
its largest connected component only.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components

from torchstone.errors import DataError

_PARTS = ("data", "indices", "indptr", "shape")
NAMES = frozenset([f"{matrix}_{part}" for matrix in ("adj", "attr") for part in _PARTS] + ["labels"])


def holds_sparse_graph(content: Mapping[str, np.ndarray]) -> bool:
    """Whether a file's arrays are those of such a graph."""
    return content.keys() >= NAMES


def standardised(content: Mapping[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    """The largest connected component as ``x_data``, ``x_indices``, ``x_indptr``, ``x_shape``, ``edge_index``, ``y``;
    and ``node_ids``, the numbers of its nodes in the file.

    Args:
        content: the file's arrays.
        name: of the graph, for errors.

    Raises:
        DataError: no such matrices, or matrices of different numbers of nodes.
    """
    adjacency, features = _matrix(content, "adj", name), _matrix(content, "attr", name)
    labels, nodes = content["labels"], adjacency.shape[0]
    if adjacency.shape[1] != nodes or features.shape[0] != nodes or labels.shape != (nodes,):
        raise DataError(
            f"{name}: adj (N, N), attr (N, F) and labels (N,) have shapes {adjacency.shape}, {features.shape} and "
            f"{labels.shape}"
        )
    linked = (adjacency + adjacency.T).tocsr()
    linked.setdiag(0)
    linked.eliminate_zeros()
    _, component = connected_components(linked, directed=False)
    kept = np.flatnonzero(component == np.bincount(component).argmax())
    edges, features = linked[kept][:, kept].tocoo(), features[kept]
    return {
        "x_data": features.data,
        "x_indices": features.indices,
        "x_indptr": features.indptr,
        "x_shape": np.array(features.shape),
        "edge_index": np.stack([edges.row, edges.col]).astype(np.int64),
        "y": labels[kept].astype(np.int64),
        "node_ids": kept,
    }


def _matrix(content: Mapping[str, np.ndarray], which: str, name: str) -> csr_matrix:
    data, indices, indptr, shape = (content[f"{which}_{part}"] for part in _PARTS)
    try:
        matrix = csr_matrix((data, indices, indptr), shape=tuple(shape))
        matrix.check_format(full_check=True)
    except (ValueError, IndexError, TypeError) as error:
        raise DataError(f"{name}: the arrays {which}_* are no compressed rows ({error})") from error
    return matrix
