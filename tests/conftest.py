"""What all tests share: one thread per worker, the time budget of each system, the count of what is not there yet."""

import os

for _threads in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # read when torch is loaded; pytest-xdist fills the cores
    os.environ.setdefault(_threads, "1")

from _budget import Budget  # noqa: E402
from _shared import SHARED, shared  # noqa: E402

from torchstone.catalog import cards  # noqa: E402


def pytest_configure(config):
    config.addinivalue_line("markers", "system(key): the system that a test is about")
    config.pluginmanager.register(Budget(), "budget")


def pytest_terminal_summary(terminalreporter):
    recorded = shared("parity")
    if recorded is None:
        where = "no shared folder" if SHARED is None else f"no parity folder in {SHARED}"
        terminalreporter.write_line(f"{where}: only the recorded cases in the repository were compared")
        return
    waiting = {folder.name: len(list(folder.glob("*.json"))) for folder in recorded.iterdir() if folder.is_dir()}
    waiting = {key: count for key, count in waiting.items() if key not in cards()}
    if waiting:
        terminalreporter.write_line(f"not yet: {sum(waiting.values())} cases of {len(waiting)} systems")
