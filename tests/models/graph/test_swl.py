"""Subgraph networks: the aggregation schemes, policies and layers, and the tests that say what they can tell apart."""

from itertools import combinations

import networkx as nx
import pytest
import torch
from _shared import requires_shared, shared
from torch.nn import functional as F

from torchstone import create_model
from torchstone.errors import CallError, ShapeError, UnknownName
from torchstone.instruments.macs import count_macs
from torchstone.models.graph.swl import (
    POLICIES,
    SCHEMES,
    SEPARATIONS,
    STEPS,
    TESTS,
    AggregationLayer,
    Pairs,
    SubgraphGNN,
    aggregate,
    apply_policy,
    distinguishes,
    furer_graphs,
    graph_colours,
    pair_colours,
    pair_distances,
)

SIX = ("SWL(VS)", "SWL(SV)", "PSWL(VS)", "PSWL(SV)", "GSWL", "SSWL")


def edges_of(graph):
    graph = nx.convert_node_labels_to_integers(graph)
    one_way = torch.tensor(list(graph.edges), dtype=torch.int64).reshape(-1, 2).T
    return torch.cat([one_way, one_way.flip(0)], 1), graph.number_of_nodes()


def batch_of(*graphs):
    """Edges, number of nodes and batch of several networkx graphs."""
    each = [edges_of(graph) for graph in graphs]
    sizes = torch.tensor([nodes for _, nodes in each])
    start = sizes.cumsum(0) - sizes
    edges = torch.cat([edge_index + first for (edge_index, _), first in zip(each, start, strict=True)], 1)
    return edges, int(sizes.sum()), torch.repeat_interleave(sizes)


PAIR = nx.gnp_random_graph(5, 0.6, seed=1), nx.gnp_random_graph(7, 0.4, seed=2)


def test_pairs_stand_graph_by_graph_root_by_root():
    edges, nodes, batch = batch_of(*PAIR)
    pairs = Pairs(edges, nodes, batch)
    expected = [(u, v) for u in range(nodes) for v in range(nodes) if batch[u] == batch[v]]
    assert list(zip(pairs.root.tolist(), pairs.node.tolist(), strict=True)) == expected
    assert torch.equal(pairs.row(pairs.root, pairs.node), torch.arange(25 + 49))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_scheme_is_its_sum_for_every_graph_of_a_batch(scheme):
    """Against dense matrices, the adjacency A and x as (n, n): uL is x A, vL is A x, and so on."""
    edges, nodes, batch = batch_of(*PAIR)
    x = torch.randn(74, 3)
    found = aggregate(x, Pairs(edges, nodes, batch), scheme)
    start = 0
    for graph in PAIR:
        a = torch.from_numpy(nx.to_numpy_array(graph)).float()
        n = len(a)
        y = x[start : start + n * n].view(n, n, 3)
        diagonal = y.diagonal(0, 0, 1).T
        expected = {
            "uv": y,
            "vu": y.transpose(0, 1),
            "uu": diagonal[:, None].expand(n, n, 3),
            "vv": diagonal.expand(n, n, 3),
            "uG": y.sum(1, keepdim=True).expand(n, n, 3),
            "vG": y.sum(0, keepdim=True).expand(n, n, 3),
            "uL": torch.einsum("uwc,vw->uvc", y, a),
            "vL": torch.einsum("wvc,uw->uvc", y, a),
        }[scheme]
        torch.testing.assert_close(found[start : start + n * n].view(n, n, 3), expected)
        start += n * n
    assert start == len(x)


def test_gradients_of_sums_go_back_along_their_transpose():
    edges, nodes, batch = batch_of(*PAIR)
    for scheme in SCHEMES:
        pairs = Pairs(edges, nodes, batch)
        matrix = aggregate(torch.eye(74, dtype=torch.float64), pairs, scheme)
        x = torch.randn(74, 3, dtype=torch.float64, requires_grad=True)
        weight = torch.randn(74, 3, dtype=torch.float64)
        (aggregate(x, pairs, scheme) * weight).sum().backward()
        torch.testing.assert_close(x.grad, matrix.T @ weight)


def test_distances_are_shortest_paths_cut_off():
    graph = nx.disjoint_union(nx.path_graph(6), nx.cycle_graph(4))
    edges, nodes = edges_of(graph)
    lengths = dict(nx.all_pairs_shortest_path_length(graph))
    for limit in (1, 3, nodes):
        expected = [[min(lengths[u].get(v, limit), limit) for v in range(nodes)] for u in range(nodes)]
        assert pair_distances(Pairs(edges, nodes), limit).view(nodes, nodes).tolist() == expected


def test_policies_make_the_subgraphs_of_their_names():
    graph = nx.path_graph(5)
    edges, nodes = edges_of(graph)
    found = {name: apply_policy(Pairs(edges, nodes), name, max_distance=2, ego_hops=1) for name in POLICIES}
    labels = {name: label.view(5, 5)[1].tolist() for name, (_, label, _) in found.items()}
    assert labels["distance"] == [1, 0, 1, 2, 2]
    assert labels["marking"] == labels["ego_marking"] == [1, 0, 1, 1, 1]
    assert labels["deletion"] == labels["ego"] == labels["copies"] == [0] * 5
    # In the subgraph of node 1 of 0 - 1 - 2 - 3 - 4, the degrees of all nodes:
    degrees = {
        name: aggregate(torch.ones(25, 1), pairs, "uL").view(5, 5)[1].tolist() for name, (pairs, _, _) in found.items()
    }
    assert degrees["distance"] == degrees["marking"] == degrees["copies"] == [1, 2, 2, 2, 1]
    assert degrees["deletion"] == [0, 0, 1, 2, 1]
    assert degrees["ego"] == degrees["ego_marking"] == [1, 2, 1, 0, 0]


def test_a_layer_is_the_papers_equation():
    edges, nodes = edges_of(PAIR[1])
    torch.manual_seed(0)
    layer = AggregationLayer(("uL", "vv", "vG"), 4).eval()
    pairs, x = Pairs(edges, nodes), torch.randn(49, 4)
    for term in layer.terms.values():
        term.epsilon.data.uniform_(-1, 1)
        term.mlp[1].running_var.uniform_(0.5, 2)
    terms = {name: layer.terms[name] for name in ("uL", "vv", "vG")}
    messages = {name: aggregate(x.relu() if name == "uL" else x, pairs, name) for name in terms}
    total = sum(term.mlp((1 + term.epsilon) * x + messages[name]) for name, term in terms.items())
    torch.testing.assert_close(layer(x, pairs), F.relu(layer.norm(total)))


def test_messages_carry_the_type_of_their_edge():
    edges, nodes = edges_of(PAIR[0])
    torch.manual_seed(0)
    layer = AggregationLayer(("uL", "vL"), 4, edge_types=(3,)).eval()
    pairs, x = Pairs(edges, nodes), torch.randn(25, 4)
    types = torch.randint(3, (edges.shape[1],))
    grid = x.view(5, 5, 4)
    for name, term in layer.terms.items():
        expected = torch.zeros(5, 5, 4)
        for (one, other), kind in zip(edges.T.tolist(), types.tolist(), strict=True):
            bond = term.edges.tables[0].weight[kind]
            if name == "uL":
                expected[:, one] += (grid[:, other] + bond).relu()
            else:
                expected[one] += (grid[other] + bond).relu()
        torch.testing.assert_close(term.aggregate(x, pairs, types).view(5, 5, 4), expected)
        torch.testing.assert_close(term.aggregate(x, pairs, F.one_hot(types, 3).float()).view(5, 5, 4), expected)


def test_types_may_be_numbers_or_one_hot():
    edges, nodes, batch = batch_of(*PAIR)
    torch.manual_seed(0)
    model = create_model("swl_mini", in_channels=4, out_channels=2, edge_channels=3).eval()
    types, kinds = torch.randint(4, (nodes,)), torch.randint(3, (edges.shape[1],))
    by_number = model(types, edges, batch, kinds)
    torch.testing.assert_close(model(types[:, None], edges, batch, kinds[:, None]), by_number)
    one_hot = F.one_hot(types, 4).float(), edges, batch, F.one_hot(kinds, 3).float()
    torch.testing.assert_close(model(*one_hot), by_number)
    assert not torch.allclose(model(types, edges, batch), by_number)


def test_several_columns_of_types_add_up():
    edges, nodes = edges_of(PAIR[1])
    model = create_model("swl_mini", in_channels=(4, 3)).eval()
    types = torch.stack([torch.randint(4, (nodes,)), torch.randint(3, (nodes,))], 1)
    both = torch.cat([F.one_hot(types[:, 0], 4), F.one_hot(types[:, 1], 3)], 1).float()
    torch.testing.assert_close(model(types, edges), model(both, edges))
    assert model(types[:, :1], edges).isfinite().all()


@pytest.mark.parametrize("pool", ["uG", "vG"])
@pytest.mark.parametrize("policy", POLICIES)
def test_a_batch_answers_as_its_graphs_one_by_one_in_any_numbering(policy, pool):
    torch.manual_seed(0)
    model = SubgraphGNN(
        3, 2, schemes=SCHEMES, pool=pool, policy=policy, hidden_channels=8, num_layers=2, max_distance=3, ego_hops=1
    ).eval()
    graphs = [*PAIR, nx.empty_graph(1)]
    edges, nodes, batch = batch_of(*graphs)
    x = torch.randint(3, (nodes,))
    together = model(x, edges, batch)
    for index, graph in enumerate(graphs):
        one, n = edges_of(graph)
        own = x[batch == index]
        torch.testing.assert_close(model(own, one), together[index : index + 1])
        order = torch.randperm(n)
        torch.testing.assert_close(model(own[order], order.argsort()[one]), together[index : index + 1])


def test_without_node_types_only_the_graph_counts():
    edges, nodes = edges_of(PAIR[1])
    model = create_model("swl_mini", in_channels=2, node_types=False).eval()
    assert torch.equal(model(torch.randn(nodes, 2), edges), model(torch.randn(nodes, 2), edges))


def test_pooling_order_is_that_of_the_names():
    schemes = {"swl_vs": ("uL",), "swl_sv": ("uL",), "pswl_vs": ("uL", "vv"), "pswl_sv": ("uL", "vv")}
    schemes |= {"gswl": ("uL", "vG"), "gnn_sswl": ("uL", "vL"), "gnn_sswl_plus": ("uL", "vL", "vv")}
    for name, expected in schemes.items():
        model = create_model(name, hidden_channels=4)
        assert all(tuple(layer.terms) == expected for layer in model.layers)
        assert tuple(model.pool.terms) == (("vG",) if name.endswith("_sv") else ("uG",))


@pytest.mark.parametrize(
    ("name", "options", "parameters"),
    [
        ("gnn_sswl_zinc", {}, 297_038),
        ("gnn_sswl_plus_zinc", {}, 409_940),
        ("gnn_sswl", {"in_channels": 1, "edge_channels": (5, 6, 2), "node_types": False}, 280_334),
        ("gnn_sswl_plus", {"in_channels": 1, "edge_channels": (5, 6, 2), "node_types": False}, 393_236),
    ],
)
def test_the_papers_sizes(name, options, parameters):
    assert sum(p.numel() for p in create_model(name, **options).parameters()) == parameters


def test_cost_of_a_layer_grows_with_nodes_times_edges():
    """Twice as many separate copies of a graph in a batch cost twice as much; nothing is padded or squared."""
    model = create_model("swl_mini", num_layers=1, policy="marking").eval()

    def cost(*graphs):
        edges, nodes, batch = batch_of(*graphs)
        return count_macs(model, (torch.ones(nodes, 1), edges, batch)).total

    once = nx.cycle_graph(8)
    head = 32 * 64 + 64
    assert cost(once, once) - 2 * head == 2 * (cost(once) - head)
    nodes = 12  # fixed; only the number of edges grows
    rings = [nx.circulant_graph(nodes, range(1, reach + 1)) for reach in (1, 2, 3)]
    costs = [cost(ring) for ring in rings]
    assert costs[2] - costs[1] == costs[1] - costs[0] > 0
    for ring in rings:  # uL and vL have a message for every node of the graph and direction of an edge
        pairs = Pairs(*edges_of(ring))
        assert all(len(pairs.ends(scheme)[0]) == nodes * 2 * ring.number_of_edges() for scheme in ("uL", "vL"))


# --- what the tests tell apart


def told_apart_by(one, other, **options):
    """The tests, in order of TESTS, that tell two graphs apart."""
    return [test for test in TESTS if distinguishes(test, one, other, **options)]


ORDER = list(STEPS)  # of the six classes
BASES = list(dict.fromkeys(SEPARATIONS.values()))
FOOLED = [
    # the tests that do not tell the two Furer graphs of each base apart
    ["SWL(VS)"],
    ["SWL(VS)", "SWL(SV)"],
    ["SWL(VS)", "PSWL(VS)"],
    ["SWL(VS)", "SWL(SV)", "PSWL(VS)", "PSWL(SV)"],
    ["SWL(VS)", "SWL(SV)", "PSWL(VS)", "PSWL(SV)", "GSWL"],
    list(SIX),
]


def test_furer_graphs_differ_in_a_twist():
    """Over a triangle they are a hexagon and two triangles; over a tree the twist can be undone, with loops not."""
    hexagon, triangles = nx.cycle_graph(6), nx.disjoint_union(nx.cycle_graph(3), nx.cycle_graph(3))
    found = []
    for edges, nodes in furer_graphs([(0, 1), (1, 2), (2, 0)]):
        assert (nodes, edges.shape) == (6, (2, 12))
        found.append(nx.Graph(edges.T.tolist()))
    for expected in (hexagon, triangles):
        assert sum(nx.is_isomorphic(graph, expected) for graph in found) == 1
    for base in BASES[:3]:
        (plain, nodes), (twisted, same) = furer_graphs(base)
        assert nodes == same == sum(2 ** (degree - 1) for _, degree in nx.Graph(base).degree)
        one, other = nx.Graph(plain.T.tolist()), nx.Graph(twisted.T.tolist())
        assert sorted(degree for _, degree in one.degree) == sorted(degree for _, degree in other.degree)
        moved = furer_graphs([*base[1:], base[0]])[1][0]
        assert nx.is_isomorphic(other, nx.Graph(moved.T.tolist())), "the twist sits on no edge in particular"


@pytest.mark.parametrize(
    "base", [[], [(0, 0)], [(0, 1), (1, 0)], [(0, 1), (2, 3)]], ids=["empty", "loop", "twice", "pieces"]
)
def test_what_is_no_connected_base_graph_is_refused(base):
    with pytest.raises(CallError, match="expected"):
        furer_graphs(base)


@pytest.mark.parametrize(("base", "fooled"), zip(BASES, FOOLED, strict=True))
def test_each_test_tells_apart_the_furer_graphs_that_it_should(base, fooled):
    pair = furer_graphs(base)
    tests = TESTS if pair[0][1] < 40 else SIX  # 2-FWL takes its time
    assert [test for test in tests if distinguishes(test, *pair)] == [test for test in tests if test not in fooled]


def test_every_step_of_the_hierarchy_has_its_pair():
    fooled = dict(zip(BASES, FOOLED, strict=True))
    for (weak, strong), base in SEPARATIONS.items():
        assert weak in fooled[base], (weak, strong)
        assert strong not in fooled[base], (weak, strong)
    assert {test for step in STEPS for test in step} == set(SIX)


def test_all_tests_tell_apart_what_message_passing_cannot():
    hexagon, triangles = nx.cycle_graph(6), nx.disjoint_union(nx.cycle_graph(3), nx.cycle_graph(3))
    hexagon, triangles = edges_of(hexagon), edges_of(triangles)
    assert told_apart_by(hexagon, triangles) == list(TESTS)
    for test in SIX:  # all subgraphs alike: no more than the 1-WL test
        assert not distinguishes(test, hexagon, triangles, policy="copies")


def test_no_test_tells_a_graph_from_itself_in_another_numbering():
    graph = nx.gnp_random_graph(9, 0.4, seed=0)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0)).tolist()
    other = nx.relabel_nodes(graph, dict(enumerate(order)))
    assert nx.utils.graphs_equal(
        nx.relabel_nodes(other, dict(enumerate(sorted(range(9), key=order.__getitem__)))), graph
    )
    assert told_apart_by(edges_of(graph), edges_of(other)) == []
    assert told_apart_by(edges_of(graph), edges_of(nx.gnp_random_graph(9, 0.4, seed=1))) == list(TESTS)


SMALL = [0, 2, 4]  # of the bases


def alike():
    """Graphs that weak tests confuse: both Furer graphs of small bases, and cubic graphs of eight nodes."""
    twins = [nx.Graph(edges.T.tolist()) for index in SMALL for edges, _ in furer_graphs(BASES[index])]
    return [*twins, nx.cubical_graph(), nx.circulant_graph(8, [1, 4]), nx.disjoint_union(*[nx.complete_graph(4)] * 2)]


def test_the_hierarchy_holds_on_graphs_that_weak_tests_confuse():
    """A stronger test never calls alike what a weaker one tells apart, and all refine the 1-WL test."""
    graphs = alike()
    edges, nodes, batch = batch_of(*graphs)
    colours = {test: graph_colours(edges, nodes, batch, test=test) for test in TESTS}
    weaker = [*ORDER, ("SSWL", "2-FWL"), ("PSWL(VS)", "LFWL(2)"), ("LFWL(2)", "2-FWL")]
    seen = {test: colours[test].unique().numel() for test in TESTS}
    assert seen["SWL(VS)"] == len(graphs) - 3  # no pair of twins
    assert seen["SWL(VS)"] < seen["PSWL(VS)"] < seen["PSWL(SV)"] < seen["SSWL"] == len(graphs)
    assert seen["SWL(VS)"] < seen["SWL(SV)"]
    for weak, strong in weaker:
        assert determined(colours[strong], colours[weak]), f"{weak} sees more than {strong} somewhere"
    one_wl = graph_colours(edges, nodes, batch, test="SWL(VS)", policy="copies")
    assert determined(colours["SWL(VS)"], one_wl), "plain message passing sees more somewhere"
    assert one_wl.unique().numel() < seen["SWL(VS)"]


def test_marking_is_as_strong_as_the_other_policies():
    """What other policies see, marking sees, where it does not see all either."""
    graphs = alike()
    edges, nodes, batch = batch_of(*graphs)
    for test in ("SWL(VS)", "PSWL(SV)"):
        marked = graph_colours(edges, nodes, batch, test=test)
        assert marked.unique().numel() < len(graphs)
        for policy in ("distance", "ego_marking", "deletion"):
            other = graph_colours(edges, nodes, batch, test=test, policy=policy)
            assert determined(marked, other), (test, policy)


def test_strongly_regular_graphs_are_beyond_all_tests():
    rook = nx.line_graph(nx.complete_bipartite_graph(4, 4))
    steps = {(0, 1), (0, 3), (1, 0), (3, 0), (1, 1), (3, 3)}
    fields = [(row, column) for row in range(4) for column in range(4)]
    links = [(a, b) for a, b in combinations(fields, 2) if ((a[0] - b[0]) % 4, (a[1] - b[1]) % 4) in steps]
    shrikhande = nx.Graph(links)
    assert not nx.is_isomorphic(rook, shrikhande)
    assert told_apart_by(edges_of(rook), edges_of(shrikhande)) == []
    for graph in (rook, shrikhande):  # and one edge less of either is told from the whole
        less = graph.copy()
        less.remove_edge(*next(iter(less.edges)))
        assert told_apart_by(edges_of(graph), edges_of(less)) == list(TESTS)


@requires_shared("data/strongly_regular")
@pytest.mark.parametrize("family", ["sr16622", "sr251256", "sr261034", "sr281264"])
def test_families_of_strongly_regular_graphs_are_one_colour(family):
    lines = shared(f"data/strongly_regular/{family}.g6").read_bytes().split()[:3]
    edges, nodes, batch = batch_of(*(nx.from_graph6_bytes(line) for line in lines))
    for test in ("SSWL", "2-FWL"):
        assert graph_colours(edges, nodes, batch, test=test).unique().numel() == 1


def test_networks_tell_apart_what_their_tests_do():
    """Untrained networks in float64: the answers differ on the pairs that the test separates, and only there."""
    networks = {"SWL(VS)": "swl_vs", "SWL(SV)": "swl_sv", "PSWL(VS)": "pswl_vs", "PSWL(SV)": "pswl_sv"}
    networks |= {"GSWL": "gswl", "SSWL": "gnn_sswl"}
    between = {1: ["SWL(SV)", "PSWL(SV)"], 3: ["PSWL(SV)", "GSWL"]}  # larger bases, for the steps that these show
    for index in [*SMALL, *between]:
        fooled, (one, other) = FOOLED[index], furer_graphs(BASES[index])
        for test in between.get(index, networks):
            name = networks[test]
            torch.manual_seed(0)
            model = create_model(name, policy="marking", hidden_channels=16, num_layers=10, out_channels=4).double()
            answers = [model(torch.ones(n, 1, dtype=torch.float64), e) for e, n in (one, other)]  # batch statistics
            difference = (answers[0] - answers[1]).abs().max().item()
            assert difference < 1e-11 if test in fooled else difference > 1e-9, (test, fooled, difference)


# --- what the states know


def random_graphs():
    return [nx.gnm_random_graph(9, edges, seed=seed) for seed, edges in enumerate((8, 9, 10, 11, 12))] + [
        nx.barbell_graph(3, 2),
        nx.path_graph(6),
        nx.lollipop_graph(4, 3),
    ]


def determined(colours, values):
    """Whether equal colours have equal values."""
    return len(torch.stack([colours, values], 1).unique(dim=0)) == colours.unique().numel()


def test_marked_pairs_come_to_know_their_distance():
    """From a mark at the root alone, the stable colour of (u, v) determines d(u, v), infinity included."""
    edges, nodes, batch = batch_of(*random_graphs())
    distances = pair_distances(Pairs(edges, nodes, batch), nodes)
    for test in SIX:
        _, colours = pair_colours(edges, nodes, batch, schemes=TESTS[test].schemes)
        assert determined(colours, distances), test
    _, colours = pair_colours(edges, nodes, batch, schemes=("uL", "vL"), policy="copies")
    assert not determined(colours, distances), "without a mark nothing is known"


def test_pairs_know_cut_nodes_and_cut_edges():
    """The colour of (v, v) tells whether v is a cut node, that of an edge whether it is a bridge."""
    graphs = random_graphs()
    edges, nodes, batch = batch_of(*graphs)
    sizes = torch.bincount(batch)
    first = (sizes.cumsum(0) - sizes).tolist()
    cut = torch.zeros(nodes, dtype=torch.int64)
    bridge = torch.zeros(nodes, nodes, dtype=torch.int64)
    for graph, start in zip(graphs, first, strict=True):
        for node in nx.articulation_points(graph):
            cut[start + node] = 1
        for u, v in nx.bridges(graph):
            bridge[start + u, start + v] = bridge[start + v, start + u] = 1
    assert 0 < cut.sum() < nodes
    assert 0 < bridge.sum() < edges.shape[1]
    pairs, colours = pair_colours(edges, nodes, batch, schemes=TESTS["SSWL"].schemes)
    alone = torch.arange(nodes)
    assert determined(colours[pairs.row(alone, alone)], cut)
    assert determined(colours[pairs.row(edges[0], edges[1])], bridge[edges[0], edges[1]])
    plain, colours = pair_colours(edges, nodes, batch, schemes=("uL",), policy="copies")
    assert not determined(colours[plain.row(alone, alone)], cut), "message passing does not know them"


# --- learning, and what is refused


def test_it_learns_to_count_triangles():
    from torch_geometric.data import Batch

    from torchstone.data.substructures import substructure_graphs

    graphs = Batch.from_data_list(substructure_graphs("triangle", graphs=40, nodes=(6, 9)))
    torch.manual_seed(0)
    model = create_model("swl_mini", node_types=False, hidden_channels=16, num_layers=2)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        loss = (model(graphs.x, graphs.edge_index, graphs.batch) - graphs.y).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 < 0.6 < losses[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schemes": ()}, "expected aggregation schemes"),
        ({"schemes": ("uL", "uL")}, "each once"),
        ({"pool": "uL"}, "'uG'"),
        ({"num_layers": 0}, "num_layers is at least 1, got 0"),
        ({"max_distance": 0}, "max_distance is at least 1"),
        ({"in_channels": 0}, "in_channels is a number of types"),
        ({"schemes": ("uG",), "edge_channels": 3}, "no effect without uL or vL"),
    ],
)
def test_what_makes_no_network_is_refused(options, message):
    with pytest.raises(CallError, match=message):
        create_model("swl", **options)


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(UnknownName, match="'uL'"):
        create_model("swl", schemes=("ul",))
    with pytest.raises(UnknownName, match="'marking'"):
        create_model("swl", policy="mark")
    with pytest.raises(UnknownName, match=r"SSWL"):
        distinguishes("SSWL+", *[edges_of(graph) for graph in PAIR])
    with pytest.raises(UnknownName, match="scheme"):
        aggregate(torch.ones(25, 1), Pairs(*edges_of(PAIR[0])), "vl")
    with pytest.raises(UnknownName, match="scheme"):
        pair_colours(*edges_of(PAIR[0]), schemes=("ul",))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.tensor([0, 1, 4])}, "node types go from 0 to 4, the network was built for 0 to 3"),
        ({"x": torch.zeros(3, dtype=torch.int32)}, "node types of int64"),
        ({"x": torch.zeros(3, 2, dtype=torch.int64)}, "up to 1 columns"),
        ({"x": torch.zeros(3, 5)}, r"\(N, 4\), got \(3, 5\)"),
        ({"batch": torch.tensor([0, 1, 1])}, "edge 0 joins node 0 of graph 0 to graph 1"),
        ({"batch": torch.tensor([0, 0, 2])}, "ascending and without a gap"),
        ({"batch": torch.tensor([1, 0, 0])}, "ascending and without a gap"),
        ({"batch": torch.tensor([0, 0])}, r"expected batch \(3,\) of int64, got \(2,\)"),
        ({"edge_attr": torch.zeros(3, 2)}, r"types of 4 edges, got \(3, 2\)"),
        ({"edge_attr": torch.zeros(4, 3)}, r"one-hot edge types \(\*, 2\)"),
        ({"edge_attr": torch.full((4,), 2)}, "edge types go from 2 to 2, the network was built for 0 to 1"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(change, message):
    model = create_model("swl_mini", in_channels=4, edge_channels=2).eval()
    inputs = {"x": torch.tensor([0, 1, 3]), "edge_index": torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])}
    assert model(**inputs).shape == (1, 1)
    with pytest.raises(ShapeError, match=message):
        model(**{**inputs, **change})


NO_EDGES = torch.empty(2, 0, dtype=torch.int64)


def test_a_node_without_edges_is_a_graph():
    model = create_model("swl_mini", in_channels=3, edge_channels=4).eval()
    expected = model(torch.tensor([2]), NO_EDGES)
    for kinds in (torch.empty(0).long(), torch.empty(0, 1).long(), torch.empty(0, 4)):
        assert torch.equal(model(torch.tensor([2]), NO_EDGES, None, kinds), expected)
    assert not torch.equal(model(torch.tensor([1]), NO_EDGES), expected)


@pytest.mark.parametrize("x", [torch.empty(0, 1), torch.empty(0).long(), torch.empty(0, 1).long()])
@pytest.mark.parametrize("node_types", [True, False])
def test_a_graph_without_nodes_is_refused(x, node_types):
    with pytest.raises(ShapeError, match="at least one node"):
        create_model("swl_mini", node_types=node_types)(x, NO_EDGES)


def test_one_hot_types_may_be_of_any_precision():
    edges, nodes = edges_of(PAIR[0])
    model = create_model("swl_mini", in_channels=3, edge_channels=2).eval()
    x, kinds = torch.eye(3)[torch.arange(nodes) % 3], torch.eye(2)[torch.arange(edges.shape[1]) % 2]
    assert torch.equal(model(x.double(), edges, None, kinds.double()), model(x, edges, None, kinds))


def test_distances_stop_when_nothing_more_is_reached(monkeypatch):
    from torchstone.models.graph.swl import pairs as module

    steps = []
    monkeypatch.setattr(module, "aggregate", lambda *given: (steps.append(1), aggregate(*given))[1])
    edges, nodes = edges_of(nx.disjoint_union(nx.path_graph(3), nx.empty_graph(1)))
    found = pair_distances(Pairs(edges, nodes), 100).view(4, 4)
    assert found[0].tolist() == [0, 1, 2, 100]
    assert len(steps) == 3


def test_policies_of_the_tests():
    ring, rings = edges_of(nx.cycle_graph(6)), edges_of(nx.disjoint_union(*[nx.cycle_graph(3)] * 2))
    for test in ("2-FWL", "LFWL(2)"):
        with pytest.raises(CallError, match="the policy 'marking' has no effect"):
            distinguishes(test, ring, rings, policy="marking")
    longer = edges_of(nx.cycle_graph(8)), edges_of(nx.disjoint_union(*[nx.cycle_graph(4)] * 2))
    seen = [distinguishes("SWL(VS)", *longer, policy="ego", ego_hops=hops) for hops in (1, 2)]
    assert seen == [False, True]
    with pytest.raises(ShapeError, match="both directions"):
        distinguishes("SSWL", (ring[0][:, :6], 6), rings)
    with pytest.raises(ShapeError, match="edge 0 joins node 2 to itself"):
        distinguishes("SSWL", (torch.tensor([[2], [2]]), 6), rings)


def test_other_refusals():
    with pytest.raises(ShapeError, match="without edge types"):
        create_model("swl_mini")(torch.ones(2, 1), torch.tensor([[0, 1], [1, 0]]), edge_attr=torch.ones(2, 1))
    with pytest.raises(ShapeError, match="too large for exact colours"):
        pair_colours(*edges_of(nx.empty_graph(200)), schemes=("fwl",))
    with pytest.raises(ShapeError, match=r"edge_index \(2, E\)"):
        distinguishes("SSWL", (torch.zeros(3, 2, dtype=torch.int64), 3), edges_of(PAIR[0]))
    with pytest.raises(ShapeError, match="the graph has 0 to 2"):
        distinguishes("SSWL", (edges_of(nx.path_graph(4))[0], 3), edges_of(PAIR[0]))
    with pytest.raises(CallError, match="none were released"):
        create_model("gnn_sswl_zinc", pretrained=True)
