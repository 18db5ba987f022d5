"""VQGraph's networks: codes and how they learn, edges restored without N x N numbers, teacher and student."""

import copy
import functools
import pickle

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from torchstone import create_model
from torchstone.errors import CallError, ShapeError
from torchstone.layers.adjacency import compressed
from torchstone.models.graph.vqgraph import (
    CosineQuantizer,
    EuclideanQuantizer,
    VectorQuantizer,
    VQGraphGCN,
    VQGraphMLP,
    VQGraphSAGE,
    convert_official,
    edge_loss,
    edge_loss_dense,
    edges,
    networks,
    perplexity,
    to_official,
)

pytestmark = pytest.mark.system("vqgraph")

N, F_IN, C = 14, 6, 3


def random_graph(nodes=N, edges=20, seed=0):
    """Features and undirected edges; the last node has none."""
    generator = torch.Generator().manual_seed(seed)
    source = torch.randint(nodes - 1, (edges,), generator=generator)
    target = (source + torch.randint(1, nodes - 1, (edges,), generator=generator)) % (nodes - 1)
    both = torch.cat([torch.stack([source, target]), torch.stack([target, source])], 1).unique(dim=1)
    return torch.randn(nodes, F_IN, generator=generator), both


@pytest.fixture(scope="module")
def graph():
    return random_graph()


def teacher(cls=VQGraphGCN, seed=1, **kwargs):
    torch.manual_seed(seed)
    return cls(F_IN, C, **{"hidden_channels": 8, "num_codes": 5, "dropout": 0.0, **kwargs})


def dense_adjacency(edge_index, nodes=N):
    adjacency = torch.eye(nodes)
    adjacency[edge_index[1], edge_index[0]] = 1
    return adjacency


# Codes


def test_the_nearest_code_is_that_of_the_largest_score():
    torch.manual_seed(0)
    x = torch.randn(30, F_IN)
    for quantizer in (CosineQuantizer(F_IN, 9).eval(), EuclideanQuantizer(F_IN, 9).eval()):
        quantizer.codebook.mul_(torch.linspace(0.5, 2, 9)[:, None])
        found = quantizer(x)
        assert torch.equal(found.vectors, quantizer.codebook[found.codes])
        assert torch.equal(found.codes, found.scores.argmax(1))
    distance = (x[:, None] - quantizer.codebook).norm(dim=-1)
    assert torch.equal(found.codes, distance.argmin(1))


def test_gradients_go_straight_through_and_commitment_pulls_rows_to_their_codes():
    quantizer, x = CosineQuantizer(F_IN, 9, commitment=0.5), torch.randn(30, F_IN, requires_grad=True)
    book = quantizer.codebook.clone()
    found = quantizer(x)
    weight = torch.randn(30, F_IN)
    (found.vectors * weight).sum().backward(retain_graph=True)
    torch.testing.assert_close(x.grad, weight)
    x.grad = None
    found.commitment.backward()
    torch.testing.assert_close(x.grad, 0.5 * 2 * (x - book[found.codes]).detach() / x.numel())


def test_the_cosine_codebook_moves_towards_the_mean_direction_of_its_rows():
    quantizer, x = CosineQuantizer(2, 2, decay=0.75), torch.tensor([[3.0, 0.1], [5.0, -0.1], [1.0, 0.0]])
    quantizer.codebook.copy_(torch.tensor([[0.9, 0.0], [0.0, -2.0]]))
    found = quantizer(x)
    assert found.codes.tolist() == [0, 0, 0]
    direction = F.normalize(F.normalize(x, dim=1).mean(0), dim=0)
    torch.testing.assert_close(quantizer.codebook[0], 0.75 * torch.tensor([0.9, 0.0]) + 0.25 * direction)
    torch.testing.assert_close(quantizer.codebook[1], torch.tensor([0.0, -1.75]), msg="without rows: to length one")
    torch.testing.assert_close(quantizer.cluster_size, torch.tensor([0.75 + 0.25 * 3, 0.75]))


def test_the_euclidean_codebook_converges_to_the_means_of_its_rows():
    quantizer = EuclideanQuantizer(2, 2, decay=0.5)
    quantizer.codebook.copy_(torch.tensor([[0.0, 0.0], [9.0, 9.0]]))
    x = torch.tensor([[0.0, 1.0], [1.0, 0.0], [8.0, 9.0], [10.0, 9.0]])
    for _ in range(40):
        quantizer(x)
    torch.testing.assert_close(quantizer.codebook, torch.tensor([[0.5, 0.5], [9.0, 9.0]]), rtol=1e-4, atol=1e-4)


def test_evaluation_does_not_move_the_codebook():
    quantizer = CosineQuantizer(F_IN, 9).eval()
    before = copy.deepcopy(quantizer.state_dict())
    found = quantizer(torch.randn(30, F_IN))
    assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())
    assert found.commitment == 0


@pytest.mark.parametrize("cls", [CosineQuantizer, EuclideanQuantizer])
def test_dead_codes_start_again_at_rows_and_only_when_asked(cls):
    torch.manual_seed(0)
    x = torch.randn(40, F_IN) + 5  # in one corner: nearly all codes are far from all rows
    used = {}
    for dead_below in (0.0, 0.2):
        torch.manual_seed(1)
        quantizer = cls(F_IN, 16, dead_below=dead_below)
        for _ in range(20):
            quantizer(x)
        used[dead_below] = quantizer.eval()(x).codes.unique().numel()
    assert used[0.0] <= 4
    assert used[0.2] > 3 * used[0.0]


def test_perplexity_counts_codes_in_use():
    assert perplexity(torch.arange(12) % 4, 9).item() == pytest.approx(4)
    assert perplexity(torch.zeros(12, dtype=torch.int64), 9).item() == pytest.approx(1)


# Edges restored


def equal_rows(nodes=50, codes=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    members = torch.randint(codes, (nodes,), generator=generator)
    rows = torch.randn(codes, F_IN, generator=generator, dtype=torch.float64)
    _, edge_index = random_graph(nodes, 60, seed)
    return rows, members, edge_index


def test_the_edge_loss_is_that_of_its_equation(graph):
    x, edge_index = graph
    product = x @ x.t()
    scaled = (product - product.min()) / (product.max() - product.min())
    expected = (dense_adjacency(edge_index) - scaled).square().mean().sqrt()
    torch.testing.assert_close(edge_loss_dense(x, edge_index), expected)
    torch.testing.assert_close(edge_loss(x, edge_index), expected)


@pytest.mark.parametrize("block", [3, 2048])
@pytest.mark.parametrize("shared_rows", [True, False])
def test_the_edge_loss_of_pairs_is_the_dense_one(shared_rows, block, monkeypatch):
    monkeypatch.setattr(edges, "BLOCK", block)
    rows, members, edge_index = equal_rows()
    if not shared_rows:
        rows, members = torch.randn(50, F_IN, dtype=torch.float64), torch.arange(50)
    gradients = []
    for loss in (edge_loss_dense, lambda q, e: edge_loss(q, e, members if shared_rows else None)):
        leaf = rows.clone().requires_grad_()
        found = loss(leaf[members], edge_index)
        found.backward()
        gradients.append((found.detach(), leaf.grad))
    torch.testing.assert_close(gradients[0], gradients[1])


def test_a_given_loop_or_a_repeated_edge_counts_once():
    rows, members, edge_index = equal_rows()
    loops = torch.arange(50).repeat(2, 1)
    more = torch.cat([edge_index, edge_index[:, :5], loops], 1)
    for loss in (edge_loss_dense, edge_loss):
        torch.testing.assert_close(loss(rows[members], more), loss(rows[members], edge_index))


@pytest.mark.parametrize("loss", [edge_loss_dense, edge_loss])
def test_nodes_of_one_code_say_nothing_of_edges(loss):
    """B is constant; the published code divides zero by zero there."""
    _, _, edge_index = equal_rows()
    q = torch.ones(50, F_IN).mul(0.3).requires_grad_()
    found = loss(q, edge_index)
    torch.testing.assert_close(found, dense_adjacency(edge_index, 50).mean().sqrt())
    found.backward()
    assert torch.equal(q.grad, torch.zeros_like(q))


@pytest.mark.parametrize("dense_nodes", [1024, 10])
def test_rounding_in_training_says_nothing_of_edges_either(dense_nodes, monkeypatch):
    """One code for all: ``x + (q - x)`` is q but for rounding, which large features make larger than a tolerance."""
    monkeypatch.setattr(networks, "DENSE_NODES", dense_nodes)
    x, edge_index = random_graph(200, 300)
    model = teacher(num_codes=1, node_weight=0.0, edge_weight=1.0, commitment=0.0).train()
    tokens = model.tokenize(30 * x, edge_index)
    product = tokens.edges @ tokens.edges.t()
    if dense_nodes == 1024:
        assert product.max() - product.min() > 1e-6 * product.abs().max(), "the rows do differ"
    loss = model.tokenizer_loss(tokens, edge_index)
    torch.testing.assert_close(loss, dense_adjacency(edge_index, 200).mean().sqrt())
    loss.backward()
    assert not model.edge_decoder.weight.grad.any()


@pytest.mark.parametrize("loss", [edge_loss_dense, edge_loss])
def test_a_perfect_reconstruction_has_a_gradient(loss):
    q = torch.eye(4).requires_grad_()  # orthogonal codes, no edges: B = A = I
    loss(q, torch.empty(2, 0, dtype=torch.int64)).backward()
    assert q.grad.isfinite().all()


def test_a_large_graph_needs_no_matrix_of_all_pairs_of_nodes():
    nodes, largest = 3000, []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            dense = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor) and t.layout == torch.strided]
            largest.extend(t.numel() for t in dense)
            return out

    x, edge_index = random_graph(nodes, 6000)
    model = teacher().train()
    with Watch():
        model.training_loss(x, edge_index, torch.arange(nodes) % C, torch.arange(nodes) < 100).backward()
    assert max(largest) < nodes * nodes / 50


# The teacher


@pytest.mark.parametrize("cls", [VQGraphGCN, VQGraphSAGE])
def test_it_computes_the_papers_equations(graph, cls):
    x, edge_index = graph
    model = teacher(cls, node_weight=0.7, edge_weight=0.4, commitment=0.3)
    adjacency = dense_adjacency(edge_index)
    degree = adjacency.sum(1)
    if cls is VQGraphGCN:
        mix = degree.rsqrt()[:, None] * adjacency * degree.rsqrt()
    else:
        mix = adjacency / degree[:, None]
    book = model.quantizer.codebook.clone()
    hidden = (mix @ x @ model.conv1.weight + model.conv1.bias).relu()
    quantized = book[(F.normalize(hidden) @ F.normalize(book).t()).argmax(1)]
    edges, nodes = model.edge_decoder(quantized), model.node_decoder(quantized)
    logits = model.classifier((mix @ edges @ model.conv2.weight + model.conv2.bias).relu())
    torch.testing.assert_close(model.eval()(x, edge_index), logits)

    product = edges @ edges.t()
    scaled = (product - product.min()) / (product.max() - product.min())
    y, mask = torch.arange(N) % C, torch.arange(N) < 9
    expected = (
        F.cross_entropy(logits[:9], y[:9])
        + 0.7 * F.mse_loss(hidden, nodes)
        + 0.4 * F.mse_loss(adjacency, scaled).sqrt()
        + 0.3 * F.mse_loss(quantized, hidden)
    )
    torch.testing.assert_close(model.train().training_loss(x, edge_index, y, mask), expected)


def test_a_large_graph_is_computed_by_codes_with_the_same_result(graph, monkeypatch):
    """Codes decoded once, pairs of codes, sparse products: all of it against the plain formulation."""
    x, edge_index = (part.double() if part.is_floating_point() else part for part in random_graph(60, 90))
    found = []
    for nodes, messages in ((1024, 2**22), (10, 1)):
        monkeypatch.setattr(networks, "DENSE_NODES", nodes)
        monkeypatch.setattr(networks, "MESSAGES", messages)
        model = teacher(node_weight=1.0, edge_weight=1.0, num_codes=12).double()
        loss = model.training_loss(x, edge_index, torch.arange(60) % C, torch.arange(60) < 30)
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in model.parameters()), model.quantizer.codebook])
    torch.testing.assert_close(*found)


def test_on_a_regular_graph_both_convolutions_are_one():
    ring = torch.arange(N)
    edge_index = torch.cat([torch.stack([ring, ring.roll(1)]), torch.stack([ring.roll(1), ring])], 1)
    x = torch.rand(N, F_IN)
    gcn, sage = teacher(VQGraphGCN).eval(), teacher(VQGraphSAGE).eval()
    torch.testing.assert_close(gcn(x, edge_index), sage(x, edge_index))


def test_given_self_loops_change_nothing_and_directions_count(graph):
    x, edge_index = graph
    model = teacher().eval()
    loops = torch.tensor([[0, 3], [0, 3]])
    torch.testing.assert_close(model(x, torch.cat([edge_index, loops], 1)), model(x, edge_index))
    one_way = edge_index[:, :9]
    adjacency = dense_adjacency(one_way)
    mix = adjacency.sum(1).rsqrt()[:, None] * adjacency * adjacency.sum(0).rsqrt()
    hidden = (mix @ x @ model.conv1.weight + model.conv1.bias).relu()
    torch.testing.assert_close(model.tokenize(x, one_way).hidden, hidden)


def test_sparse_features_give_the_same_answer_and_gradients(graph):
    x, edge_index = graph
    x, y, mask = F.threshold(x, 0.5, 0), torch.arange(N) % C, torch.arange(N) < 9
    dense, sparse = teacher(edge_weight=0.0), teacher(edge_weight=0.0)  # its gradient hangs on rounding where codes tie
    dense.training_loss(x, edge_index, y, mask).backward()
    sparse.training_loss(compressed(x), edge_index, y, mask).backward()
    for ours, expected in zip(sparse.parameters(), dense.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, expected.grad, rtol=1e-4, atol=1e-6)


def test_gradients_reach_every_parameter_of_the_teacher(graph):
    x, edge_index = graph
    for metric in ("cosine", "euclidean"):
        model = teacher(metric=metric)
        model.training_loss(x, edge_index, torch.arange(N) % C, torch.arange(N) < 9).backward()
        assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()] == []


def test_dropout_acts_on_what_is_quantised(graph):
    x, edge_index = graph
    model = teacher(dropout=0.5)
    assert (model.train().tokenize(x, edge_index).hidden == 0).sum() > (
        model.eval().tokenize(x, edge_index).hidden == 0
    ).sum()


def test_nodes_may_be_numbered_in_any_order(graph):
    x, edge_index = graph
    model, order = teacher().eval(), torch.randperm(N)
    torch.testing.assert_close(model(x[order], torch.argsort(order)[edge_index]), model(x, edge_index)[order])


def test_an_isolated_node_is_answered_by_itself(graph):
    x, edge_index = graph
    model = teacher().eval()
    alone = model(x[-1:], torch.empty(2, 0, dtype=torch.int64))
    torch.testing.assert_close(model(x, edge_index)[-1:], alone)


# The student


def test_the_student_looks_at_one_node_alone(graph):
    x, edge_index = graph
    student = VQGraphMLP(F_IN, C, hidden_channels=8, norm="batch").eval()
    answers = student(x, edge_index)
    assert torch.equal(answers, student(x))
    torch.testing.assert_close(torch.cat([student(node[None]) for node in x]), answers)
    torch.testing.assert_close(student(compressed(x)), answers)


def test_the_student_is_layers_norms_and_a_projection_of_its_last_hidden_state(graph):
    x, _ = graph
    student = VQGraphMLP(F_IN, C, hidden_channels=8, num_layers=3, norm="layer", code_channels=4).eval()
    one = student.norms[0](student.layers[0](x)).relu()
    two = student.norms[1](student.layers[1](one)).relu()
    torch.testing.assert_close(student.features(x), two)
    torch.testing.assert_close(student(x), student.layers[2](two))
    assert student.projection(two).shape == (N, 4)
    torch.manual_seed(0)
    assert (VQGraphMLP(F_IN, C, dropout=0.9).train().features(x) == 0).float().mean() > 0.8


# Deployment

FORMS = {
    "gcn": lambda: teacher().eval(),
    "sage": lambda: teacher(VQGraphSAGE).eval(),
    "mlp": lambda: VQGraphMLP(F_IN, C, hidden_channels=8, norm="batch").eval(),
}


@pytest.fixture(scope="module")
def exported(graph):
    """A form's network and its program, exported once."""

    @functools.cache
    def of(form):
        torch.manual_seed(0)
        model = FORMS[form]()
        nodes, edges = torch.export.Dim("nodes", min=2), torch.export.Dim("edges", min=2)
        with torch.no_grad():
            return model, torch.export.export(copy.deepcopy(model), graph, dynamic_shapes=({0: nodes}, {1: edges}))

    return of


@pytest.mark.parametrize("form", FORMS)
def test_compiled_whole_and_exported(form, graph, exported):
    torch.compiler.reset()
    model, program = exported(form)
    expected = model(*graph)
    with torch.no_grad():
        compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(*graph), expected)
        for other in (random_graph(5, 4, 1), random_graph(30, 60, 2)):
            torch.testing.assert_close(program.module()(*other), model(*other))
    torch.compiler.reset()


@pytest.mark.parametrize("form", ["gcn", "mlp"])
def test_onnx_with_dynamic_nodes_and_edges(form, graph, exported, warm_onnx, tmp_path):
    model, program = exported(form)
    with torch.no_grad():
        torch.onnx.export(program, graph, tmp_path / "model.onnx", dynamo=True, verbose=False)
    session = warm_onnx.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    other = random_graph(30, 60, 2)
    found = session.run(None, {n: v.numpy() for n, v in zip(names, other, strict=True) if n in names})[0]
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), model(*other), rtol=1e-4, atol=1e-4)


def test_bfloat16_autocast_trains(graph):
    x, edge_index = graph
    model = teacher()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.training_loss(x, edge_index, torch.arange(N) % C, torch.arange(N) < 9)
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert model.quantizer.codebook.dtype == torch.float32


@pytest.mark.parametrize("build", FORMS.values(), ids=FORMS)
def test_copies_pickles_and_state_dicts_answer_alike(build, graph):
    torch.manual_seed(0)
    model = build()
    again = build()
    again.load_state_dict(model.state_dict())
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), again):
        assert torch.equal(other(*graph), model(*graph))


# The authors' layout


@pytest.mark.parametrize(
    "build",
    [teacher, lambda: teacher(metric="euclidean"), lambda: VQGraphMLP(F_IN, C), lambda: EuclideanQuantizer(F_IN, 4)],
    ids=["teacher", "euclidean", "student", "quantizer"],
)
def test_official_layouts_go_both_ways(build):
    model = build()
    official = to_official(model)
    for state in (official, {f"encoder.{name}": value for name, value in official.items()}):
        back = convert_official(state, model)
        assert back.keys() == model.state_dict().keys()
        assert all(torch.equal(value, model.state_dict()[name]) for name, value in back.items())


def test_a_file_of_either_layout_is_loaded(tmp_path, graph):
    model = teacher().eval()
    args = {"in_channels": F_IN, "out_channels": C, "hidden_channels": 8, "num_codes": 5}
    for name, state in (("ours", model.state_dict()), ("theirs", to_official(model))):
        torch.save(state, tmp_path / f"{name}.pt")
        loaded = create_model("vqgraph_gcn", pretrained=tmp_path / f"{name}.pt", **args).eval()
        assert torch.equal(loaded(*graph), model(*graph))
    sage = {**args, "pretrained": tmp_path / "sage.pt"}
    torch.save(to_official(model), sage["pretrained"])
    with pytest.raises(CallError, match="not the mean that vqgraph_sage does"):
        create_model("vqgraph_sage", **sage)
    with pytest.raises(CallError, match="not the mean that vqgraph_sage does"):
        to_official(teacher(VQGraphSAGE))
    torch.save(teacher(VQGraphSAGE).state_dict(), sage["pretrained"])
    create_model("vqgraph_sage", **sage)
    with pytest.raises(CallError, match="no layout of a Linear"):
        to_official(torch.nn.Linear(2, 2))


# Wrong calls


def test_a_codebook_without_a_measure_is_none():
    with pytest.raises(TypeError, match="abstract"):
        VectorQuantizer(3, 4)


def test_what_cannot_be_built_is_refused():
    for wrong, message in (
        (lambda: teacher(dropout=1.0), "dropout is a rate .* got 1.0"),
        (lambda: teacher(metric="dot"), "metric must be cosine or euclidean, got 'dot'"),
        (lambda: teacher(edge_weight=-1.0), "cannot be negative"),
        (lambda: teacher(num_codes=0), "at least one code"),
        (lambda: teacher(decay=1.0), "decay is a share"),
        (lambda: VQGraphMLP(F_IN, C, num_layers=1), "hidden layer"),
        (lambda: VQGraphMLP(F_IN, C, norm="group"), "norm must be none, batch or layer, got 'group'"),
        (lambda: VQGraphMLP(F_IN, C, dropout=-0.1), "dropout is a rate"),
    ):
        with pytest.raises(ValueError, match=message):
            wrong()


def test_inputs_that_do_not_fit_are_refused(graph):
    x, edge_index = graph
    for model in (teacher(), VQGraphMLP(F_IN, C)):
        with pytest.raises(ShapeError, match=rf"\(N, {F_IN}\).*got \({N}, {F_IN - 1}\)"):
            model(x[:, 1:], edge_index)
    with pytest.raises(ShapeError, match=f"the graph has 0 to {N - 1}"):
        teacher()(x, edge_index + N)
    with pytest.raises(ShapeError, match=rf"rows \(N, {F_IN}\), got"):
        CosineQuantizer(F_IN, 3)(x[:, 1:])
