"""Recorded cases of the author's related repositories: blocks and byte counts of spio, Winograd matrices of wincnn."""

import torch

from torchstone.instruments.conv_efficiency import conv_statistics
from torchstone.models.image.convfirst import ConvFirst, MBConv, MLPBlock, StackedBlocks
from torchstone.ops.winograd import cook_toom
from torchstone.verification import load_state, record

FRACTIONS = {0: "filter", 1: "output", 2: "data", 3: "apart"}


def run(case):
    return ENTRIES[case.entry](case, case.kwargs)


def run_block(cls):
    def run(case, kwargs):
        block = load_state(cls(**kwargs), case).eval()
        layers = {f"layers.{index}": layer for index, layer in enumerate(block.layers)}
        found = record(block, layers, case.inputs["x"])
        found["y"] = found.pop("return")
        return found

    return run


def run_stack(case, kwargs):
    options = {"block" if name == "block_cls" else name: value for name, value in kwargs.items()}
    model = load_state(StackedBlocks(**options), case).eval()
    with torch.no_grad():
        return {"y": model(case.inputs["x"])}


def run_statistics(case, kwargs):
    found = {}
    for index, (n, c, h, w, r, s, padding, group_width, bias) in enumerate(
        kwargs["(n,c,h,w,r,s,pad,group_width,bias)"]
    ):
        statistics = conv_statistics(
            (n, c, h, w),
            kernel=(r, s),
            padding=padding,
            group_width=group_width,
            bias=bias,
            bytes_per_number=kwargs["unit"],
        )
        for name, value in statistics.passes().items():
            found[f"{index}/{name}"] = torch.tensor(value.to_list(), dtype=torch.float64)
    return found


def run_cook_toom(case, kwargs):
    found = {}
    for n, r, fractions in kwargs["cases(n,r,fractionsIn)"]:
        matrices = cook_toom(n, r, fractions=FRACTIONS[fractions])
        y = matrices.correlate(case.inputs["d"][: n + r - 1], case.inputs["g"][:r])
        values = {
            "AT": matrices.output,
            "G": matrices.filter,
            "BT": matrices.data,
            "f": torch.diag(matrices.scale),
            "y": y,
        }
        found |= {f"F({n},{r})frac{fractions}/{name}": value for name, value in values.items()}
    return found


ENTRIES = {
    "scripts.profile_block.ConvFirst": run_block(ConvFirst),
    "scripts.profile_block.MBConv": run_block(MBConv),
    "scripts.profile_block.MLP": run_block(MLPBlock),
    "scripts.profile_block.StackedBlocks": run_stack,
    "spio.kernels.conv2d_stats.Conv2dStats": run_statistics,
    "wincnn.cookToomFilter": run_cook_toom,
}
