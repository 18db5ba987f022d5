"""What the test run itself says: systems over their time budget, what is not there yet, why something was skipped."""

import os
import re
import subprocess
import sys
from pathlib import Path

import _shared
import pytest

TESTS = Path(__file__).parent
SLOW = """
import time
import pytest

@pytest.fixture(scope="session")
def warm_tool():
    burn(1.0)

def burn(seconds):
    start = time.process_time()
    while time.process_time() - start < seconds:
        pass

@pytest.mark.system("greedy")
@pytest.mark.parametrize("part", [1, 2])
def test_takes_long(part, warm_tool):
    burn(0.2)

@pytest.mark.system("modest")
def test_is_quick():
    burn(0.05)

@pytest.mark.system("waits")
def test_waits():
    time.sleep(0.5)
"""


def run_pytest(folder, *arguments, **environment):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    variables = {**os.environ, "PYTHONPATH": str(TESTS), **environment}
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["one process", "two workers"])
def test_systems_over_their_budget_are_named(tmp_path, workers):
    (tmp_path / "conftest.py").write_text(
        "import _budget\n"
        "_budget.SECONDS_PER_SYSTEM = 0.3\n"
        "def pytest_configure(config):\n"
        "    config.addinivalue_line('markers', 'system(key): of a test')\n"
        "    config.pluginmanager.register(_budget.Budget(), 'budget')\n"
    )
    (tmp_path / "test_slow.py").write_text(SLOW)
    told = [line for line in run_pytest(tmp_path, *workers).splitlines() if line.startswith("over budget")]
    assert len(told) == 1
    seconds = float(re.search(r"the tests of greedy took ([\d.]+) core-seconds, allowed are 0.3", told[0]).group(1))
    assert 0.4 <= seconds < 0.9  # both parts, without the start of the tool; waiting costs nothing


def test_systems_without_a_card_are_counted_in_one_line(tmp_path):
    for system, cases in {"first": 2, "second": 1}.items():
        (tmp_path / "parity" / system).mkdir(parents=True)
        for case in range(cases):
            (tmp_path / "parity" / system / f"{case}.json").write_text("{}")
    output = run_pytest(TESTS, "test_errors.py", TORCHSTONE_SHARED=str(tmp_path))
    assert "not yet: 3 cases of 2 systems" in output.splitlines()


def test_a_missing_shared_folder_is_said(tmp_path):
    output = run_pytest(TESTS, "test_errors.py", TORCHSTONE_SHARED=str(tmp_path))
    assert f"no parity folder in {tmp_path}: only the recorded cases in the repository were compared" in output


def test_a_skip_says_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(_shared, "SHARED", tmp_path)
    mark = _shared.requires_shared("data/cifar10").mark
    assert mark.args == (True,)
    assert "needs data/cifar10 of the shared folder" in mark.kwargs["reason"]
    (tmp_path / "data" / "cifar10").mkdir(parents=True)
    assert _shared.requires_shared("data/cifar10").mark.args == (False,)


def test_a_shared_folder_that_is_not_there_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHSTONE_SHARED", str(tmp_path / "nowhere"))
    with pytest.raises(pytest.UsageError, match="nowhere, which is not a folder"):
        _shared._find()
