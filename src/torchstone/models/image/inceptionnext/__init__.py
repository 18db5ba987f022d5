"""InceptionNeXt: When Inception Meets ConvNeXt (Yu, Zhou, Yan, Wang; CVPR 2024, arXiv 2303.16900).

A 7x7 depthwise convolution needs few multiplications and yet much time, because it moves much memory for little
arithmetic. InceptionNeXt convolves only a part of the channels, and decomposes the large kernel into a small square and
two orthogonal bands; the other channels pass unchanged. The paper's networks train about as fast as a ResNet of their
size and are as accurate as a ConvNeXt.

Inception depthwise convolution, for X of C channels, a band of k pixels and ``g = floor(C * branch_ratio)``::

    X_id, X_hw, X_w, X_h = split(X; C - 3g, g, g, g)
    mixer(X) = concat(X_id, DWConv_3x3(X_hw), DWConv_1xk(X_w), DWConv_kx1(X_h))

MetaNeXt block, one residual around token mixer, norm and MLP, with layer scale gamma::

    Y = X + gamma * W2 GELU(W1 Norm(mixer(X)))

Network, for an image (B, 3, H, W)::

    stem     4x4 convolution of stride 4, norm                          (B, dims[0], H/4, W/4)
    stage i  norm and 2x2 convolution of stride 2 (not in stage 0),
             depths[i] blocks                                           (B, dims[i], H/4/2^i, W/4/2^i)
    head     mean over H and W, linear to 3C, GELU, LayerNorm, linear   (B, num_classes)

ConvNeXt is the MetaNeXt network with a depthwise convolution for its mixer, LayerNorm, and a linear head. The paper's
ablation varies that convolution: its kernel (7, 5, 3) and the share of the channels that it convolves.

Reading order: :mod:`blocks <torchstone.models.image.inceptionnext.blocks>` (mixers, block, stage, heads),
:mod:`network <torchstone.models.image.inceptionnext.network>` (MetaNeXt and the InceptionNeXt variants),
:mod:`convnext <torchstone.models.image.inceptionnext.convnext>` (the ablation network and its official checkpoints).

Example:
    >>> import torch, torchstone
    >>> model = torchstone.create_model("inceptionnext_mini32", num_classes=10).eval()
    >>> model(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
"""

from torchstone.models.image.inceptionnext.blocks import (
    ClassifierHead,
    InceptionDWConv2d,
    MetaNeXtBlock,
    MlpHead,
    NormHead,
    PartialConv2d,
)
from torchstone.models.image.inceptionnext.convnext import ConvNeXt, convert_convnext
from torchstone.models.image.inceptionnext.network import MetaNeXt

__all__ = [
    "ClassifierHead",
    "ConvNeXt",
    "InceptionDWConv2d",
    "MetaNeXt",
    "MetaNeXtBlock",
    "MlpHead",
    "NormHead",
    "PartialConv2d",
    "convert_convnext",
]
