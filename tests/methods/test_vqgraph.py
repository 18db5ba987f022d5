"""VQGraph's distillation: its losses, what the teacher says and who keeps it, and a student that learns from it."""

import copy
import types

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from torchstone.data.graphs import GraphData, open_graph
from torchstone.data.inductive import hold_out
from torchstone.errors import CallError, DataError, ShapeError, UnknownName
from torchstone.files import read_json
from torchstone.methods.registry import build_method
from torchstone.methods.vqgraph import (
    ReleasedTokenDistillation,
    TokenDistillation,
    VQGraph,
    read_released_targets,
    released_token_divergence,
    soft_label_divergence,
    token_divergence,
)
from torchstone.models.graph.vqgraph import VQGraphGCN, VQGraphMLP, cosine_scores, euclidean_scores
from torchstone.training import Recipe
from torchstone.training.fit import evaluate, fit, identity
from torchstone.training.predict import predict
from torchstone.training.runs import identity_facts, load_run

pytestmark = pytest.mark.system("vqgraph")

N, F_IN, C, K = 90, 30, 3, 16


def communities(seed=0):
    """Nodes of three classes, linked mostly within a class; a node's own features tell little of it."""
    random = np.random.default_rng(seed)
    y = np.arange(N) % C
    x = (random.random((N, F_IN)) < np.where(np.arange(F_IN) % C == y[:, None], 0.30, 0.12)).astype("float32")
    links = np.triu(random.random((N, N)) < np.where(y[:, None] == y, 0.25, 0.01), 1)
    return x, y, np.array(links.nonzero())


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("graph") / "communities.npz"
    x, y, edge_index = communities()
    np.savez(path, x=x, y=y, edge_index=edge_index)
    return GraphData(open_graph(str(path), split="random", val_fraction=0.3, test_fraction=0.5, normalize=False))


@pytest.fixture(scope="module")
def teacher(data):
    """A teacher, trained for a second."""
    torch.manual_seed(0)
    model, graph = VQGraphGCN(F_IN, C, hidden_channels=16, num_codes=K, dropout=0.3), data.graph
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(60):
        optimizer.zero_grad()
        model.training_loss(graph.x, graph.edge_index, graph.y, graph.train_mask).backward()
        optimizer.step()
    return model.eval()


def student(seed=0, **kwargs):
    torch.manual_seed(seed)
    return VQGraphMLP(F_IN, C, **{"hidden_channels": 16, "dropout": 0.0, **kwargs})


def method(data, teacher, **kwargs):
    found = VQGraph(student(), teacher=teacher, **kwargs)
    found.prepare(data)
    return found


# Losses


def test_divergences_are_those_of_their_equations():
    torch.manual_seed(0)
    s, t = torch.randn(5, 7), torch.randn(5, 7)
    p, q = (t / 3).softmax(1), (s / 3).softmax(1)
    torch.testing.assert_close(token_divergence(s, t, 3.0), (p * (p / q).log()).sum(1))
    torch.testing.assert_close(released_token_divergence(s, t, 3.0), (p.exp() * (p - q.log())).sum(1))
    torch.testing.assert_close(soft_label_divergence(q.log(), p.log()), (p * (p / q).log()).sum(1))


def test_the_released_loss_is_no_divergence():
    """The paper's is zero where student and teacher agree, and only there; the released one is large, and elsewhere
    smaller than there."""
    torch.manual_seed(0)
    t = torch.randn(4, 50) * 6
    assert token_divergence(t, t, 4.0).abs().max() < 1e-6
    assert token_divergence(t.flip(0), t, 4.0).min() > 0.1
    agreed = released_token_divergence(t, t, 4.0)
    assert agreed.min() > 50
    assert (released_token_divergence(torch.zeros_like(t), t, 4.0) < agreed).all(), "knowing nothing is thought better"


def test_the_papers_token_loss_compares_both_sides_by_one_measure():
    projection, codebook = torch.randn(6, F_IN), torch.randn(K, F_IN)
    for metric, scores in (("cosine", cosine_scores), ("euclidean", euclidean_scores)):
        loss = TokenDistillation(2.0, metric)
        assert loss(projection, codebook, scores(projection, codebook)).abs().max() < 1e-5
    released = ReleasedTokenDistillation(2.0, "cosine")
    torch.testing.assert_close(released.student_scores(projection, codebook), -torch.cdist(projection, codebook))
    teacher = cosine_scores(projection, codebook)
    expected = 4 * released_token_divergence(-torch.cdist(projection, codebook), teacher, 2.0).sum()
    torch.testing.assert_close(released(projection, codebook, teacher).mean(), expected)


def test_the_loss_is_the_sum_of_its_parts(data, teacher):
    graph = data.graph
    found = method(data, teacher, label_weight=0.3, token_weight=2.0, temperature=3.0)
    network = found.network
    answers = teacher.tokenize(graph.x, graph.edge_index)
    logits = network(graph.x)
    soft = F.kl_div(logits.log_softmax(1), answers.logits.log_softmax(1), reduction="batchmean", log_target=True)
    scores = cosine_scores(network.projection(network.features(graph.x)), teacher.quantizer.codebook)
    near = (answers.quantized.scores / 3).softmax(1)
    tokens = F.kl_div((scores / 3).log_softmax(1), near, reduction="batchmean")
    mask = graph.train_mask
    labels = F.cross_entropy(logits[mask], graph.y[mask])
    torch.testing.assert_close(found.loss(mask), 0.3 * labels + 0.7 * soft + 2.0 * 9 * tokens)
    everywhere = torch.ones(N, dtype=torch.bool)
    torch.testing.assert_close(found.evaluation_loss(everywhere).mean(), found.loss(everywhere))


def test_each_weight_acts_alone(data, teacher):
    mask = data.graph.train_mask
    without = method(data, teacher, token_weight=0.0)
    without.loss(mask).backward()
    assert without.network.projection.weight.grad is None
    assert without.network.layers[0].weight.grad.abs().sum() > 0
    released = method(data, teacher, tokens="released")
    assert released.token_weight == 1e-8
    projection = released.network.projection(released.network.features(data.graph.x))
    scores = -torch.cdist(projection, released.codebook)
    term = 4**2 * released_token_divergence(scores, released.token_scores, 4.0).sum()
    assert term > 1e4, "large enough to be seen behind its weight"
    torch.testing.assert_close(released.loss(mask) - without.loss(mask), 1e-8 * term, rtol=0, atol=1e-6)
    labels_only = method(data, teacher, token_weight=0.0, label_weight=1.0)
    torch.testing.assert_close(
        labels_only.loss(mask), F.cross_entropy(labels_only.network(data.graph.x)[mask], data.graph.y[mask])
    )


# What the teacher says


def test_the_teacher_is_asked_once_and_does_not_learn(data, teacher):
    before = copy.deepcopy(teacher.state_dict())
    asked = copy.deepcopy(teacher).train()
    found = method(data, asked)
    assert asked.training, "the caller's teacher stays as it was"
    assert all(torch.equal(value, before[name]) for name, value in asked.state_dict().items())
    torch.testing.assert_close(found.soft_labels.exp().sum(1), torch.ones(N))
    assert found.token_scores.shape == (N, K)
    assert torch.equal(found.codebook, teacher.quantizer.codebook)
    assert not any("teacher" in name for name, _ in found.named_parameters())
    assert {"soft_labels", "token_scores", "codebook"} <= found.state_dict().keys()
    assert "x" not in found.state_dict()


def test_what_was_said_lives_on_without_the_teacher(data, teacher):
    taught = method(data, teacher)
    alone = VQGraph(student(seed=3))
    alone.load_state_dict(taught.state_dict())
    alone.prepare(data)
    mask = data.graph.train_mask
    assert torch.equal(alone.loss(mask), taught.loss(mask))


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_codes_are_compared_as_the_teacher_compares_them(data, metric):
    torch.manual_seed(0)
    taught = method(data, VQGraphGCN(F_IN, C, num_codes=K, metric=metric), temperature=1.0)
    projection = taught.network.projection(taught.network.features(data.graph.x))
    scores = {"cosine": cosine_scores, "euclidean": euclidean_scores}[metric](projection, taught.codebook)
    tokens = token_divergence(scores, taught.token_scores, 1.0).mean()
    mask = data.graph.train_mask
    without = soft_label_divergence(taught.network(data.graph.x).log_softmax(-1), taught.soft_labels).mean()
    torch.testing.assert_close(taught.loss(mask), without + tokens)
    alone = VQGraph(student(), temperature=1.0)
    alone.load_state_dict(taught.state_dict())
    alone.prepare(data)
    assert torch.equal(alone.loss(mask), taught.loss(mask))
    with pytest.raises(CallError, match="metric must be cosine or euclidean, got 'dot'"):
        alone.set_targets(taught.soft_labels, taught.token_scores, taught.codebook, metric="dot")


def test_targets_that_the_authors_released_are_read(data, teacher, tmp_path):
    taught = method(data, teacher)
    np.savez(tmp_path / "tea_soft_labels.npz", taught.soft_labels.numpy())
    np.savez(tmp_path / "tea_soft_token_assignments.npz", taught.token_scores.numpy())
    with pytest.raises(CallError, match=r"codebook_embeddings\.npz"):
        read_released_targets(tmp_path)
    np.savez(tmp_path / "codebook_embeddings.npz", taught.codebook.numpy()[None])
    other = VQGraph(student())
    other.set_targets(**read_released_targets(tmp_path))
    other.prepare(data)
    assert torch.equal(other.loss(data.graph.train_mask), taught.loss(data.graph.train_mask))


def test_damaged_released_files_are_refused_in_words(data, teacher, tmp_path):
    taught, file = method(data, teacher), tmp_path / "tea_soft_labels.npz"
    labels = taught.soft_labels.numpy()
    np.savez(tmp_path / "tea_soft_token_assignments.npz", taught.token_scores.numpy())
    np.savez(tmp_path / "codebook_embeddings.npz", taught.codebook.numpy()[None])
    np.savez(file, labels)
    whole = file.read_bytes()
    read_released_targets(tmp_path)

    def single_array():
        with file.open("wb") as stream:
            np.save(stream, labels)

    for damage, message in (
        (lambda: file.write_bytes(b""), "no .npz file with an array arr_0"),
        (lambda: file.write_bytes(whole[: len(whole) // 2]), "no .npz file with an array arr_0"),
        (lambda: file.write_bytes(b"no array"), "no .npz file with an array arr_0"),
        (lambda: np.savez(file, other=labels), "no .npz file with an array arr_0"),
        (single_array, "a single array"),
        (lambda: np.savez(file, np.stack([labels, labels])), r"a matrix of numbers, got \(2, 90, 3\)"),
        (lambda: np.savez(file, labels[0]), r"a matrix of numbers, got \(3,\)"),
        (lambda: np.savez(file, labels.astype(str)), "a matrix of numbers, got .* of <U"),
        (lambda: np.savez(file, np.exp(labels)), "must hold log-probabilities"),
        (lambda: np.savez(file, labels * np.nan), "must hold log-probabilities"),
    ):
        damage()
        with pytest.raises(CallError, match=message):
            read_released_targets(tmp_path)


def test_outputs_and_inputs_are_those_of_the_masks_nodes(data, teacher):
    found, mask = method(data, teacher), data.graph.val_mask
    scores, targets = found.outputs(mask)
    assert torch.equal(scores, found.network(data.graph.x)[mask])
    assert torch.equal(targets, data.graph.y[mask])
    assert torch.equal(found.inputs(mask), data.graph.x[mask])


# Learning


def accuracy(network, graph, mask):
    with torch.no_grad():
        return (network.eval()(graph.x).argmax(1) == graph.y)[mask].float().mean().item()


def test_a_taught_student_knows_more_than_its_labels_tell(data, teacher):
    """Of features that say little, a perceptron learns more from a teacher who sees the neighbours."""
    graph, found = data.graph, {}
    for name, options in (("labels", {"label_weight": 1.0, "token_weight": 0.0}), ("taught", {})):
        one = method(data, teacher, **options)
        optimizer = torch.optim.Adam(one.network.parameters(), 0.01, weight_decay=1e-3)
        for _ in range(120):
            optimizer.zero_grad()
            one.train().loss(graph.train_mask).backward()
            optimizer.step()
        found[name] = accuracy(one.network, graph, graph.test_mask)
    assert found["taught"] > found["labels"] + 0.1


# Nodes that come later


def test_held_out_nodes_and_their_edges_are_not_there(data):
    seen = hold_out(data.source, share=0.2, seed=1)
    whole = seen.whole
    held_out = whole.graph.test_mask
    assert int(held_out.sum()) == round(0.2 * data.sizes["test"])
    assert (data.graph.test_mask | ~held_out).all(), "they are test nodes"
    assert torch.equal(whole.graph.train_mask, data.graph.train_mask)
    assert torch.equal(seen.graph.x, data.graph.x[~held_out])
    assert torch.equal(seen.graph.y, data.graph.y[~held_out])
    kept = ~held_out[data.graph.edge_index].any(0)
    numbers = (~held_out).nonzero().squeeze(1)
    assert torch.equal(numbers[seen.graph.edge_index], data.graph.edge_index[:, kept])
    assert seen.sizes == {**data.sizes, "test": int(held_out.sum())}
    assert int(seen.graph.test_mask.sum()) == data.sizes["test"] - int(held_out.sum())
    assert GraphData(seen).fingerprint != data.fingerprint
    assert torch.equal(hold_out(data.source, share=0.2, seed=1).graph.x, seen.graph.x)
    assert not torch.equal(hold_out(data.source, share=0.2, seed=2).graph.x, seen.graph.x)


def test_views_lose_the_edges_of_held_out_nodes(data):
    multiplex = copy.deepcopy(data.source)
    multiplex.graph.views = {"one": multiplex.graph.edge_index[:, ::2], "two": multiplex.graph.edge_index}
    seen = hold_out(multiplex)
    assert torch.equal(seen.views["two"], seen.graph.edge_index)
    assert 0 < seen.views["one"].shape[1] < seen.views["two"].shape[1]
    assert seen.whole.views.keys() == {"one", "two"}


def test_what_was_held_out_cannot_influence_the_student(data, teacher):
    """Changing the features of held-out nodes changes nothing of the loss."""
    seen = hold_out(data.source)
    changed = copy.deepcopy(data.source)
    changed.graph.x[seen.whole.graph.test_mask] += 1
    other = hold_out(changed)
    losses = [method(GraphData(one), teacher).loss(one.graph.train_mask) for one in (seen, other)]
    assert torch.equal(*losses)


def test_a_share_that_leaves_nobody_is_refused(data):
    for share in (0.0, 1.0, -1.0, 2.0):
        with pytest.raises(CallError, match=f"a share of {share}"):
            hold_out(data.source, share)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("graph") / "communities.npz"
    x, y, edge_index = communities()
    np.savez(path, x=x, y=y, edge_index=edge_index)
    return path


def recipe(file, model, method=None, epochs=2, **data):
    where = {"source": str(file), "split": "random", "test_fraction": 0.5, "normalize": False, **data}
    train = {"epochs": epochs, "lr": 0.05, "optimizer": "adam", "weight_decay": 0.0, "checkpoint_epochs": epochs}
    content = {"task": "node-classification", "model": model, "data": where, "train": train, "method": method}
    return Recipe.from_dict(content)


def test_a_recipe_holds_nodes_out_of_training_and_scores_those(file, tmp_path):
    """Teacher and student are trained on the seen part alone; the test is of the held-out nodes, on the whole graph."""
    held = {"hold_out": 0.3}
    teacher = fit(
        recipe(file, {"name": "vqgraph_gcn", "args": {"num_codes": 8}}, epochs=20, **held), tmp_path / "t", device="cpu"
    )
    taught = {"name": "vqgraph", "teacher": str(teacher.path)}
    fit(recipe(file, {"name": "vqgraph_mlp"}, taught, **held), tmp_path / "s", device="cpu")
    split = {"split": "random", "val_fraction": 0.1, "test_fraction": 0.5}
    seen = hold_out(open_graph(str(file), normalize=False, **split), 0.3)
    whole = seen.whole.graph
    assert read_json(tmp_path / "t" / "data.json")["nodes"] == seen.graph.num_nodes < whole.num_nodes == N
    for run in ("t", "s"):
        network, _ = load_run(tmp_path / run)
        with torch.no_grad():
            right = network(whole.x, whole.edge_index).argmax(1) == whole.y
        found = evaluate(tmp_path / run, "test", device="cpu")
        assert torch.equal(found.targets, whole.y[whole.test_mask])
        assert torch.equal(found.per_sample.bool(), right[whole.test_mask])
        assert len(predict(tmp_path / run, [file], device="cpu")) == N
    assert len(evaluate(teacher.path, "val", device="cpu").targets) == int(seen.graph.val_mask.sum())


def test_a_teacher_that_knows_held_out_nodes_is_refused(file, tmp_path):
    teacher = fit(recipe(file, {"name": "vqgraph_gcn", "args": {"num_codes": 8}}), tmp_path / "t", device="cpu").path
    taught = {"name": "vqgraph", "teacher": str(teacher)}
    for other in ({"hold_out": 0.3}, {"split_seed": 1}):
        with pytest.raises(CallError, match="trained on another graph or split"):
            fit(recipe(file, {"name": "vqgraph_mlp"}, taught, **other), tmp_path / "s", device="cpu")
    with pytest.raises(CallError, match=r"features of another scale; train it with data\.normalize=true"):
        fit(recipe(file, {"name": "vqgraph_mlp"}, taught, normalize=True), tmp_path / "s", device="cpu")
    copied = file.with_name("copied.npz")
    copied.write_bytes(file.read_bytes())
    fit(recipe(copied, {"name": "vqgraph_mlp"}, taught, epochs=1), tmp_path / "s", device="cpu")


def test_a_run_that_knows_held_out_nodes_is_not_started_from(file, tmp_path):
    model = {"name": "vqgraph_mlp"}
    known = fit(recipe(file, model), tmp_path / "known", device="cpu").path
    unknown = fit(recipe(file, model, hold_out=0.3), tmp_path / "unknown", device="cpu").path
    with pytest.raises(CallError, match=r"model\.weights: .* with the same nodes held out"):
        fit(recipe(file, {**model, "weights": str(known)}, hold_out=0.3), tmp_path / "a", device="cpu")
    fit(recipe(file, {**model, "weights": str(unknown)}, epochs=1, hold_out=0.3), tmp_path / "b", device="cpu")


def test_a_graph_that_is_open_has_the_nodes_held_out_that_the_recipe_says(file, data, tmp_path):
    with pytest.raises(CallError, match="has no nodes held out"):
        fit(recipe(file, {"name": "vqgraph_mlp"}, hold_out=0.3), tmp_path / "a", device="cpu", source=data.source)
    with pytest.raises(CallError, match="held out already"):
        hold_out(hold_out(data.source))


def test_holding_out_is_part_of_what_a_run_is(file, tmp_path):
    model = {"name": "vqgraph_mlp"}
    assert len({identity(recipe(file, model, hold_out=share), "") for share in (None, 0.2, 0.3)}) == 3
    assert "hold_out" not in identity_facts(recipe(file, model), "")["data"], "older runs stay what they are"
    with pytest.raises(UnknownName, match=r"did you mean data\.hold_out"):
        recipe(file, model, holdout=0.2)
    with pytest.raises(CallError, match=r"data\.hold_out must be a number between 0 and 1, exclusive or null, got 1"):
        recipe(file, model, hold_out=1)
    with pytest.raises(CallError, match="leaves none on one side"):
        fit(recipe(file, model, hold_out=0.001), tmp_path / "x", device="cpu")
    images = Recipe.from_dict({"model": {"name": "ecanet_mini32"}, "data": {"source": "digits", "hold_out": 0.2}})
    with pytest.raises(CallError, match=r"data\.hold_out is for graphs"):
        fit(images, tmp_path / "x", device="cpu")


# Files of a sparse adjacency


def write_sparse(path, **changes):
    """Two components: a path 0-1-2-3 with a self-loop and weights, given in one direction, and a pair 4-5."""
    from scipy.sparse import csr_matrix

    rows, columns, weights = [0, 1, 2, 2, 4], [1, 2, 3, 2, 5], [2.0, 1.0, 3.0, 1.0, 1.0]
    adj = csr_matrix((weights, (rows, columns)), shape=(6, 6))
    attr = csr_matrix(np.arange(12).reshape(6, 2) % 5)
    arrays = {}
    for name, matrix in (("adj", adj), ("attr", attr)):
        parts = (("data", matrix.data), ("indices", matrix.indices), ("indptr", matrix.indptr), ("shape", matrix.shape))
        arrays |= {f"{name}_{part}": np.array(value) for part, value in parts}
    np.savez(path, **{**arrays, "labels": np.array([0, 1, 0, 1, 0, 1], np.int8), **changes})
    return str(path)


def test_a_sparse_graph_is_standardised(tmp_path):
    graph = open_graph(
        write_sparse(tmp_path / "g.npz"), split="random", val_fraction=0.25, test_fraction=0.25, normalize=False
    ).graph
    assert sorted(map(tuple, graph.edge_index.t().tolist())) == [(0, 1), (1, 0), (1, 2), (2, 1), (2, 3), (3, 2)]
    assert graph.x.tolist() == [[0, 1], [2, 3], [4, 0], [1, 2]]
    assert graph.y.tolist() == [0, 1, 0, 1]


def test_predictions_keep_the_numbers_of_the_file(tmp_path):
    """Nodes outside the largest component are left out; those behind them keep their numbers."""
    from scipy.sparse import csr_matrix

    pair_first = csr_matrix((np.ones(4), ([0, 2, 3, 4], [1, 3, 4, 5])), shape=(6, 6))
    parts = (("data", pair_first.data), ("indices", pair_first.indices), ("indptr", pair_first.indptr))
    path = write_sparse(tmp_path / "g.npz", **{f"adj_{name}": value for name, value in parts})
    halves = {"split": "random", "val_fraction": 0.25, "test_fraction": 0.25}
    run = fit(recipe(path, {"name": "vqgraph_mlp"}, **halves), tmp_path / "run", device="cpu").path
    assert [one.node for one in predict(run, [path], device="cpu")] == [2, 3, 4, 5]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": np.zeros(5, np.int8)}, r"labels \(N,\) have shapes"),
        ({"adj_indices": np.array([1, 2, 3, 2, 9])}, "adj_\\* are no compressed rows"),
    ],
)
def test_a_damaged_sparse_graph_is_refused(tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        open_graph(write_sparse(tmp_path / "g.npz", **changes))


# Wrong calls


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": "hard"}, "tokens must be paper or released, got 'hard'"),
        ({"label_weight": 1.5}, "label_weight is a share from 0 to 1, got 1.5"),
        ({"token_weight": -1.0}, "token_weight cannot be negative"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"metric": "euclidean"}, "does not take this argument"),
        ({"tau": 3}, "does not take this argument"),
    ],
)
def test_wrong_arguments_are_refused(teacher, options, message):
    with pytest.raises(CallError, match=message):
        build_method("vqgraph", student(), teacher=teacher, **options)


def test_wrong_networks_teachers_and_graphs_are_refused(data, teacher):
    with pytest.raises(CallError, match="vqgraph_mlp; got a Linear"):
        build_method("vqgraph", torch.nn.Linear(3, 3))
    with pytest.raises(CallError, match="vqgraph_gcn or vqgraph_sage, got a Linear"):
        build_method("vqgraph", student(), teacher=torch.nn.Linear(3, 3))
    untaught = VQGraph(student())
    with pytest.raises(CallError, match="call prepare"):
        untaught.loss(data.graph.train_mask)
    with pytest.raises(CallError, match=r"method\.teacher=RUN"):
        untaught.prepare(data)
    with pytest.raises(ShapeError, match=rf"\(K, {F_IN + 1}\), got"):
        VQGraph(student(code_channels=F_IN + 1), teacher=teacher).prepare(data)
    taught = method(data, teacher)
    fewer = VQGraph(student())
    fewer.load_state_dict(taught.state_dict())
    small = types.SimpleNamespace(x=data.graph.x[1:], y=data.graph.y[1:], edge_index=data.graph.edge_index[:, :0])
    with pytest.raises(CallError, match=f"spoke of {N} nodes, the graph has {N - 1}"):
        fewer.prepare(types.SimpleNamespace(graph=small))
