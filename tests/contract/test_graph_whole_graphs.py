"""Every network that answers for whole graphs: batches, numbering, gradients, precision, capture, copies, bad input."""

import copy
import pickle
from fnmatch import fnmatch

import pytest
import safetensors.torch
import torch
from _graph import (
    CLASSES,
    FEATURES,
    WHOLE_GRAPH_SYSTEMS,
    batch_of_graphs,
    build_whole_graph_model,
    graph,
)
from _image import assert_same

from torchstone.errors import ShapeError

pytestmark = pytest.mark.parametrize(
    "card", [pytest.param(card, id=card.key, marks=pytest.mark.system(card.key)) for card in WHOLE_GRAPH_SYSTEMS]
)


def answer(model, *inputs):
    with torch.no_grad():
        return model.eval()(*inputs)


def loss_of(model, *inputs):
    found = model(*inputs).float()
    return (found * torch.linspace(-1, 1, found.numel()).view_as(found)).sum()


def one_graph(nodes=12, edges=15, seed=0):
    _, edge_index = graph(nodes, edges, seed)
    return torch.eye(FEATURES)[torch.arange(nodes) % FEATURES], edge_index


def test_a_batch_is_answered_graph_by_graph(card):
    model, (x, edge_index, batch) = build_whole_graph_model(card), batch_of_graphs(7, 12, 5)
    together = answer(model, x, edge_index, batch)
    assert together.shape == (3, CLASSES)
    for index in range(3):
        own = batch == index
        first = int(own.nonzero()[0])
        alone = answer(model, x[own], edge_index[:, own[edge_index[0]]] - first)
        assert_same(together[index : index + 1], alone)


def test_nodes_and_edges_may_come_in_any_order(card):
    model, (x, edge_index) = build_whole_graph_model(card), one_graph()
    generator = torch.Generator().manual_seed(1)
    nodes, edges = torch.randperm(len(x), generator=generator), torch.randperm(edge_index.shape[1], generator=generator)
    assert_same(answer(model, x[nodes], nodes.argsort()[edge_index][:, edges]), answer(model, x, edge_index))


def test_edges_and_features_matter(card):
    model, (x, edge_index) = build_whole_graph_model(card), one_graph()
    whole = answer(model, x, edge_index)
    assert not torch.allclose(answer(model, x.roll(1, 1), edge_index), whole)
    assert not torch.allclose(answer(model, x, torch.empty(2, 0, dtype=torch.int64)), whole)


def test_gradients_reach_every_parameter_and_the_features(card):
    model, (x, edge_index, batch) = build_whole_graph_model(card), batch_of_graphs(7, 12, 5)
    x.requires_grad_()
    loss_of(model.train(), x, edge_index, batch).backward()
    unused = [entry.pattern for entry in card.unused_parameters]
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    assert [name for name in without if not any(fnmatch(name, pattern) for pattern in unused)] == []
    assert x.grad.abs().sum(1).gt(0).all()


def test_the_same_seed_gives_the_same_run(card):
    def step(seed):
        model = build_whole_graph_model(card, seed).train()
        loss_of(model, *batch_of_graphs(7, 12)).backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    assert all(torch.equal(one, two) for one, two in zip(step(3), step(3), strict=True))
    assert not all(torch.equal(one, two) for one, two in zip(step(3), step(4), strict=True))


def test_bfloat16_autocast_trains_and_is_close(card):
    model, inputs = build_whole_graph_model(card).eval(), batch_of_graphs(7, 12)
    expected = model(*inputs)
    with torch.autocast("cpu", torch.bfloat16):
        found = model(*inputs)
        loss = loss_of(model.train(), *inputs)
    assert_same(found.float(), expected, 0.1)
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_copied_pickled_and_stored_it_answers_the_same(card, tmp_path):
    model, inputs = build_whole_graph_model(card).eval(), batch_of_graphs(7, 12)
    expected = answer(model, *inputs)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(answer(other, *inputs), expected)
        assert next(other.parameters()).data_ptr() != next(model.parameters()).data_ptr()
    safetensors.torch.save_file(model.state_dict(), tmp_path / "model.safetensors")
    other = build_whole_graph_model(card, seed=1)
    assert not torch.equal(answer(other, *inputs), expected)
    from_file = build_whole_graph_model(card, seed=2, pretrained=tmp_path / "model.safetensors")
    assert torch.equal(answer(from_file, *inputs), expected)


def test_compiled_whole(card, warm_compiler):
    """One graph; how many pairs a batch has is not known from its shapes."""
    torch.compiler.reset()
    model, inputs = build_whole_graph_model(card).eval(), one_graph()
    eager = copy.deepcopy(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_same(compiled(*inputs), eager(*inputs))
    loss_of(compiled, *inputs).backward()
    loss_of(eager, *inputs).backward()
    for ours, expected in zip(model.parameters(), eager.parameters(), strict=True):
        assert (ours.grad is None) == (expected.grad is None)
        if ours.grad is not None:
            assert_same(ours.grad, expected.grad, 1e-3)
    torch.compiler.reset()


OTHERS = [(5, 4, 9), (30, 3)]


def exported(card):
    """The model for batches of any number of graphs, nodes and edges."""
    model = build_whole_graph_model(card).eval()
    nodes, edges = torch.export.Dim("nodes", min=2), torch.export.Dim("edges", min=2)
    inputs = batch_of_graphs(7, 12)
    with torch.no_grad():
        shapes = ({0: nodes}, {1: edges}, {0: nodes})
        return model, inputs, torch.export.export(copy.deepcopy(model), inputs, dynamic_shapes=shapes)


def test_exported_and_as_onnx_with_dynamic_batches(card, warm_onnx, tmp_path):
    model, inputs, program = exported(card)
    for sizes in OTHERS:
        others = batch_of_graphs(*sizes, seed=1)
        with torch.no_grad():
            assert_same(program.module()(*others), model(*others))
    with torch.no_grad():
        torch.onnx.export(program, inputs, tmp_path / "model.onnx", dynamo=True, verbose=False)
    session = warm_onnx.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    for sizes in OTHERS:
        others = batch_of_graphs(*sizes, seed=1)
        found = session.run(None, dict(zip(names, (value.numpy() for value in others), strict=True)))[0]
        assert_same(torch.from_numpy(found), answer(model, *others))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x, e: (x[:, :-1], e), rf"\(N, {FEATURES}\), got \(12, {FEATURES - 1}\)"),
        (lambda x, e: (x[0], e), rf"\(N, {FEATURES}\), got"),
        (lambda x, e: (x, e.t()), r"edge_index \(2, E\)"),
        (lambda x, e: (x, e.float()), "int64, got .* of torch.float32"),
        (lambda x, e: (x, e + 1), "the graph has 0 to 11"),
        (lambda x, e: (x, e, torch.zeros(5, dtype=torch.int64)), r"batch \(12,\)"),
    ],
)
def test_what_is_no_graph_is_refused(card, spoil, message):
    x, edge_index = one_graph()
    edge_index = torch.cat([edge_index, torch.tensor([[11], [0]])], 1)
    with pytest.raises(ShapeError, match=message):
        build_whole_graph_model(card)(*spoil(x, edge_index))
