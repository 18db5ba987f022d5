"""Operations and bytes of a grouped convolution and of its two gradients."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from torchstone.errors import CallError

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@dataclass(frozen=True)
class Pass:
    """What one kernel of a convolution has to do.

    Attributes:
        macs: multiply-accumulates; adding a bias counts as half of one.
        bytes_read, bytes_written: of memory, each tensor once.
        accumulation_depth: products that are summed up for one number of the result.
    """

    macs: float
    bytes_read: int
    bytes_written: int
    accumulation_depth: int

    @property
    def bytes(self) -> int:
        """Read and written."""
        return self.bytes_read + self.bytes_written

    @property
    def intensity(self) -> float:
        """Operations per byte, a multiply-accumulate being two."""
        return 2 * self.macs / self.bytes

    def to_list(self) -> list[float]:
        """Multiply-accumulates, bytes read, bytes written, operations per byte, accumulation depth."""
        return [self.macs, self.bytes_read, self.bytes_written, self.intensity, self.accumulation_depth]


@dataclass(frozen=True)
class ConvStatistics:
    """A convolution's three passes.

    Attributes:
        shape: of the input, (N, C, H, W).
        kernel: its sides (r, s).
        group_width: input channels of a group.
        output: the forward pass.
        grad_input: the gradient of the input.
        grad_weight: the gradient of the weights.
    """

    shape: tuple[int, int, int, int]
    kernel: tuple[int, int]
    group_width: int
    output: Pass
    grad_input: Pass
    grad_weight: Pass

    def passes(self) -> dict[str, Pass]:
        """The passes by name."""
        return {"output": self.output, "grad_input": self.grad_input, "grad_weight": self.grad_weight}

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, each pass also with its operations per byte."""
        intensities = {name: {**asdict(value), "intensity": value.intensity} for name, value in self.passes().items()}
        return {**asdict(self), **intensities}

    def plot(self) -> Figure:
        """Operations per byte of the three passes."""
        from torchstone.instruments.conv_efficiency.plots import statistics_figure

        return statistics_figure(self)


def conv_statistics(
    shape: tuple[int, int, int, int],
    *,
    kernel: int | tuple[int, int] = 3,
    padding: int | tuple[int, int] = 1,
    group_width: int = 8,
    bias: bool = False,
    bytes_per_number: int = 2,
) -> ConvStatistics:
    """Count a grouped convolution of stride 1 that keeps the number of channels.

    With r x s kernels and groups of g channels: ``MACs = |out| r s g`` (and half of one per bias added) forward,
    ``|in| r s g`` for either gradient. Each kernel reads its operands once and writes its result once.

    Args:
        shape: of the input, (N, C, H, W).
        kernel: its side, or both.
        padding: pixels of zeros at every border.
        group_width: channels g of a group; C for a full convolution, 1 for a depthwise one.
        bias: whether one is added.
        bytes_per_number: 2 for float16.

    Raises:
        CallError: numbers that are not positive, groups that do not divide the channels, or a kernel larger than the
            padded map.

    Source:
        andravin/spio, ``Conv2dStats``.

    Example:
        >>> depthwise = conv_statistics((1, 64, 56, 56), group_width=1)
        >>> round(depthwise.output.intensity, 1)
        4.5
    """
    batch, channels, height, width = shape
    r, s = (kernel, kernel) if isinstance(kernel, int) else kernel
    pad_h, pad_w = (padding, padding) if isinstance(padding, int) else padding
    if min(*shape, r, s, group_width, bytes_per_number) < 1 or min(pad_h, pad_w) < 0:
        raise CallError(f"sizes must be positive, got shape {shape}, kernel {r}x{s}, groups of {group_width}")
    if channels % group_width:
        raise CallError(f"groups of {group_width} do not divide {channels} channels")
    out_height, out_width = height + 2 * pad_h - r + 1, width + 2 * pad_w - s + 1
    if min(out_height, out_width) < 1:
        raise CallError(f"a {r}x{s} kernel does not fit a {height}x{width} map padded by {pad_h} and {pad_w}")
    depth = r * s * group_width
    inputs, outputs = batch * channels * height * width, batch * channels * out_height * out_width
    weights, biases, unit = channels * depth, channels if bias else 0, bytes_per_number
    return ConvStatistics(
        shape,
        (r, s),
        group_width,
        Pass(outputs * (depth + (0.5 if bias else 0)), (inputs + weights + biases) * unit, outputs * unit, depth),
        Pass(inputs * depth, (outputs + weights) * unit, inputs * unit, depth),
        Pass(inputs * depth, (outputs + inputs) * unit, weights * unit, batch * height * width),
    )
