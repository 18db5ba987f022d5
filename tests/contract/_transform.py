"""What the contract tests of transforms share: the transforms there are, and networks of every library."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from _graph import CLASSES, FEATURES, NODES, graph
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from torchstone.catalog import Card, cards
from torchstone.errors import CallError
from torchstone.models.registry import build_model
from torchstone.transforms import Result, apply

TRANSFORMS = [card for card in cards().values() if card.kind == "transform"]


def images(seed: int = 0) -> tuple[Tensor, ...]:
    return (torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(seed)),)


@dataclass(frozen=True)
class Domain:
    """Networks to try and what they are given; a transform must take one network of each of three libraries.

    Attributes:
        libraries: names of networks by library.
        args: what all of them are built with.
        inputs: the example inputs from a seed.
        data: training batches.
        more: further arguments of single networks.
    """

    libraries: dict[str, tuple[str, ...]]
    args: dict[str, Any]
    inputs: Callable[[int], tuple[Tensor, ...]]
    data: list[tuple[Any, Tensor]]
    more: dict[str, dict[str, Any]] = field(default_factory=dict)

    def args_of(self, name: str) -> dict[str, Any]:
        return {**self.args, **self.more.get(name, {})}

    def build(self, name: str) -> nn.Module:
        """A network with statistics as after training, in eval mode."""
        torch.manual_seed(0)
        model = build_model(name, **self.args_of(name))
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
        return model.eval()


IMAGES = Domain(
    libraries={
        "ours": ("ecanet_mini32", "inceptionnext_mini32"),
        "timm": ("timm:test_efficientnet", "timm:test_vit"),
        "torchvision": ("torchvision:resnet18", "torchvision:vit_b_32"),
    },
    args={"num_classes": 4},
    inputs=images,
    data=[(images(seed)[0], torch.arange(2)) for seed in range(2)],
    more={"timm:test_vit": {"img_size": 32}, "torchvision:vit_b_32": {"image_size": 32}},
)
GRAPHS = Domain(
    libraries={"ours": ("dagnn",), "pyg": ("pyg:gcn",), "pyg, attention": ("pyg:gat",)},
    args={"in_channels": FEATURES, "out_channels": CLASSES, "hidden_channels": 16},
    inputs=lambda seed: graph(seed=seed),
    data=[(graph(), torch.arange(NODES) % CLASSES)],
)


def domain_of(card: Card) -> Domain:
    return GRAPHS if card.task == "node-classification" else IMAGES


def transformed(card: Card, model: nn.Module, inputs: tuple[Tensor, ...] | None = None) -> Result:
    """The transform with its default options, on data that teach nothing."""
    domain = domain_of(card)
    return apply(
        card.key,
        model,
        domain.inputs(0) if inputs is None else inputs,
        data=domain.data,
        finetune=lambda model, loss=None: model,
        teacher=copy.deepcopy(model),
    )


def first_that_fits(card: Card, library: str) -> tuple[str, nn.Module, Result]:
    """The first network of a library that a transform takes."""
    reasons = []
    for name in domain_of(card).libraries[library]:
        model = domain_of(card).build(name)
        try:
            return name, model, transformed(card, model)
        except CallError as error:
            reasons.append(f"{name}: {error}")
    raise AssertionError(f"{card.key} takes no network of {library}: {'; '.join(reasons)}")
