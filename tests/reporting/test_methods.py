"""A candidate with a method gets the same data and budget as the others, and what it costs beside them is told."""

import csv
import io
import json
import shlex
from pathlib import Path

import pytest
from _images import write_images

import torchstone.reporting.compare as comparing
from torchstone.errors import CallError, UnknownName
from torchstone.reporting.candidates import Step, parse_candidates
from torchstone.reporting.compare import compare
from torchstone.reporting.measuring import Measurement
from torchstone.reporting.methods import pretraining_protocol
from torchstone.reporting.results import load_comparison, to_csv
from torchstone.reporting.summary import notes, summary
from torchstone.training.runs import read_info

ALONE, WITH = "timm:test_efficientnet", "_methods.denoising:noise=0.3+timm:test_efficientnet"
QUICK = {"tune": 2, "seeds": 2, "epochs": 1, "batch_size": 8, "size": 32, "device": "cpu"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A network alone and with a method; costs are none of this test's business."""
    out = tmp_path_factory.mktemp("comparison") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparing, "measure", lambda models, **_: dict.fromkeys(models, Measurement({"params": 1e5})))
        data = write_images(tmp_path_factory.mktemp("images"))
        compare(str(data), [ALONE, WITH], out=out, pretrain_epochs=2, **QUICK)
    return out


@pytest.fixture
def known(monkeypatch):
    monkeypatch.setattr(comparing, "measure", lambda models, **_: dict.fromkeys(models, Measurement({"params": 1e5})))


def test_it_is_pre_trained_once_per_seed_on_the_same_split(finished):
    pretrainings = [read_info(path) for path in sorted(finished.glob("runs/*/pretrain-*"))]
    assert [info.recipe.seed for info in pretrainings] == [0, 1]
    tuned = [read_info(path.parent) for path in finished.glob("runs/*/lr*/result.json")]
    assert {info.data_fingerprint for info in tuned} == {info.data_fingerprint for info in pretrainings}
    assert len({json.dumps(vars(info.recipe.data)) for info in [*pretrainings, *tuned]}) == 1
    for info in pretrainings:
        assert info.recipe.train.epochs == 2
        assert info.recipe.method.args == {"noise": 0.3}
    starts = {(info.recipe.seed, info.recipe.model.weights) for info in tuned if info.recipe.model.weights}
    assert starts == {(info.recipe.seed, str(info.path.resolve())) for info in pretrainings}


def test_after_that_it_has_the_budget_and_the_trials_of_the_others(finished):
    alone, other = load_comparison(finished).candidates
    assert [trial.lr for trial in alone.trials] == [trial.lr for trial in other.trials]
    assert (
        [len(run.curves["epoch"]) for run in alone.runs] == [len(run.curves["epoch"]) for run in other.runs] == [1, 1]
    )
    assert (alone.start, other.start) == ("scratch", "scratch")
    assert {alone.rank, other.rank} <= {1, 2}


def test_its_pre_training_counts_as_training_time_and_is_shown(finished):
    comparison = load_comparison(finished)
    alone, other = comparison.candidates
    assert (alone.method, other.method) == ("", "_methods.denoising")
    assert alone.pretrain_seconds is None
    assert other.pretrain_seconds > 0
    assert other.train_seconds == pytest.approx(other.pretrain_seconds + sum(run.seconds for run in other.runs) / 2)
    assert any(
        line.startswith(f"Share of the training time that a method used first: {WITH} ") for line in summary(comparison)
    )
    assert any("ranked with those that start as it did" in note for note in notes(comparison))
    page = (finished / "report.html").read_text()
    assert page.count("pre-trained for") == 1
    assert "pre-training by _methods.denoising" in page
    rows = list(csv.DictReader(io.StringIO(to_csv(comparison))))
    assert [row["method"] for row in rows] == ["", "_methods.denoising"]
    assert [bool(row["pretrain_seconds"]) for row in rows] == [False, True]


def test_the_same_command_trains_nothing_again(finished, known, monkeypatch):
    comparison = load_comparison(finished)
    fit, trained = comparing.fit, []

    def counted(*arguments, **options):
        result = fit(*arguments, **options)
        trained.append(result.trained)
        return result

    monkeypatch.setattr(comparing, "fit", counted)
    again = compare(comparison.data["source"], [ALONE, WITH], out=finished, pretrain_epochs=2, **QUICK)
    assert set(trained) == {0}
    assert again.candidates == comparison.candidates


def test_how_to_reproduce_a_candidate_names_what_it_needs(finished):
    alone, other = (shlex.split(candidate.reproduce) for candidate in load_comparison(finished).candidates)
    assert "--pretrain-epochs" not in alone
    assert other[other.index("--pretrain-epochs") + 1] == "2"


def test_a_method_that_cannot_train_fails_its_candidate_alone(tmp_path, known):
    data = write_images(tmp_path / "images")
    fine, broken = compare(
        str(data),
        [ALONE, "_methods.denoising:noise=-1+" + ALONE],
        out=tmp_path / "out",
        **{**QUICK, "tune": 1, "seeds": 1},
    ).candidates
    assert (fine.status, broken.status) == ("trained", "failed")
    assert "pre-training, seed 0: noise must not be negative" in broken.reason


def test_epochs_of_pre_training_without_a_method_are_refused(tmp_path):
    with pytest.raises(CallError, match=r"pretrain_epochs is for candidates with a method"):
        compare("digits", [ALONE], out=tmp_path / "out", pretrain_epochs=3)
    with pytest.raises(CallError, match="pretrain_epochs must be at least 1, got 0"):
        compare("digits", [WITH], out=tmp_path / "out", pretrain_epochs=0)


def test_a_method_is_written_with_options_before_the_model():
    (candidate,), _ = parse_candidates([WITH])
    assert candidate.method == Step("_methods.denoising", (("noise", 0.3),))
    assert (candidate.model, candidate.start, candidate.name) == (ALONE, "scratch", WITH)
    with pytest.raises(CallError, match="options are written :key=value"):
        parse_candidates(["_methods.denoising:noise+" + ALONE])
    with pytest.raises(CallError, match=r"character 1: there is no module _methods\.nothing"):
        parse_candidates(["_methods.nothing+" + ALONE])
    with pytest.raises(UnknownName, match="character 1: unknown method 'sparc'"):
        parse_candidates(["sparc+" + ALONE])


def test_a_run_can_be_what_a_candidate_starts_from(finished, tmp_path):
    run = next(finished.glob("runs/*/pretrain-*"))
    (candidate,), _ = parse_candidates([f"{ALONE}@{run}"])
    assert (candidate.weights, candidate.start) == (str(run), "pretrained")
    with pytest.raises(CallError, match="is not a run directory"):
        parse_candidates([f"{ALONE}@{tmp_path}"])


def test_a_method_states_how_it_differs_from_the_usual_protocol(monkeypatch):
    from _methods import denoising

    usual = pretraining_protocol(Step("_methods.denoising"), 20, 128)
    assert (usual.optimizer, usual.lr, usual.warmup_epochs, usual.epochs) == ("adamw", 1e-3, 2.0, 20)
    monkeypatch.setattr(denoising, "PROTOCOL", {"optimizer": "lamb", "lr": 4e-3, "clip_grad": None}, raising=False)
    own = pretraining_protocol(Step("_methods.denoising"), 20, 512)
    assert (own.optimizer, own.lr, own.clip_grad, own.batch_size) == ("lamb", 8e-3, None, 512)
