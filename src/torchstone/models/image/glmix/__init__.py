"""GLMix: Revisiting the Integration of Convolution and Attention for Vision Backbone (Zhu, Wang, Zhang, Lau; NeurIPS
2024, arXiv 2411.14429).

Convolution and attention usually work at the same, finest granularity, where attention between all pixels costs the
square of their number. GLMix gives each the granularity it is good at: a light depthwise convolution works on the grid
of pixels, attention on a small set of semantic slots. Pixels are grouped into slots softly, slots attend to each other,
and what they become goes back to the pixels by the same similarities: a cost linear in the pixels.

GLMix block, for a map X of L = H W pixels and C channels, and M slots::

    S_0 = adaptive average pool of X to sqrt(M) x sqrt(M)                (M, C), or M learned vectors
    X   = X + DWConv(X)                                                  position encoding, where there is one
    Y   = LN(X)                                                          (L, C)

    A   = scale cos(S_0, Y)                                              (M, L), the similarity; scale is learned
    S   = softmax_L(A) Y                                                 soft clustering: pixels to slots
    S   = MultiHeadAttention(S)                                          the global branch's mixing
    G   = softmax_M(A)^T S                                               dispatching: slots to pixels
    N   = W_o DWConv_5x5(W_i Y)                                          the local branch

    X   = X + gamma_1 (G + N),   X = X + gamma_2 FFN(LN X)

    FFN(Y) = W_2 GELU(Z + DWConv_3x3(Z)),  Z = W_1 Y                     the convolution in 4G, 9G and 16G only

GLNet, for an image (B, 3, H, W)::

    stem     overlapped: two 3x3 convolutions of stride 2, each with batch norm, GELU between; or one of 4x4, stride 4
    stage i  (not in stage 0: convolution of stride 2 with batch norm), blocks      (B, dims[i], H/4/2^i, W/4/2^i)
    head     batch norm, mean over H and W, linear                                  (B, num_classes)

In GLNet-4G, -9G and -16G every other block of stage 3, and all of stage 4, attend between all pixels of their then
small maps. GLNet-STL has the layout of Swin-T, and attends between all pixels in stage 4 only.

Weights are trained with softmax cross-entropy (the recipe ``glmix_imagenet``), the ``_tklb`` ones with token labelling:
a second classifier learns a label for each token, while a box of the batch's images is exchanged.

Reading order: :mod:`blocks <torchstone.models.image.glmix.blocks>` (slots, GLMix and attention blocks),
:mod:`network <torchstone.models.image.glmix.network>` (GLNet and its variants),
:mod:`token_labelling <torchstone.models.image.glmix.token_labelling>` (the second head, mixing, loss),
:mod:`grouping <torchstone.models.image.glmix.grouping>` (which slot each pixel goes to).

Example:
    >>> import torch, torchstone
    >>> model = torchstone.create_model("glmix_mini32", num_classes=10).eval()
    >>> model(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
"""

from torchstone.models.image.glmix.blocks import AttentionBlock, GLMixBlock, Slots, TokenAttentionBlock
from torchstone.models.image.glmix.grouping import slot_assignments
from torchstone.models.image.glmix.network import GLNet
from torchstone.models.image.glmix.token_labelling import (
    TokenLabelCrossEntropy,
    TokenLabelGLNet,
    TokenLabelGTCrossEntropy,
    TokenLabelOutputs,
    draw_box,
    exchange_box,
)

__all__ = [
    "AttentionBlock",
    "GLMixBlock",
    "GLNet",
    "Slots",
    "TokenAttentionBlock",
    "TokenLabelCrossEntropy",
    "TokenLabelGLNet",
    "TokenLabelGTCrossEntropy",
    "TokenLabelOutputs",
    "draw_box",
    "exchange_box",
    "slot_assignments",
]
