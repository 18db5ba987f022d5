"""A method's recipe is trained, and its network probed, from the command line."""

import json
from pathlib import Path

import pytest
from _images import write_images

NETWORK = "timm:test_convnext"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture
def recipe(data, tmp_path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(
        f'model: {{name: "{NETWORK}"}}\nmethod: {{name: _methods.denoising}}\ndata: {{source: {data}, size: 32}}\n'
        "train: {epochs: 1, batch_size: 8}\n"
    )
    return path


def test_a_method_is_trained_by_its_recipe_and_its_run_probed(torchstone, recipe, tmp_path):
    run = tmp_path / "run"
    trained = torchstone("train", recipe, "method.args.noise=0.1", "--out", run, "--device", "cpu")
    assert (trained.code, trained.out.strip()) == (0, str(run))
    assert "validation loss" in trained.err
    assert "noise: 0.1" in (run / "recipe.yaml").read_text()
    assert (run / "pictures.png").is_file()

    probed = torchstone("probe", run, NETWORK, "--device", "cpu", "--json", tmp_path / "probe.json")
    assert probed.code == 0
    heading, first, second = probed.out.splitlines()
    assert heading.split()[:4] == ["network", "weights", "features", "linear"]
    assert first.split()[0] == str(run)
    assert "_methods.denoising" in first
    assert second.split()[:2] == [NETWORK, "untrained"]
    found = json.loads((tmp_path / "probe.json").read_text())
    assert found["data"]["splits"]["test"]["size"] == 5
    assert f"{100 * found['probes'][0]['knn']['test_accuracy']:.1f} %" in first


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([NETWORK], "name the data to probe on (--data)"),
        (["timm:test_convnxt", "--data", "digits"], "did you mean 'test_convnext"),
        ([NETWORK, "--data", "nowhere"], "nowhere"),
        ([NETWORK, "--data", "digits", "--limit", "3"], "limit must be at least 10"),
        ([NETWORK, "--data", "digits", "--device", "tpu"], "unknown device 'tpu'"),
        ([".", "--data", "digits"], "is not a run directory"),
    ],
)
def test_what_cannot_be_probed_is_said(refused, words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in refused("probe", *words)


def test_a_method_that_is_none_is_said(refused, recipe, tmp_path):
    out = tmp_path / "run"
    assert "unknown method 'sparc'" in refused("train", recipe, "method.name=sparc", "--out", out)
    assert "unknown recipe key method.arg" in refused("train", recipe, "method.arg=1", "--out", out)
    assert not out.exists()
