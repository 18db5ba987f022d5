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


def test_the_check_is_awake():
    """A tensor of another rank is caught by the annotation, so the checks above could have failed."""
    from torchstone.layers import EfficientChannelAttention

    with pytest.raises(TypeCheckError):
        EfficientChannelAttention(8)(torch.randn(2, 8, 4))
