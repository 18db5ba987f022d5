"""The shapes that public functions state hold at run time.

jaxtyping's import hook checks every annotated call of the modules that it loads. It breaks whole-graph capture, so
these tests run in a process of their own: ``pytest -m shapes``.
"""

import importlib
import sys

import pytest
import torch
from jaxtyping import TypeCheckError, install_import_hook

from torchstone import catalog

pytestmark = pytest.mark.shapes

ROOMS = ["torchstone.layers", "torchstone.models"]


@pytest.fixture(scope="module", autouse=True)
def checked():
    """Load the annotated rooms anew, with every call checked."""
    for name in [name for name in sys.modules if name.startswith(tuple(ROOMS))]:
        del sys.modules[name]
    with install_import_hook(ROOMS, "_checker.check"):
        for card in catalog.cards().values():
            if card.kind == "model":
                importlib.import_module(card.module)
        yield


GRAPH_SYSTEMS = [card.key for card in catalog.cards().values() if card.room == "models/graph"]
IMAGE_SYSTEMS = [card.key for card in catalog.cards().values() if card.room == "models/image"]


@pytest.mark.parametrize("key", IMAGE_SYSTEMS)
def test_an_image_models_annotations_hold(key):
    from torchstone.models.registry import create_model

    model = create_model(f"{key}_mini32", num_classes=5)
    images = torch.randn(2, 3, 32, 32)
    assert model(images).shape == (2, 5)
    features = model.forward_features(images)
    assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)
    assert model.forward_intermediates(images, intermediates_only=True)
    model.set_grad_checkpointing()
    model(images).sum().backward()
    assert create_model(f"{key}_mini32", features_only=True)(images)


@pytest.mark.parametrize("key", GRAPH_SYSTEMS)
def test_a_graph_models_annotations_hold(key):
    from torchstone.models.registry import create_model

    model = create_model(key, in_channels=6, out_channels=3)
    edges = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
    found = model(torch.rand(4, 6), edges)
    whole_graphs = catalog.card(key).task != "node-classification"
    assert found.shape == (1 if whole_graphs else 4, 3)
    found.sum().backward()
    with pytest.raises(TypeCheckError):
        model(torch.rand(4, 6), edges[0])


def test_the_check_is_awake():
    """A tensor of another rank is caught by the annotation, so the checks above could have failed."""
    from torchstone.layers import EfficientChannelAttention

    with pytest.raises(TypeCheckError):
        EfficientChannelAttention(8)(torch.randn(2, 8, 4))
