"""What all tests share: one thread per worker, the time budget of each system, tools that are started once, and the
count of what is not there yet."""

import os

for _threads in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # read when torch is loaded; pytest-xdist fills the cores
    os.environ.setdefault(_threads, "1")

import pytest  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from _budget import Budget  # noqa: E402
from _shared import SHARED, shared  # noqa: E402
from torch import nn  # noqa: E402

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


class _Layer(nn.Module):
    """A convolution, norms and attention: what most networks ask of a compiler."""

    def __init__(self):
        super().__init__()
        self.conv, self.batch_norm, self.layer_norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.LayerNorm(8)
        self.qkv, self.dropout = nn.Linear(8, 24), nn.Dropout(0.1)

    def forward(self, x):
        x = self.batch_norm(self.conv(F.pad(x, (1, 1, 1, 1))))
        x = self.layer_norm(x.flatten(2).transpose(1, 2))
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4).unbind()
        y = F.scaled_dot_product_attention(F.normalize(q, dim=-1), F.normalize(k, dim=-1), v)
        return F.adaptive_avg_pool1d(F.gelu(x + self.dropout(y.transpose(1, 2).flatten(2))).transpose(1, 2), 1)


def _with_a_dynamic_batch(layer):
    """The layer as a graph."""
    batch = torch.export.Dim("batch", min=1, max=64)
    with torch.no_grad():
        return torch.export.export(layer.eval(), (torch.randn(2, 3, 8, 8),), dynamic_shapes=({0: batch},))


@pytest.fixture(scope="session")
def warm_data():
    """Import what bundled and tabular data are read with, once."""
    import pandas  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import sklearn.datasets  # noqa: F401


@pytest.fixture(scope="session")
def warm_compiler():
    """Start the compiler once, forwards, backwards and with a dynamic batch, on a layer of its own."""
    layer = torch.compile(_Layer(), fullgraph=True, backend="aot_eager")
    layer(torch.randn(2, 3, 8, 8)).sum().backward()
    _with_a_dynamic_batch(_Layer())


@pytest.fixture(scope="session")
def warm_onnx(tmp_path_factory):
    """Start exporter and runtime once, on a layer of its own."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="the export extra is not installed")
    path = tmp_path_factory.mktemp("onnx") / "layer.onnx"
    with torch.no_grad():
        torch.onnx.export(_with_a_dynamic_batch(_Layer()), (torch.randn(2, 3, 8, 8),), path, dynamo=True, verbose=False)
    return onnxruntime


@pytest.fixture(scope="session")
def warm_processes():
    """The server that forks other processes has torch and timm in memory."""
    from torchstone.instruments.processes import in_process

    assert in_process(abs, -1) == 1
