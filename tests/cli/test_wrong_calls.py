"""What is said of calls that cannot work: one message, the nearest valid names, exit code 2, and nothing done."""

import pickle
from pathlib import Path

import pytest
import torch
from PIL import Image

from torchstone.models.registry import create_model

MODEL = "inceptionnext_mini32"
COMPARE = ["compare", "--data", "digits", "--models", MODEL, "--device", "cpu"]


@pytest.fixture(scope="module")
def image(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("images") / "image.png"
    Image.new("RGB", (32, 32), "teal").save(path)
    return path


@pytest.fixture
def truncated(tmp_path) -> Path:
    """The first half of a checkpoint."""
    whole, half = tmp_path / "whole.pth", tmp_path / "half.pth"
    torch.save({"weight": torch.zeros(1000)}, whole)
    half.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    return half


class Bait:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return (Path.touch, (self.trace,))


@pytest.fixture
def trace(tmp_path) -> Path:
    return tmp_path / "code was run"


@pytest.fixture
def poisoned(tmp_path, trace) -> Path:
    path = tmp_path / "poisoned.pth"
    torch.save({"state_dict": {"weight": torch.zeros(2)}, "note": Bait(trace)}, path)
    pickle.loads(pickle.dumps(Bait(trace)))
    assert trace.exists(), "the bait works"
    trace.unlink()
    return path


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--models", "inceptionext_mini32"], f"unknown model 'inceptionext_mini32': did you mean '{MODEL}'"),
        (["--data", "digts"], "digits"),
        (["--data", "no/such/folder"], "no/such/folder"),
        (["--start", "pretrained"], f"{MODEL} cannot start from pretrained weights: none were released"),
        (["--start", "warm"], "unknown start 'warm': valid: pretrained, scratch"),
        (["--tune", "0"], "tune must be at least 1, got 0"),
        (["--seeds", "0"], "seeds must be at least 1, got 0"),
        (["--epochs", "0"], "train.epochs must be a positive integer, got 0"),
        (["--batch-size", "-1"], "train.batch_size must be a positive integer"),
        (["--size", "4"], "size must be"),
        (["--val-fraction", "1.5"], "val_fraction must be"),
        (["--augment", "flp"], "flip"),
        (["--device", "gpu"], "unknown device 'gpu'"),
        (["--device", "cuda:99"], "this machine has no device cuda:99"),
        (["--task", "image-clasification"], "did you mean 'image-classification'"),
        (["--max", "latencey=5ms"], "unknown limit 'latencey': did you mean 'latency'"),
        (["--max", "latency=5 parsecs"], "limit latency=5 parsecs"),
        (["--max", "latency"], "--max takes name=value, got 'latency'"),
        (["--max", "params=1M", "params=2M"], "--max params is given twice"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_compare(refused, tmp_path, words, message):
    assert message in refused(*COMPARE, "--out", tmp_path / "out", *words)
    assert not list((tmp_path).glob("out/runs"))


def test_compare_needs_data_models_and_a_folder(torchstone):
    outcome = torchstone("compare", "--models", MODEL)
    assert outcome.code == 2
    assert "--data" in outcome.err


def test_compare_refuses_a_folder_that_it_cannot_use(refused, tmp_path):
    file = tmp_path / "file"
    file.touch()
    assert "cannot write to the folder" in refused(*COMPARE, "--out", file)
    assert "cannot write to the folder" in refused(*COMPARE, "--out", file / "below")
    assert "cannot write to the folder" in refused(*COMPARE, "--out", "/proc/torchstone")
    assert "is not empty and holds no comparison (file, ...)" in refused(*COMPARE, "--out", tmp_path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["inceptionnext_digts"], "unknown recipe 'inceptionnext_digts'"),
        (["nowhere.yaml"], "cannot read the recipe nowhere.yaml"),
        (["mine.yaml", "train.epoch=3"], "unknown recipe key train.epoch: did you mean train.epochs"),
        (["mine.yaml", "train.lr=fast"], "train.lr must be a positive number"),
        (["mine.yaml", "model.name=inceptionext_mini32"], f"did you mean '{MODEL}'"),
        (["mine.yaml", "data.source=digts"], "digits"),
        (["mine.yaml", "data.size=4"], "size must be a whole number of at least 8"),
        (["mine.yaml", "--strategy", "ddpp"], "unknown strategy 'ddpp': did you mean 'ddp'"),
        (["mine.yaml", "--devices", "0"], "devices must be a positive integer"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_train(refused, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(f"model: {{name: {MODEL}}}\ndata: {{source: digits}}\ntrain: {{epochs: 1}}\n")
    assert message in refused("train", *words, "--out", "run", "--device", "cpu")
    assert not list(tmp_path.glob("run/checkpoint"))


def test_train_refuses_a_folder_that_it_cannot_use(refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(f"model: {{name: {MODEL}}}\ndata: {{source: digits}}\n")
    assert "cannot write to the folder mine.yaml" in refused("train", "mine.yaml", "--out", "mine.yaml")
    assert "holds no run but other files" in refused("train", "mine.yaml", "--out", tmp_path)


def test_weights_that_would_run_code_are_refused_and_the_code_does_not_run(refused, poisoned, trace, image, tmp_path):
    for words in (
        ["convert", MODEL, poisoned, tmp_path / "out.safetensors"],
        ["verify", "inceptionnext", "--checkpoint", poisoned],
        ["predict", f"{MODEL}@{poisoned}", image],
    ):
        assert "could run code when loaded" in refused(*words)
        assert not trace.exists()
    assert not (tmp_path / "out.safetensors").exists()


def test_truncated_weights_are_named(refused, truncated, image, tmp_path):
    for words in (
        ["convert", MODEL, truncated, tmp_path / "out.safetensors"],
        ["verify", "inceptionnext", "--checkpoint", truncated],
        ["predict", f"{MODEL}@{truncated}", image],
    ):
        assert f"{truncated} is truncated or not a PyTorch checkpoint" in refused(*words)


def test_weights_of_another_network_are_refused_with_the_differences(refused, tmp_path):
    other = tmp_path / "other.pth"
    torch.save({"layer.weight": torch.zeros(3)}, other)
    said = refused("convert", MODEL, other, tmp_path / "out.safetensors")
    assert "missing: " in said
    assert "unexpected: layer.weight" in said
    classes = tmp_path / "classes.pth"
    torch.save(create_model(MODEL, num_classes=7).state_dict(), classes)
    said = refused("convert", MODEL, classes, tmp_path / "out.safetensors")
    assert f"the checkpoint has 7 classes, {MODEL} has 1000" in said


def test_convert(refused, tmp_path):
    assert "did you mean" in refused("convert", "inceptionext_tiny", "a.pth", tmp_path / "out.safetensors")
    assert "must end in .safetensors: got out.pth" in refused("convert", MODEL, "a.pth", "out.pth")
    assert "there is no checkpoint file nowhere.pth" in refused("convert", MODEL, "nowhere.pth", "out.safetensors")


def test_verify(refused, tmp_path):
    assert "unknown system 'inceptionext': did you mean 'inceptionnext'" in refused("verify", "inceptionext")
    assert "there is no folder" in refused("verify", "inceptionnext", "--cases", tmp_path / "nowhere")
    assert "no recorded cases" in refused("verify", "inceptionnext", "--cases", tmp_path)


def test_predict(refused, image, tmp_path):
    assert "no run" in refused("predict", "no/such/run", image)
    assert f"{MODEL}@FILE" in refused("predict", MODEL, image)
    assert "no weights with a direct link" in refused("predict", f"{MODEL}@pretrained", image)
    assert "is not a run directory" in refused("predict", tmp_path, image)
    assert "--quiet without --csv or --json" in refused("predict", tmp_path, image, "--quiet")


def test_profile(refused):
    assert f"did you mean '{MODEL}'" in refused("profile", "inceptionext_mini32")
    assert "images must be at least 8 pixels high and wide, got 4x4" in refused("profile", MODEL, "--size", 4)
    assert "batch_sizes" in refused("profile", MODEL, "--batch", 0)
    assert "no device 'cuda:99'" in refused("profile", MODEL, "--device", "cuda:99")
    assert "name it plot.html" in refused("profile", MODEL, "--plot", "plot.pdf")


def test_recipes(refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "unknown recipe" in refused("recipes", "--copy", "no_such_recipe")
    assert "torchstone recipes --copy NAME mine.yaml" in refused("recipes", "mine.yaml")
