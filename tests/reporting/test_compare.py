"""A comparison is fair, knows its costs, survives failing candidates, and repeats nothing that is finished."""

import json
import math
import shlex
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from _images import write_images

import torchstone.reporting.compare as comparing
import torchstone.reporting.measuring as measuring
from torchstone.cli import main
from torchstone.errors import CallError, WriteFailed
from torchstone.models.registry import build_model
from torchstone.reporting.candidates import parse_candidates
from torchstone.reporting.compare import compare, default_epochs, learning_rates
from torchstone.reporting.measuring import Measurement
from torchstone.reporting.results import load_comparison

SMALL, OTHER = "timm:test_efficientnet", "timm:test_mambaout"
LARGE, CHOOSY = "timm:test_resnet", "torchvision:squeezenet1_1"
QUICK = {"tune": 2, "seeds": 2, "epochs": 1, "batch_size": 8, "size": 16, "device": "cpu"}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    return str(write_images(tmp_path_factory.mktemp("images")))


@pytest.fixture
def unmeasured(monkeypatch):
    """Costs are taken as known: measuring them is not what the test is about."""
    known = Measurement({"params": 1e5})
    monkeypatch.setattr(comparing, "measure", lambda descriptions, **_: dict.fromkeys(descriptions, known))


@dataclass
class Calls:
    """How often the expensive parts were called."""

    fits: int = 0
    tests: int = 0


@pytest.fixture
def calls(monkeypatch) -> Calls:
    counted = Calls()
    train, test = comparing.fit, comparing.evaluate

    def fit(*arguments, **options):
        result = train(*arguments, **options)
        counted.fits += result.trained > 0
        return result

    def evaluate(path, split, **options):
        counted.tests += not (path / f"{split}.safetensors").is_file()
        return test(path, split, **options)

    monkeypatch.setattr(comparing, "fit", fit)
    monkeypatch.setattr(comparing, "evaluate", evaluate)
    return counted


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory) -> Path:
    """One candidate that trains, one over budget, one that cannot take the images; costs really measured."""
    out = tmp_path_factory.mktemp("comparison") / "out"
    compare(data, [SMALL, LARGE, CHOOSY], out=out, limits={"params": "350k"}, **QUICK)
    return out


# ------------------------------------------------------------------------------ what comes out


def test_a_comparison_is_written_as_page_table_and_values(finished):
    comparison = load_comparison(finished)
    assert {"results.json", "results.csv", "report.html"} <= {path.name for path in finished.iterdir()}
    assert [candidate.status for candidate in comparison.candidates] == ["trained", "over budget", "failed"]
    assert comparison.data["sizes"] == {"train": 17, "val": 2, "test": 5}
    assert comparison.data["classes"] == ["class0", "class1"]
    assert comparison.protocol["epochs"] == 1
    assert comparison.protocol["limits"] == {"params": "350k"}
    assert comparison.environment["device"] == "cpu"
    assert "not finished" not in comparison.protocol
    assert (finished / "results.csv").read_text().count("\n") == 4


def test_a_trained_candidate_has_trials_runs_costs_and_an_interval(finished):
    trained = load_comparison(finished).candidates[0]
    assert [trial.lr for trial in trained.trials] == learning_rates(parse_candidates([SMALL])[0][0], 2, 8)
    assert trained.lr == max(trained.trials, key=lambda trial: (trial.score, -trial.lr)).lr
    assert [run.seed for run in trained.runs] == [0, 1]
    assert all(len(run.curves["val_accuracy"]) == 1 for run in trained.runs)
    assert trained.score == pytest.approx(sum(run.score for run in trained.runs) / 2)
    assert trained.low <= trained.score <= trained.high
    assert sum(map(sum, trained.confusion)) == 2 * 5
    costs = {"params", "macs", "latency_ms_1", "latency_ms_32", "throughput", "memory_mb", "train_memory_mb"}
    assert set(trained.cost) == costs
    assert all(value > 0 for value in trained.cost.values())
    assert trained.cost["params"] == sum(p.numel() for p in build_model(SMALL, num_classes=2).parameters())


def test_a_candidate_over_budget_is_listed_with_the_reason_and_not_trained(finished):
    over = load_comparison(finished).candidates[1]
    assert "parameters" in over.reason
    assert "at most 350 k" in over.reason
    assert set(over.cost) == {"params", "macs"}, "what is over budget by its size is not run"
    assert over.runs == []


def test_an_unsupported_size_is_a_failure_with_the_reason(finished):
    failed = load_comparison(finished).candidates[2]
    assert "does not take inputs of shape 1x3x16x16" in failed.reason
    assert failed.runs == []


def test_test_data_are_read_once_per_run_after_the_rate_was_chosen(finished):
    trained = load_comparison(finished).candidates[0]
    tested = {path.parent for path in finished.glob("runs/*/*/test.safetensors")}
    assert tested == {finished / run.run for run in trained.runs}
    assert len(list(finished.glob("runs/*/*/result.json"))) == 3, "the trial at the chosen rate is the run of seed 0"


# ------------------------------------------------------------------------------ resuming


def test_the_same_command_repeats_nothing_and_gives_the_same_results(finished, data, calls, monkeypatch):
    before = load_comparison(finished).candidates
    for name in ("in_process", "measure_latencies", "measure_memory", "probe_training_step"):
        monkeypatch.setattr(measuring, name, lambda *_, **__: pytest.fail("costs are measured again"))
    again = compare(data, [SMALL, LARGE], out=finished, limits={"params": "350k"}, **QUICK)
    assert (calls.fits, calls.tests) == (0, 0)
    assert again.candidates == before[:2]


def test_more_candidates_seeds_and_trials_train_only_what_is_new(unmeasured, data, calls, tmp_path):
    out = tmp_path / "out"
    first = compare(data, [SMALL], out=out, **{**QUICK, "tune": 1})
    assert (calls.fits, calls.tests) == (2, 2)
    second = compare(data, [SMALL, OTHER], out=out, **{**QUICK, "tune": 1, "seeds": 3})
    assert (calls.fits, calls.tests) == (2 + 1 + 3, 2 + 1 + 3)
    assert second.candidates[0].runs[:2] == first.candidates[0].runs
    compare(data, [SMALL], out=out, **QUICK)
    assert calls.fits in (6 + 1, 6 + 2), "the second rate, and the second seed at that rate if it was the better one"


def test_another_protocol_in_the_same_folder_never_continues_a_run(unmeasured, data, calls, tmp_path):
    compare(data, [SMALL], out=tmp_path / "out", **{**QUICK, "tune": 1, "seeds": 1})
    longer = compare(data, [SMALL], out=tmp_path / "out", **{**QUICK, "tune": 1, "seeds": 1, "epochs": 2})
    assert calls.fits == 2
    assert len(longer.candidates[0].runs[0].curves["epoch"]) == 2


def test_the_reproducing_command_finds_the_same_runs(finished, calls):
    trained = load_comparison(finished).candidates[0]
    words = shlex.split(trained.reproduce)
    assert words[:2] == ["torchstone", "compare"]
    words[words.index("--out") + 1] = str(finished)
    with pytest.raises(SystemExit) as stopped:
        main(words[1:])
    assert stopped.value.code == 0
    assert (calls.fits, calls.tests) == (0, 0)


def test_a_report_is_written_after_every_candidate(unmeasured, data, tmp_path, monkeypatch):
    seen = []

    def write(comparison, out):
        seen.append((len(comparison.candidates), comparison.protocol.get("not finished")))

    monkeypatch.setattr(comparing.Comparison, "write", write)
    compare(data, [SMALL, OTHER], out=tmp_path / "out", **{**QUICK, "tune": 1, "seeds": 1})
    assert seen == [(1, [OTHER]), (2, None)]


# ------------------------------------------------------------------------------ fairness


def test_of_rates_with_equal_scores_the_smaller_is_chosen(unmeasured, data, tmp_path, monkeypatch):
    train = comparing.fit
    monkeypatch.setattr(comparing, "fit", lambda *a, **k: replace(train(*a, **k), score=0.5))
    chosen = compare(data, [SMALL], out=tmp_path / "out", **{**QUICK, "tune": 3, "seeds": 1}).candidates[0]
    assert chosen.lr == min(trial.lr for trial in chosen.trials)


def test_the_rate_with_the_best_validation_score_is_chosen(unmeasured, data, tmp_path, monkeypatch):
    train = comparing.fit
    monkeypatch.setattr(comparing, "fit", lambda one, *a, **k: replace(train(one, *a, **k), score=one.train.lr))
    chosen = compare(data, [SMALL], out=tmp_path / "out", **{**QUICK, "tune": 3, "seeds": 1}).candidates[0]
    assert chosen.lr == max(trial.lr for trial in chosen.trials)


def test_scratch_and_pretrained_are_never_ranked_together(unmeasured, data, tmp_path):
    file = tmp_path / "weights.pth"
    torch.save(build_model(SMALL, num_classes=2).state_dict(), file)
    comparison = compare(data, [SMALL, f"{SMALL}@{file}"], out=tmp_path / "out", **{**QUICK, "tune": 1})
    scratch, pretrained = comparison.candidates
    assert (scratch.start, pretrained.start) == ("scratch", "pretrained")
    assert (scratch.rank, pretrained.rank) == (1, 1)
    assert scratch.tied_with == pretrained.tied_with == []
    assert pretrained.lr == pytest.approx(scratch.lr / 10, rel=0.01)


def test_rates_lie_on_a_grid_around_the_cards_value_and_more_trials_add_to_it():
    ours, peer = parse_candidates(["inceptionnext_mini32", "timm:resnet18"])[0]
    lr = ours.card.lr
    assert learning_rates(ours, 1, 128) == [lr]
    assert learning_rates(ours, 5, 128) == pytest.approx([lr, lr / 10**0.5, lr * 10**0.5, lr / 10, lr * 10], rel=0.01)
    assert learning_rates(peer, 4, 128)[:3] == learning_rates(peer, 3, 128)
    assert learning_rates(peer, 1, 128) == [2e-3]
    assert learning_rates(peer, 1, 512) == [4e-3]


def test_without_a_number_of_epochs_there_are_enough_steps():
    for steps in (1, 7, 10, 30, 5000):
        epochs = default_epochs(steps)
        assert epochs >= 10
        assert epochs * steps >= comparing.LEAST_STEPS
        assert epochs == 10 or (epochs - 1) * steps < comparing.LEAST_STEPS


# ------------------------------------------------------------------------------ failures


def test_a_loss_that_is_not_finite_is_named_with_its_step_and_the_others_go_on(unmeasured, data, tmp_path, monkeypatch):
    usual = comparing.learning_rates
    monkeypatch.setattr(comparing, "learning_rates", lambda c, *a: [1e30] if c.name == SMALL else usual(c, *a))
    diverged, fine = compare(data, [SMALL, OTHER], out=tmp_path / "out", **{**QUICK, "tune": 1}).candidates
    assert diverged.status == "failed"
    assert "learning rate 1e+30, seed 0: the training loss became nan at epoch 1, step" in diverged.reason
    assert math.isfinite(fine.score)


def test_a_rate_that_fails_does_not_fail_the_candidate(unmeasured, data, tmp_path, monkeypatch):
    monkeypatch.setattr(comparing, "learning_rates", lambda *_: [1e30, 1e-3])
    candidate = compare(data, [SMALL], out=tmp_path / "out", **QUICK).candidates[0]
    assert candidate.status == "trained"
    assert [trial.score is None for trial in candidate.trials] == [True, False]
    assert "became nan" in candidate.trials[0].error
    assert candidate.lr == 1e-3


def test_an_unforeseen_error_fails_one_candidate_and_leaves_its_traceback(unmeasured, data, tmp_path, monkeypatch):
    train = comparing.fit

    def fit(recipe, *arguments, **options):
        if recipe.model.name == SMALL:
            raise ZeroDivisionError("by nothing")
        return train(recipe, *arguments, **options)

    monkeypatch.setattr(comparing, "fit", fit)
    broken, fine = compare(data, [SMALL, OTHER], out=tmp_path / "out", **{**QUICK, "tune": 1, "seeds": 1}).candidates
    assert (broken.status, fine.status) == ("failed", "trained")
    assert "ZeroDivisionError: by nothing" in broken.reason
    (file,) = (tmp_path / "out").rglob("traceback.txt")
    assert "in fit" in file.read_text()


def test_running_out_of_memory_while_training_fails_one_candidate(unmeasured, data, tmp_path, monkeypatch):
    def fit(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr(comparing, "fit", fit)
    (candidate,) = compare(data, [SMALL], out=tmp_path / "out", **{**QUICK, "tune": 1, "seeds": 1}).candidates
    assert "out of memory" in candidate.reason


def test_a_disk_that_cannot_be_written_stops_everything(unmeasured, data, tmp_path, monkeypatch):
    def fit(*_, **__):
        raise WriteFailed("cannot write runs/x/checkpoint: No space left on device")

    monkeypatch.setattr(comparing, "fit", fit)
    with pytest.raises(WriteFailed, match="No space left"):
        compare(data, [SMALL, OTHER], out=tmp_path / "out", **QUICK)


def test_damaged_costs_are_named(data, tmp_path):
    (tmp_path / "costs.json").write_text('{"half')
    with pytest.raises(CallError, match=r"costs\.json is damaged .* delete it"):
        compare(data, [SMALL], out=tmp_path, **QUICK)


def test_costs_say_which_candidate_was_killed(monkeypatch, tmp_path):
    from torchstone.instruments import ModelDescription, TrainingProbe

    monkeypatch.setattr(
        measuring, "probe_training_step", lambda *_, **__: TrainingProbe(None, None, "training on 8x3x16x16: killed")
    )
    descriptions = {name: ModelDescription(SMALL, (3, 16, 16), {"num_classes": 2}) for name in ("one", "alike")}
    settings = {"num_classes": 2, "batch_size": 8, "device": "cpu", "limits": [], "tell": lambda doing: None}
    measured = measuring.measure(descriptions, file=tmp_path / "costs.json", **settings)
    assert {one.failed for one in measured.values()} == {"training on 8x3x16x16: killed"}
    kept = json.loads((tmp_path / "costs.json").read_text())
    assert len(kept) == 1, "the same model is measured once"
