"""Heterophilous graphs by name: read from their files as from the arrays made of them, and asked for by recipes."""

import shutil

import pytest
import torch
from _shared import requires_shared, shared

from torchstone.data import named_graphs
from torchstone.data.graphs import open_graph
from torchstone.errors import DataError
from torchstone.training import load_recipe, recipe_names
from torchstone.training.tasks import get_task

RECIPES = [name for name in recipe_names() if name.startswith("neural_sheaf_")]


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


NAMED = [("texas", "texas"), ("cornell", "cornell"), ("cora-geom", "cora"), ("citeseer-geom", "citeseer")]


@requires_shared("data/texas")
@pytest.mark.parametrize(("name", "source"), NAMED)
def test_files_in_the_folder_are_read_without_a_network(name, source, folder):
    where = {path.name: path for path in shared(f"data/{source}").rglob("*")}
    for file in named_graphs.NAMED_GRAPHS[name].files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(where[(folder / file).name], folder / file)
    for split in ("fixed:0", "fixed:9"):
        named = open_graph(name, split=split)
        read = open_graph(str(shared(f"data/{source}/{source}.npz")), split=split)
        assert named.split == read.split == split
        torch.testing.assert_close(named.graph.x, read.graph.x)
        for key in ("y", "train_mask", "val_mask", "test_mask"):
            assert torch.equal(named.graph[key], read.graph[key])
        edges = [set(map(tuple, one.graph.edge_index.T.tolist())) for one in (named, read)]
        assert edges[0] == edges[1]
