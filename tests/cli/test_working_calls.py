"""Every command does its work and says where the result is; progress and notes keep out of the output."""

import csv
import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from _images import write_images
from safetensors.torch import load_file

from torchstone.models.registry import create_model
from torchstone.reporting import compare as comparing
from torchstone.reporting.measuring import Measurement
from torchstone.training.recipe import recipe_names

MODEL = "inceptionnext_mini32"
PEER = "timm:test_efficientnet"
CHOOSY = "torchvision:squeezenet1_1"
"""Cannot take images of 16 pixels."""


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def recipe(data, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "mine.yaml"
    path.write_text(
        f"model: {{name: {PEER}}}\ndata: {{source: {data}, size: 16}}\n"
        "train: {epochs: 2, batch_size: 8}\nexpect: {val_accuracy: 1.5}\n"
    )
    return path


@pytest.fixture
def unmeasured(monkeypatch):
    """Costs are taken as known: measuring them is not what the test is about."""
    known = Measurement({"params": 1e5})
    monkeypatch.setattr(comparing, "measure", lambda descriptions, **_: dict.fromkeys(descriptions, known))


@pytest.fixture
def compare(unmeasured, torchstone, data, tmp_path):
    """Compares a small network in little time."""

    def run(*words):
        protocol = ["--epochs", 1, "--seeds", 1, "--batch-size", 8, "--size", 16, "--device", "cpu"]
        return torchstone("compare", "--data", data, "--out", tmp_path / "out", *protocol, *words)

    return run


def test_compare_takes_several_models_after_one_flag_or_one_after_each(compare, tmp_path):
    outcome = compare("--models", PEER, "timm:test_mambaout", "--max", "params=1M", "latency=1s")
    assert outcome.code == 0, outcome
    *_, report = outcome.out.splitlines()
    assert report == str(tmp_path / "out" / "report.html")
    assert Path(report).is_file()
    assert outcome.out.count(PEER) >= 1
    assert f"{PEER}, learning rate" in outcome.err, "one line for each run"
    again = compare("--models", PEER, "--models", "timm:test_mambaout", "--max", "params=1M", "--max", "latency=1s")
    assert again.code == 0
    assert again.err.count("found finished") == 2


def test_compare_when_quiet_prints_the_path_alone(compare, tmp_path):
    outcome = compare("--models", PEER, "--quiet")
    assert (outcome.code, outcome.out, outcome.err) == (0, f"{tmp_path / 'out' / 'report.html'}\n", "")


def test_compare_fails_only_when_every_candidate_failed(compare):
    some = compare("--models", PEER, CHOOSY)
    assert some.code == 0
    assert "failed" in some.out
    none = compare("--models", CHOOSY)
    assert none.code == 1
    assert "error: every candidate failed" in none.err
    assert "RuntimeError" in none.out, "the reason is shown"


def test_compare_when_interrupted_says_how_to_go_on(compare, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(comparing, "fit", interrupted)
    outcome = compare("--models", PEER)
    assert outcome.code == 130
    assert f"the same command goes on where it stopped:\n  {shlex.join(sys.argv)}" in outcome.err


def test_train_then_predict(torchstone, recipe, data, tmp_path, monkeypatch):
    run = tmp_path / "run"
    trained = torchstone("train", recipe, "train.lr=1e-3", "--out", run, "--device", "cpu")
    assert (trained.code, trained.out) == (0, f"{run}\n"), trained
    assert "epoch 1 of 2" in trained.err
    assert "epoch 2 of 2" in trained.err
    assert "not as expected: val_accuracy" in trained.err
    assert "lr: 0.001" in (run / "recipe.yaml").read_text()
    again = torchstone("train", recipe, "train.lr=1e-3", "--out", run, "--device", "cpu", "--quiet")
    assert (again.code, again.out, again.err) == (0, f"{run}\n", "")
    assert "train.lr: 0.001 there, 0.002 now" in torchstone("train", recipe, "train.lr=2e-3", "--out", run).err

    images = sorted(data.rglob("*.png"))
    table, values = tmp_path / "p.csv", tmp_path / "p.json"
    predicted = torchstone("predict", run, data, "--top", 2, "--csv", table, "--json", values, "--device", "cpu")
    assert predicted.code == 0, predicted
    assert [line.split("\t")[0] for line in predicted.out.splitlines()] == [str(path) for path in images]
    rows = list(csv.DictReader(table.open()))
    told = json.loads(values.read_text())
    assert [row["path"] for row in rows] == [one["path"] for one in told] == [str(path) for path in images]
    for row, one in zip(rows, told, strict=True):
        assert row["label"] == one["label"] in ("class0", "class1")
        assert float(row["probability"]) + float(row["probability_2"]) == pytest.approx(1.0)
        assert one["top"][0] == [one["label"], one["probability"]]

    broken = tmp_path / "broken.png"
    broken.write_bytes(images[0].read_bytes()[:60])
    mixed = torchstone("predict", run, broken, images[0], "--csv", table, "--quiet")
    assert (mixed.code, mixed.out) == (0, "")
    assert f"{broken} cannot be read as an image" in mixed.err
    assert [bool(row["error"]) for row in csv.DictReader(table.open())] == [True, False]
    assert torchstone("predict", run, broken).code == 1


def test_train_names_the_step_of_a_loss_that_is_not_finite(torchstone, recipe, tmp_path):
    outcome = torchstone("train", recipe, "train.lr=1e30", "--out", tmp_path / "run", "--device", "cpu", "--quiet")
    assert outcome.code == 1
    assert outcome.err.startswith("error: the training loss became nan at epoch 1, step ")


def test_recipes_are_listed_and_copied(torchstone, tmp_path):
    listed = torchstone("recipes").out
    assert all(name in listed for name in recipe_names())
    name = next(iter(recipe_names()))
    copied = torchstone("recipes", "--copy", name, tmp_path / "mine.yaml")
    assert (copied.code, copied.out) == (0, f"{tmp_path / 'mine.yaml'}\n")
    assert torchstone("recipes", "--copy", name, tmp_path / "mine.yaml").code == 2, "nothing is overwritten"


def test_convert_keeps_every_weight_of_the_file(torchstone, tmp_path):
    model = create_model(MODEL)
    parallel = {f"module.{key}": value for key, value in model.state_dict().items()}
    torch.save({"state_dict": parallel}, tmp_path / "file.pth")
    out = tmp_path / "ours.safetensors"
    converted = torchstone("convert", MODEL, tmp_path / "file.pth", out)
    assert (converted.code, converted.out) == (0, f"{out}\n"), converted
    written = load_file(out)
    assert written.keys() == model.state_dict().keys()
    assert all(torch.equal(written[key], value) for key, value in model.state_dict().items())


def test_verify_compares_and_writes_what_it_found(torchstone, tmp_path):
    told = tmp_path / "told.json"
    outcome = torchstone("verify", "inceptionnext", "--json", told)
    assert outcome.code == 0, outcome
    assert ": all agree, worst error" in outcome.out
    assert json.loads(told.read_text())["command"] == f"torchstone verify inceptionnext --json {told}"


def test_verify_fails_when_an_output_differs(torchstone, monkeypatch):
    from torchstone import verification

    wrong = verification.Check("case", "output", problem="differs by 1")
    report = verification.VerifyReport("inceptionnext", "official", ("case",), (wrong,))
    monkeypatch.setattr(verification, "verify", lambda *_, **__: report)
    outcome = torchstone("verify", "inceptionnext")
    assert outcome.code == 1
    assert "differs by 1" in outcome.out


def test_profile_shows_layers_and_writes_values_and_plot(torchstone, tmp_path):
    values, plot = tmp_path / "p.json", tmp_path / "p.html"
    outcome = torchstone("profile", MODEL, "--size", 32, "--batch", 2, "--json", values, "--plot", plot)
    assert outcome.code == 0, outcome
    assert "Latency, batch 2" in outcome.out
    assert "stem.0" in outcome.out
    params = sum(p.numel() for p in create_model(MODEL).parameters())
    assert json.loads(values.read_text())["params"] == params
    assert "plotly" in plot.read_text()[:5_000_000]


SCRIPT = """
import sys, timm
assert __name__ == "__main__" and sys.argv[1:] == ["--model", "x"]
print(type(timm.create_model(sys.argv[0] and "inceptionnext_mini32")).__name__)
"""


def test_run_gives_a_timm_script_our_models(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torchstone.run", str(script), "--model", "x"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "MetaNeXt\n"


def test_run_says_how_it_is_used(capsys):
    from torchstone.run import main

    for arguments, code in (([], 2), (["--help"], 0), (["nowhere.py"], 2)):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == code
    shown = capsys.readouterr()
    assert "python -m torchstone.run" in shown.out
    assert "there is no script nowhere.py" in shown.err
