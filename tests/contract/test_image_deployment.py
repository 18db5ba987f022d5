"""Every image model leaves Python: compiled whole, exported with a dynamic batch, copied, pickled, fused."""

import copy
import pickle

import pytest
import safetensors.torch
import torch
from _image import assert_same, build, images


def test_state_dict_goes_through_a_file(card, mini, x, tmp_path):
    safetensors.torch.save_file(mini.state_dict(), tmp_path / "model.safetensors")
    model = build(card, seed=1).eval()
    model.load_state_dict(safetensors.torch.load_file(tmp_path / "model.safetensors"))
    with torch.no_grad():
        assert_same(model(x), mini(x), 0)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "pickle"]
)
def test_model_can_be_copied(mini, x, copied):
    model = copied(mini)
    with torch.no_grad():
        assert_same(model(x), mini(x), 0)
        next(model.parameters()).add_(1)
        assert next(model.parameters()).data_ptr() != next(mini.parameters()).data_ptr()
    assert type(model) is type(mini)
    assert model.feature_info == mini.feature_info


def test_compiled_whole(trainee, x, warm_compiler):
    torch.compiler.reset()
    eager = copy.deepcopy(trainee)
    compiled = torch.compile(trainee, fullgraph=True, backend="aot_eager")
    assert_same(compiled(x), eager(x))
    compiled(x).sum().backward()
    eager(x).sum().backward()
    for ours, expected in zip(trainee.parameters(), eager.parameters(), strict=True):
        assert (ours.grad is None) == (expected.grad is None)
        if ours.grad is not None:
            assert_same(ours.grad, expected.grad, 1e-3)
    torch.compiler.reset()


@pytest.fixture(scope="module")
def exported(mini, card, warm_compiler):
    """The model as a graph with a dynamic batch."""
    batch = torch.export.Dim("batch", min=1, max=1024)
    with torch.no_grad():
        return torch.export.export(copy.deepcopy(mini), (images(card),), dynamic_shapes=({0: batch},))


@pytest.fixture(scope="module")
def exported_module(exported):
    return exported.module()


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_exported_with_a_dynamic_batch(card, mini, exported_module, batch):
    x = images(card, batch, seed=1)
    with torch.no_grad():
        assert_same(exported_module(x), mini(x))


def test_onnx_with_a_dynamic_batch(card, mini, exported, warm_onnx, tmp_path):
    with torch.no_grad():
        torch.onnx.export(exported, (images(card),), tmp_path / "model.onnx", dynamo=True, verbose=False)
    session = warm_onnx.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    for batch in (1, 5):
        x = images(card, batch, seed=1)
        with torch.no_grad():
            assert_same(torch.from_numpy(session.run(None, {name: x.numpy()})[0]), mini(x))


@pytest.mark.parametrize("method", ["fuse", "reparameterize"])
def test_deploy_form_gives_the_same_answer(card, mini, x, method):
    if not hasattr(mini, method):
        pytest.skip(f"has no {method}()")
    model = copy.deepcopy(mini)
    getattr(model, method)()
    assert len(list(model.parameters())) < len(list(mini.parameters()))
    with torch.no_grad():
        assert_same(model(x), mini(x))
        assert_same(model.forward_features(x), mini.forward_features(x))
