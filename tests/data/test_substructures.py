"""Substructure counts: the closed formulas against networkx, and the graphs that they are taken of."""

from collections import Counter
from math import comb

import networkx as nx
import pytest
import torch

from torchstone.data.substructures import (
    KINDS,
    count_substructures,
    random_adjacency,
    substructure_graphs,
)
from torchstone.errors import CallError, DataError, UnknownName

pytestmark = pytest.mark.system("swl")


def counted_one_by_one(graph):
    cycles = Counter(len(cycle) for cycle in nx.simple_cycles(graph, length_bound=6))
    triangles = nx.triangles(graph)
    return {
        "triangle": cycles[3],
        "tailed-triangle": sum(triangles[v] * (graph.degree[v] - 2) for v in graph),
        "star": sum(comb(graph.degree[v], 3) for v in graph),
        "4-cycle": cycles[4],
        "5-cycle": cycles[5],
        "6-cycle": cycles[6],
    }


def test_formulas_count_what_networkx_enumerates():
    sparse, sizes = random_adjacency(6, seed=3, nodes=(5, 13), family="both")
    dense = sparse.clone()
    dense[:, :7, :7] = ~torch.eye(7, dtype=torch.bool)  # with all the chords that formulas have to make up for
    for adjacency in (sparse, dense):
        graphs = [nx.from_numpy_array(one.numpy()) for one in adjacency]
        expected = [counted_one_by_one(graph) for graph in graphs]
        for kind in KINDS:
            assert count_substructures(adjacency, kind).tolist() == [count[kind] for count in expected], kind
    assert sizes.unique().numel() > 1


def test_tailed_triangles_and_stars_are_subgraphs_up_to_isomorphism():
    """Monomorphisms of the pattern, each found once for every symmetry of it."""
    adjacency, _ = random_adjacency(2, seed=1, nodes=(8, 8))
    paw = nx.from_edgelist([(0, 1), (1, 2), (2, 0), (2, 3)])
    for kind, pattern, symmetries in (("tailed-triangle", paw, 2), ("star", nx.star_graph(3), 6)):
        for one, count in zip(adjacency, count_substructures(adjacency, kind), strict=True):
            matcher = nx.isomorphism.GraphMatcher(nx.from_numpy_array(one.numpy()), pattern)
            assert sum(1 for _ in matcher.subgraph_monomorphisms_iter()) == count * symmetries


def test_random_graphs_are_of_their_family_and_seed():
    adjacency, size = random_adjacency(300, seed=0, nodes=(10, 16))
    assert (size.min(), size.max()) == (10, 16)
    pairs = (size * (size - 1)).sum()
    assert abs(adjacency.sum() / pairs - 0.3) < 0.01
    degrees = adjacency.sum(-1)
    assert degrees[torch.arange(16) >= size[:, None]].eq(0).all()
    regular, size = random_adjacency(20, seed=0, family="regular")
    inside = torch.arange(16) < size[:, None]
    assert all(d[i].unique().numel() == 1 for d, i in zip(regular.sum(-1), inside, strict=True))
    again, _ = random_adjacency(20, seed=0, family="regular")
    other, _ = random_adjacency(20, seed=1, family="regular")
    assert torch.equal(regular, again)
    assert not torch.equal(regular, other)
    both, _ = random_adjacency(20, seed=0, family="both")
    assert torch.equal(both[1], regular[1])


def test_targets_are_counts_in_units_of_their_spread():
    graphs = substructure_graphs("4-cycle", graphs=60, seed=2)
    assert graphs[0].x.shape == (graphs[0].num_nodes, 1)
    assert graphs[0].y.shape == (1, 1)
    assert all(graph.is_undirected() and not graph.has_self_loops() for graph in graphs)
    targets = torch.cat([graph.y for graph in graphs])
    assert abs(targets.std(correction=0) - 1) < 1e-5
    adjacency, size = random_adjacency(60, seed=2)
    counts = count_substructures(adjacency, "4-cycle")
    torch.testing.assert_close(targets[:, 0] * counts.double().std(correction=0), counts.double(), check_dtype=False)
    assert [graph.num_nodes for graph in graphs] == size.tolist()


def test_what_cannot_be_counted_or_drawn_is_refused():
    with pytest.raises(UnknownName, match="'4-cycle'"):
        substructure_graphs("4-cycles")
    with pytest.raises(UnknownName, match="'regular'"):
        substructure_graphs("star", family="regulr")
    with pytest.raises(CallError, match="at least 4, got 5 and"):
        substructure_graphs("star", graphs=5, nodes=(3, 9))
    with pytest.raises(DataError, match="symmetric"):
        count_substructures(torch.ones(1, 3, 3).triu(1), "star")
    with pytest.raises(DataError, match="all 1 graphs"):
        substructure_graphs("star", graphs=1)
