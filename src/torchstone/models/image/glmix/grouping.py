"""Which slot each pixel goes to: the maps that show what a network groups."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from torchstone.errors import CallError
from torchstone.models.image.glmix.blocks import GLMixBlock


@torch.no_grad()
def slot_assignments(model: nn.Module, x: Float[Tensor, "b c h w"]) -> dict[str, Float[Tensor, "b m p q"]]:
    """The slot assignment maps of images: by GLMix block, what share of each pixel's answer comes from which slot.

    ``softmax_M(A)``, the weights with which a block dispatches its slots to the pixels. A map's argmax over the slots
    groups the pixels; the paper shows single slots' maps over the image.

    Args:
        model: a network with GLMix blocks; it is called once, in the mode it is in.
        x: images, as the model takes them.

    Returns:
        By the block's name in the model, in the order in which the blocks run: (B, M, H', W') of M slots over the
        block's map. The shares of a pixel sum to 1 over the slots.

    Raises:
        CallError: the model has no GLMix block with slots.
        ShapeError: images that the model does not take.
    """
    blocks = {
        name: module for name, module in model.named_modules() if isinstance(module, GLMixBlock) and module.num_slots
    }
    if not blocks:
        raise CallError(f"{type(model).__name__} has no GLMix block with slots")
    inputs: dict[str, Tensor] = {}
    hooks = [
        block.register_forward_pre_hook(lambda _, given, name=name: inputs.update({name: given[0]}))
        for name, block in blocks.items()
    ]
    try:
        model(x)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: blocks[name].slots(given).assignment.unflatten(2, given.shape[2:]) for name, given in inputs.items()}
