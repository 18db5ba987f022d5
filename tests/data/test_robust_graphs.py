"""Attacked graphs: files as their authors publish them, the splits that come with them, and what is said without."""

import json

import numpy as np
import pytest
import scipy.sparse as sp
from _shared import requires_shared, shared

from torchstone.data.graphs import open_graph
from torchstone.data.robust_graphs import read_robust
from torchstone.errors import CallError, DataError
from torchstone.training.tasks import task_of

PARTS = {"idx_train": [0, 1], "idx_val": [2, 3], "idx_test": [4, 5, 6]}


@pytest.fixture
def folder(tmp_path):
    """Seven nodes in a ring; Metattack has linked 0 and 3, Nettack node 5 with 2. The clean file has an eighth node."""
    root = tmp_path / "robust_citation"
    for name in ("clean", "meta", "nettack", "splits"):
        (root / name).mkdir(parents=True)
    ring = sp.lil_matrix((7, 7), dtype=np.float32)
    for node in range(7):
        ring[node, (node + 1) % 7] = ring[(node + 1) % 7, node] = 1
    sp.save_npz(root / "clean" / "cora_features.npz", sp.csr_matrix(np.eye(7, 9, dtype=np.float32)))
    np.save(root / "clean" / "cora_labels.npy", np.arange(7, dtype=np.int8) % 2)
    for name, (one, other) in {"meta/cora_meta_adj_0.2": (0, 3), "nettack/cora_nettack_adj_1.0": (5, 2)}.items():
        attacked = ring.copy()
        attacked[one, other] = attacked[other, one] = 1
        sp.save_npz(root / f"{name}.npz", sp.csr_matrix(attacked))
    (root / "splits" / "cora_prognn_splits.json").write_text(json.dumps(PARTS))
    (root / "nettack" / "cora_nettacked_nodes.json").write_text(json.dumps({**PARTS, "attacked_test_nodes": [5]}))
    whole = sp.csr_matrix(sp.block_diag([ring, [[1]]]))  # one direction of each edge, and a node with a loop
    upper = sp.triu(whole).tocsr()
    (tmp_path / "cora_cpf").mkdir()
    np.savez(
        tmp_path / "cora_cpf" / "cora.npz",
        adj_data=upper.data,
        adj_indices=upper.indices,
        adj_indptr=upper.indptr,
        adj_shape=upper.shape,
    )
    return root


def links(opened):
    return {tuple(sorted(edge)) for edge in opened.graph.edge_index.t().tolist()}


RING = {tuple(sorted((node, (node + 1) % 7))) for node in range(7)}


def test_each_attack_is_read_with_its_split(folder):
    clean, meta, nettack = (open_graph(f"robust:{folder}/cora-{a}") for a in ("clean", "meta-0.2", "nettack-1"))
    assert (links(clean), links(meta), links(nettack)) == (RING, RING | {(0, 3)}, RING | {(2, 5)})
    assert all(opened.graph.is_undirected() and opened.graph.num_features == 9 for opened in (clean, meta, nettack))
    assert meta.name == "cora-meta-0.2"
    assert meta.split == "public"
    assert meta.sizes == clean.sizes == {"train": 2, "val": 2, "test": 3}
    assert nettack.graph.test_mask.nonzero().flatten().tolist() == [5]
    assert len({opened.fingerprint for opened in (clean, meta, nettack)}) == 3


def test_without_a_folder_they_are_where_data_are(folder, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHSTONE_DATA", str(tmp_path))
    (tmp_path / "graphs").mkdir()
    folder.rename(tmp_path / "graphs" / "robust_citation")
    assert open_graph("robust:cora-meta-0.2").graph.num_nodes == 7
    with pytest.raises(DataError, match=r"\.\./cora_cpf/cora\.npz in .*graphs/robust_citation; put it there from"):
        open_graph("robust:cora-clean")


def test_it_is_a_graph_to_every_verb():
    assert task_of("robust:cora-meta-0.2").name == "node-classification"


@pytest.mark.parametrize(
    "name",
    ["cora", "cora-meta", "cora-meta-0.3", "cora-clean-1", "cora-nettack-9", "pubmed-meta-0.2", "cora-random-0.2"],
)
def test_what_is_no_attacked_graph_is_refused(name):
    with pytest.raises(CallError, match=r"is no attacked graph: give robust:GRAPH-clean, .* cora, citeseer, polblogs"):
        open_graph(f"robust:{name}")


def test_the_clean_blogs_are_not_published():
    with pytest.raises(CallError, match="clean edges of PolBlogs"):
        open_graph("robust:polblogs-clean")


def test_missing_damaged_and_foreign_files_are_named(folder):
    with pytest.raises(DataError, match=r"no meta/cora_meta_adj_0\.1\.npz in .*Pro-GNN"):
        open_graph(f"robust:{folder}/cora-meta-0.1")
    split = folder / "splits" / "cora_prognn_splits.json"
    split.write_text(json.dumps({**PARTS, "idx_test": [4, 7]}))
    with pytest.raises(DataError, match=r"do not fit: 7 rows of features, .* up to 7"):
        open_graph(f"robust:{folder}/cora-meta-0.2")
    split.write_text("{}")
    with pytest.raises(DataError, match=r"cora_prognn_splits\.json cannot be read .*idx_test"):
        open_graph(f"robust:{folder}/cora-meta-0.2")
    (folder / "meta" / "cora_meta_adj_0.2.npz").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"cora_meta_adj_0\.2\.npz cannot be read"):
        open_graph(f"robust:{folder}/cora-meta-0.2")


@requires_shared("data/robust_citation")
def test_the_published_graphs_have_the_sizes_of_the_papers():
    folder = shared("data/robust_citation")
    for name, nodes, features in (("cora", 2485, 1433), ("citeseer", 2110, 3703), ("polblogs", 1222, 1490)):
        _, content = read_robust(f"robust:{folder}/{name}-meta-0.2")
        assert tuple(content["x_shape"]) == (nodes, features)
        assert abs(content["train_mask"].mean() - 0.1) < 0.01
    if shared("data/cora_cpf"):
        _, clean = read_robust(f"robust:{folder}/cora-clean")
        assert clean["edge_index"].shape == (2, 2 * 5069)
