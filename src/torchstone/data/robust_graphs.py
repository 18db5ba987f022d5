"""Citation graphs and blogs whose edges an attacker changed, to train on: ``robust:cora-meta-0.2`` and the like.

A source is ``robust:[FOLDER/]GRAPH-ATTACK``. GRAPH is ``cora``, ``citeseer`` or ``polblogs``, the largest component of
each; ATTACK is ``clean``, ``meta-RATE`` (Metattack, which changed that share of the edges: 0.05, 0.1, 0.15, 0.2, 0.25)
or ``nettack-COUNT`` (Nettack, so many changes for each attacked node: 1 to 5). FOLDER is where the files are; without
it they are in ``graphs/robust_citation`` of the folder that ``TORCHSTONE_DATA`` names. The files are as their authors
publish them, see :data:`FILES`; nothing is downloaded.

The public split is the one that the attack was made for, a tenth of the nodes for training, a tenth for validation and
the rest for test; of graphs that Nettack changed the test nodes are the attacked ones.
"""

from __future__ import annotations

import json
import os
import re
import zipfile
from pathlib import Path

import numpy as np
from scipy.sparse import csr_matrix, load_npz

from torchstone.data.named_graphs import Arrays
from torchstone.data.sources import CACHE_VARIABLE
from torchstone.errors import CallError, DataError

PREFIX = "robust:"
GRAPHS = ("cora", "citeseer", "polblogs")
RATES = ("0.05", "0.1", "0.15", "0.2", "0.25")
COUNTS = ("1", "2", "3", "4", "5")

_STABLE = "https://github.com/likuanppd/STABLE (ptb_graphs)"
_PRO_GNN = "https://github.com/ChandlerBang/Pro-GNN (meta, nettack, splits)"
_CPF = "https://github.com/YangLing0818/VQGraph (data)"

FILES = {
    "clean/{graph}_features.npz": _STABLE,
    "clean/{graph}_labels.npy": _STABLE,
    "splits/{graph}_prognn_splits.json": _PRO_GNN,
    "meta/{graph}_meta_adj_{level}.npz": _PRO_GNN,
    "nettack/{graph}_nettack_adj_{level}.0.npz": _PRO_GNN,
    "nettack/{graph}_nettacked_nodes.json": _PRO_GNN,
    "../{graph}_cpf/{graph}.npz": f"{_CPF}; the clean edges, of Cora and CiteSeer",
}
"""Where each file goes, below the folder, and where it comes from."""

_ADJACENCY = {"meta": "meta/{graph}_meta_adj_{level}.npz", "nettack": "nettack/{graph}_nettack_adj_{level}.0.npz"}


def is_robust_source(source: str) -> bool:
    """Whether a source is one of this module's."""
    return source.startswith(PREFIX)


def read_robust(source: str) -> tuple[str, Arrays]:
    """Read an attacked or a clean graph.

    Args:
        source: ``robust:[FOLDER/]GRAPH-ATTACK``, see the module.

    Returns:
        The graph's name, and ``x_data``, ``x_indices``, ``x_indptr``, ``x_shape``, ``edge_index`` with both directions,
        ``y``, ``train_mask``, ``val_mask``, ``test_mask``.

    Raises:
        CallError: no such graph or attack.
        DataError: a file is missing or damaged; says which, and where it comes from.
    """
    given = Path(source.removeprefix(PREFIX))
    folder = given.parent if given.parent != Path() else _usual_folder()
    graph, attack, level = _parse(given.name)
    names = {"graph": graph, "level": level}
    features = _features(_needed(folder, "clean/{graph}_features.npz", names))
    labels = _array(_needed(folder, "clean/{graph}_labels.npy", names))
    if attack == "clean":
        edges = _clean_edges(_needed(folder, "../{graph}_cpf/{graph}.npz", names))
    else:
        edges = _edges_of(_sparse(_needed(folder, _ADJACENCY[attack], names)))
    told = "nettack/{graph}_nettacked_nodes.json" if attack == "nettack" else "splits/{graph}_prognn_splits.json"
    parts = _split(_needed(folder, told, names), attack == "nettack")
    nodes = features.shape[0]
    _check(given.name, nodes, labels, edges, parts)
    masks = {f"{part}_mask": np.isin(np.arange(nodes), chosen) for part, chosen in parts.items()}
    return given.name, {
        "x_data": features.data,
        "x_indices": features.indices,
        "x_indptr": features.indptr,
        "x_shape": np.array(features.shape),
        "edge_index": edges,
        "y": labels,
        **masks,
    }


def _usual_folder() -> Path:
    root = Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "torchstone" / "data")
    return root / "graphs" / "robust_citation"


def _parse(name: str) -> tuple[str, str, str]:
    """``cora-meta-0.2`` -> (cora, meta, 0.2)."""
    found = re.fullmatch(r"(\w+)-(clean|meta|nettack)(?:-([\d.]+))?", name)
    graph, attack, level = found.groups(default="") if found else ("", "", "")
    levels = {"clean": ("",), "meta": RATES, "nettack": COUNTS}.get(attack, ())
    if graph not in GRAPHS or level not in levels:
        raise CallError(
            f"{PREFIX}{name} is no attacked graph: give {PREFIX}GRAPH-clean, {PREFIX}GRAPH-meta-RATE or "
            f"{PREFIX}GRAPH-nettack-COUNT with a graph of {', '.join(GRAPHS)}, a rate of {', '.join(RATES)} or a count "
            f"of {', '.join(COUNTS)}"
        )
    if (graph, attack) == ("polblogs", "clean"):
        raise CallError(f"{PREFIX}{name}: the clean edges of PolBlogs are not among the published files")
    return graph, attack, level


def _needed(folder: Path, pattern: str, names: dict[str, str]) -> Path:
    path = folder / pattern.format(**names)
    if not path.is_file():
        raise DataError(
            f"there is no {pattern.format(**names)} in {folder}; put it there from {FILES[pattern]}, or name the "
            f"folder: {PREFIX}FOLDER/{names['graph']}-..."
        )
    return path


def _damaged(path: Path, error: object) -> DataError:
    return DataError(f"{path} cannot be read ({error})")


def _sparse(path: Path) -> csr_matrix:
    try:
        return csr_matrix(load_npz(path))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise _damaged(path, error) from error


def _features(path: Path) -> csr_matrix:
    return _sparse(path).astype(np.float32)


def _array(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise _damaged(path, error) from error


def _edges_of(adjacency: csr_matrix) -> np.ndarray:
    """The edges (2, E) of a symmetric adjacency, column to row, without those of a node to itself."""
    row, column = adjacency.nonzero()
    proper = row != column
    return np.stack([column[proper], row[proper]]).astype(np.int64)


def _clean_edges(path: Path) -> np.ndarray:
    """Of the largest component of a graph that is given as compressed rows ``adj_*``; its nodes keep their order."""
    from scipy.sparse.csgraph import connected_components

    try:
        with np.load(path, allow_pickle=False) as content:
            parts = (content["adj_data"], content["adj_indices"], content["adj_indptr"])
            whole = csr_matrix(parts, shape=tuple(content["adj_shape"]))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise _damaged(path, error) from error
    whole = whole.maximum(whole.T).tolil()
    whole.setdiag(0)
    whole = whole.tocsr()
    whole.eliminate_zeros()
    _, component = connected_components(whole, directed=False)
    inside = component == np.bincount(component).argmax()
    return _edges_of(whole[inside][:, inside])


def _split(path: Path, attacked: bool) -> dict[str, list[int]]:
    try:
        told = json.loads(path.read_text())
        test = told["attacked_test_nodes" if attacked else "idx_test"]
        return {"train": told["idx_train"], "val": told["idx_val"], "test": test}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, error) from error


def _check(name: str, nodes: int, labels: np.ndarray, edges: np.ndarray, parts: dict[str, list[int]]) -> None:
    """Files of different graphs do not fit together."""
    largest = max([int(edges.max(initial=-1)), *(max(chosen, default=-1) for chosen in parts.values())])
    if labels.shape != (nodes,) or largest >= nodes:
        raise DataError(
            f"the files of {PREFIX}{name} do not fit: {nodes} rows of features, {labels.shape} labels, and edges and "
            f"splits that name nodes up to {largest}"
        )
