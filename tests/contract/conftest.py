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
