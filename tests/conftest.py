"""What all tests share: one thread per worker, the time budget of each system, tools that are started once, and the
count of what is not there yet."""

import os

for _threads in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # read when torch is loaded; pytest-xdist fills the cores
    os.environ.setdefault(_threads, "1")

import pytest  # noqa: E402
import torch  # noqa: E402
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


@pytest.fixture(scope="session")
def warm_timm():
    """Import what every image model needs, once."""
    import timm  # noqa: F401


@pytest.fixture(scope="session")
def warm_compiler():
    """Start the compiler once, on a layer of its own."""
    layer = torch.compile(torch.nn.Conv2d(3, 3, 3), fullgraph=True, backend="aot_eager")
    layer(torch.randn(1, 3, 8, 8)).sum().backward()


@pytest.fixture(scope="session")
def warm_onnx(tmp_path_factory):
    """Start exporter and runtime once, on a layer of its own."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="the export extra is not installed")
    path = tmp_path_factory.mktemp("onnx") / "layer.onnx"
    with torch.no_grad():
        torch.onnx.export(torch.nn.Conv2d(3, 3, 3).eval(), (torch.randn(1, 3, 8, 8),), path, dynamo=True, verbose=False)
    return onnxruntime
