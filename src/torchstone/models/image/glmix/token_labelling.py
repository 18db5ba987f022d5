"""Token labelling: a second classifier learns a label for every token, while a box of the images is exchanged.

The method is that of "All Tokens Matter: Token Labeling for Training Better Vision Transformers" (Jiang et al., NeurIPS
2021, arXiv 2104.10858), with which the GLNet authors trained ``glnet_4g_tklb`` and ``glnet_9g_tklb``. For a batch of
images, its tokens t_1 .. t_N of the last map, targets c (B, K) of the images and d (B, K, N) of the tokens::

    lam ~ Beta(1, 1),  box of (1 - lam) of the map's area at a random place           in tokens
    x[box] <- flip(x)[box]                  on the stem's map; flip reverses the batch
    cls = W mean(t),   aux_i = W' t_i,   aux[box] <- flip(aux)[box]                   each label at its own image again

    lam' = 1 - |box| / N
    loss = CE(cls, lam' c + (1 - lam') flip(c)) + 0.5 mean_i CE(aux_i, d_i)

and the network answers ``cls + 0.5 max_i aux_i``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from torchstone.errors import CallError, ShapeError
from torchstone.models.image.glmix.blocks import init_weights
from torchstone.models.image.glmix.network import GLNet, build, hybrid
from torchstone.models.registry import register_model


class TokenLabelOutputs(NamedTuple):
    """What a network answers to a batch in which a box was exchanged.

    Attributes:
        cls: (B, K) logits of the mixed images.
        aux: (B, N, K) logits of every token, those within the box back at the image they are of; rows of the map first.
        box: (4,) top, left, bottom and right end of the box, ends excluded, in tokens of the last map.
    """

    cls: Tensor
    aux: Tensor
    box: Tensor


def draw_box(height: int, width: int, generator: torch.Generator | None = None) -> Int[Tensor, " 4"]:
    """A box of ``1 - lam`` of a map's area, lam uniform, around a uniform place, cut off at the border.

    Args:
        height, width: of the map, in tokens.
        generator: of the random numbers; None is the global one.

    Returns:
        (top, left, bottom, right), ends excluded.
    """
    sides = torch.tensor([height, width])
    share = (1 - torch.rand((), generator=generator)).sqrt()
    half = (sides * share).long() // 2
    middle = (sides * torch.rand(2, generator=generator)).long()
    return torch.cat([(middle - half).clamp_min(0), torch.minimum(middle + half, sides)])


def exchange_box(x: Float[Tensor, "b ..."], box: Int[Tensor, " 4"], scale: int = 1) -> Float[Tensor, "b ..."]:
    """Within a box, every image of a batch gets the pixels of its mirror: the first those of the last one.

    Twice the same box gives the batch back.

    Args:
        x: maps (B, C, H, W).
        box: (top, left, bottom, right), ends excluded.
        scale: pixels of the map to one of the box.

    Raises:
        ShapeError: a box of other than four numbers.
    """
    if box.shape != (4,):
        raise ShapeError(f"a box is (4,): top, left, bottom, right; got {tuple(box.shape)}")
    return torch.where(_inside(box.to(x.device), x.shape[-2], x.shape[-1], scale), x.flip(0), x)


def _inside(box: Tensor, height: int, width: int, scale: int) -> Bool[Tensor, "h w"]:
    top, left, bottom, right = box
    rows, columns = (torch.arange(side, device=box.device) // scale for side in (height, width))
    return ((rows >= top) & (rows < bottom))[:, None] & ((columns >= left) & (columns < right))


# Losses ---------------------------------------------------------------------------------------------------------------


class TokenLabelCrossEntropy(nn.Module):
    """``cls_weight CE(cls, lam' c + (1 - lam') flip(c)) + dense_weight mean_i CE(aux_i, d_i)``.

    Args:
        dense_weight: of the tokens' loss.
        cls_weight: of the images' loss.

    Raises:
        CallError: weights of which none is above 0, or one is negative.
    """

    def __init__(self, dense_weight: float = 1.0, cls_weight: float = 1.0) -> None:
        super().__init__()
        if min(dense_weight, cls_weight) < 0 or dense_weight + cls_weight <= 0:
            raise CallError(
                f"weights must not be negative, and one must be above 0, got dense_weight={dense_weight:g} and "
                f"cls_weight={cls_weight:g}"
            )
        self.dense_weight = dense_weight
        self.cls_weight = cls_weight

    def forward(self, outputs: TokenLabelOutputs, target: Float[Tensor, "b k ..."]) -> Float[Tensor, ""]:
        """The loss of a batch, in the precision of its targets.

        Args:
            outputs: of :meth:`TokenLabelGLNet.forward_mixed`.
            target: (B, K), shares of the classes, which are then every token's as well; or (B, K, 2 + N): the true
                label, the image's label as an annotator sees it, and the label of every token.

        Raises:
            ShapeError: a target of another shape.
            CallError: a target of integers.
        """
        cls, aux, box = outputs
        batch, tokens, classes = aux.shape
        if target.shape not in ((batch, classes), (batch, classes, 2 + tokens)):
            raise ShapeError(
                f"targets of {tokens} tokens and {classes} classes are ({batch}, {classes}) or "
                f"({batch}, {classes}, {2 + tokens}), got {tuple(target.shape)}"
            )
        if not target.is_floating_point():
            raise CallError(f"targets are shares of the classes, floating-point numbers, got {target.dtype}")
        dense = target[..., None].expand(-1, -1, tokens) if target.ndim == 2 else target[..., 2:]
        whole = target if target.ndim == 2 else self.image_target(target[..., 0], target[..., 1])
        top, left, bottom, right = box.to(aux.device)
        kept = 1 - (bottom - top) * (right - left) / tokens  # lam'
        whole = kept * whole + (1 - kept) * whole.flip(0)
        cls, aux = cls.to(target.dtype), aux.to(target.dtype)
        return self.cls_weight * F.cross_entropy(cls, whole) + self.dense_weight * F.cross_entropy(aux.mT, dense)

    def image_target(self, true: Float[Tensor, "b k"], annotated: Float[Tensor, "b k"]) -> Float[Tensor, "b k"]:
        """The images' target c: the annotator's."""
        return annotated


class TokenLabelGTCrossEntropy(TokenLabelCrossEntropy):
    """As :class:`TokenLabelCrossEntropy`, whose image target is a mean of the annotator's and the true label.

    The annotator's weighs 0.5 where it agrees with the true label, and 0.9 where it does not.
    """

    def image_target(self, true: Float[Tensor, "b k"], annotated: Float[Tensor, "b k"]) -> Float[Tensor, "b k"]:
        agree = (true.argmax(1) == annotated.argmax(1)).to(annotated.dtype)
        weight = (0.9 - 0.4 * agree)[:, None]
        return weight * annotated + (1 - weight) * true


# Network --------------------------------------------------------------------------------------------------------------


class TokenLabelGLNet(GLNet):
    """GLNet with a second classifier, of tokens: it answers ``W mean(t) + 0.5 max_i W' t_i``.

    Args:
        dense_weight: of the tokens in :meth:`training_loss`.
        **kwargs: :class:`GLNet`'s.
    """

    def __init__(self, dense_weight: float = 0.5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.criterion = TokenLabelCrossEntropy(dense_weight)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Start new classifiers, of the image and of its tokens.

        Args:
            num_classes: classes; 0 for none: the network then answers (B, head_hidden_size).
            global_pool: another pooling; empty for none: the network then answers the unpooled map.
        """
        super().reset_classifier(num_classes, global_pool)
        like = next(self.parameters())
        self.tklb_aux_head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        self.tklb_aux_head.to(like.device, like.dtype).train(self.training)
        init_weights(self.tklb_aux_head)

    def forward_head(self, x: Float[Tensor, "b c h w"], pre_logits: bool = False) -> Float[Tensor, "b ..."]:
        """Logits of a map, or with ``pre_logits`` what the image's classifier sees: (B, head_hidden_size)."""
        whole = super().forward_head(x, pre_logits)
        if pre_logits or not self.num_classes:
            return whole
        return whole + 0.5 * self.tklb_aux_head(x.flatten(2).mT).amax(1)

    def forward_mixed(self, x: Float[Tensor, "b c h w"], box: Int[Tensor, " 4"] | None = None) -> TokenLabelOutputs:
        """Logits of images and of tokens, a box exchanged between the images of the batch.

        Args:
            x: images (B, in_chans, H, W).
            box: (top, left, bottom, right), ends excluded, in tokens of the last map; drawn where None.

        Returns:
            Logits of the mixed images, logits of the tokens, back at the images that they are of, and the box.

        Raises:
            CallError: the network has no classifiers.
            ShapeError: images that the network does not take, or a box of other than four numbers.
        """
        if not self.num_classes:
            raise CallError("token labelling needs classifiers; build the network with num_classes")
        self._check(x)
        x = self.downsample_layers[0](x.contiguous(memory_format=torch.channels_last))
        scale = 2 ** (len(self.stages) - 1)  # pixels of the stem's map to a token
        if box is None:
            box = draw_box(*(max(1, side // scale) for side in x.shape[-2:]))
        x = self.stages[0](exchange_box(x, box, scale))
        for index in range(1, len(self.stages)):
            x = self._stage(index, x)
        x = self._tail(x)
        aux = self.tklb_aux_head(x.flatten(2).mT)  # (B, N, K)
        aux = exchange_box(aux.mT.unflatten(2, x.shape[2:]), box).flatten(2).mT
        return TokenLabelOutputs(GLNet.forward_head(self, x), aux, box)

    def training_loss(self, x: Float[Tensor, "b c h w"], target: Float[Tensor, "b k ..."]) -> Float[Tensor, ""]:
        """The loss that the network is trained with: of a batch in which a drawn box is exchanged.

        Args:
            x: images (B, in_chans, H, W).
            target: as :class:`TokenLabelCrossEntropy` takes it.

        Returns:
            The mean over the images.

        Raises:
            CallError, ShapeError: as :meth:`forward_mixed` and :class:`TokenLabelCrossEntropy`.
        """
        return self.criterion(self.forward_mixed(x), target)


def adapt_heads(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Released weights for a model: where their classes are others than its own, both classifiers start anew."""
    own = model.state_dict()
    theirs, ours = (weights["head.weight"].shape if "head.weight" in weights else None for weights in (state, own))
    if theirs is None or theirs == ours:
        return dict(state)
    kept = {name: value for name, value in state.items() if not name.startswith("tklb_aux_head.")}
    return kept | {name: value for name, value in own.items() if name.startswith("tklb_aux_head.")}


# Factories ------------------------------------------------------------------------------------------------------------


@register_model
def glnet_4g_tklb(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """GLNet-4G with token labelling."""
    return build(TokenLabelGLNet, "glnet_4g_tklb", pretrained, hybrid("4g"), adapt_heads, **kwargs)


@register_model
def glnet_9g_tklb(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """GLNet-9G with token labelling."""
    return build(TokenLabelGLNet, "glnet_9g_tklb", pretrained, hybrid("9g"), adapt_heads, **kwargs)
