"""PyTorch's sequence networks stand beside ours in a comparison."""

import pytest
import torch

from torchstone.errors import CallError, ShapeError, UnknownName
from torchstone.models.registry import build_model
from torchstone.models.sequence.peers import NAMES
from torchstone.reporting.candidates import SEQUENCE_PEERS, parse_candidates

SIZES = {"in_channels": 3, "num_classes": 5, "max_length": 20}


@pytest.mark.parametrize("name", NAMES)
def test_a_peer_classifies_sequences_up_to_the_longest(name):
    heads = {"heads": 2} if name == "transformer" else {}
    model = build_model(f"torch:{name}", width=8, depth=1, **heads, **SIZES).eval()
    for length in (1, 20):
        assert model(torch.randn(2, length, 3)).shape == (2, 5)
    x = torch.randn(2, 20, 3)
    assert not torch.allclose(model(x), model(x.flip(1)), atol=1e-5)


def test_a_transformer_has_no_positions_behind_the_longest_sequence():
    with pytest.raises(ShapeError, match="up to 20 steps"):
        build_model("torch:transformer", **SIZES)(torch.randn(1, 21, 3))


def test_peers_are_candidates_by_their_library():
    candidates, _ = parse_candidates(["torch:lstm", "torch:*"])
    assert [one.model for one in candidates] == ["torch:lstm", "torch:gru", "torch:transformer"]
    assert SEQUENCE_PEERS == NAMES
    with pytest.raises(UnknownName, match="torch:transformer"):
        parse_candidates(["torch:transformr"])
    with pytest.raises(CallError, match="PyTorch has none"):
        parse_candidates(["torch:gru@pretrained"])
    with pytest.raises(UnknownName, match="transformer"):
        build_model("torch:transformr", **SIZES)


@pytest.mark.parametrize("name", ["timm:resnet18", "torchvision:resnet18"])
def test_networks_for_images_are_refused(name):
    with pytest.raises(CallError, match=f"{name} is a network for images"):
        build_model(name, **SIZES)
