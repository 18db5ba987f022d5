"""The code in README and docs runs.

``python`` and ``bash`` blocks are executed, page by page; ``console`` blocks are shown only.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from torchstone.reporting.gallery import END, START, _beside_the_paper, _flatten, as_markdown, gallery, system_page

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[tuple[str, str]]:
    return BLOCK.findall(page.read_text())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a page's code runs: a fresh folder with a few images to predict."""
    from PIL import Image
    from sklearn.datasets import load_digits

    (tmp_path / "samples").mkdir()
    for index, digit in enumerate(load_digits().images[:3]):
        Image.fromarray((digit * 15).astype("uint8")).resize((32, 32)).save(tmp_path / "samples" / f"{index}.png")
    return tmp_path


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.stem)
def test_the_code_on_a_page_runs(page, folder):
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for language, code in blocks(page):
        command = [sys.executable, "-c", code] if language == "python" else ["bash", "-euo", "pipefail", "-c", code]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{page.name}:\n{code}\n{done.stdout}\n{done.stderr}"


def test_the_readme_shows_the_gallery_that_the_cards_make():
    text = (ROOT / "README.md").read_text()
    shown = text.split(START, 1)[1].split(END, 1)[0].strip()
    assert shown == gallery().strip(), "run: python -m torchstone.reporting.gallery README.md"


def test_every_system_page_can_be_made():
    from torchstone import catalog

    for key, card in catalog.cards().items():
        page = system_page(key)
        assert card.title in page
        assert all(variant.name in page for variant in card.variants)


def test_links_between_pages_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_a_median_and_its_spread_are_one_row_of_a_systems_page():
    rows = _flatten({"statement": True, "ours / theirs": {"median": 0.9, "low": 0.85, "high": 1.0}, "values": [1, 2.5]})
    assert rows == [("statement", "yes"), ("ours / theirs", "0.9 (0.85 to 1)"), ("values", "1, 2.5")]


def test_scores_beside_the_papers_are_a_table_with_where_each_row_was_measured():
    measured = {"command": "run", "date": "2026-01-02", "hardware": {"processor": "CPU", "threads": 1}}
    row = {
        "network": "GCN",
        "paper": {"mean": 81.5, "std": 0.5, "splits": 10},
        "ours": {"mean": 80.25, "std": 1.0, "splits": 4},
    }
    lines = _beside_the_paper({"texas": row, "cora": {**row, "measured": measured}})
    assert lines[2] == "| texas, GCN | 81.50 ± 0.50 (10 splits) | 80.25 ± 1.00 (4 splits) | -1.25 | no |"
    assert lines[4:] == ["", "- cora: `run`, 2026-01-02, CPU, 1 threads"]


def test_a_papers_score_without_a_spread_or_no_score_at_all_is_shown_as_it_is():
    rows = {
        "without a spread": {"paper": {"mean": 0.0142}, "ours": {"mean": 0.0250, "std": 0.002, "seeds": 3}},
        "not in the paper": {"paper": None, "ours": {"mean": 81.0}},
    }
    lines = _beside_the_paper(rows)
    assert lines[2:] == [
        "| without a spread | 0.0142 | 0.0250 ± 0.0020 (3 seeds) | +0.0108 | - |",
        "| not in the paper | - | 81.00 | - | - |",
    ]


def test_docstrings_are_shown_as_markdown():
    for given, shown in (
        ("See :mod:`layer <torchstone.x.layer>`.", "See `layer`."),
        ("A :class:`~torchstone.Net`\nof ``x``", "A `torchstone.Net`\nof ``x``"),
        ("For a map X::\n\n    y = x[::2]", "For a map X:\n\n    y = x[::2]"),
        ("Example:\n    >>> 1", "Example:\n\n    >>> 1"),
    ):
        assert as_markdown(given) == shown
