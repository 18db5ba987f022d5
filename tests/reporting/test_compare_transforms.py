"""A transformed candidate is trained like every other, and its cost is that of the transformed network."""

import json

import pytest
import torch
from _images import write_images
from torch import nn

import torchstone.reporting.compare as comparing
from torchstone.errors import UnknownName
from torchstone.instruments.description import ModelDescription
from torchstone.models.registry import build_model
from torchstone.reporting.compare import compare
from torchstone.reporting.measuring import Measurement, measure
from torchstone.training.transforming import TransformedDescription
from torchstone.transforms import apply

NET, NO_NORMS = "timm:test_resnet", "timm:test_convnext"
TUNED, DEPLOYED, WRONG = f"{NET}+tune_mode:freeze=true", f"{NET}+tune_mode:mode=deploy", f"{NO_NORMS}+tune_mode"
QUICK = {"tune": 2, "seeds": 2, "epochs": 1, "batch_size": 8, "size": 32, "device": "cpu"}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    return str(write_images(tmp_path_factory.mktemp("images")))


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    file = tmp_path_factory.mktemp("weights") / "weights.pth"
    torch.manual_seed(3)
    torch.save(build_model(NET, num_classes=2).state_dict(), file)
    return str(file)


@pytest.fixture(scope="module")
def described():
    """The descriptions that costs were asked of."""
    return {}


@pytest.fixture(scope="module")
def comparison(data, weights, described, tmp_path_factory):
    """A comparison with transformed candidates, and its folder; costs are taken as known."""
    known = Measurement({"params": 1e5})

    def unmeasured(descriptions, **_):
        described.update(descriptions)
        return dict.fromkeys(descriptions, known)

    out = tmp_path_factory.mktemp("comparison") / "out"
    candidates = [NET, TUNED, DEPLOYED, WRONG, f"{NET}@{weights}+tune_mode:freeze=true"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparing, "measure", unmeasured)
        return compare(data, candidates, out=out, **QUICK), out


def test_each_gets_the_same_trials_and_seeds(comparison):
    plain, tuned, deployed, *_ = comparison[0].candidates
    for candidate in (tuned, deployed):
        assert candidate.status == "trained", candidate.reason
        assert [trial.lr for trial in candidate.trials] == [trial.lr for trial in plain.trials]
        assert [run.seed for run in candidate.runs] == [run.seed for run in plain.runs] == [0, 1]
        assert candidate.reproduce.count(candidate.name) == 1


def test_what_is_trained_is_the_transformed_network(comparison):
    result, out = comparison
    for candidate, norms in zip(result.candidates[:3], (True, True, False), strict=True):
        told = json.loads((out / candidate.runs[0].run / "model.json").read_text())
        assert [plan["transform"] for plan in told.get("plans", [])] == ["tune_mode"] * (candidate.name != NET)
        state = (out / candidate.runs[0].run / "model.safetensors").read_bytes()
        assert (b"running_mean" in state) == norms
    assert {candidate.name: candidate.start for candidate in result.candidates[1:2]} == {TUNED: "scratch"}
    assert result.candidates[4].start == "pretrained"


def test_its_cost_is_asked_of_the_transformed_network(comparison, described):
    assert type(described[NET]) is ModelDescription
    assert not any(isinstance(module, nn.BatchNorm2d) for module in described[DEPLOYED].build().modules())
    assert any(isinstance(module, nn.BatchNorm2d) for module in described[TUNED].build().modules())


def test_a_transform_that_cannot_be_done_is_that_candidates_failure(comparison):
    failed = comparison[0].candidates[3]
    assert failed.status == "failed"
    assert "transforms: ConvNeXt has no block for tune mode: it has no batch norm" in failed.reason
    assert failed.runs == []


def test_the_same_command_decides_and_trains_nothing_again(comparison, data, monkeypatch):
    result, out = comparison
    monkeypatch.setattr(comparing, "transform_for", lambda *_, **__: pytest.fail("transformed again"))
    monkeypatch.setattr(
        comparing, "measure", lambda descriptions, **_: dict.fromkeys(descriptions, Measurement({"params": 1e5}))
    )
    train, trained = comparing.fit, []

    def fit(*arguments, **options):
        run = train(*arguments, **options)
        trained.append(run.trained)
        return run

    monkeypatch.setattr(comparing, "fit", fit)
    again = compare(data, [NET, TUNED, DEPLOYED], out=out, **QUICK)
    assert not any(trained)
    kept = [(one.name, one.lr, one.trials, one.runs) for one in again.candidates]
    assert kept == [(one.name, one.lr, one.trials, one.runs) for one in result.candidates[:3]]


def test_the_cost_of_a_transformed_network_is_measured(tmp_path):
    base = ModelDescription(NET, (3, 16, 16), {"num_classes": 2})
    plan = apply("tune_mode", base.build(), base.example_inputs(2), options={"mode": "deploy"}).plan
    measured = measure(
        {"plain": base, "deployed": TransformedDescription.of(base, [plan])},
        num_classes=2,
        batch_size=4,
        batch_sizes=(1,),
        device="cpu",
        limits=[],
        file=tmp_path / "costs.json",
        tell=lambda doing: None,
    )
    plain, deployed = measured["plain"].cost, measured["deployed"].cost
    assert deployed["params"] < plain["params"], "one bias in the place of gamma and beta"
    assert deployed["macs"] == pytest.approx(plain["macs"], rel=0.02)
    assert deployed["train_memory_mb"] > 0


def test_an_unknown_option_stops_everything(data, tmp_path):
    with pytest.raises(UnknownName, match="did you mean 'freeze'"):
        compare(data, [f"{NET}+tune_mode:freez=true"], out=tmp_path / "out", **QUICK)
    assert not (tmp_path / "out").exists()
