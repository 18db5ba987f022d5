"""ConvFirst networks, from *On the Efficiency of Convolutional Neural Networks* (Lavin 2024, arXiv 2404.03617).

A residual block whose small grouped convolution comes first can run as one kernel: the expanded tensor, which is what
makes the layers of ConvNeXt and of EfficientNet wait for memory, never leaves the chip. The instrument that shows it is
:mod:`torchstone.instruments.conv_efficiency`, the kernel :mod:`torchstone.ops.fused_block`.

ConvFirst block, for x of C channels, with groups of g channels in the k x k convolution and e C hidden channels::

    u = BN(GroupConv_kxk(x))                                             (B, C, H, W)
    y = BN(W2 SiLU(BN(W1 u)))  [+ x, where shapes agree]                 (B, C', H, W)

MBConv block: the grouped convolution stands between the two 1x1 convolutions::

    h = SiLU(BN(W1 x))                                                   (B, e C, H, W)
    y = BN(W2 SiLU(BN(GroupConv_kxk(h))))  [+ x]                         (B, C', H, W)

MLP block: neither; only ``y = BN(W2 SiLU(BN(W1 x))) [+ x]``. :class:`StackedBlocks` is the author's benchmark: MLP
blocks, ``depth`` blocks of one kind, MLP blocks, mean over the map.

**Reconstruction.** The blocks are proved against the author's repository. The paper's networks are not published as
code: widths, depths, stem and head of :class:`ConvFirstNet` are ours. As in the paper, ConvFirst blocks form the early
stages of high resolution and MBConv blocks, on request with squeeze-and-excitation, the later ones.

Network, for an image (B, 3, H, W)::

    stem     3x3 convolution, BN, SiLU                                   (B, dims[0], H/s, W/s)
    stage i  depths[i] blocks, the first of stride 2 (of the small form not in stage 0)
    head     1x1 convolution, BN, SiLU, mean over H and W, linear        (B, num_classes)

Example:
    >>> import torch, torchstone
    >>> model = torchstone.create_model("convfirst_mini32", num_classes=10).eval()
    >>> model(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
"""

from torchstone.models.image.convfirst.blocks import Block, ConvFirst, MBConv, MLPBlock, StackedBlocks
from torchstone.models.image.convfirst.network import ConvFirstNet

__all__ = ["Block", "ConvFirst", "ConvFirstNet", "MBConv", "MLPBlock", "StackedBlocks"]
