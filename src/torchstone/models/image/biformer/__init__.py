"""BiFormer: Vision Transformer with Bi-Level Routing Attention (Zhu, Wang, Ke, Zhang, Lau; CVPR 2023, 2303.08810).

Attention over all pixels costs the square of their number, and sparse patterns made by hand (windows, stripes) are the
same for every image. BiFormer lets the content choose: the map is cut into coarse regions, each region finds the few
regions that resemble what it asks for, and its pixels attend to all pixels of those, by gathering them once and then
multiplying dense matrices.

Bi-level routing attention, for a map cut into S x S regions, q, k, v linear in the pixels (Section 3.2)::

    A  = mean(q) mean(k)^T                       between the regions' means, (S^2, S^2)
    I  = the k largest entries of each row of A                                        (S^2, k)
    y  = W_o (softmax(q gather(k, I)^T / sqrt(C)) gather(v, I) + DW_5x5(v))            by head

Block, for a map X (B, C, H, W)::

    X = X + DW_3x3(X),   X = X + attention(LN X),   X = X + W_2 GELU(W_1 LN X)

Network, for an image (B, 3, H, W)::

    stem     3x3 convolution of stride 2, BN, GELU, 3x3 convolution of stride 2, BN    (B, dims[0], H/4, W/4)
    stage i  3x3 convolution of stride 2, BN (not in stage 0), depths[i] blocks        (B, dims[i], H/4/2^i, W/4/2^i)
    head     BN, mean over H and W, linear                                             (B, num_classes)

There are 7 x 7 regions in every stage and k = 1, 4, 16; the last stage attends among all its pixels. The networks in
the layout of Swin-T (STL) have its patches and stages instead, and no 3x3 convolution in front of attention. Training
is that of DeiT (the recipe ``biformer_imagenet``); there is no loss of the system's own.

Reading order: :mod:`attention <torchstone.models.image.biformer.attention>` (routing attention, both published forms),
:mod:`blocks <torchstone.models.image.biformer.blocks>`, :mod:`network <torchstone.models.image.biformer.network>`
(networks, variants), :mod:`dense <torchstone.models.image.biformer.dense>` (for detection and segmentation); the
operator itself is :func:`torchstone.ops.routed_attention`.

Example:
    >>> import torch, torchstone
    >>> model = torchstone.create_model("biformer_mini32", num_classes=10).eval()
    >>> model(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
"""

from torchstone.models.image.biformer.attention import (
    Attention,
    AttentionLePE,
    AttentionLePE2d,
    BiLevelRoutingAttention,
    BiLevelRoutingAttention2d,
    Routed,
)
from torchstone.models.image.biformer.blocks import BiFormerBlock, BiFormerBlock2d
from torchstone.models.image.biformer.dense import DenseBiFormer, dense_backbone
from torchstone.models.image.biformer.network import BiFormer, BiFormerSTL, BiFormerSTL2d, convert_official

__all__ = [
    "Attention",
    "AttentionLePE",
    "AttentionLePE2d",
    "BiFormer",
    "BiFormerBlock",
    "BiFormerBlock2d",
    "BiFormerSTL",
    "BiFormerSTL2d",
    "BiLevelRoutingAttention",
    "BiLevelRoutingAttention2d",
    "DenseBiFormer",
    "Routed",
    "convert_official",
    "dense_backbone",
]
