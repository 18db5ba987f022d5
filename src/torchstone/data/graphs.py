"""One graph with labelled nodes: citation networks and the like, with explicit splits.

A source is a name (:data:`SOURCES`: ``cora``, ``citeseer``, ``pubmed``, these three as ``cora-geom``, ... with ten
numbered splits, ``texas``, ``wisconsin``, ``cornell``, ``film``, ``chameleon``, ``squirrel``, ``computers``, ``photo``,
``cs``, ``physics``, ``ogbn-arxiv``, ``acm-heco``), an attacked graph (``robust:cora-meta-0.2``, see
:mod:`torchstone.data.robust_graphs`), a folder of a multiplex graph (:mod:`torchstone.data.multiplex`), or the path of
an ``.npz`` file without pickles:

* features: ``x`` (N, F), or compressed rows ``x_data``, ``x_indices``, ``x_indptr``, ``x_shape``;
* ``edge_index`` (2, E), row 0 the sources, row 1 the targets; ``y`` (N,), -1 where a node has no label;
* a multiplex graph, several sets of edges on the same nodes: ``edge_index_NAME`` for each; ``edge_index`` is then their
  union unless it is given;
* optional splits: ``train_mask``, ``val_mask``, ``test_mask`` (N,), the public one, and ``geom_train_mask``, ...
  (S, N), numbered ones.

Files of a sparse adjacency, ``adj_*``, ``attr_*`` and ``labels``, are taken too (:mod:`torchstone.data.sparse_graphs`).

A node without a label is in no part of a split, whatever the split says.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.sparse import coo_matrix, csr_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from torch.utils.data import DataLoader

from torchstone.data.multiplex import is_multiplex_folder, read_multiplex
from torchstone.data.named_graphs import NAMED_GRAPHS, read_named
from torchstone.data.robust_graphs import is_robust_source, read_robust
from torchstone.data.sparse_graphs import holds_sparse_graph, standardised
from torchstone.errors import CallError, DataError, unknown_name
from torchstone.extras import extra

if TYPE_CHECKING:
    from torch_geometric.data import Data

SOURCES = {name: graph.about for name, graph in NAMED_GRAPHS.items()}
SPLITS = (
    "public, fixed:K (the file's numbered splits), per-class (20 a class, 500 for validation, 1000 for test), "
    "per-class-30 (20 a class, 30 a class for validation, the rest of the largest connected component for test), random"
)

Masks = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class RawGraph:
    """A graph as its source gives it: features, edges, labels and whatever splits come with it."""

    name: str
    x: np.ndarray
    edge_index: np.ndarray
    y: np.ndarray
    public: Masks | None
    numbered: tuple[Masks, ...]
    views: Mapping[str, np.ndarray] = field(default_factory=dict)
    node_ids: np.ndarray | None = None
    """Numbers of the nodes in the file (N,), where it holds more than are taken."""


@dataclass(frozen=True)
class GraphSplit:
    """A graph ready for node classification.

    Attributes:
        graph: PyG ``Data`` with ``x`` (N, F), ``edge_index`` (2, E), ``y`` (N,) and the three masks (N,); of a
            multiplex graph also ``views``, the edges (2, E) of each by name.
        split: which split the masks are, resolved.
        normalized: whether the rows of features were divided by their sums.
        fingerprint: a hash of features, edges and labels.
        whole: where nodes are held out (:func:`torchstone.data.inductive.hold_out`) the graph with them, and them as
            its test nodes; None where all nodes are there from the beginning.
    """

    name: str
    graph: Data
    num_classes: int
    split: str
    split_seed: int
    directed: bool
    normalized: bool
    fingerprint: str
    whole: GraphSplit | None = None

    @property
    def views(self) -> Mapping[str, Tensor]:
        """The edges of each view of a multiplex graph; empty for any other."""
        return self.graph.get("views", {})

    @property
    def sizes(self) -> dict[str, int]:
        """How many nodes are trained on, validated and tested."""
        return {part: int(mask.sum()) for part, mask in self._masks().items()}

    def _masks(self) -> dict[str, Tensor]:
        tested = self if self.whole is None else self.whole
        return {"train": self.graph.train_mask, "val": self.graph.val_mask, "test": tested.graph.test_mask}

    def describe(self) -> dict[str, Any]:
        """What a run records of its data: sizes, the split, and a hash of each part's nodes."""
        parts = {
            part: {"size": int(mask.sum()), "nodes": _digest([mask.numpy()])} for part, mask in self._masks().items()
        }
        return {
            "name": self.name,
            "nodes": self.graph.num_nodes,
            "edges": self.graph.num_edges,
            **({"views": views} if (views := {n: e.shape[1] for n, e in self.views.items()}) else {}),
            "features": self.graph.num_features,
            "classes": self.num_classes,
            "undirected": self.graph.is_undirected(),
            "normalized": self.normalized,
            "splits": parts,
            "split": self.split,
            "split_seed": self.split_seed,
            "fingerprint": self.fingerprint,
        }


def open_graph(
    source: str,
    *,
    split: str = "auto",
    split_seed: int = 0,
    val_fraction: float = 0.2,
    test_fraction: float = 0.2,
    normalize: bool | None = None,
    directed: bool = False,
) -> GraphSplit:
    """Open a graph with labelled nodes.

    Args:
        source: a name (see the module) or the path of an ``.npz`` file.
        split: ``public``, ``fixed:K``, ``per-class``, ``per-class-30`` (see :data:`SPLITS`), ``random``, or ``auto``:
            the public one if there is one, else the first numbered one, else a random one.
        split_seed: the seed of the drawn splits.
        val_fraction: the share of labelled nodes for validation in a random split.
        test_fraction: the share of labelled nodes for test in a random split.
        normalize: divide each row of features by its sum; rows of zeros stay. None does so if no feature is negative.
        directed: keep the directions of edges; otherwise the missing reverse edges are added, and edges that are given
            twice count once.

    Raises:
        DataError: the file is not such a graph, or the split cannot be made from it; the message says what is wrong.
    """
    raw = _open(source)
    if len(np.unique(raw.y[raw.y >= 0])) < 2:
        raise DataError(f"{raw.name}: node classification needs at least two classes among the labelled nodes")
    chosen = _resolve(split, raw)
    train, val, test = _checked(_masks(chosen, raw, split_seed, val_fraction, test_fraction), raw, chosen)
    normalized = bool((raw.x >= 0).all()) if normalize is None else normalize
    graph = extra("torch_geometric.data", "graph").Data(
        x=_features_of(raw, normalized),
        edge_index=_edges(raw.edge_index, len(raw.x), directed),
        y=torch.from_numpy(raw.y.astype(np.int64)),
        train_mask=torch.from_numpy(train),
        val_mask=torch.from_numpy(val),
        test_mask=torch.from_numpy(test),
    )
    if raw.views:
        graph.views = {name: _edges(edges, len(raw.x), directed) for name, edges in raw.views.items()}
    return GraphSplit(
        name=raw.name,
        graph=graph,
        num_classes=int(raw.y.max()) + 1,
        split=chosen,
        split_seed=split_seed,
        directed=directed,
        normalized=normalized,
        fingerprint=_digest([raw.x, raw.edge_index, raw.y, *raw.views.values()]),
    )


def read_graph(source: str, *, features: int, directed: bool, normalize: bool) -> Data:
    """Open a graph for prediction; its nodes need no labels.

    Args:
        source: as in :func:`open_graph`.
        features: F, what the network was trained on.
        directed: as in :func:`open_graph`.
        normalize: divide each row of features by its sum, as it was done for the graph that was trained on.

    Returns:
        PyG ``Data`` with ``x`` (N, F), ``edge_index`` (2, E) and ``n_id`` (N,), the nodes' numbers in the file: of a
        sparse adjacency only the largest component is taken.

    Raises:
        DataError: the file is not such a graph; the message says what is wrong.
    """
    raw = _open(source, labelled=False)
    if raw.x.shape[1] != features:
        raise DataError(f"{raw.name} has {raw.x.shape[1]} features, the network was trained on {features}")
    edges = _edges(raw.edge_index, len(raw.x), directed)
    ids = torch.from_numpy(np.arange(len(raw.x)) if raw.node_ids is None else raw.node_ids)
    return extra("torch_geometric.data", "graph").Data(x=_features_of(raw, normalize), edge_index=edges, n_id=ids)


def check_undirected(edge_index: Tensor, num_nodes: int) -> None:
    """Raise a DataError where an edge has no edge in the other direction."""
    is_undirected = extra("torch_geometric.utils", "graph").is_undirected
    if not is_undirected(edge_index, num_nodes=num_nodes):
        raise DataError(
            "this needs an undirected graph, with both directions of each edge; torch_geometric.utils.to_undirected "
            "adds them"
        )


def _features_of(raw: RawGraph, normalized: bool) -> Tensor:
    x = raw.x.astype(np.float32)
    if normalized:
        total = x.sum(1, keepdims=True)
        x /= np.where(total == 0, 1, total)
    return torch.from_numpy(x)


def _edges(edges: np.ndarray, nodes: int, directed: bool) -> Tensor:
    """The edges (2, E); unless directions are kept, each once and the missing reverse ones at the end."""
    edge_index = edges.astype(np.int64)
    if not directed:
        forth, first = np.unique(edge_index[0] * nodes + edge_index[1], return_index=True)
        back = np.sort(forth % nodes * nodes + forth // nodes)
        place = np.searchsorted(forth, back)
        missing = back[np.append(forth, -1)[place] != back]
        edge_index = np.concatenate([edge_index[:, np.sort(first)], [missing // nodes, missing % nodes]], axis=1)
    return torch.from_numpy(edge_index)


def is_graph_source(source: str) -> bool:
    """Whether a source means one graph: a name, a file, an attacked graph or a folder of a multiplex graph."""
    known = source.lower() in SOURCES or is_robust_source(source)
    return known or source.endswith(".npz") or is_multiplex_folder(source)


def _open(source: str, labelled: bool = True) -> RawGraph:
    if is_robust_source(source):
        raw = _raw(*read_robust(source))
    elif source.lower() in SOURCES:
        raw = _raw(source.lower(), read_named(source.lower()))
    elif is_multiplex_folder(source):
        raw = _raw(Path(source).name, read_multiplex(Path(source)))
    else:
        raw = _read_npz(source, labelled)
    _check(raw)
    return raw


def _read_npz(source: str, labelled: bool) -> RawGraph:
    path = Path(source)
    if not path.exists():
        if path.suffix:
            raise DataError(f"there is no graph file {path}")
        raise unknown_name("graph", source, SOURCES)
    try:
        with np.load(path, allow_pickle=False) as archive:
            content = {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path} is not a readable .npz file without pickles ({error})") from error
    node_ids = None
    if holds_sparse_graph(content):
        content = standardised(content, path.stem)
        node_ids = content["node_ids"]
    if not labelled:
        content.setdefault("y", np.full(len(content.get("x", content.get("x_indptr", [0])[1:])), -1))
    views = {f"edge_index_{name}": edges for name, edges in _views(content).items()}
    if views and "edge_index" not in content:
        _check_edges(path.stem, views)
        content["edge_index"] = np.unique(np.concatenate(list(views.values()), axis=1), axis=1)
    missing = [name for name in ("edge_index", "y") if name not in content]
    if missing or not ({"x"} <= content.keys() or {"x_data", "x_indices", "x_indptr", "x_shape"} <= content.keys()):
        raise DataError(
            f"{path} holds {', '.join(sorted(content))}; a graph needs edge_index, y and x (or x_data, x_indices, "
            "x_indptr, x_shape)"
        )
    return replace(_raw(path.stem, content), node_ids=node_ids)


def _raw(name: str, content: Mapping[str, np.ndarray]) -> RawGraph:
    return RawGraph(
        name=name,
        x=_features(content, name),
        edge_index=content["edge_index"],
        y=content["y"],
        public=_public(content),
        numbered=_numbered(content),
        views=_views(content),
    )


def _views(content: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The sets of edges of a multiplex graph, by the names of their views."""
    prefix = "edge_index_"
    return {name.removeprefix(prefix): content[name] for name in sorted(content) if name.startswith(prefix)}


def _features(content: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    if "x" in content:
        return content["x"]
    parts = (content["x_data"], content["x_indices"], content["x_indptr"])
    try:
        rows = csr_matrix(parts, shape=tuple(content["x_shape"]))
        rows.check_format(full_check=True)
    except (ValueError, IndexError, TypeError) as error:
        raise DataError(f"{name}: x_data, x_indices, x_indptr and x_shape are no compressed rows ({error})") from error
    return rows.toarray()


def _public(content: Mapping[str, np.ndarray]) -> Masks | None:
    names = ("train_mask", "val_mask", "test_mask")
    return (content[names[0]], content[names[1]], content[names[2]]) if all(name in content for name in names) else None


def _numbered(content: Mapping[str, np.ndarray]) -> tuple[Masks, ...]:
    names = ("geom_train_mask", "geom_val_mask", "geom_test_mask")
    if not all(name in content for name in names):
        return ()
    return tuple(zip(*(content[name] for name in names), strict=True))


def _check(raw: RawGraph) -> None:
    nodes = raw.x.shape[0] if raw.x.ndim else 0
    edge_sets = {f"edge_index_{name}": edges for name, edges in raw.views.items()} | {"edge_index": raw.edge_index}
    if raw.x.ndim != 2 or raw.y.shape != (nodes,):
        raise DataError(f"{raw.name}: expected x (N, F) and y (N,), got {raw.x.shape} and {raw.y.shape}")
    _check_edges(raw.name, edge_sets)
    if raw.x.dtype.kind not in "biuf":
        raise DataError(f"{raw.name}: x must hold numbers, got {raw.x.dtype}")
    for name, array in (*edge_sets.items(), ("y", raw.y)):
        if array.size and array.dtype.kind not in "iu":
            raise DataError(f"{raw.name}: {name} must hold integers, got {array.dtype}")
    if raw.y.size and raw.y.min() < -1:
        raise DataError(f"{raw.name}: labels are 0, 1, ... and -1 where there is none, got {raw.y.min()}")
    if not np.isfinite(raw.x).all():
        wrong = np.flatnonzero(~np.isfinite(raw.x).all(1))
        raise DataError(f"{raw.name}: features of {len(wrong)} nodes are NaN or infinite, the first is node {wrong[0]}")
    for edges in edge_sets.values():
        if edges.size and not (edges.min() >= 0 and edges.max() < nodes):
            raise DataError(
                f"{raw.name}: edges name nodes from {edges.min()} to {edges.max()}, the graph has 0 to {nodes - 1}"
            )


def _check_edges(graph: str, edge_sets: Mapping[str, np.ndarray]) -> None:
    for name, edges in edge_sets.items():
        if edges.ndim != 2 or edges.shape[0] != 2:
            raise DataError(f"{graph}: expected {name} (2, E), got {edges.shape}")


def _resolve(split: str, raw: RawGraph) -> str:
    if split == "auto":
        return "public" if raw.public else "fixed:0" if raw.numbered else "random"
    kind, _, number = split.partition(":")
    if kind == "fixed" and number.isdigit():
        if int(number) >= len(raw.numbered):
            raise CallError(f"{raw.name} has {len(raw.numbered)} numbered splits, fixed:{number} is not among them")
        return split
    if split == "public" and raw.public is None:
        raise CallError(f"{raw.name} comes without a public split; choose from {SPLITS}")
    if split not in ("public", "per-class", "per-class-30", "random"):
        raise CallError(f"unknown split {split!r}; choose from {SPLITS}")
    return split


def _masks(split: str, raw: RawGraph, seed: int, val_fraction: float, test_fraction: float) -> Masks:
    if split == "public":
        assert raw.public is not None
        return raw.public
    if split.startswith("fixed:"):
        return raw.numbered[int(split.partition(":")[2])]
    labelled = np.flatnonzero(raw.y >= 0)
    if split == "per-class-30":
        labelled = labelled[_largest_component(raw)[labelled]]
    order = np.random.default_rng(seed).permutation(labelled)
    if split in ("per-class", "per-class-30"):
        train = np.concatenate([order[raw.y[order] == label][:20] for label in np.unique(raw.y[labelled])])
        rest = order[~np.isin(order, train)]
        if split == "per-class-30":
            val = np.concatenate([rest[raw.y[rest] == label][:30] for label in np.unique(raw.y[labelled])])
            test = rest[~np.isin(rest, val)]
            if not len(val) or not len(test):
                raise DataError(
                    f"{raw.name} has {len(labelled)} labelled nodes, too few for 20 and 30 a class and a test"
                )
            return _as_masks(len(raw.y), train, val, test)
        if len(rest) < 1500:
            raise DataError(f"{raw.name} has {len(labelled)} labelled nodes, too few for 20 a class, 500 and 1000")
        return _as_masks(len(raw.y), train, rest[:500], rest[500:1500])
    held_out, tested = round(val_fraction * len(order)), round(test_fraction * len(order))
    both = held_out + tested
    return _as_masks(len(raw.y), order[both:], order[:held_out], order[held_out:both])


def _largest_component(raw: RawGraph) -> np.ndarray:
    """Which nodes (N,) belong to the largest connected component."""
    nodes = len(raw.x)
    links = coo_matrix((np.ones(raw.edge_index.shape[1]), tuple(raw.edge_index)), shape=(nodes, nodes))
    _, component = connected_components(links, directed=False)
    return component == np.bincount(component).argmax()


def _checked(masks: Masks, raw: RawGraph, split: str) -> Masks:
    """The masks without the nodes that have no label.

    Raises:
        DataError: a mask that is none, a part without nodes, or nodes in several parts.
    """
    kept = []
    for part, mask in zip(("train", "val", "test"), masks, strict=True):
        if mask.shape != raw.y.shape or not (mask.dtype == bool or np.isin(mask, (0, 1)).all()):
            raise DataError(
                f"{raw.name}: the {part} mask of the split {split} must hold true or false for each of {len(raw.y)} "
                f"nodes, got {mask.dtype} {mask.shape}"
            )
        kept.append(mask.astype(bool) & (raw.y >= 0))
        if not kept[-1].any():
            raise DataError(f"{raw.name}: the split {split} has no labelled node for {part}")
    several = np.flatnonzero(np.sum(kept, axis=0) > 1)
    if len(several):
        raise DataError(
            f"{raw.name}: {len(several)} nodes are in several parts of the split {split}, the first is {several[0]}"
        )
    return kept[0], kept[1], kept[2]


def _as_masks(nodes: int, *parts: np.ndarray) -> Masks:
    masks = np.zeros((3, nodes), dtype=bool)
    for mask, part in zip(masks, parts, strict=True):
        mask[part] = True
    return masks[0], masks[1], masks[2]


def _digest(arrays: Iterable[np.ndarray]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


class GraphData:
    """A graph for training: every epoch is one batch, the mask (N,) of the nodes that count in it.

    Args:
        opened: the graph with its split.

    Attributes:
        source: the opened graph, to be used again.
        classes: their names.
    """

    def __init__(self, opened: GraphSplit) -> None:
        self.source = opened
        self.graph = opened.graph
        self.name = opened.name
        self.num_classes = opened.num_classes
        self.classes = [f"class {label}" for label in range(opened.num_classes)]
        self.sizes = opened.sizes
        self.fingerprint = _digest([np.frombuffer(json.dumps(opened.describe(), sort_keys=True).encode(), np.uint8)])
        self.augment = "none"
        self.trainer: Any = None

    def train_dataloader(self) -> DataLoader:
        return _one_batch(self.graph.train_mask)

    def val_dataloader(self) -> DataLoader:
        return _one_batch(self.graph.val_mask)

    def test_dataloader(self) -> DataLoader:
        return _one_batch(self.graph.test_mask)

    def describe(self) -> dict[str, Any]:
        return {**self.source.describe(), "classes": self.classes}

    def preprocessing(self) -> dict[str, Any]:
        """What another graph needs to be read alike."""
        return {
            "features": self.graph.num_features,
            "directed": self.source.directed,
            "normalize": self.source.normalized,
        }


def _one_batch(mask: Tensor) -> DataLoader:
    masks: Any = [mask]
    return DataLoader(masks, batch_size=None, shuffle=False)
