"""Every sequence model trains and leaves Python: gradients, precision, compiled whole, exported, copied, pickled."""

import copy
import pickle

import pytest
import safetensors.torch
import torch
from _image import assert_same
from _sequence import SYSTEMS, build_sequence_model, loss_of, sequences

pytestmark = pytest.mark.parametrize(
    "card",
    [pytest.param(card, id=card.key, marks=pytest.mark.system(card.key)) for card in SYSTEMS],
    scope="module",  # exported models are kept
)


def test_gradients_reach_every_parameter_and_every_step(card):
    model, x = build_sequence_model(card), sequences().requires_grad_()
    loss_of(model.eval(), x).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()] == []
    assert x.grad.abs().sum(2).gt(0).all()


def test_dropout_acts_while_training_only(card):
    model, x = build_sequence_model(card), sequences()
    assert not torch.equal(model.train()(x), model(x))
    assert torch.equal(model.eval()(x), model(x))


def test_the_same_seed_gives_the_same_run(card):
    def step(seed):
        model = build_sequence_model(card, seed).train()
        loss_of(model, sequences()).backward()
        return [p.grad for p in model.parameters()]

    assert all(torch.equal(one, two) for one, two in zip(step(3), step(3), strict=True))
    assert not all(torch.equal(one, two) for one, two in zip(step(3), step(4), strict=True))


def test_bfloat16_autocast_trains_and_is_close(card):
    model, x = build_sequence_model(card).eval(), sequences()
    expected = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        found = model(x)
        loss = loss_of(model.train(), x)
    assert_same(found.float(), expected, 0.1)
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_state_dict_goes_through_a_file(card, tmp_path):
    model, x = build_sequence_model(card).eval(), sequences()
    safetensors.torch.save_file(model.state_dict(), tmp_path / "model.safetensors")
    other = build_sequence_model(card, seed=1).eval()
    assert not torch.equal(other(x), model(x))
    other.load_state_dict(safetensors.torch.load_file(tmp_path / "model.safetensors"))
    assert torch.equal(other(x), model(x))


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "pickle"]
)
def test_model_can_be_copied(card, copied):
    model, x = build_sequence_model(card).eval(), sequences()
    other = copied(model)
    assert torch.equal(other(x), model(x))
    assert next(other.parameters()).data_ptr() != next(model.parameters()).data_ptr()


def test_compiled_whole(card, warm_compiler):
    torch.compiler.reset()
    model, x = build_sequence_model(card).eval(), sequences()
    eager = copy.deepcopy(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_same(compiled(x), eager(x))
    loss_of(compiled, x).backward()
    loss_of(eager, x).backward()
    for ours, expected in zip(model.parameters(), eager.parameters(), strict=True):
        assert_same(ours.grad, expected.grad, 1e-3)
    torch.compiler.reset()


@pytest.fixture(scope="module")
def exported(card):
    """The model and its graph with a dynamic batch."""
    model = build_sequence_model(card).eval()
    batch = torch.export.Dim("batch", min=1, max=1024)
    with torch.no_grad():
        return model, torch.export.export(copy.deepcopy(model), (sequences(),), dynamic_shapes=({0: batch},))


def test_exported_with_a_dynamic_batch(card, exported):
    model, program = exported
    for batch in (1, 2, 5):
        x = sequences(batch, seed=1)
        with torch.no_grad():
            assert_same(program.module()(x), model(x))


def test_onnx_with_a_dynamic_batch(card, exported, warm_onnx, tmp_path):
    model, program = exported
    with torch.no_grad():
        torch.onnx.export(program, (sequences(),), tmp_path / "model.onnx", dynamo=True, verbose=False)
    session = warm_onnx.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    for batch in (1, 5):
        x = sequences(batch, seed=1)
        with torch.no_grad():
            assert_same(torch.from_numpy(session.run(None, {name: x.numpy()})[0]), model(x))
