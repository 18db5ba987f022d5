"""What the contract tests of image models share: which systems there are, and how a model and its input are made."""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from torchstone import create_model
from torchstone.catalog import Card, cards

SIZE = 32  # what every <key>_mini32 is made for

SYSTEMS = [card for card in cards().values() if card.models_room == "models/image"]


def channels(card: Card) -> int:
    """The channels that a model is built for when nothing is said."""
    return 3 if card.input.in_chans == "any" else card.input.in_chans


def build(card: Card, seed: int = 0, **kwargs) -> nn.Module:
    """The system's small model, built from a seed."""
    torch.manual_seed(seed)
    return create_model(card.small_form, **kwargs)


def build_lively(card: Card, seed: int = 0, **kwargs) -> nn.Module:
    """The small model with weights and statistics as after training.

    Fresh networks hide their branches (layer scales of 1e-6, norms that start at zero); here every parameter matters.
    """
    model = build(card, seed, **kwargs)
    with torch.no_grad():
        for parameter in model.parameters():
            vector = parameter.numel() == max(parameter.shape, default=1)
            parameter += torch.randn_like(parameter) * (0.3 if vector else 0.02)
        for module in model.modules():
            if isinstance(module, _BatchNorm) and module.running_mean is not None:
                module.running_mean += 0.1 * torch.randn_like(module.running_mean)
                module.running_var *= 0.5 + torch.rand_like(module.running_var)
    return model


def images(card: Card, batch: int = 2, height: int = SIZE, width: int | None = None, seed: int = 0) -> Tensor:
    """A batch of normalised images, (batch, channels, height, width)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, channels(card), height, width or height, generator=generator)


def assert_same(ours: Tensor, expected: Tensor, relative: float = 1e-4) -> None:
    """Equal up to rounding, measured against the largest value."""
    torch.testing.assert_close(ours, expected, rtol=0, atol=relative * max(expected.abs().max().item(), 0.1))
