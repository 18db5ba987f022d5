"""Names the systems whose tests use more processor time than a system may.

A test belongs to the system of its ``system`` mark, else to the one in its file name (``test_<key>.py``,
``test_<key>_*.py``). Time is that of the process and its children, so a busy machine does not matter. What warming up a
tool costs (session fixtures called ``warm...``) belongs to nobody.
"""

import os
from collections import defaultdict
from pathlib import Path

import pytest

from torchstone.catalog import cards

SECONDS_PER_SYSTEM = 20.0

_PROPERTY = "core_seconds"


def _now() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def system_of(item: pytest.Item) -> str | None:
    """Key of the system that a test is about."""
    mark = item.get_closest_marker("system")
    if mark is not None:
        return mark.args[0]
    stem = Path(item.path).stem.removeprefix("test_")
    matching = [key for key in cards() if stem == key or stem.startswith(f"{key}_")]
    return max(matching, key=len, default=None)


class Budget:
    """Plugin: measures every test where it runs, adds up and reports where the results arrive."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = defaultdict(float)
        self._warming = 0.0

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef):
        start = _now()
        try:
            return (yield)
        finally:
            if fixturedef.argname.startswith("warm"):
                self._warming += _now() - start

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item):
        start = _now()
        try:
            return (yield)
        finally:
            item.stash[_CALL] = _now() - start

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self, item):
        start, self._warming = _now(), 0.0
        try:
            return (yield)
        finally:
            item.stash[_SETUP] = max(0.0, _now() - start - self._warming)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(self, item):
        key = system_of(item)
        if key is not None:
            seconds = item.stash.get(_SETUP, 0.0) + item.stash.get(_CALL, 0.0)
            item.user_properties.append((_PROPERTY, (key, seconds)))
        return (yield)

    def pytest_runtest_logreport(self, report):
        if report.when == "teardown":
            for name, value in report.user_properties:
                if name == _PROPERTY:
                    key, seconds = value
                    self.spent[key] += seconds

    def pytest_terminal_summary(self, terminalreporter):
        over = {key: seconds for key, seconds in self.spent.items() if seconds > SECONDS_PER_SYSTEM}
        for key, seconds in sorted(over.items()):
            terminalreporter.write_line(
                f"over budget: the tests of {key} took {seconds:.1f} core-seconds, allowed are {SECONDS_PER_SYSTEM:g}",
                red=True,
            )


_CALL = pytest.StashKey[float]()
_SETUP = pytest.StashKey[float]()
