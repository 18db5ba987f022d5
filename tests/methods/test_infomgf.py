"""InfoMGF: graphs are sparse and exact, the augmenter learns by itself, and what comes out can be used and judged."""

import copy
import pickle

import numpy as np
import pytest
import torch
from _killed import whole_and_resumed
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from torchstone import create_model
from torchstone.data.graphs import open_graph
from torchstone.errors import CallError, ShapeError, UnknownName
from torchstone.methods.infomgf import (
    Augmenter,
    CarriedAdam,
    GraphClassifier,
    GraphEncoder,
    InfoMGF,
    StructureLearner,
    WeightedGraph,
    averaged_neighbours,
    build,
    classify,
    cluster,
    lower_bound,
    random_augmentation,
    summed_neighbours,
    top_similarities,
    upper_bound,
)
from torchstone.methods.infomgf.graphs import Search
from torchstone.training.fit import fit
from torchstone.training.pretraining import load_method
from torchstone.training.recipe import Recipe, load_recipe

pytestmark = pytest.mark.system("infomgf")

NODES, FEATURES = 48, 12


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def multiplex(nodes=NODES, views=("a", "b"), seed=0):
    """Three classes that features tell of and most edges of every view keep to."""
    random = np.random.default_rng(seed)
    y = np.arange(nodes) % 3
    x = (random.random((nodes, FEATURES)) < np.where(np.arange(FEATURES) % 3 == y[:, None], 0.6, 0.1)).astype("float32")
    x[:, 0] = 1
    edges = {}
    for name in views:
        one_way = np.array(np.triu(random.random((nodes, nodes)) < np.where(y[:, None] == y, 0.3, 0.04), 1).nonzero())
        edges[name] = torch.from_numpy(np.concatenate([one_way, one_way[::-1]], 1))
    return torch.from_numpy(x), edges, torch.from_numpy(y)


def small(views=2, **options):
    encoder = GraphEncoder(FEATURES, 6, hidden_channels=8)
    return InfoMGF(encoder, views=views, **{"projection_channels": 5, "neighbours": 4, **options})


def observed(names=("a", "b"), **options):
    x, edges, _ = multiplex(views=names)
    method = small(len(names), **options)
    method.observe(x, edges)
    return method


def dense_top(h, k):
    s = F.normalize(h) @ F.normalize(h).t()
    return s * torch.zeros_like(s).scatter(1, s.topk(k + 1).indices, 1.0)


def dense_averaged(h, k):
    s = dense_top(h, k)
    s = ((s + s.t()) / 2).relu()
    scale = s.sum(1).rsqrt()
    return scale[:, None] * s * scale


def dense_summed(h, k):
    s = dense_top(h, k)
    scale = (s.sum(1) + s.sum(0)).rsqrt()
    s = (scale[:, None] * s * scale).relu()
    return s + s.t()


# --- graphs


@pytest.mark.parametrize(
    ("sparse", "dense"), [(averaged_neighbours, dense_averaged), (summed_neighbours, dense_summed)]
)
@pytest.mark.parametrize("block", [7, 1000])
def test_a_refined_graph_is_its_dense_formula_and_so_is_its_gradient(sparse, dense, block):
    h = torch.rand(20, 5, dtype=torch.float64).requires_grad_()
    direction = torch.randn(20, 20, dtype=torch.float64)
    found, expected = sparse(h, 3, block=block).to_dense(), dense(h, 3)
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad((one * direction).sum(), h)[0] for one in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_neighbours_are_the_most_similar_rows_and_the_row_itself():
    values, found = top_similarities(torch.randn(15, 4), 3, block=4)
    assert found.shape == (15, 4)
    torch.testing.assert_close(values[:, 0], torch.ones(15))
    assert torch.equal(found[:, 0], torch.arange(15))
    assert (values.diff(dim=1) <= 0).all()


def test_rows_that_were_searched_are_not_compared_again_and_have_the_same_gradient():
    h, search = torch.rand(20, 5).requires_grad_(), Search()
    first, second = (top_similarities(h, 3, search=search)[0] for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(*(torch.autograd.grad(one.square().sum(), h)[0] for one in (first, second)))
    search.values.zero_()
    assert not top_similarities(h.detach().clone(), 3, search=search)[0].any()  # what is kept is what comes back
    for other, k in ((h.detach() + torch.rand(20, 5), 3), (h, 4), (h.double(), 3)):
        torch.testing.assert_close(top_similarities(other, k, search=search), top_similarities(other, k))
    assert copy.deepcopy(search).rows is None


def test_features_given_by_their_entries_are_encoded_as_the_dense_ones():
    encoder = small().network.double()
    x = torch.rand(12, encoder.in_channels, dtype=torch.float64)
    x = x * (torch.rand(x.shape) < 0.2)
    graph = WeightedGraph.from_dense(torch.rand(12, 12, dtype=torch.float64))
    found = [encoder.eval().encode(one, graph.propagate) for one in (x, WeightedGraph.from_dense(x))]
    torch.testing.assert_close(*found)
    slopes = [torch.autograd.grad(one.square().sum(), list(encoder.parameters())) for one in found]
    torch.testing.assert_close(*slopes)
    encoder.train()
    kept = WeightedGraph.from_dense(x)
    draws = torch.stack([encoder.encode(kept, graph.propagate) for _ in range(5)])
    assert (draws.std(0) > 0).any()  # dropout acts on the entries


@pytest.mark.parametrize("form", [averaged_neighbours, summed_neighbours])
def test_nothing_as_large_as_all_pairs_is_held(form):
    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.layout == torch.strided:
                Largest.numel = max(Largest.numel, out.numel())
            return out

    nodes = 1500
    h = torch.rand(nodes, 3).requires_grad_()
    with Largest():
        graph = form(h, 5, block=100)
        graph.propagate(torch.rand(nodes, 4)).sum().backward()
    assert h.grad.isfinite().all()
    assert 100 * nodes <= Largest.numel < nodes * nodes / 10


def test_a_row_of_zeros_has_no_neighbours_and_finite_gradients():
    h = torch.rand(10, 3)
    h[4] = 0
    h.requires_grad_()
    for form in (averaged_neighbours, summed_neighbours):
        graph = form(h, 2)
        assert not graph.to_dense()[4].any()
        assert torch.autograd.grad(graph.weight.square().sum(), h)[0].isfinite().all()


def test_propagation_is_the_dense_product_with_all_its_gradients():
    matrix = (torch.rand(9, 9, dtype=torch.float64) * (torch.rand(9, 9) < 0.4)).requires_grad_()
    x = torch.randn(9, 3, dtype=torch.float64).requires_grad_()
    graph = WeightedGraph.from_dense(matrix)
    torch.testing.assert_close(graph.to_dense(), matrix)
    direction = torch.randn(9, 3, dtype=torch.float64)
    ours = torch.autograd.grad((graph.propagate(x) * direction).sum(), (matrix, x))
    dense = torch.autograd.grad((matrix @ x * direction).sum(), (matrix, x))
    torch.testing.assert_close(ours[0], dense[0] * (matrix != 0))
    torch.testing.assert_close(ours[1], dense[1])


def test_edges_are_dropped_while_training_only():
    learner = StructureLearner(4, neighbours=3, edge_dropout=0.5)
    features = torch.rand(30, 4)
    whole, dropped = learner.eval().graph(features), learner.train().graph(features)
    kept = dropped.weight != 0
    assert 0.3 < kept.float().mean() < 0.7
    torch.testing.assert_close(dropped.weight[kept], 2 * whole.weight[kept])


# --- bounds


def test_the_lower_bound_is_infonce_whatever_the_blocks():
    a, b = (torch.randn(13, 4).requires_grad_() for _ in range(2))
    m = (F.normalize(a) @ F.normalize(b).t() / 0.2).exp()
    expected = -((m.diag() / m.sum(1)).log() + (m.diag() / m.sum(0)).log()) / 2
    slope = torch.autograd.grad(expected.mean(), (a, b), retain_graph=True)
    for block in (5, 13, 100):
        found = lower_bound(a, b, block=block)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(torch.autograd.grad(found.mean(), (a, b)), slope)
    assert lower_bound(a, b, temperature=0.025).isfinite().all()
    assert lower_bound(a, a).mean() < lower_bound(a, b).mean()


def test_the_upper_bound_looks_at_no_pair_and_knows_all():
    a, b = torch.randn(11, 4), torch.randn(11, 4)
    cosines = F.normalize(a) @ F.normalize(b).t() / 0.2
    torch.testing.assert_close(upper_bound(a, b), cosines.diag().mean() - cosines.mean())


# --- augmentations


def test_the_generative_gate_is_deterministic_and_the_stochastic_one_is_not():
    x, edges, _ = multiplex()
    for kind, steady in (("generative", True), ("generative_stochastic", False)):
        method = small(augmentation=kind)
        method.observe(x, edges)
        first, second = (method.augmented_graphs()["a"].weight for _ in range(2))
        assert torch.equal(first, second) == steady


def test_augmented_graphs_keep_the_self_loops():
    method = observed(augmentation="random").train()
    for name, given in method.given_graphs().items():
        found, loops = method.augmented_graphs()[name], given.structure.loops
        assert int(loops.sum()) == NODES
        assert torch.equal(found.weight[loops], given.weight[loops])
        others = found.weight[~loops]
        assert 0.3 < (others == 0).float().mean() < 0.7
        torch.testing.assert_close(others[others != 0], 2 * given.weight[~loops][others != 0])
    assert torch.equal(random_augmentation(given, 0.5, False).weight, given.weight)


def test_the_optimizer_that_is_carried_is_adam():
    ours, theirs = (torch.nn.Linear(3, 2) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    carried, adam = CarriedAdam(ours, 0.1), torch.optim.Adam(theirs.parameters(), lr=0.1)
    for _ in range(4):
        gradients = [torch.randn_like(p) for p in ours.parameters()]
        carried.step(list(ours.parameters()), gradients)
        for parameter, gradient in zip(theirs.parameters(), gradients, strict=True):
            parameter.grad = gradient
        adam.step()
        carried.load_state_dict(copy.deepcopy(carried.state_dict()))
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_the_augmenters_step_lowers_its_loss_and_touches_nothing_else():
    method = observed(augmenter_lr=0.02).eval()
    before, first = copy.deepcopy(method.state_dict()), method.augmenter_loss().item()
    for _ in range(10):
        method.step_augmenter()
    assert method.augmenter_loss().item() < first
    changed = {name for name, value in method.state_dict().items() if not torch.equal(value, before[name])}
    assert {name.split(".")[0] for name in changed} == {"augmenter", "augmenter_optimizer"}
    assert not method.training


def test_the_augmenter_follows_each_step_of_all_else():
    method = observed().train()
    counts = []
    for _ in range(3):
        method.at_step(0.0)
        counts.append(int(method.augmenter_optimizer.step_count))
    assert counts == [0, 1, 2]
    assert method.training
    assert not any(name.startswith("augmenter") for name, p in method.named_parameters() if p.requires_grad)


# --- the whole


@pytest.mark.parametrize("options", [{}, {"augmentation": "random"}, {"form": "summed", "activation": "tanh"}])
@pytest.mark.parametrize("names", [("a", "b"), ("a", "b", "c")])
def test_every_parameter_of_the_contrast_gets_a_gradient(options, names):
    method = observed(names, **options).eval()
    method.loss(None).backward()
    missed = [name for name, p in method.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert missed == []


def test_a_graph_learned_with_labels_unseen_links_classes_better_than_the_views():
    x, edges, y = multiplex()
    method = small()
    method.observe(x, edges)
    optimizer = torch.optim.Adam([p for p in method.parameters() if p.requires_grad], lr=1e-2)
    first = method.eval().loss(None).item()
    for epoch in range(25):
        method.train().at_step(epoch / 25)
        optimizer.zero_grad()
        method.loss(None).backward()
        optimizer.step()
    with torch.no_grad():
        assert method.eval().loss(None).item() < first

        def agreement(graph):
            source, target = graph.edge_index
            weight = graph.weight * ~graph.structure.loops
            return float((weight * (y[source] == y[target])).sum() / weight.sum())

        assert agreement(method.fused_graph()) > max(map(agreement, method.given_graphs().values()))
        assert method.embeddings().shape == (NODES, 6)
        assert set(method.refined_graphs()) == {"a", "b"}


def test_numbering_the_nodes_anew_numbers_the_fused_graph_anew():
    x, edges, _ = multiplex()
    x += 0.01 * torch.rand(x.shape)  # so that no two similarities are equal
    order = torch.randperm(NODES)
    place = order.argsort()
    method = small().eval()
    method.observe(x, edges)
    before = method.fused_graph().to_dense()
    method.observe(x[order], {name: place[one] for name, one in edges.items()})
    torch.testing.assert_close(method.fused_graph().to_dense(), before[order][:, order])


def test_contrast_in_batches_keeps_every_node_and_sees_fewer_others():
    a, b = torch.randn(NODES, 4), torch.randn(NODES, 4)
    whole, parts = (observed(contrast_batch=size)._bound(a, b) for size in (None, 16))
    assert parts.shape == whole.shape
    assert (parts < whole).all()


def test_views_can_be_named_and_others_are_left_alone():
    x, edges, _ = multiplex(views=("a", "b", "c"))
    method = small(("c", "a"))
    method.observe(x, edges)
    assert list(method.given_graphs()) == ["c", "a"]
    found = method.given_graphs()["c"].to_dense() > 0
    assert int(found.sum()) == edges["c"].shape[1] + NODES


def test_a_copy_and_another_precision_keep_the_graphs():
    method = observed().eval()
    expected = method.loss(None)
    assert torch.equal(copy.deepcopy(method).loss(None), expected)
    assert torch.equal(pickle.loads(pickle.dumps(method)).loss(None), expected)
    torch.testing.assert_close(method.double().loss(None).float(), expected)


# --- runs


def _recipe(tmp_path, epochs=4, **args):
    x, edges, y = multiplex()
    path = tmp_path / "graph.npz"
    np.savez(path, x=x, y=y, **{f"edge_index_{name}": one for name, one in edges.items()})
    content = {
        "task": "node-classification",
        "model": {"name": "infomgf_encoder", "args": {"hidden_channels": 8, "out_channels": 6}},
        "method": {"name": "infomgf", "args": {"neighbours": 4, "projection_channels": 5, **args}},
        "data": {"source": str(path), "split": "random", "normalize": False},
        "train": {"epochs": epochs, "lr": 1e-2, "optimizer": "adam", "weight_decay": 0.0, "schedule": "constant"},
    }
    return Recipe.from_dict(content)


@pytest.mark.parametrize("augmentation", ["generative_stochastic", "random"])
def test_a_killed_run_ends_as_one_that_was_not(tmp_path, augmentation):
    recipe = _recipe(tmp_path, augmentation=augmentation)
    whole, _ = whole_and_resumed(recipe, tmp_path, epoch=3)
    assert {path.name for path in whole.path.glob("*.safetensors")} == {"model.safetensors", "method.safetensors"}

    method, _ = load_method(whole.path)
    with pytest.raises(CallError, match="has seen no graph yet"):
        method.fused_graph()
    method.prepare(open_data(recipe))
    assert method.fused_graph().structure.num_nodes == NODES


def open_data(recipe):
    from torchstone.training.pretraining import objective

    return objective(recipe).open_data(recipe.data, recipe.train, recipe.seed)


def test_a_graph_of_one_set_of_edges_is_refused_with_what_would_be_right(tmp_path):
    x, edges, y = multiplex()
    np.savez(tmp_path / "plain.npz", x=x, y=y, edge_index=edges["a"])
    recipe = _recipe(tmp_path)
    plain = Recipe.from_dict({**recipe.to_dict(), "data": {"source": str(tmp_path / "plain.npz"), "split": "random"}})
    with pytest.raises(CallError, match="edge_index_VIEW for two or more views"):
        fit(plain, tmp_path / "run", device="cpu")


@pytest.mark.parametrize("name", ["acm_authors", "dblp", "yelp", "mag", "acm", "acm_ra"])
def test_recipes_build_what_the_authors_train(name):
    recipe = load_recipe(f"infomgf_{name}")
    encoder = create_model(recipe.model.name, in_channels=30, **recipe.model.args)
    method = build(encoder, **recipe.method.args)
    assert encoder.out_channels in (32, 64)
    assert (method.augmenter is None) == (name in ("acm_ra", "mag"))


# --- protocols


def test_protocols_refuse_what_they_cannot_score():
    x, y = torch.rand(12, 3), torch.arange(12) % 3
    mask = torch.ones(12, dtype=torch.bool)
    with pytest.raises(CallError, match="epochs must be at least 1"):
        classify(None, x, y, mask, mask, mask, epochs=0)
    with pytest.raises(ShapeError, match="has no label"):
        classify(None, x, y.masked_fill(y == 0, -1), mask, mask, mask)
    with pytest.raises(ShapeError, match="no node has a label"):
        cluster(x, torch.full((12,), -1), seeds=[0])


def test_clusters_of_separate_classes_are_found_and_noise_is_not():
    y = torch.arange(60) % 3
    clear = F.one_hot(y).float() + 0.05 * torch.randn(60, 3)
    found = cluster(clear, y, seeds=range(2))
    assert found.mean == {"nmi": 1.0, "ari": 1.0, "accuracy": 1.0, "f1": 1.0}
    assert found.std["nmi"] == 0
    assert cluster(torch.randn(60, 3), y, seeds=[0]).mean["nmi"] < 0.3
    hidden = y.clone()
    hidden[:10] = -1
    assert cluster(clear, hidden, seeds=[0]).mean["accuracy"] == 1.0


def test_a_classifier_on_a_good_graph_beats_one_on_a_bad_graph():
    _, _, y = multiplex()
    x = torch.eye(NODES)
    part = torch.arange(NODES) // 3 % 4
    masks = part == 0, part == 1, part >= 2
    good = WeightedGraph.from_dense((y[:, None] == y).float() / 16)
    bad = WeightedGraph.from_dense(torch.eye(NODES))
    state = torch.get_rng_state()
    scores = [classify(graph, x, y, *masks, seeds=[0, 1], lr=0.02, epochs=40).mean for graph in (good, bad)]
    assert torch.equal(torch.get_rng_state(), state)
    assert scores[0]["accuracy"] > 0.95 > 0.6 > scores[1]["accuracy"]


# --- deployment of the encoder


def test_the_encoder_is_compiled_whole_and_exported_with_dynamic_sizes(warm_compiler, warm_onnx, tmp_path):
    encoder = GraphEncoder(FEATURES, 6, hidden_channels=8).eval()
    x, edges, _ = multiplex()
    expected = encoder(x, edges["a"])
    torch.compiler.reset()
    compiled = torch.compile(encoder, fullgraph=True, backend="aot_eager")(x, edges["a"])
    torch.testing.assert_close(compiled, expected, rtol=1e-4, atol=1e-5)
    torch.compiler.reset()
    shapes = ({0: torch.export.Dim("nodes", min=2)}, {1: torch.export.Dim("edges", min=2)})
    with torch.no_grad():
        program = torch.export.export(encoder, (x, edges["a"]), dynamic_shapes=shapes)
        torch.onnx.export(program, (x, edges["a"]), tmp_path / "encoder.onnx", dynamo=True, verbose=False)
    other, others, _ = multiplex(nodes=20, seed=1)
    answer = encoder(other, others["b"])
    torch.testing.assert_close(program.module()(other, others["b"]), answer, rtol=1e-4, atol=1e-5)
    session = warm_onnx.InferenceSession(tmp_path / "encoder.onnx", providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    (found,) = session.run(None, dict(zip(names, (other.numpy(), others["b"].numpy()), strict=True)))
    torch.testing.assert_close(torch.from_numpy(found), answer, rtol=1e-4, atol=1e-5)


def test_the_encoder_alone_is_the_encoder_in_the_method():
    method = observed().eval()
    given = method.given_graphs()["a"]
    alone = method.network(method.x, multiplex()[1]["a"])
    torch.testing.assert_close(F.normalize(alone), method.embeddings(given))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(method.embeddings(given).float(), F.normalize(alone), atol=0.05)


# --- bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"views": 1}, "2 or more"),
        ({"views": ["a", "a"]}, "each once"),
        ({"augmentation": "generativ"}, "did you mean 'generative'"),
        ({"form": "dense"}, "averaged, summed"),
        ({"activation": "gelu"}, "relu, tanh"),
        ({"neighbours": 0}, "neighbours must be at least 1"),
        ({"edge_dropout": 1.0}, "edge_dropout is a rate"),
        ({"temperature": 0.01}, "temperature at least"),
        ({"contrast_batch": 1}, "at least 2"),
    ],
)
def test_an_option_that_cannot_be_is_refused(options, message):
    with pytest.raises(CallError, match=message):
        small(**options)


def test_a_network_graph_or_call_that_does_not_fit_is_refused():
    x, edges, y = multiplex()
    with pytest.raises(CallError, match="trains infomgf_encoder"):
        build(torch.nn.Linear(3, 3))
    with pytest.raises(CallError, match="has 1 views"):
        small().observe(x, {"a": edges["a"]})
    with pytest.raises(UnknownName, match="did you mean 'papers'"):
        small(["paper", "a"]).observe(x, {"papers": edges["b"], "a": edges["a"]})
    with pytest.raises(ShapeError, match="expected node features"):
        small().observe(x[:, :3], edges)
    with pytest.raises(ShapeError, match="more than 3 nodes"):
        small().observe(x[:3], {name: torch.tensor([[0, 1], [1, 2]]) for name in edges})
    with pytest.raises(CallError, match="learns nothing"):
        observed(augmentation="random").augmenter_loss()
    with pytest.raises(ShapeError, match="of the same nodes"):
        lower_bound(x, x[1:])
    with pytest.raises(ShapeError, match="integer labels"):
        cluster(x, y[1:])
    with pytest.raises(ShapeError, match="masks"):
        classify(WeightedGraph.from_dense(torch.eye(NODES)), x, y, y, y, y)
    with pytest.raises(CallError, match="bias in"):
        Augmenter(3, 3, 3, temperature=1.0, bias=0.9)
    with pytest.raises(CallError, match="at least 1"):
        GraphClassifier(3, 3, num_layers=0)


def test_the_graph_that_a_file_gives_is_the_one_that_is_observed(tmp_path):
    recipe = _recipe(tmp_path)
    opened = open_graph(recipe.data.source, split="random", normalize=False)
    method = small()
    method.observe(opened.graph.x, opened.views)
    assert torch.equal(method.given_graphs()["a"].to_dense(), observed().given_graphs()["a"].to_dense())
