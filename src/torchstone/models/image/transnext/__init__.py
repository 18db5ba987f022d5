"""TransNeXt: Robust Foveal Visual Perception for Vision Transformers (Shi; CVPR 2024, arXiv 2311.17132).

An eye sees sharply where it looks and coarsely everywhere else, and it moves. Here every pixel is such a gaze: in one
softmax it attends to its neighbours one by one and to the whole map in pooled cells. So each block sees everything at
a cost that is linear in the pixels times the pooled cells, without windows that cut the image.

Aggregated attention of a map X (B, H, W, C), per head, for a pixel n with the neighbours N(n) in a w x w window and the
pooled map Z = LN(AvgPool(GELU(W_z X))) of P cells (Section 3)::

    q = W_q X / |W_q X|,   (k, v) = W_kv X,  k / |k|;    (k', v') = W_kv Z,  k' / |k'|       unit queries and keys
    a = softmax_{N(n) and Z} [ (q + E) . k * softplus(t) * log(|N(n)| + P) + bias ]          one softmax over both
    y = sum_{m in N(n)} (a_m + q . T_m + b_m) v_m + sum_{Z} a_z v'_z,    W_o y

E is the query embedding, T and b the learnable tokens of the window's offsets (positional attention), t a temperature.
Logits are cosines scaled by the logarithm of how many keys there are, so that the softmax keeps its entropy at other
image sizes (length-scaled cosine attention). A window's bias is learned for each offset; that of pooled keys is an MLP
of the offset, log-spaced in units of the training image (log-CPB), and so is known at any image size. The last stage,
whose map is small, attends to all pixels (global attention: the same logits, no window).

Convolutional GLU: ``W2 (GELU(DWConv_3x3(U)) * V)`` with ``(U, V) = W1 X``: the gate sees the neighbourhood.

Network, for an image (B, 3, H, W)::

    stage i  3x3 convolution of stride 2 (first 7x7, stride 4), LN, depths[i] blocks, LN  (B, dims[i], H/4/2^i, W/4/2^i)
    block    X = X + Attention(LN X),   X = X + ConvGLU(LN X)
    head     mean over H and W, linear                                                    (B, num_classes)

Weights are trained with soft-target cross-entropy, images mixed (the recipe ``transnext_imagenet``).

Reading order: :mod:`gaze <torchstone.models.image.transnext.gaze>` (where keys lie, how many there are),
:mod:`position_bias <torchstone.models.image.transnext.position_bias>` (log-CPB),
:mod:`attention <torchstone.models.image.transnext.attention>`,
:mod:`feed_forward <torchstone.models.image.transnext.feed_forward>` (the convolutional GLU),
:mod:`network <torchstone.models.image.transnext.network>`,
:mod:`variants <torchstone.models.image.transnext.variants>` (networks by name, official checkpoints). The products with
neighbours are :func:`torchstone.ops.neighbour_scores` and :func:`torchstone.ops.neighbour_sum`.

Example:
    >>> import torch, torchstone
    >>> model = torchstone.create_model("transnext_mini32", num_classes=10).eval()
    >>> model(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
"""

from torchstone.models.image.transnext.attention import AggregatedAttention, GlobalAttention
from torchstone.models.image.transnext.feed_forward import ConvolutionalGLU, ConvolutionalMLP
from torchstone.models.image.transnext.gaze import Gaze, RelativePositions, relative_positions
from torchstone.models.image.transnext.network import TransNeXt
from torchstone.models.image.transnext.position_bias import ContinuousPositionBias, FixedPositionBias
from torchstone.models.image.transnext.variants import convert_official

__all__ = [
    "AggregatedAttention",
    "ContinuousPositionBias",
    "ConvolutionalGLU",
    "ConvolutionalMLP",
    "FixedPositionBias",
    "Gaze",
    "GlobalAttention",
    "RelativePositions",
    "TransNeXt",
    "convert_official",
    "relative_positions",
]
