"""One run per carded system of a kind, on a model that the tests of a worker share."""

import pytest
import torch
from _image import SYSTEMS, build_lively, images


@pytest.fixture(scope="session", params=[pytest.param(c, id=c.key, marks=pytest.mark.system(c.key)) for c in SYSTEMS])
def card(request):
    """The card of an image system."""
    return request.param


@pytest.fixture(scope="session")
def mini(card, warm_timm):
    """The system's small model in eval mode. It is shared: tests do not change it."""
    return build_lively(card).eval()


@pytest.fixture
def trainee(card, warm_timm):
    """A small model of one's own, in train mode."""
    return build_lively(card).train()


@pytest.fixture
def x(card):
    """Two images."""
    return images(card)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


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
