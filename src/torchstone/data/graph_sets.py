"""Many graphs, each with a class or with numbers to be predicted.

A source is one of

* a folder of a TU data set, in the text format of the GIN authors (``NAME.txt``, beside it ``10fold_idx``) or as the
  collection gives it (``NAME_A.txt``, ``NAME_graph_indicator.txt``, ...);
* an ``.npz`` file without pickles (:func:`save_graph_set` writes one from any of PyG's data sets): ``x`` (all nodes, F)
  or types ``node_type`` (all nodes,), ``edge_index`` (2, all edges) with the nodes of each graph counted from 0,
  ``num_nodes`` and ``num_edges`` (G,), ``y`` (G,) or (G, T), optionally ``edge_attr`` (all edges, D) or ``edge_type``
  and ``train_mask``, ``val_mask``, ``test_mask`` (G,);
* ``substructures:KIND``: seeded random graphs and the number of a substructure in each, see
  :mod:`torchstone.data.substructures`.

Types are given one-hot, so a network needs no table of them. Where a folder's nodes are all of one type, their degrees
are the types, as the GIN authors do it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from torchstone.data.graphs import _digest
from torchstone.data.sampling import PositionSampler
from torchstone.data.splits import generator, index_hash, stratified
from torchstone.errors import CallError, DataError, unknown_name
from torchstone.extras import extra

if TYPE_CHECKING:
    from torch_geometric.data import Data

SUBSTRUCTURES = "substructures:"
SPLITS = "public (the file's), fold:K (the folder's official folds), random, auto"
Split = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class GraphSet:
    """Graphs as their source gives them.

    Attributes:
        name: of the source.
        graphs: PyG ``Data`` with ``x`` (N, F) float, ``edge_index`` (2, E), perhaps ``edge_attr`` (E, D) float.
        y: classes (G,) int64, or numbers (G, T) float32.
        folds: the indices of training and test graphs of the official folds.
        public: the indices of the three parts, where the source has them.
    """

    name: str
    graphs: tuple[Data, ...]
    y: Tensor
    folds: tuple[tuple[np.ndarray, np.ndarray], ...] = ()
    public: Split | None = None

    @property
    def num_features(self) -> int:
        return self.graphs[0].x.shape[1]

    @property
    def edge_channels(self) -> int:
        attributes = self.graphs[0].edge_attr
        return 0 if attributes is None else attributes.shape[1]

    @property
    def fingerprint(self) -> str:
        parts = [part for graph in self.graphs for part in (graph.x, graph.edge_index, graph.edge_attr)]
        return _digest([part.numpy() for part in (*parts, self.y) if part is not None])


# --- reading


def is_graph_set(source: str) -> bool:
    """Whether a source is a folder of a TU data set or a set that is generated."""
    path = Path(source)
    if source.startswith(SUBSTRUCTURES):
        return True
    return path.is_dir() and ((path / "10fold_idx").is_dir() or bool(list(path.glob("*_graph_indicator.txt"))))


def read_graph_set(
    source: str, *, features: int | None = None, edge_features: int | None = None, labelled: bool = True
) -> GraphSet:
    """Open many graphs.

    Args:
        source: a folder, an ``.npz`` file or ``substructures:KIND``, see the module.
        features: how many types of nodes there are, or features where they are numbers; None takes what is there.
        edge_features: the same of edges.
        labelled: whether an ``.npz`` file must have targets.

    Raises:
        DataError: there is no such set, it is not whole, or has other features; the message says what is wrong.
    """
    widths = features, edge_features
    if source.startswith(SUBSTRUCTURES):
        return _checked(_generated(source), widths)
    path = Path(source)
    if path.is_dir():
        if list(path.glob("*_graph_indicator.txt")):
            return _checked(_read_tu(path), widths)
        texts = [file for file in path.glob("*.txt") if not file.name.lower().startswith("readme")]
        if len(texts) != 1:
            raise DataError(
                f"{path} is no set of graphs: expected NAME_A.txt and NAME_graph_indicator.txt, or one NAME.txt"
            )
        return _checked(_read_text(texts[0], features), widths)
    if path.suffix != ".npz":
        raise DataError(
            f"{source} is no set of graphs: expected a folder of a TU data set, an .npz file or {SUBSTRUCTURES}KIND"
        )
    return _checked(_read_npz(path, widths, labelled), widths)


def _generated(source: str) -> GraphSet:
    from torchstone.data.substructures import KINDS, substructure_graphs

    kind = source.removeprefix(SUBSTRUCTURES)
    if kind not in KINDS:
        raise unknown_name("substructure", kind, KINDS)
    graphs = substructure_graphs(kind)
    y = torch.cat([graph.y for graph in graphs]).float()
    parts = np.split(np.arange(len(graphs)), [len(graphs) * 3 // 5, len(graphs) * 4 // 5])
    return GraphSet(source, tuple(graphs), y, public=(parts[0], parts[1], parts[2]))


def _read_text(path: Path, features: int | None) -> GraphSet:
    """The GIN authors' format: the number of graphs; for each a line ``nodes label`` and a line a node, its type, its
    number of neighbours and their numbers."""
    lines = iter(path.read_text().split("\n"))
    tags: list[np.ndarray] = []
    edges: list[np.ndarray] = []
    labels: list[int] = []
    try:
        for _ in range(int(next(lines))):
            nodes, label = map(int, next(lines).split())
            rows = [[int(word) for word in next(lines).split()] for _ in range(nodes)]
            tags.append(np.array([row[0] for row in rows]))
            pairs = [(node, other) for node, row in enumerate(rows) for other in row[2 : 2 + row[1]]]
            edges.append(np.array(pairs, dtype=np.int64).reshape(-1, 2).T)
            labels.append(label)
    except (ValueError, StopIteration, IndexError) as error:
        raise DataError(f"{path} is not in the text format of the GIN authors (graph {len(labels) + 1})") from error
    types = np.concatenate(tags)
    if len(np.unique(types)) == 1:
        tags = [np.bincount(pairs[0], minlength=len(tag)) for tag, pairs in zip(tags, edges, strict=True)]
    x = _one_hot(np.concatenate(tags), features, path.stem)
    y = torch.from_numpy(np.unique(labels, return_inverse=True)[1])
    graphs = _graphs(x, np.concatenate(edges, 1), [len(tag) for tag in tags], [pairs.shape[1] for pairs in edges], None)
    return GraphSet(path.stem, graphs, y, folds=_read_folds(path.parent / "10fold_idx"))


def _read_folds(folder: Path) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    found = []
    for number in range(1, 1 + len(list(folder.glob("test_idx-*.txt")))):
        files = [folder / f"{part}_idx-{number}.txt" for part in ("train", "test")]
        train, test = (np.loadtxt(file, dtype=np.int64, ndmin=1) for file in files)
        found.append((train, test))
    return tuple(found)


def _read_tu(folder: Path) -> GraphSet:
    """The collection's own format, by PyG's reader."""
    prefix = next(folder.glob("*_graph_indicator.txt")).name.removesuffix("_graph_indicator.txt")
    try:
        data, slices, _ = extra("torch_geometric.io", "graph").read_tu_data(str(folder), prefix)
        members = np.loadtxt(folder / f"{prefix}_graph_indicator.txt", dtype=np.int64)
    except (ValueError, IndexError, OSError, RuntimeError) as error:
        raise DataError(f"{folder} is not a whole TU data set ({error})") from error
    nodes, edges = np.bincount(members)[1:], np.diff(slices["edge_index"])
    x, edge_index = data.x, data.edge_index.numpy()
    if x is None:
        first = np.repeat(np.cumsum(nodes) - nodes, edges)  # PyG counts the nodes of each graph from 0
        x = _one_hot(np.bincount(edge_index[0] + first, minlength=nodes.sum()), None, prefix)
    graphs = _graphs(x, edge_index, nodes, edges, data.edge_attr)
    y = data.y if data.y.dtype == torch.int64 else data.y.reshape(len(graphs), -1).float()
    return GraphSet(prefix, graphs, y, folds=_read_folds(folder / "10fold_idx"))


def _read_npz(path: Path, widths: tuple[int | None, int | None], labelled: bool) -> GraphSet:
    if not path.is_file():
        raise DataError(f"there is no file {path}")
    try:
        with np.load(path, allow_pickle=False) as archive:
            content = {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path} is not a readable .npz file without pickles ({error})") from error
    if not labelled and "num_nodes" in content:
        content.setdefault("y", np.zeros(len(content["num_nodes"]), np.int64))
    missing = [name for name in ("edge_index", "num_nodes", "num_edges", "y") if name not in content]
    if missing or not {"x", "node_type"} & content.keys():
        raise DataError(
            f"{path} holds {', '.join(sorted(content))}; a set of graphs needs edge_index, num_nodes, num_edges, y and "
            "x or node_type"
        )
    x = content["x"] if "x" in content else _one_hot(content["node_type"], widths[0], path.stem)
    attributes = content.get("edge_attr")
    if "edge_type" in content:
        attributes = _one_hot(content["edge_type"], widths[1], path.stem)
    nodes, edges, y = content["num_nodes"], content["num_edges"], content["y"]
    if not len(nodes) == len(edges) == len(y):
        raise DataError(f"{path}: num_nodes, num_edges and y are of {len(nodes)}, {len(edges)} and {len(y)} graphs")
    for what, sizes, array in (("num_nodes", nodes, x), ("num_edges", edges, content["edge_index"].T)):
        if sizes.sum() != len(array):
            raise DataError(f"{path}: {what} add up to {sizes.sum()}, but there are {len(array)}")
    graphs = _graphs(x, content["edge_index"], nodes, edges, attributes)
    classes = y.ndim == 1 and y.dtype.kind in "iu"
    targets = torch.from_numpy(y.astype(np.int64) if classes else y.reshape(len(y), -1).astype(np.float32))
    names = ("train_mask", "val_mask", "test_mask")
    public = None
    if all(name in content for name in names):
        public = tuple(np.flatnonzero(content[name]) for name in names)
    return GraphSet(path.stem, graphs, targets, public=public)  # type: ignore[arg-type]


def _one_hot(types: np.ndarray, width: int | None, name: str) -> np.ndarray:
    """float32 (N, number of types) of types 0, 1, ...; ``width`` says how many there are."""
    types = types.reshape(-1)
    if types.dtype.kind not in "iu" or (types.size and types.min() < 0):
        raise DataError(f"{name}: types are integers from 0 on")
    most = int(types.max(initial=-1)) + 1
    if width is not None and most > width:
        raise DataError(f"{name} has types up to {most - 1}, the network was trained on {width} types")
    return np.eye(width or most, dtype=np.float32)[types]


def _graphs(x: Any, edge_index: Any, nodes: Any, edges: Any, attributes: Any) -> tuple[Data, ...]:
    data = extra("torch_geometric.data", "graph").Data
    nodes, edges = list(map(int, nodes)), list(map(int, edges))
    parts = {
        "x": torch.as_tensor(x, dtype=torch.float32).split(nodes),
        "edge_index": torch.as_tensor(edge_index, dtype=torch.int64).split(edges, 1),
    }
    if attributes is not None:
        parts["edge_attr"] = torch.as_tensor(attributes, dtype=torch.float32).reshape(sum(edges), -1).split(edges)
    return tuple(data(**dict(zip(parts, of_one, strict=True))) for of_one in zip(*parts.values(), strict=True))


def _checked(found: GraphSet, widths: tuple[int | None, int | None]) -> GraphSet:
    """The set itself.

    Raises:
        DataError: no graphs, edges between nodes that are not there, values that are no numbers, or other features than
            are asked for.
    """
    if not found.graphs:
        raise DataError(f"{found.name} holds no graphs")
    for index, graph in enumerate(found.graphs):
        nodes = len(graph.x)
        if nodes == 0:
            raise DataError(f"{found.name}: graph {index} has no nodes")
        edges = graph.edge_index
        if edges.numel() and not 0 <= edges.min() <= edges.max() < nodes:
            raise DataError(
                f"{found.name}: edges of graph {index} name nodes from {edges.min()} to {edges.max()}, it has 0 to "
                f"{nodes - 1}"
            )
        if not torch.isfinite(graph.x).all():
            raise DataError(f"{found.name}: features of graph {index} are NaN or infinite")
    have = found.num_features, found.edge_channels
    if any(width is not None and width != count for width, count in zip(widths, have, strict=True)):
        raise DataError(
            f"{found.name} has {have[0]} features of nodes and {have[1]} of edges, the network was trained on "
            f"{widths[0]} and {widths[1]}"
        )
    if found.y.is_floating_point() and not torch.isfinite(found.y).all():
        raise DataError(f"{found.name}: targets are NaN or infinite")
    for number, fold in enumerate(found.folds):
        if np.intersect1d(*fold).size or max(part.max() for part in fold) >= len(found.graphs):
            raise DataError(f"{found.name}: the official fold {number} is not one of its graphs, or its parts overlap")
    return found


def save_graph_set(path: str | Path, **parts: Any) -> None:
    """Write PyG graphs as an ``.npz`` file that :func:`open_graph_set` reads, with their split.

        save_graph_set("zinc.npz", **{part: ZINC(root, subset=True, split=part) for part in ("train", "val", "test")})

    Args:
        path: the file.
        **parts: ``train``, ``val`` and ``test``: each a sequence of PyG ``Data`` with ``x`` (N, F) or integer types
            (N,) or (N, 1), ``edge_index``, ``y``, and perhaps ``edge_attr`` (E, D) or integer types (E,) or (E, 1).

    Raises:
        CallError: other parts than these three.
    """
    names = ("train", "val", "test")
    if set(parts) != set(names):
        raise CallError(f"the parts of a set of graphs are {', '.join(names)}; got {', '.join(sorted(parts))}")
    graphs = [graph for name in names for graph in parts[name]]
    part = np.repeat(np.arange(3), [len(parts[name]) for name in names])
    content: dict[str, Any] = {f"{name}_mask": part == index for index, name in enumerate(names)}
    content["num_nodes"] = np.array([graph.num_nodes for graph in graphs])
    content["num_edges"] = np.array([graph.edge_index.shape[1] for graph in graphs])
    content["edge_index"] = torch.cat([graph.edge_index for graph in graphs], 1).numpy()
    content["y"] = torch.stack([torch.as_tensor(graph.y).reshape(-1) for graph in graphs]).numpy()
    if content["y"].dtype.kind in "iu" and content["y"].shape[1] == 1:
        content["y"] = content["y"][:, 0]
    for source, dense, typed in (("x", "x", "node_type"), ("edge_attr", "edge_attr", "edge_type")):
        if graphs[0].get(source) is None:
            continue
        values = torch.cat([graph[source] for graph in graphs])
        if values.is_floating_point():
            content[dense] = values.numpy()
        else:
            content[typed] = values.reshape(-1).numpy()
    np.savez_compressed(path, **content)


# --- splitting and loading


def open_graph_set(
    source: str | GraphSet,
    *,
    batch_size: int,
    regression: bool = False,
    eval_batch_size: int | None = None,
    split: str = "auto",
    split_seed: int = 0,
    val_fraction: float = 0.1,
    test_fraction: float = 0.2,
    seed: int = 0,
    workers: int = 0,
    limit: int | None = None,
) -> GraphSetData:
    """Open many graphs, split them and prepare their loaders.

    Args:
        source: see the module; or a set that is open already.
        batch_size: graphs in a training batch.
        regression: whether numbers are to be predicted, not classes.
        eval_batch_size: graphs in a batch of evaluation; as many as in training unless given.
        split: ``public``, ``fold:K`` (validation graphs are drawn from its training part), ``random``, or ``auto``: the
            public one, else the first fold, else a random one.
        split_seed: of what is drawn.
        val_fraction: the share of graphs, or of a fold's training graphs, for validation where it is drawn.
        test_fraction: the share of graphs for the test in a random split.
        seed: of the order of the training graphs.
        workers: loader processes; changes no result.
        limit: train on at most this many graphs.

    Raises:
        DataError: the data cannot be used; the message says what was found and what is expected.
        CallError: an option is out of range.
    """
    found = read_graph_set(source) if isinstance(source, str) else source
    if regression != found.y.is_floating_point():
        have, task = ("classes", "classification") if regression else ("numbers", "regression")
        raise DataError(f"the graphs of {found.name} have {have} as targets: that is the task graph-{task}")
    if not regression and len(found.y.unique()) < 2:
        raise DataError(f"{found.name}: graph classification needs at least two classes")
    chosen = _resolve(split, found)
    train, val, test = _indices(chosen, found, split_seed, val_fraction, test_fraction)
    if limit is not None:
        train = np.sort(generator("limit", split_seed).permutation(train)[:limit])
    for part, indices in (("training", train), ("validation", val), ("test", test)):
        if not len(indices):
            raise DataError(f"{found.name}: the split {chosen} leaves no graph for {part}")
    return GraphSetData(found, (train, val, test), chosen, batch_size, eval_batch_size or batch_size, seed, workers)


def _resolve(split: str, found: GraphSet) -> str:
    if split == "auto":
        return "public" if found.public is not None else "fold:0" if found.folds else "random"
    kind, _, number = split.partition(":")
    if kind == "fold" and number.isdigit():
        if int(number) >= len(found.folds):
            raise CallError(f"{found.name} has {len(found.folds)} official folds, counted from 0; {split} is none")
        return split
    if split == "public" and found.public is None:
        raise CallError(f"{found.name} comes without a public split; choose from {SPLITS}")
    if split not in ("public", "random"):
        raise CallError(f"unknown split {split!r} of a set of graphs; choose from {SPLITS}")
    return split


def _indices(split: str, found: GraphSet, seed: int, val_fraction: float, test_fraction: float) -> Split:
    if split == "public":
        assert found.public is not None
        return found.public
    train, test = np.arange(len(found.graphs)), None
    if split.startswith("fold:"):
        train, test = found.folds[int(split.partition(":")[2])]
    labels = np.zeros(len(found.graphs), np.int64) if found.y.is_floating_point() else found.y.numpy()
    everything = len(train)
    if test is None:
        test, train = stratified(train, labels, round(test_fraction * everything), "test", seed)
    val, train = stratified(train, labels, round(val_fraction * everything), "val", seed)
    return train, val, test


class _Graphs(Dataset):
    """The graphs of a part with their targets, by (epoch, place) or by place."""

    def __init__(self, found: GraphSet, indices: np.ndarray) -> None:
        self.found, self.indices = found, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, place: int | tuple[int, int]) -> Data:
        index = self.indices[place[1] if isinstance(place, tuple) else place]
        graph = self.found.graphs[index].clone()
        graph.y = self.found.y[index : index + 1]
        return graph


class GraphSetData:
    """Loaders of PyG batches: ``x``, ``edge_index``, ``batch``, ``y`` (B,) or (B, T), perhaps ``edge_attr``.

    Made by :func:`open_graph_set`.

    Attributes:
        source: the open set, to be used again.
        num_classes: classes, or numbers T to be predicted.
        classes: their names.
    """

    def __init__(
        self,
        source: GraphSet,
        parts: Split,
        split: str,
        batch_size: int,
        eval_batch_size: int,
        seed: int,
        workers: int,
    ) -> None:
        self.source, self.split = source, split
        self.parts = dict(zip(("train", "val", "test"), parts, strict=True))
        self.batch_size, self.eval_batch_size = min(batch_size, len(parts[0])), eval_batch_size
        self.seed, self.workers = seed, workers
        self.name, self.augment = source.name, "none"
        regression = source.y.is_floating_point()
        self.num_classes = source.y.shape[1] if regression else int(source.y.max()) + 1
        word = "target" if regression else "class"
        self.classes = [f"{word} {number}" for number in range(self.num_classes)]
        content = json.dumps(self.describe(), sort_keys=True).encode()
        self.fingerprint = _digest([np.frombuffer(content, np.uint8)])
        self.trainer: Any = None

    def train_dataloader(self) -> DataLoader:
        rank, world = self._process()
        size = self.batch_size // world * world
        sampler = PositionSampler(len(self.parts["train"]), size, self.seed, rank, world)
        return self._loader("train", size // world, sampler)

    def val_dataloader(self) -> DataLoader:
        return self._evaluation("val")

    def test_dataloader(self) -> DataLoader:
        return self._evaluation("test")

    def first(self, count: int) -> Any:
        """A batch of that many training graphs, from the first on, again and again where there are fewer."""
        indices = np.resize(self.parts["train"], count)
        return batch_of([_Graphs(self.source, indices)[place] for place in range(count)])

    def describe(self) -> dict[str, Any]:
        """What a run records of its data."""
        graphs = self.source.graphs
        sizes = {part: {"size": len(found), "graphs": index_hash(found)} for part, found in self.parts.items()}
        return {
            "name": self.name,
            "graphs": len(graphs),
            "nodes": sum(graph.num_nodes for graph in graphs),
            "edges": sum(graph.num_edges for graph in graphs),
            "features": self.source.num_features,
            "edge_features": self.source.edge_channels,
            "splits": sizes,
            "split": self.split,
            "classes": self.classes,
            "fingerprint": self.source.fingerprint,
        }

    def preprocessing(self) -> dict[str, Any]:
        """What another set of graphs needs to be read alike."""
        return {"features": self.source.num_features, "edge_features": self.source.edge_channels}

    def _process(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _evaluation(self, part: str) -> DataLoader:
        rank, world = self._process()
        sampler = None
        if world > 1:
            places: Any = self.parts[part]
            sampler = UnrepeatedDistributedSampler(places, num_replicas=world, rank=rank, shuffle=False)
        return self._loader(part, self.eval_batch_size, sampler)

    def _loader(self, part: str, batch_size: int, sampler: Any) -> DataLoader:
        return DataLoader(
            _Graphs(self.source, self.parts[part]),
            batch_size=batch_size,
            sampler=sampler,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            pin_memory=torch.cuda.is_available(),
            collate_fn=batch_of,
        )


def batch_of(graphs: Sequence[Data]) -> Any:
    """PyG's ``Batch`` of some graphs."""
    return extra("torch_geometric.data", "graph").Batch.from_data_list(list(graphs))
