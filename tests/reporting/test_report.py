import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from synthetic import FOUR, TWELVE, comparison, not_trained, trained, wrap

from torchstone.reporting import report
from torchstone.reporting.ranking import judge
from torchstone.reporting.report import render

EVIL = "<script>alert('candidate')</script>&<b>\"x\"</b>"
EVIL_CLASS = "</script><script>alert('class')</script>"
EVIL_REASON = "loss <img src=x onerror=alert('reason')> became NaN"


class Page(HTMLParser):
    """Collects scripts, text, identifiers and everything that would make a browser load something."""

    def __init__(self, html):
        super().__init__()
        self.scripts, self.loads, self.ids, self.tags, self.text = [], [], [], [], []
        self.in_script = False
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append(tag)
        self.ids.append(attributes.get("id"))
        self.loads += [
            (tag, attributes[name])
            for name in ("src", "href", "action", "data", "poster", "srcset")
            if name in attributes and not attributes[name].startswith(("#", "data:"))
        ]
        self.in_script = tag in ("script", "style")
        if tag == "script":
            self.scripts.append([attributes.get("type"), ""])

    def handle_data(self, data):
        if self.in_script and self.tags[-1] == "script":
            self.scripts[-1][1] += data
        elif not self.in_script:
            self.text.append(data)

    def handle_endtag(self, tag):
        self.in_script = False

    @property
    def results(self):
        (data,) = [text for kind, text in self.scripts if kind == "application/json"]
        return json.loads(data)

    @property
    def words(self):
        return re.sub(r"\s+", " ", " ".join(self.text)).replace("\u00a0", " ")


@pytest.fixture(scope="module")
def four():
    return comparison(extra=(not_trained("timm:resnet50", "over budget", "23.5 M parameters exceed 2 M"),))


@pytest.fixture(scope="module")
def page(four):
    return Page(render(four))


@pytest.fixture(scope="module")
def both_starts():
    """Scratch and pretrained, names that attack the page, a candidate without costs and confusion."""
    sizes = {"classes": 10, "samples": 200, "seeds": 1, "epochs": 4, "skill": 2.0}
    scratch, right = trained(FOUR[:3], start="scratch", **sizes)
    ready, right_too = trained((EVIL, "a@pretrained"), start="pretrained", **sizes, seed=1)
    ready[1] = replace(ready[1], cost={}, confusion=None)
    failed = not_trained("broken", "failed", EVIL_REASON)
    whole = wrap(judge([*scratch, *ready, failed], right | right_too), samples=200, seeds=1)
    return replace(whole, data={**whole.data, "classes": [EVIL_CLASS, *"123456789"]})


def decoded(codes, size):
    flat = [value for code in codes for value in ([0] * -code if code < 0 else [code])]
    return [flat[row * size : (row + 1) * size] for row in range(size)]


def test_a_large_report_stays_below_six_megabytes():
    large = comparison(TWELVE, classes=100, samples=10_000, seeds=3, epochs=300, skill=0.5)
    html = render(large)
    assert len(html.encode()) < 6_000_000
    shown = Page(html).results
    assert len(shown["candidates"]) == 12
    assert all(len(run["curves"]["val_loss"]) == 300 for c in shown["candidates"] for run in c["runs"])
    for entry, candidate in zip(shown["candidates"], large.candidates, strict=True):
        assert decoded(entry["confusion"], 100) == candidate.confusion


def test_the_page_loads_nothing_and_carries_plotly_once(page):
    assert page.loads == []
    assert [kind for kind, _ in page.scripts] == [None, "application/json", None, None]
    assert sum("plotly.js v" in text for _, text in page.scripts) == 1
    assert page.ids.count("results") == 1


def test_a_policy_forbids_loading(four):
    assert "Content-Security-Policy\" content=\"default-src 'none';" in render(four)


def test_embedded_results_equal_the_results(four, page):
    expected = four.to_dict()
    for entry, candidate in zip(page.results["candidates"], expected["candidates"], strict=True):
        for key in candidate.keys() - {"confusion", "runs"}:
            assert entry[key] == candidate[key], key
        if candidate["confusion"]:
            assert decoded(entry["confusion"], 10) == candidate["confusion"]
        for shown, run in zip(entry["runs"], candidate["runs"], strict=True):
            assert {k: v for k, v in shown.items() if k != "curves"} == {k: v for k, v in run.items() if k != "curves"}
            assert shown["curves"]["val_accuracy"] == pytest.approx(run["curves"]["val_accuracy"], rel=1e-3)


def test_the_page_says_what_was_found(four, page):
    leader = four.ranked("scratch")[0]
    assert f"{leader.name} " in page.words
    for candidate in four.candidates:
        assert candidate.reproduce in page.words
        for reason in candidate.dominated.values():
            assert reason in page.words
    for text in ("23.5 M parameters exceed 2 M", four.command, "5f0c2ab1d9e34c77", "Example CPU", "lightning 2.6.6"):
        assert text in page.words
    assert "Trained from scratch" not in page.words  # one start needs no heading


def test_only_official_proof_is_called_proved_against_the_authors_code(four):
    def badges(proof):
        (first, *others) = four.candidates
        return render(replace(four, candidates=[replace(first, proof=proof), *(replace(o, proof="") for o in others)]))

    assert "✓ proved against the authors&#39; code" in badges("official")
    for proof in ("port", "definition", "reconstruction"):
        assert "proved against the authors&#39; code" not in badges(proof)


def test_names_classes_and_errors_cannot_inject(both_starts):
    html = render(both_starts)
    page = Page(html)
    assert "img" not in page.tags
    assert len(page.scripts) == 4
    for raw in ("<script>alert", "</script><script>alert", "<img"):
        assert raw not in html
    assert EVIL in page.words
    assert EVIL_REASON in page.words
    assert page.results["classes"][0] == EVIL_CLASS
    assert page.results["candidates"][3]["name"] == EVIL


def test_scratch_and_pretrained_have_tables_of_their_own(both_starts):
    page = Page(render(both_starts))
    assert page.tags.count("table") >= 2
    assert "Trained from scratch" in page.words
    assert "Pretrained" in page.words
    assert page.results["main_axis"] == "latency_ms_1"


def test_without_trained_candidates_there_are_no_charts():
    html = render(wrap([not_trained("a", "failed", "out of memory"), not_trained("b", "over budget", "too slow")]))
    page = Page(html)
    assert len(html) < 200_000
    assert not {"cost-chart", "curve-chart", "class-chart"} & set(page.ids)
    assert "No candidate was trained" in page.words
    assert "out of memory" in page.words


def test_no_candidates_at_all_is_still_a_page():
    assert "No candidate was trained" in Page(render(wrap([]))).words


def test_sections_without_data_are_left_out(four):
    bare = []
    for candidate in four.candidates:
        runs = [replace(run, curves={}) for run in candidate.runs]
        bare.append(replace(candidate, confusion=None, cost={}, runs=runs, trials=[], lr=None))
    ids = Page(render(replace(four, candidates=bare, data={}, environment={}, protocol={}))).ids
    assert "cost-chart" in ids  # training time is known
    assert "curve-chart" not in ids
    assert "class-chart" not in ids


def test_a_single_candidate_has_a_report():
    page = Page(render(comparison(FOUR[:1], seeds=1)))
    assert f"{FOUR[0]} reaches" in page.words
    assert "leads" not in page.words


def test_many_classes_show_those_with_most_errors():
    sizes = {"classes": 300, "samples": 1500, "seeds": 1, "epochs": 2, "start": "scratch", "skill": 1.0}
    candidates, right = trained(FOUR[:2], **sizes)
    whole = wrap(judge(candidates, right), classes=300)
    shown = report.payload(whole)
    assert len(shown["matrix"]) == report.MATRIX_CLASSES
    assert shown["matrix"] == sorted(shown["matrix"])
    errors = [sum(sum(row) - row[true] for row in [c.confusion[true] for c in candidates]) for true in range(300)]
    assert min(errors[index] for index in shown["matrix"]) >= max(
        error for index, error in enumerate(errors) if index not in shown["matrix"]
    )
    matrix = decoded(shown["candidates"][0]["confusion"], report.MATRIX_CLASSES)
    first = shown["matrix"][0]
    assert matrix[0] == [candidates[0].confusion[first][guess] for guess in shown["matrix"]]
    assert len(shown["candidates"][0]["class_accuracy"]) == 300


def test_long_curves_are_thinned_but_end_where_they_end(four, monkeypatch):
    monkeypatch.setattr(report, "CURVE_VALUES", 4 * 2 * 4 * 7)
    shown = report.payload(four)
    assert shown["every_nth_epoch"] == 3
    curves = shown["candidates"][0]["runs"][0]["curves"]
    assert curves["epoch"] == [1, 4, 7, 10, 13, 16, 19, 20]
    assert len(curves["val_loss"]) == 8


@pytest.mark.parametrize("matrix", [[[0]], [[1, 0], [0, 2]], [[0, 0, 3], [0, 0, 0], [4, 0, 0]]])
def test_encoded_matrices_can_be_decoded(matrix):
    assert decoded(report.encode(matrix), len(matrix)) == matrix


def test_class_accuracy_of_a_class_without_samples_is_unknown():
    assert report.class_accuracy([[3, 1], [0, 0]]) == [0.75, None]


def test_colours_go_to_the_candidates_that_charts_show(both_starts):
    failed_first = replace(both_starts, candidates=both_starts.candidates[::-1])
    shown = {entry["name"]: entry["colour"] for entry in report.payload(failed_first)["candidates"]}
    assert sorted(shown.values()) == list(range(len(shown)))
    assert shown["broken"] == len(shown) - 1


def test_metrics_that_are_not_fractions_are_not_called_per_cent(four):
    candidates = [replace(c, dominated={}) for c in four.candidates]
    page = Page(render(replace(four, metric="rmse", maximize=False, candidates=candidates)))
    assert not page.results["fraction"]
    assert "points" not in page.words.replace("data points", "")


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_a_browser_draws_every_chart_and_runs_no_injected_script(both_starts, tmp_path):
    html = render(both_starts).replace(
        "<head>", "<head><script>window.alert=(text)=>{document.title='attacked: '+text};"
        "window.onerror=(text)=>{document.title='error: '+text};</script>"
    )  # fmt: skip
    (tmp_path / "report.html").write_text(html)
    quiet = "no-first-run disable-background-networking disable-component-update disable-sync disable-quic disable-gpu"
    dom = subprocess.run(
        ["chromium", "--headless", "--no-sandbox", *(f"--{option}" for option in quiet.split()),
         f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=3000", "--dump-dom",
         (tmp_path / "report.html").as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    ).stdout  # fmt: skip
    head, _, body = dom.partition("<body")
    assert "<title>digits · torchstone</title>" in head
    for chart in ("cost-chart", "curve-chart", "class-chart", "confusion-chart"):
        assert re.search(rf'id="{chart}"[^>]*js-plotly-plot', body), chart
