"""Every graph model trains and leaves Python: gradients, precision, compiled whole, exported, copied, pickled."""

import copy
import pickle

import pytest
import safetensors.torch
import torch
from _graph import SYSTEMS, build_graph_model, graph
from _image import assert_same

pytestmark = pytest.mark.parametrize(
    "card", [pytest.param(card, id=card.key, marks=pytest.mark.system(card.key)) for card in SYSTEMS]
)


def loss_of(model, x, edge_index):
    found = model(x, edge_index).float()
    return (found * torch.linspace(-1, 1, found.numel()).view_as(found)).sum()


def test_gradients_reach_every_parameter_and_the_features(card):
    model, (x, edge_index) = build_graph_model(card), graph()
    x.requires_grad_()
    loss_of(model.eval(), x, edge_index).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()] == []
    assert x.grad.abs().sum(1).gt(0).all()


def test_dropout_acts_while_training_only(card):
    model, inputs = build_graph_model(card), graph()
    assert not torch.equal(model.train()(*inputs), model(*inputs))
    assert torch.equal(model.eval()(*inputs), model(*inputs))


def test_the_same_seed_gives_the_same_run(card):
    def step(seed):
        model = build_graph_model(card, seed).train()
        loss_of(model, *graph()).backward()
        return [p.grad for p in model.parameters()]

    assert all(torch.equal(one, two) for one, two in zip(step(3), step(3), strict=True))
    assert not all(torch.equal(one, two) for one, two in zip(step(3), step(4), strict=True))


def test_bfloat16_autocast_trains_and_is_close(card):
    model, inputs = build_graph_model(card).eval(), graph()
    expected = model(*inputs)
    with torch.autocast("cpu", torch.bfloat16):
        found = model(*inputs)
        loss = loss_of(model.train(), *inputs)
    assert_same(found.float(), expected, 0.1)
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_state_dict_goes_through_a_file(card, tmp_path):
    model, inputs = build_graph_model(card).eval(), graph()
    safetensors.torch.save_file(model.state_dict(), tmp_path / "model.safetensors")
    other = build_graph_model(card, seed=1).eval()
    assert not torch.equal(other(*inputs), model(*inputs))
    other.load_state_dict(safetensors.torch.load_file(tmp_path / "model.safetensors"))
    assert torch.equal(other(*inputs), model(*inputs))
    from_file = build_graph_model(card, seed=2, pretrained=tmp_path / "model.safetensors").eval()
    assert torch.equal(from_file(*inputs), model(*inputs))


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "pickle"]
)
def test_model_can_be_copied(card, copied):
    model, inputs = build_graph_model(card).eval(), graph()
    other = copied(model)
    assert torch.equal(other(*inputs), model(*inputs))
    assert next(other.parameters()).data_ptr() != next(model.parameters()).data_ptr()


def test_compiled_whole(card, warm_compiler):
    torch.compiler.reset()
    model, inputs = build_graph_model(card).eval(), graph()
    eager = copy.deepcopy(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_same(compiled(*inputs), eager(*inputs))
    loss_of(compiled, *inputs).backward()
    loss_of(eager, *inputs).backward()
    for ours, expected in zip(model.parameters(), eager.parameters(), strict=True):
        assert_same(ours.grad, expected.grad, 1e-3)
    torch.compiler.reset()


def exported(card):
    """The model as a graph with dynamic numbers of nodes and edges."""
    model = build_graph_model(card).eval()
    nodes, edges = torch.export.Dim("nodes", min=2), torch.export.Dim("edges", min=2)
    with torch.no_grad():
        return model, torch.export.export(copy.deepcopy(model), graph(), dynamic_shapes=({0: nodes}, {1: edges}))


OTHERS = [graph(nodes=5, edges=4, seed=1), graph(nodes=30, edges=60, seed=2)]


def test_exported_with_dynamic_nodes_and_edges(card):
    model, program = exported(card)
    for x, edge_index in OTHERS:
        with torch.no_grad():
            assert_same(program.module()(x, edge_index), model(x, edge_index))


def test_onnx_with_dynamic_nodes_and_edges(card, warm_onnx, tmp_path):
    model, program = exported(card)
    with torch.no_grad():
        torch.onnx.export(program, graph(), tmp_path / "model.onnx", dynamo=True, verbose=False)
    session = warm_onnx.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    for inputs in OTHERS:
        found = session.run(None, dict(zip(names, (value.numpy() for value in inputs), strict=True)))[0]
        with torch.no_grad():
            assert_same(torch.from_numpy(found), model(*inputs))
