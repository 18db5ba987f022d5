"""What the contract tests of sequence models share: which systems there are, and how a model and its input are made."""

import inspect

import torch
from torch import Tensor, nn

from torchstone import create_model
from torchstone.catalog import Card, cards

CHANNELS, CLASSES, LENGTH = 3, 5, 24

SYSTEMS = [card for card in cards().values() if card.room == "models/sequence"]


def build_sequence_model(card: Card, seed: int = 0, **kwargs) -> nn.Module:
    """The system's small model, ``<key>_mini``, with weights as after training: every parameter matters."""
    torch.manual_seed(seed)
    sizes = {"in_channels": CHANNELS, "num_classes": CLASSES, "max_length": LENGTH}
    model = create_model(f"{card.key}_mini", **{**sizes, **kwargs})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    return model


def sequences(batch: int = 2, length: int = LENGTH, seed: int = 0) -> Tensor:
    """Normal sequences, (batch, length, CHANNELS)."""
    return torch.randn(batch, length, CHANNELS, generator=torch.Generator().manual_seed(seed))


def takes_lengths(model: nn.Module) -> bool:
    """Whether the model takes padded sequences with their lengths."""
    return "lengths" in inspect.signature(model.forward).parameters


def loss_of(model: nn.Module, *inputs: Tensor) -> Tensor:
    """A scalar that depends on every logit."""
    found = model(*inputs).float()
    return (found * torch.linspace(-1, 1, found.numel()).view_as(found)).sum()
