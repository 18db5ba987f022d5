"""Graphs that are opened by name: downloaded once, or read from files that were put where a download puts them.

Everything lies below ``graphs`` in the folder that ``TORCHSTONE_DATA`` names (``~/.cache/torchstone/data`` without it),
as PyTorch Geometric and OGB lay it out.
"""

from __future__ import annotations

import os
import pickle
import zipfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from torchstone.data import multiplex
from torchstone.data.sources import CACHE_VARIABLE
from torchstone.errors import DataError
from torchstone.extras import extra

Arrays = dict[str, np.ndarray]
"""``x``, ``edge_index``, ``y``, and the masks of the public split or of numbered ones where there are any."""


class Reader(Protocol):
    def __call__(self, folder: Path) -> Arrays: ...


@dataclass(frozen=True)
class NamedGraph:
    """A graph that can be had from the network.

    Attributes:
        about: what it is.
        files: its files, below the folder of all graphs.
        address: where they come from.
        read: reads it from the folder of all graphs, downloading what is missing.
    """

    about: str
    files: tuple[str, ...]
    address: str
    read: Reader


def read_named(name: str) -> Arrays:
    """Read one of :data:`NAMED_GRAPHS`, downloading it the first time.

    Raises:
        DataError: it is not there and cannot be downloaded, or its files are damaged; says which files go where.
    """
    from filelock import FileLock

    graph = NAMED_GRAPHS[name]
    extra("torch_geometric.datasets", "graph")
    folder = Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "torchstone" / "data") / "graphs"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{name}.lock"):  # several processes may want it at once
            return graph.read(folder)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        missing = [file for file in graph.files if not (folder / file).is_file()]
        if not missing:
            files = ", ".join(graph.files)
            raise DataError(
                f"{name} cannot be read from {folder} ({error}): delete {files} there to fetch it anew"
            ) from error
        raise DataError(
            f"{name} is not in {folder} and could not be downloaded ({error}). Put {', '.join(missing)} there, from "
            f"{graph.address}; or give an .npz file as data.source (--data); {CACHE_VARIABLE} names another folder"
        ) from error


def _planetoid(name: str, folder: Path) -> Arrays:
    data = extra("torch_geometric.datasets", "graph").Planetoid(str(folder), name)[0]
    masks = {part: data[part].numpy() for part in ("train_mask", "val_mask", "test_mask")}
    return {**_arrays(data), **masks, "y": _labels(data, name, folder / name / "raw")}


def _planetoid_with_ten_splits(name: str, folder: Path) -> Arrays:
    arrays = _with_ten_splits("Planetoid", {"name": name, "split": "geom-gcn"}, "", folder)
    return {**arrays, "y": _labels(arrays, name, folder / name / "geom-gcn" / "raw")}


def _labels(data: Any, name: str, raw: Path) -> np.ndarray:
    """The labels, with -1 for nodes that the files leave out (15 of CiteSeer's), which PyG gives the first class."""
    labels = np.array(data["y"])
    listed = np.loadtxt(raw / f"ind.{name.lower()}.test.index", dtype=np.int64)
    labels[np.setdiff1d(np.arange(listed.min(), listed.max() + 1), listed)] = -1
    return labels


def _with_ten_splits(dataset: str, options: dict[str, Any], below: str, folder: Path) -> Arrays:
    """A dataset of PyG whose masks are (N, 10): the splits of Geom-GCN, 48 % for training and 32 % for validation."""
    data = getattr(extra("torch_geometric.datasets", "graph"), dataset)(str(folder / below), **options)[0]
    masks = {f"geom_{part}_mask": data[f"{part}_mask"].numpy().T for part in ("train", "val", "test")}
    return {**_arrays(data), **masks}


def _amazon(name: str, folder: Path) -> Arrays:
    return _arrays(extra("torch_geometric.datasets", "graph").Amazon(str(folder), name)[0])


def _coauthor(name: str, folder: Path) -> Arrays:
    return _arrays(extra("torch_geometric.datasets", "graph").Coauthor(str(folder), name)[0])


def _arrays(data: Any) -> Arrays:
    return {"x": data.x.numpy(), "edge_index": data.edge_index.numpy(), "y": data.y.numpy()}


def _arxiv(folder: Path) -> Arrays:
    """OGB's files as they are: tables without a header, and the split by the papers' years."""
    import pandas as pd

    def table(path: str, kind: type) -> np.ndarray:
        return pd.read_csv(folder / "arxiv" / path, header=None, dtype=kind).to_numpy()

    if not all((folder / file).is_file() for file in _ARXIV_FILES):
        geometric = extra("torch_geometric.data", "graph")
        archive = geometric.download_url(_ARXIV, str(folder))
        geometric.extract_zip(archive, str(folder), log=False)
        Path(archive).unlink()
    features, edges = table("raw/node-feat.csv.gz", np.float32), table("raw/edge.csv.gz", np.int64)
    content = {"x": features, "edge_index": edges.T, "y": table("raw/node-label.csv.gz", np.int64)[:, 0]}
    for part, file in (("train", "train"), ("val", "valid"), ("test", "test")):
        mask = np.zeros(len(features), dtype=bool)
        mask[table(f"split/time/{file}.csv.gz", np.int64)[:, 0]] = True
        content[f"{part}_mask"] = mask
    return content


_CITATION = "citation network, downloaded once"
_PRODUCTS = "products bought together, downloaded once"
_AUTHORS = "authors who wrote together, downloaded once"
_PLANETOID = "https://github.com/kimiyoung/planetoid/tree/master/data"
_SHCHUR = "https://github.com/shchur/gnn-benchmark/tree/master/data/npz"
_ARXIV = "http://snap.stanford.edu/ogb/data/nodeproppred/arxiv.zip"
_ARXIV_FILES = (
    *(f"arxiv/raw/{file}.csv.gz" for file in ("node-feat", "node-label", "edge")),
    *(f"arxiv/split/time/{file}.csv.gz" for file in ("train", "valid", "test")),
)


def _planetoid_files(name: str) -> tuple[str, ...]:
    parts = ("x", "tx", "allx", "y", "ty", "ally", "graph", "test.index")
    return tuple(f"{name}/raw/ind.{name.lower()}.{part}" for part in parts)


_GEOM_GCN = "https://github.com/graphdml-uiuc-jlu/geom-gcn (new_data and splits)"
_HETEROPHILOUS = "{}, most edges between different classes, ten splits, downloaded once"


def _geom_gcn_files(folder: str, name: str) -> tuple[str, ...]:
    parts = ("out1_node_feature_label.txt", "out1_graph_edges.txt")
    return tuple(f"{folder}/raw/{part}" for part in (*parts, *_split_files(name)))


def _split_files(name: str) -> tuple[str, ...]:
    return tuple(f"{name}_split_0.6_0.2_{k}.npz" for k in range(10))


def _planetoid_geom_files(name: str) -> tuple[str, ...]:
    files = tuple(file.replace("/raw/", "/geom-gcn/raw/") for file in _planetoid_files(name))
    return (*files, *(f"{name}/geom-gcn/raw/{split}" for split in _split_files(name.lower())))


NAMED_GRAPHS = {
    **{
        name.lower(): NamedGraph(_CITATION, _planetoid_files(name), _PLANETOID, partial(_planetoid, name))
        for name in ("Cora", "CiteSeer", "PubMed")
    },
    **{
        name: NamedGraph(
            _PRODUCTS,
            (f"{name.capitalize()}/raw/amazon_electronics_{name}.npz",),
            _SHCHUR,
            partial(_amazon, name),
        )
        for name in ("computers", "photo")
    },
    **{
        f"{name.lower()}-geom": NamedGraph(
            f"{_CITATION.removesuffix(', downloaded once')} with ten splits, downloaded once",
            _planetoid_geom_files(name),
            f"{_PLANETOID} and {_GEOM_GCN}",
            partial(_planetoid_with_ten_splits, name),
        )
        for name in ("Cora", "CiteSeer", "PubMed")
    },
    **{
        name: NamedGraph(
            _HETEROPHILOUS.format("web pages of a university"),
            _geom_gcn_files(name, name),
            _GEOM_GCN,
            partial(_with_ten_splits, "WebKB", {"name": name}, ""),
        )
        for name in ("texas", "wisconsin", "cornell")
    },
    **{
        name: NamedGraph(
            _HETEROPHILOUS.format("pages of Wikipedia"),
            _geom_gcn_files(f"{name}/geom_gcn", name),
            _GEOM_GCN,
            partial(_with_ten_splits, "WikipediaNetwork", {"name": name}, ""),
        )
        for name in ("chameleon", "squirrel")
    },
    "film": NamedGraph(
        _HETEROPHILOUS.format("actors who share a page"),
        _geom_gcn_files("film", "film"),
        _GEOM_GCN,
        partial(_with_ten_splits, "Actor", {}, "film"),
    ),
    "cs": NamedGraph(_AUTHORS, ("CS/raw/ms_academic_cs.npz",), _SHCHUR, partial(_coauthor, "CS")),
    "physics": NamedGraph(_AUTHORS, ("Physics/raw/ms_academic_phy.npz",), _SHCHUR, partial(_coauthor, "Physics")),
    "acm-heco": NamedGraph(
        "papers linked by authors and by subjects, two views, downloaded once",
        tuple(f"acm-heco/{file}" for file in multiplex.FILES),
        multiplex.ADDRESS,
        multiplex.fetch_acm,
    ),
    "ogbn-arxiv": NamedGraph("papers that cite each other, downloaded once", _ARXIV_FILES, _ARXIV, _arxiv),
}
