import csv
import io
import json
from dataclasses import replace

import pytest
from synthetic import FOUR, comparison, not_trained

from torchstone.errors import WriteFailed
from torchstone.reporting.results import CandidateResult, Comparison, load_comparison, to_csv


@pytest.fixture(scope="module")
def four():
    return comparison(extra=(not_trained("timm:resnet50", "over budget", "23.5 M parameters exceed 2 M"),))


def test_results_survive_json(four):
    assert Comparison.from_dict(json.loads(json.dumps(four.to_dict(), allow_nan=False))) == four


def test_all_files_are_written_and_read_back(four, tmp_path):
    report = four.write(tmp_path / "new" / "folder")
    assert report == tmp_path / "new" / "folder" / "report.html"
    assert sorted(path.name for path in report.parent.iterdir()) == ["report.html", "results.csv", "results.json"]
    assert load_comparison(report.parent) == four


def test_numbers_that_json_cannot_hold_become_null(four):
    first = four.candidates[0]
    run = replace(first.runs[0], curves={"epoch": [1], "val_loss": [float("nan")]})
    odd = replace(first, cost={"params": float("inf")}, runs=[run])
    written = replace(four, candidates=[odd]).to_dict()["candidates"][0]
    assert written["cost"] == {"params": None}
    assert written["runs"][0]["curves"]["val_loss"] == [None]
    assert odd.cost_on("params") is None


def test_csv_has_a_row_per_candidate_with_costs_and_seeds(four):
    rows = list(csv.DictReader(io.StringIO(to_csv(four))))
    assert [row["name"] for row in rows] == [*FOUR, "timm:resnet50"]
    first, result = rows[0], four.candidates[0]
    assert float(first["score"]) == result.score
    assert float(first["low"]) <= float(first["score"]) <= float(first["high"])
    assert float(first["latency_ms_1"]) == result.cost["latency_ms_1"]
    assert [float(first[f"seed_{run.seed}"]) for run in result.runs] == [run.score for run in result.runs]
    assert rows[-1]["status"] == "over budget"
    assert rows[-1]["score"] == rows[-1]["seed_0"] == ""


def test_a_folder_that_cannot_be_written_is_named(four, tmp_path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(WriteFailed, match="taken"):
        four.write(tmp_path / "taken")


def test_a_report_that_fails_leaves_the_old_files(four, tmp_path, monkeypatch):
    four.write(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr("torchstone.reporting.report.render", lambda comparison: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        replace(four, metric="other").write(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_ranked_keeps_starts_apart_and_the_best_first(four):
    scores = [candidate.score for candidate in four.ranked("scratch")]
    assert scores == sorted(scores, reverse=True)
    assert four.ranked("pretrained") == []
    assert [c.score for c in replace(four, maximize=False).ranked("scratch")] == sorted(scores)


@pytest.mark.parametrize(("start", "status"), [("warm", "trained"), ("scratch", "lost")])
def test_unknown_start_and_status_are_refused(start, status):
    with pytest.raises(ValueError, match="valid: "):
        CandidateResult(name="a", model="a", start=start, status=status)
