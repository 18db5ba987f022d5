"""What the contract tests of transforms share: the transforms there are, and networks of every library."""

import copy

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from torchstone.catalog import Card, cards
from torchstone.errors import CallError
from torchstone.models.registry import build_model
from torchstone.transforms import Result, apply

TRANSFORMS = [card for card in cards().values() if card.kind == "transform"]
LIBRARIES = {
    "ours": ("ecanet_mini32", "inceptionnext_mini32"),
    "timm": ("timm:test_efficientnet", "timm:test_vit"),
    "torchvision": ("torchvision:resnet18", "torchvision:vit_b_32"),
}
"""Networks to try, a convolutional one first; a transform must take one of each library."""
ARGS = {"num_classes": 4}


def images(seed: int = 0) -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def build(name: str) -> nn.Module:
    """A network with statistics as after training, in eval mode."""
    torch.manual_seed(0)
    more = {"img_size": 32} if name == "timm:test_vit" else {"image_size": 32} if name == "torchvision:vit_b_32" else {}
    model = build_model(name, **ARGS, **more)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model.eval()


def transformed(card: Card, model: nn.Module) -> Result:
    """The transform with its default options, on data that teach nothing."""
    return apply(
        card.key,
        model,
        images(),
        data=[(images(seed), torch.arange(2)) for seed in range(2)],
        finetune=lambda model, loss=None: model,
        teacher=copy.deepcopy(model),
    )


def first_that_fits(card: Card, library: str) -> tuple[str, nn.Module, Result]:
    """The first network of a library that a transform takes."""
    reasons = []
    for name in LIBRARIES[library]:
        model = build(name)
        try:
            return name, model, transformed(card, model)
        except CallError as error:
            reasons.append(f"{name}: {error}")
    raise AssertionError(f"{card.key} takes no network of {library}: {'; '.join(reasons)}")
