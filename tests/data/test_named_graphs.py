"""Graphs by name: what is read from a folder, and what is said where there is none and no network."""

import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from _shared import requires_shared, shared

from torchstone.data import named_graphs
from torchstone.data.graphs import open_graph
from torchstone.errors import DataError
from torchstone.training import load_recipe, recipe_names
from torchstone.training.tasks import get_task

RECIPES = [name for name in recipe_names() if name.startswith("dagnn_")]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty data folder, and no network."""

    def no_network(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setenv(named_graphs.CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setattr("torch_geometric.datasets.planetoid.fs.cp", no_network)
    monkeypatch.setattr("urllib.request.urlopen", no_network)
    return tmp_path / "graphs"


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_whose_data_are_missing_says_which_files_go_where(name, folder):
    recipe = load_recipe(name)
    graph = named_graphs.NAMED_GRAPHS[recipe.data.source]
    with pytest.raises(DataError, match="could not be downloaded") as error:
        get_task(recipe.task).open_data(recipe.data, recipe.train, 0)
    for said in (str(folder), graph.address, *graph.files):
        assert said in str(error.value)


@requires_shared("data/cora")
@pytest.mark.parametrize("name", ["cora", "citeseer"])
def test_planetoid_files_in_the_folder_are_read_without_a_network(name, folder):
    for file in named_graphs.NAMED_GRAPHS[name].files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(shared(f"data/{name}") / (folder / file).name, folder / file)
    named, read = open_graph(name), open_graph(str(shared(f"data/{name}/{name}.npz")))
    assert named.sizes == read.sizes
    torch.testing.assert_close(named.graph.x, read.graph.x)
    for key in ("y", "train_mask", "val_mask", "test_mask"):
        assert torch.equal(named.graph[key], read.graph[key])
    edges = [set(map(tuple, one.graph.edge_index.T.tolist())) for one in (named, read)]
    assert edges[0] == edges[1]


def test_damaged_files_are_said_to_be_damaged(folder):
    for file in named_graphs.NAMED_GRAPHS["pubmed"].files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text("hello")
    with pytest.raises(DataError, match=r"cannot be read .* delete .*ind\.pubmed\.x.* fetch it anew"):
        open_graph("pubmed")


def test_the_files_of_ogb_are_read(folder):
    generator = np.random.default_rng(0)
    x, labels = generator.normal(size=(6, 4)).astype("float32"), np.array([0, 1, 2, 0, 1, 2])
    edges = np.array([[0, 1, 4], [1, 2, 3]])
    tables = {"raw/node-feat": x, "raw/node-label": labels[:, None], "raw/edge": edges.T}
    parts = {"train": [[0], [1], [2]], "valid": [[3]], "test": [[4], [5]]}
    for name, table in (*tables.items(), *((f"split/time/{part}", rows) for part, rows in parts.items())):
        path = folder / "arxiv" / f"{name}.csv.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(table).to_csv(path, header=False, index=False)
    recipe = load_recipe("dagnn_arxiv")
    data = get_task(recipe.task).open_data(recipe.data, recipe.train, 0)
    torch.testing.assert_close(data.graph.x, torch.from_numpy(x))
    assert data.graph.y.tolist() == labels.tolist()
    assert data.sizes == {"train": 3, "val": 1, "test": 2}
    assert data.graph.is_undirected()
    assert data.graph.num_edges == 6
