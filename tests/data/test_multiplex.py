"""Folders of multiplex graphs are read whole, or it is said what is wrong with them."""

import numpy as np
import pytest
import scipy.sparse
import torch
from _shared import requires_shared, shared

from torchstone.data import named_graphs
from torchstone.data.graphs import open_graph
from torchstone.data.multiplex import FILES, PARTS, is_multiplex_folder, read_multiplex
from torchstone.errors import DataError
from torchstone.training.tasks import get_task


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A small graph in HeCo's layout, below an empty data folder without a network."""

    def no_network(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("torch_geometric.data.download_url", no_network)
    monkeypatch.setenv(named_graphs.CACHE_VARIABLE, str(tmp_path))
    place = tmp_path / "graphs" / "acm-heco"
    place.mkdir(parents=True)
    nodes = 9
    scipy.sparse.save_npz(place / "p_feat.npz", scipy.sparse.csr_matrix(np.eye(nodes, 4) / 3))
    pap, psp = np.eye(nodes, dtype=bool), np.zeros((nodes, nodes), dtype=bool)
    pap[0, 1] = pap[1, 0] = psp[2, 3] = psp[3, 2] = psp[0, 1] = psp[1, 0] = True
    for name, matrix in (("pap", pap), ("psp", psp)):
        scipy.sparse.save_npz(place / f"{name}.npz", scipy.sparse.coo_matrix(matrix))
    np.save(place / "labels.npy", np.arange(nodes) % 3.0)
    for count in (20, 40, 60):
        for index, part in enumerate(PARTS):
            np.save(place / f"{part}_{count}.npy", np.arange(3) + 3 * index)
    return place


@pytest.mark.parametrize("named", [True, False])
def test_a_folder_is_read_by_name_and_by_path(folder, named):
    source = "acm-heco" if named else str(folder)
    assert get_task("node-classification").recognises(source)
    opened = open_graph(source, split="fixed:2", normalize=False)
    assert opened.sizes == {"train": 3, "val": 3, "test": 3}
    edges = {name: set(map(tuple, one.T.tolist())) for name, one in opened.views.items()}
    loops = {(i, i) for i in range(9)}
    assert edges == {"pap": loops | {(0, 1), (1, 0)}, "psp": {(2, 3), (3, 2), (0, 1), (1, 0)}}
    assert set(map(tuple, opened.graph.edge_index.T.tolist())) == edges["pap"] | edges["psp"]
    assert torch.equal(opened.graph.x, torch.eye(9, 4))
    assert opened.graph.y.tolist() == [0, 1, 2] * 3


def test_what_is_missing_is_named(folder):
    (folder / "psp.npz").unlink()
    with pytest.raises(DataError, match=r"lacks psp\.npz"):
        read_multiplex(folder)
    with pytest.raises(DataError, match="could not be downloaded") as error:
        open_graph("acm-heco")
    assert "acm-heco/psp.npz" in str(error.value)
    assert "liun-online/HeCo" in str(error.value)


def test_what_does_not_belong_together_is_refused(folder):
    np.save(folder / "train_20.npy", np.array([0, 99]))
    with pytest.raises(DataError, match="node numbers from 0 to 8"):
        read_multiplex(folder)
    np.save(folder / "labels.npy", np.zeros(5))
    with pytest.raises(DataError, match="expected labels"):
        read_multiplex(folder)
    (folder / "pap.npz").write_bytes(b"torn")
    with pytest.raises(DataError, match="cannot be read"):
        read_multiplex(folder)
    assert not is_multiplex_folder(str(folder.parent))


@requires_shared("data/acm_heco")
def test_features_of_acm_are_bags_of_words_divided_by_their_sums():
    assert all((shared("data/acm_heco") / file).is_file() for file in FILES)
    features = scipy.sparse.load_npz(shared("data/acm_heco") / "p_feat.npz").tocsr()
    counts = np.diff(features.indptr)
    assert np.allclose(features.data, np.repeat(1 / counts, counts))
