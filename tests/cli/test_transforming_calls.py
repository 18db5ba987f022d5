"""``transform`` and ``export`` on runs and models, and what they say of calls that cannot work."""

import json

import pytest
import torch
from _images import write_images

MODEL = "timm:test_resnet"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    from torchstone.training.fit import fit
    from torchstone.training.recipe import Recipe

    path = tmp_path_factory.mktemp("run") / "run"
    told = {
        "model": {"name": MODEL},
        "data": {"source": str(data), "size": 32},
        "train": {"epochs": 1, "batch_size": 8},
    }
    fit(Recipe.from_dict(told), path, device="cpu")
    return path


def test_a_run_is_transformed_and_still_predicts(torchstone, run, data, tmp_path):
    tuned, deployed = tmp_path / "tuned", tmp_path / "deployed"
    done = torchstone("transform", run, "tune_mode:freeze=true", "--out", tuned)
    assert done.code == 0, done
    assert done.out.splitlines()[-1] == str(tuned)
    assert "norms are folded into the layer before them" in done.out
    assert "largest difference of the outputs" in done.out
    assert {path.name for path in tuned.iterdir()} == {
        "model.json", "model.safetensors", "classes.json", "preprocessing.json", "report.json"
    }  # fmt: skip
    again = torchstone("transform", tuned, "tune_mode:mode=deploy", "--out", deployed, "--quiet")
    assert (again.code, again.out) == (0, f"{deployed}\n"), again
    assert len(json.loads((deployed / "model.json").read_text())["plans"]) == 2
    answers = []
    for folder in (run, tuned, deployed):
        table = tmp_path / f"{folder.name}.json"
        assert torchstone("predict", folder, data, "--json", table, "--quiet", "--device", "cpu").code == 0
        answers.append([(one["label"], round(one["probability"], 4)) for one in json.loads(table.read_text())])
    assert answers[0] == answers[1] == answers[2]


def test_a_model_is_transformed_for_data(torchstone, data, tmp_path):
    done = torchstone("transform", MODEL, "tune_mode", "--out", tmp_path / "out", "--data", data, "--size", 32)
    assert done.code == 0, done
    assert json.loads((tmp_path / "out" / "model.json").read_text())["args"]["num_classes"] == 2
    assert json.loads((tmp_path / "out" / "classes.json").read_text()) == ["class0", "class1"]


def test_a_model_without_weights_or_data_has_nothing_to_predict_with(torchstone, refused, data, tmp_path):
    out = tmp_path / "out"
    assert torchstone("transform", MODEL, "tune_mode", "--out", out, "--size", 32).code == 0
    assert "there is no classes.json to predict with" in refused("predict", out, data)
    assert torchstone("export", out, tmp_path / "model.pt2").code == 0, "its size is known"


@pytest.mark.parametrize("ending", ["pt2", "onnx"])
def test_an_exported_run_answers_like_the_eager_model(torchstone, run, tmp_path, ending):
    from torchstone.training.runs import load_run

    file = tmp_path / f"model.{ending}"
    done = torchstone("export", run, file)
    assert (done.code, done.out) == (0, f"{file}\n"), done
    assert "largest difference from the eager model" in done.err
    assert "any batch" in done.err
    x = torch.randn(4, 3, 32, 32)
    expected = load_run(run)[0](x)
    if ending == "pt2":
        answer = torch.export.load(file).module()(x)
    else:
        onnxruntime = pytest.importorskip("onnxruntime", reason="the export extra is not installed")
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        answer = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])
    torch.testing.assert_close(answer, expected, rtol=1e-3, atol=1e-4)
    assert [path.name for path in tmp_path.iterdir()] == [file.name], "nothing else is left"


def test_an_export_that_differs_is_not_kept(torchstone, run, tmp_path, monkeypatch):
    from torchstone.training import exporting

    monkeypatch.setattr(exporting, "deploy_form", lambda model: torch.nn.Sequential(model, torch.nn.Hardtanh(2, 3)))
    done = torchstone("export", run, tmp_path / "model.pt2")
    assert done.code == 1
    assert "answers differ from the eager one's" in done.err
    assert not list(tmp_path.iterdir())


def test_a_network_that_cannot_be_exported_says_why(refused, tmp_path, monkeypatch):
    from torchstone.training import model_folders

    class Choosy(torch.nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    opened = model_folders.OpenedModel(Choosy(), "x", {}, (), model_folders._images(3, 8))
    monkeypatch.setattr(model_folders, "open_model", lambda *_, **__: opened)
    message = refused("export", "x", tmp_path / "model.pt2")
    assert "Choosy cannot be exported" in message
    assert "--batch 1" in message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("transform", MODEL, "tune_mod", "--out", "{out}"), "unknown transform 'tune_mod': did you mean 'tune_mode'"),
        (("transform", MODEL, "tune_mode:freez=1", "--out", "{out}"), "did you mean 'freeze'"),
        (("transform", MODEL, "tune_mode:mode=tun", "--out", "{out}"), "did you mean 'tune'"),
        (("transform", "timm:test_vit", "tune_mode", "--out", "{out}"), "VisionTransformer has no block for tune mode"),
        (("transform", "timm:test_resnt", "tune_mode", "--out", "{out}"), "did you mean 'test_resnet"),
        (("transform", MODEL, "tune_mode", "--out", "{full}"), "is there already; name a new folder"),
        (("transform", "{full}", "tune_mode", "--out", "{out}"), "holds no model"),
        (("transform", "{full}", "tune_mode", "--out", "{out}", "--data", "digits"), "whose model is built already"),
        (("export", MODEL, "model.tflite"), "the file's ending says what it is, .pt2 or .onnx: got model.tflite"),
        (("export", MODEL, "nowhere/model.onnx"), "there is no folder nowhere"),
        (("export", MODEL, "{out}.pt2", "--batch", "0"), "batch must be a positive integer"),
        (("export", f"{MODEL}@", "{out}.pt2"), "weights are expected after @"),
    ],
)
def test_wrong_calls_are_refused(refused, tmp_path, words, message):
    full = tmp_path / "full"
    full.mkdir()
    (full / "note.txt").touch()
    places = {"out": str(tmp_path / "out"), "full": str(full)}
    assert message in refused(*(word.format(**places) for word in words))
    assert not (tmp_path / "out").exists()
