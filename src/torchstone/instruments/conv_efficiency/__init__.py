"""On the Efficiency of Convolutional Neural Networks (Lavin 2024, arXiv 2404.03617).

Networks of few operations are often slow. The paper joins the two by what a device makes of the operations::

    latency = operations / (peak * efficiency)

and finds that the efficiency of modern networks is low because of their operational intensity, operations per byte of
memory. A layer that is below the device's balance, peak / bandwidth, waits for memory::

    time_i = max(operations_i / peak, bytes_i / bandwidth)
    efficiency <= sum_i (operations_i / peak) / sum_i time_i

Drawn layer by layer, the balance is a waterline: what is below it drowns. Depthwise and grouped convolutions, small
1x1 convolutions and everything without multiply-accumulates are below. Run as one kernel, a block reads its input and
weights and writes its output; its bar rises above the water.

One multiply-accumulate is two operations. Peak and bandwidth are measured
(:mod:`torchstone.instruments.roofline`), and so is the time of every layer.

Reading order: :mod:`statistics <torchstone.instruments.conv_efficiency.statistics>` (one convolution, as the author
counts), :mod:`kernels <torchstone.instruments.conv_efficiency.kernels>` (a network as a sequence of kernels),
:mod:`fusion <torchstone.instruments.conv_efficiency.fusion>` (which of them run as one),
:mod:`waterline <torchstone.instruments.conv_efficiency.waterline>`,
:mod:`gap <torchstone.instruments.conv_efficiency.gap>` (several networks side by side). The blocks that the paper
designs for fusion are :mod:`torchstone.models.image.convfirst`, their kernel is :mod:`torchstone.ops.fused_block`.

The paper's text was not at hand beyond its abstract; level names, the choice of what counts as a residual block and the
networks are ours.

Example:
    >>> from torchstone.instruments.conv_efficiency import waterline
    >>> found = waterline("convfirst_mini32", batch_size=2, seconds=0.1)
    >>> found.attainable_efficiency("layers") < found.attainable_efficiency("blocks")
    True
"""

from torchstone.instruments.conv_efficiency.gap import (
    EfficiencyGap,
    Point,
    efficiency_gap,
    gap_of_comparison,
    measure_efficiency_gap,
)
from torchstone.instruments.conv_efficiency.statistics import ConvStatistics, Pass, conv_statistics
from torchstone.instruments.conv_efficiency.waterline import Bar, Waterline, waterline

__all__ = [
    "Bar",
    "ConvStatistics",
    "EfficiencyGap",
    "Pass",
    "Point",
    "Waterline",
    "conv_statistics",
    "efficiency_gap",
    "gap_of_comparison",
    "measure_efficiency_gap",
    "waterline",
]


def examples() -> dict[str, object]:
    """One small finding of each kind, by the name under which ``torchstone inspect`` makes it."""
    return {
        "waterline": waterline("convfirst_mini32", (3, 32, 32), batch_size=1, seconds=0.05),
        "efficiency-gap": efficiency_gap(
            {"convfirst_mini32": 1e8, "resnet": 2e8},
            {"convfirst_mini32": 3.0, "resnet": 5.0},
            1e11,
            accuracy={"convfirst_mini32": 0.8, "resnet": 0.7},
        ),
        "convolution": conv_statistics((1, 64, 56, 56)),
    }
