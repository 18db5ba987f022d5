"""STABLE: each step of the refinement is its equation, what is sparse equals what is dense, views, and runs that follow
each other."""

import copy
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from _killed import whole_and_resumed
from _shared import requires_shared, shared
from torch.nn import functional as F

from torchstone import create_model
from torchstone.data.graphs import GraphData, open_graph
from torchstone.errors import CallError, DataError, ShapeError
from torchstone.layers.adjacency import adjacency_matrix, compressed
from torchstone.methods.stable_gnn import StableGNN, convert_official, recover_edges
from torchstone.models.graph import stable_gcn as room
from torchstone.models.graph.stable_gcn import (
    SETTINGS,
    Classifier,
    ContrastiveEncoder,
    StableGCN,
    add_neighbours,
    cosine_of_edges,
    degree_power_weights,
    degrees,
    jaccard_index,
    looped_adjacency,
    prune_cosine,
    prune_jaccard,
    reliable_neighbours,
)
from torchstone.training import load_recipe
from torchstone.training.fit import evaluate, fit
from torchstone.training.nodes import NodeClassifier
from torchstone.training.recipe import TrainSpec

pytestmark = pytest.mark.system("stable_gnn")

N, F_IN, C = 40, 30, 3


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def binary_graph(nodes=N, edges=120, seed=0):
    """Binary features, two nodes without any, and edges in both directions without loops."""
    generator = torch.Generator().manual_seed(seed)
    x = (torch.rand(nodes, F_IN, generator=generator) < 0.15).float()
    x[:2] = 0
    pairs = torch.combinations(torch.arange(nodes))
    one_way = pairs[torch.randperm(len(pairs), generator=generator)[:edges]].t()
    return x, torch.cat([one_way, one_way.flip(0)], 1)


def network(**kwargs):
    options = {"embedding_channels": 12, "hidden_channels": 8, "jaccard": 0.05, "cosine": 0.0, "alpha": 0.6, **kwargs}
    return StableGCN(F_IN, C, **options).eval()


def dense(edge_index, weight, nodes=N):
    return adjacency_matrix(edge_index, weight.float(), nodes).to_dense()


# --- likeness


@pytest.mark.parametrize("form", [lambda x: x, compressed], ids=["dense", "rows"])
def test_the_jaccard_index_is_shared_over_all_features(form):
    x, edge_index = binary_graph()
    sets = [set(row.nonzero().flatten().tolist()) for row in x]
    found = jaccard_index(form(x), edge_index)
    for index, (i, j) in zip(found, edge_index.t().tolist(), strict=True):
        if sets[i] | sets[j]:
            assert index == len(sets[i] & sets[j]) / len(sets[i] | sets[j])
        else:
            assert index.isnan()


def test_rows_that_store_zeros_or_nothing_are_compared_as_dense_ones():
    x, edge_index = binary_graph()
    rows = compressed(x)
    rows.values()[::3] = 0
    torch.testing.assert_close(
        jaccard_index(rows, edge_index), jaccard_index(rows.to_dense(), edge_index), equal_nan=True
    )
    nothing = compressed(torch.zeros(N, F_IN))
    assert jaccard_index(nothing, edge_index).isnan().all()
    assert jaccard_index(nothing, edge_index[:, :0]).shape == (0,)


def test_the_rough_prune_is_strict_and_keeps_nodes_without_features():
    x = torch.tensor([[1.0, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    edge_index = torch.tensor([[0, 0, 2], [1, 2, 3]])  # J = 1/3, 0, none
    assert prune_jaccard(x, edge_index, 1 / 3).tolist() == [True, False, True]
    assert prune_jaccard(x, edge_index, 0.34).tolist() == [False, False, True]
    assert prune_jaccard(x, edge_index, 0.0).all()


def test_the_prune_by_representations_drops_what_equals_the_threshold():
    embedding = torch.tensor([[1.0, 0], [2, 0], [0, 3], [0, 0]])
    edge_index = torch.tensor([[0, 0, 0], [1, 2, 3]])
    torch.testing.assert_close(cosine_of_edges(embedding, edge_index), torch.tensor([1.0, 0, 0]))
    assert prune_cosine(embedding, edge_index, 0.0).tolist() == [True, False, False]


def test_blocks_change_nothing(monkeypatch):
    x, edge_index = binary_graph()
    embedding = torch.randn(N, 5)

    def all_of_it():
        candidate = torch.arange(N) % 3 > 0
        return (
            jaccard_index(x, edge_index),
            cosine_of_edges(embedding, edge_index),
            reliable_neighbours(embedding, candidate, 4),
        )

    whole = all_of_it()
    monkeypatch.setattr(room, "EDGES_AT_ONCE", 7)
    monkeypatch.setattr(room, "ROWS_AT_ONCE", 6)
    for ours, expected in zip(all_of_it(), whole, strict=True):
        torch.testing.assert_close(ours, expected, equal_nan=True)


# --- refinement


def test_refinement_is_that_of_dense_matrices():
    """The definition, written with all pairs of nodes."""
    _, edge_index = binary_graph()
    embedding = torch.randn(N, 6)
    model = network(cosine=0.1, neighbours=4, degree=1, alpha=0.7)
    unit = F.normalize(embedding, dim=1)
    similarity = unit @ unit.t()
    adjacency = dense(edge_index, torch.ones(edge_index.shape[1])) * (similarity > 0.1)
    assert 0 < adjacency.sum() < edge_index.shape[1]
    reliable = adjacency.sum(1) > 1
    closest = (similarity * reliable).topk(4, dim=1).indices
    adjacency.scatter_(1, closest, 1.0).fill_diagonal_(1.0)
    power = adjacency.sum(1) ** 0.7
    expected = power[:, None] * adjacency * power
    expected /= expected.sum(1, keepdim=True)
    torch.testing.assert_close(dense(*model.refine(embedding, edge_index)), expected)


def test_added_edges_point_one_way_and_come_once():
    edge_index, kept = torch.tensor([[0, 1, 2, 2], [1, 0, 1, 2]]), torch.tensor([True, True, False, True])
    neighbours = torch.tensor([[0, 1], [1, 2], [2, 0]])
    edges, present = add_neighbours(edge_index, kept, neighbours)
    assert {tuple(edge) for edge in edges[:, present].t().tolist()} == {(1, 0), (0, 1), (2, 1), (0, 2)}
    assert present.sum() == 4
    assert edges.shape == (2, 4 + 6)


def test_without_neighbours_only_the_prune_is_left():
    _, edge_index = binary_graph()
    kept = torch.rand(edge_index.shape[1]) < 0.5
    edges, present = add_neighbours(edge_index, kept, torch.empty(N, 0, dtype=torch.int64))
    torch.testing.assert_close(dense(edges, present), dense(edge_index, kept))


@pytest.mark.parametrize("alpha", [-0.5, 0.0, 2.0])
def test_the_normalisation_is_kipfs_at_minus_a_half_and_an_average_elsewhere(alpha):
    _, edge_index = binary_graph()
    found = dense(*degree_power_weights(edge_index, torch.ones(edge_index.shape[1]), N, alpha))
    looped = dense(edge_index, torch.ones(edge_index.shape[1])) + torch.eye(N)
    degree = looped.sum(1)
    if alpha == -0.5:
        torch.testing.assert_close(found, degree.rsqrt()[:, None] * looped * degree.rsqrt())
    else:
        torch.testing.assert_close(found.sum(1), torch.ones(N))
        torch.testing.assert_close(found, looped * degree**alpha / (looped * degree**alpha).sum(1, keepdim=True))


def test_too_few_reliable_nodes_are_refused():
    _, edge_index = binary_graph()
    with pytest.raises(ShapeError, match=r"5 neighbours .* only 0 nodes of 40 are reliable"):
        network(neighbours=5, degree=100).refine(torch.randn(N, 6), edge_index)


def test_edges_of_a_node_to_itself_change_nothing():
    x, edge_index = binary_graph()
    loops = torch.arange(N).expand(2, -1)
    model = network()
    torch.testing.assert_close(model(x, torch.cat([edge_index, loops], 1)), model(x, edge_index))


def test_more_power_listens_more_to_neighbours_of_high_degree():
    hub = torch.tensor([[0, 0, 0, 0, 1], [1, 2, 3, 4, 5]])
    edge_index = torch.cat([hub, hub.flip(0)], 1)  # node 1 has the neighbours 0, of degree 4, and 5, of degree 1
    shares = [dense(*degree_power_weights(edge_index, torch.ones(10), 6, alpha), 6)[1] for alpha in (0.0, 1.0)]
    assert shares[1][0] > shares[0][0]
    assert shares[1][5] < shares[0][5]


# --- encoder and views


def test_the_encoder_weighs_a_nodes_own_features_by_beta():
    x, edge_index = binary_graph()
    model = network(beta=2.0, jaccard=0.0)
    adjacency = dense(edge_index, torch.ones(edge_index.shape[1])) + 2 * torch.eye(N)
    scale = adjacency.sum(1).rsqrt()
    conv = model.encoder.conv
    expected = F.prelu(scale[:, None] * adjacency * scale @ x @ conv.weight.t() + conv.bias, model.encoder.act.weight)
    torch.testing.assert_close(model.embed(x, edge_index), expected)
    torch.testing.assert_close(model.embed(compressed(x), edge_index), expected)


def test_a_node_without_edges_and_without_beta_has_no_representation_but_the_bias():
    edges, weights = looped_adjacency(torch.empty(2, 0, dtype=torch.int64), torch.empty(0), 3, 0.0)
    assert dense(edges, weights, 3).eq(0).all()


def test_views_have_what_is_kept_and_a_share_of_the_rest_in_both_directions():
    _, edge_index = binary_graph()
    kept = (edge_index[0] + edge_index[1]) % 3 > 0
    dropped = int((~kept).sum()) // 2
    present = recover_edges(edge_index, kept, 0.2)
    assert present[kept].all()
    assert int((present & ~kept).sum()) == 2 * int(0.2 * dropped)
    matrix = dense(edge_index, present)
    assert torch.equal(matrix, matrix.t())
    draws = [recover_edges(edge_index, kept, 0.2) for _ in range(4)]
    assert any(not torch.equal(draw, present) for draw in draws)
    assert torch.equal(recover_edges(edge_index, kept, 0.0), kept)
    assert recover_edges(edge_index, kept, 1.0).all()


def prepared(x, edge_index, **kwargs):
    torch.manual_seed(3)
    method = StableGNN(network(), **kwargs)
    method.prepare(SimpleNamespace(graph=SimpleNamespace(x=x, edge_index=edge_index)))
    return method


def test_the_loss_is_that_of_the_equations():
    x, edge_index = binary_graph()
    method = prepared(x, edge_index)
    model, bilinear = method.network, method.discriminator.bilinear
    kept = model.roughly_kept(x, edge_index)
    assert 0 < kept.sum() < len(kept)
    torch.manual_seed(5)
    loss = method.loss(None)
    torch.manual_seed(5)
    order = torch.randperm(N)
    anchor = dense(*looped_adjacency(edge_index, kept.float(), N, 2.0))

    def encode(features, adjacency):
        return F.prelu(adjacency @ features @ model.encoder.conv.weight.t(), model.encoder.act.weight)

    logits = 0
    for k in range(2):
        view = dense(method.get_buffer(f"view{k}_edges"), method.get_buffer(f"view{k}_weights"))
        summary = encode(x, view).mean(0).sigmoid()
        pairs = [encode(features, anchor) for features in (x, x[order])]
        logits = logits + torch.stack([bilinear(h, summary.expand_as(h))[:, 0] for h in pairs])
    targets = torch.stack([torch.ones(N), torch.zeros(N)])
    torch.testing.assert_close(loss, F.binary_cross_entropy_with_logits(logits, targets))


def test_features_in_rows_train_alike_and_can_be_copied_and_pickled():
    x, edge_index = binary_graph()
    x[:, ::2] = 0  # below a tenth: kept in compressed rows
    method = prepared(x, edge_index)
    assert method.features().layout == torch.sparse_csr
    rows = copy.deepcopy(method)
    rows.register_buffer("x", x, persistent=False)
    batch = torch.arange(N) < 10
    torch.testing.assert_close(method.inputs(batch), x[batch])
    losses = []
    for one in (method, rows, copy.deepcopy(method), pickle.loads(pickle.dumps(method))):
        torch.manual_seed(1)
        losses.append(one.loss(batch))
        losses[-1].backward()
    torch.testing.assert_close(losses[1:], losses[:1] * 3)
    for ours, expected in zip(method.parameters(), rows.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, expected.grad)


def test_what_cannot_be_trained_or_built_is_refused():
    with pytest.raises(CallError, match=r"stable_gcn.*not a Classifier"):
        StableGNN(Classifier(4, 2))
    with pytest.raises(CallError, match="recover is a share"):
        StableGNN(network(), recover=1.5)
    with pytest.raises(CallError, match="views must be at least 1"):
        StableGNN(network(), views=0)
    x, edge_index = binary_graph()
    with pytest.raises(DataError, match="undirected"):
        prepared(x, edge_index[:, : edge_index.shape[1] // 2])
    for name, value in (("jaccard", 2), ("cosine", -2), ("neighbours", -1), ("beta", -1), ("dropout", 1.5)):
        with pytest.raises(CallError, match=f"{name} must be from"):
            network(**{name: value})
    with pytest.raises(ShapeError, match=r"\(N, 30\), got \(40, 29\)"):
        network()(x[:, 1:], edge_index)


# --- network


def test_no_gradient_reaches_the_encoder():
    model = network()
    model(*binary_graph()).sum().backward()
    assert all(parameter.grad is None for parameter in model.encoder.parameters())
    assert all(parameter.grad is not None for parameter in model.classifier.parameters())


def test_the_numbering_of_nodes_does_not_matter():
    x, edge_index = binary_graph()
    x += 0.1 * torch.randn_like(x)  # no two cosines are equal
    model, order = network(), torch.randperm(N)
    torch.testing.assert_close(model(x[order], order.argsort()[edge_index]), model(x, edge_index)[order])


def test_the_mended_graph_is_found_once_in_a_training(monkeypatch, tmp_path):
    x, edge_index = binary_graph()
    np.savez(tmp_path / "graph.npz", x=x.numpy(), edge_index=edge_index.numpy(), y=np.arange(N) % C)
    calls = []
    found = StableGCN.precompute
    monkeypatch.setattr(StableGCN, "precompute", lambda self, *given: calls.append(1) or found(self, *given))
    changes = {
        "model.name": "stable_gcn",
        "model.args": "{embedding_channels: 12, neighbours: 2}",
        "data.source": tmp_path / "graph.npz",
        "data.split": "random",
        "train.epochs": 3,
    }
    run = fit(load_recipe("stable_gcn_cora", [f"{k}={v}" for k, v in changes.items()]), tmp_path / "run", device="cpu")
    assert len(calls) == 1
    evaluate(run.path, "test", device="cpu")
    assert len(calls) == 2
    data = GraphData(open_graph(str(tmp_path / "graph.npz"), split="random"))
    model = StableGCN(F_IN, C).eval()
    module = NodeClassifier(model, TrainSpec(), seed=0, data=data).eval()
    expected = module.scores()
    module.on_fit_start()
    torch.testing.assert_close(module.scores(), expected)


@pytest.fixture(scope="module")
def exported():
    """The network, and its graph with any numbers of nodes and edges."""
    torch.manual_seed(0)
    model = network()
    nodes, edges = torch.export.Dim("nodes", min=8), torch.export.Dim("edges", min=8)
    with torch.no_grad():
        return model, torch.export.export(model, binary_graph(), dynamic_shapes=({0: nodes}, {1: edges}))


def test_exported_with_other_sizes(exported):
    model, program = exported
    with torch.no_grad():
        for given in (binary_graph(), binary_graph(60, 200, seed=1)):
            torch.testing.assert_close(program.module()(*given), model(*given))


def test_onnx_answers_alike(exported, warm_onnx, tmp_path):
    """On graphs whose nodes share a feature: where all similarities are zero, no node is the closest."""
    model, program = exported
    graphs = [binary_graph(), binary_graph(60, 200, seed=1)]
    for x, _ in graphs:
        x[:, 0] = 1
    with torch.no_grad():
        torch.onnx.export(program, binary_graph(), tmp_path / "model.onnx", dynamo=True, verbose=False)
    session = warm_onnx.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    for given in graphs:
        found = session.run(None, dict(zip(names, (value.numpy() for value in given), strict=True)))[0]
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(found), model(*given), rtol=1e-4, atol=1e-4)


def test_compiled_whole(warm_compiler):
    torch.compiler.reset()
    model, inputs = network(), binary_graph()
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs), model(*inputs))
    torch.compiler.reset()


def test_bfloat16_sees_the_same_mended_graph():
    model, inputs = network(), binary_graph()
    expected, graph = model(*inputs), model.precompute(*inputs)
    with torch.autocast("cpu", torch.bfloat16):
        found = model(*inputs)
        same = model.precompute(*inputs)
    assert all(torch.equal(one, two) for one, two in zip(same, graph, strict=True))
    torch.testing.assert_close(found.float(), expected, rtol=0.05, atol=0.05 * expected.abs().max().item())


def test_state_and_copies_answer_alike():
    model, inputs = network(), binary_graph()
    other = network()
    assert not torch.equal(other(*inputs), model(*inputs))
    other.load_state_dict(model.state_dict())
    for one in (other, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(one(*inputs), model(*inputs))


def test_gcn_jaccard_is_a_gcn_on_the_edges_that_stay():
    x, edge_index = binary_graph()
    model = create_model("gcn_jaccard", in_channels=F_IN, out_channels=C, jaccard=0.1).eval()
    kept = prune_jaccard(x, edge_index, 0.1)
    assert 0 < kept.sum() < len(kept)
    torch.testing.assert_close(model(x, edge_index), model.classifier(x, edge_index[:, kept]))


def test_factories_have_the_authors_settings_and_sizes():
    for name, graph, sizes in (
        ("stable_gcn_cora", "cora", (1433, 7)),
        ("stable_gcn_citeseer", "citeseer", (3703, 6)),
        ("stable_gcn_polblogs", "polblogs", (1222, 2)),
    ):
        with torch.device("meta"):
            model = create_model(name)
        assert (model.in_channels, model.out_channels) == sizes
        assert SETTINGS[graph][0.2].items() <= vars(model).items()
    assert all(sorted(rates) == [0.0, 0.05, 0.1, 0.15, 0.2] for rates in SETTINGS.values())
    assert create_model("stable_gcn_cora", in_channels=9, alpha=0.1).alpha == 0.1


def test_the_authors_names_are_taken_and_ours_stay():
    pair = ContrastiveEncoder(9, 8)
    state = {
        "gcn.fc.weight": torch.ones(8, 9),
        "gcn.bias": torch.ones(8),
        "gcn.act.weight": torch.ones(1),
        "disc.f_k.weight": torch.ones(1, 8, 8),
        "disc.f_k.bias": torch.ones(1),
    }
    pair.load_state_dict(convert_official(state, pair))
    assert all(value.eq(1).all() for value in pair.state_dict().values())
    assert convert_official(pair.state_dict(), pair).keys() == pair.state_dict().keys()


def test_degrees_count_what_is_present():
    edge_index = torch.tensor([[0, 1, 2], [1, 0, 1]])
    assert degrees(edge_index, torch.tensor([True, False, True]), 3).tolist() == [0, 2, 0]


@pytest.mark.parametrize("name", ["stable_gnn_cora", "stable_gcn_cora"])
def test_a_killed_run_ends_as_one_that_was_not(tmp_path, name):
    """Pre-training, whose views are drawn once, and the classifier on the mended graph."""
    x, edge_index = binary_graph()
    np.savez(tmp_path / "graph.npz", x=x.numpy(), edge_index=edge_index.numpy(), y=np.arange(N) % C)
    changes = {
        "model.name": "stable_gcn",
        "model.args": "{embedding_channels: 12, neighbours: 2}",
        "data.source": tmp_path / "graph.npz",
        "data.split": "random",
        "train.epochs": 5,
        "train.patience": "null",
        "train.checkpoint_epochs": 2,
    }
    recipe = load_recipe(name, [f"{key}={value}" for key, value in changes.items()])
    whole_and_resumed(recipe, tmp_path, epoch=3)


# --- attacked graphs


@requires_shared("data/robust_citation")
def test_it_mends_an_attacked_graph(tmp_path):
    """Few epochs on Cora, a fifth of whose edges Metattack changed."""
    source = f"robust:{shared('data/robust_citation')}/cora-meta-0.2"
    method = ["train.epochs=5", "train.patience=null", f"data.source={source}", "model.args={embedding_channels: 64}"]
    run = fit(load_recipe("stable_gnn_cora", method), tmp_path / "encoder", device="cpu")
    later = [f"data.source={source}", f"model.weights={run.path}", "model.args={embedding_channels: 64}"]
    tuned = fit(
        load_recipe("stable_gcn_cora", [*later, "train.epochs=40", "train.lr=0.05"]),
        tmp_path / "classifier",
        device="cpu",
    )
    assert evaluate(tuned.path, "test", device="cpu").score > 0.6
