"""Speed of the ConvFirst blocks and of the small network beside the plain formulation and timm's ConvNeXt block.

    python benchmarks/speed_conv_efficiency.py

All versions of a block have the same weights and give the same answer; timm's block is a peer of the same channels.
They are timed in alternated rounds of one process, by the processor's time of one thread; ratios below 1 mean that
ours is faster.
"""

from __future__ import annotations

import argparse
import copy
import time
from pathlib import Path
from typing import Any

import torch
from rounds import alternate, ratio, spread
from timm.models.convnext import ConvNeXtBlock
from torch import nn

from torchstone import create_model
from torchstone.environment import write_result
from torchstone.models.image.convfirst import ConvFirst, MBConv

RESULT = Path(__file__).parent / "results" / "speed" / "conv_efficiency.json"
BLOCKS = {"ConvFirst": (ConvFirst, 64, 64, 6), "MBConv": (MBConv, 256, 16, 4)}  # class, channels, side, expansion


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    torch.set_num_threads(1)

    results: dict[str, Any] = {
        "device": "cpu",
        "clock": "processor time of one thread",
        "batch": options.batch,
        "rounds": options.rounds,
        "inference": {},
    }
    for name, (cls, channels, side, expansion) in BLOCKS.items():
        torch.manual_seed(0)
        block = cls(channels, channels, expansion_ratio=expansion).eval()
        versions = {
            "plain layers": block,
            "ours, deploy form": copy.deepcopy(block).fuse(),
            "timm ConvNeXt block": ConvNeXtBlock(channels, mlp_ratio=expansion, conv_mlp=True).eval(),
        }
        x = torch.randn(options.batch, channels, side, side)
        results["inference"][f"{name}, {channels} channels, {side}x{side}"] = timed(versions, x, options.rounds)
    network = create_model("convfirst_mini32", num_classes=10).eval()
    versions = {"plain layers": network, "ours, deploy form": copy.deepcopy(network).fuse()}
    images = torch.randn(8 * options.batch, 3, 32, 32)
    results["inference"]["convfirst_mini32, 32x32"] = timed(versions, images, options.rounds)
    write_result(options.out, command="python benchmarks/speed_conv_efficiency.py", seeds=[0], results=results)


def timed(versions: dict[str, nn.Module], x: torch.Tensor, rounds: int) -> dict[str, Any]:
    """Seconds and ratios; versions that are no peer must agree."""

    def call(module: nn.Module) -> Any:
        def run() -> None:
            with torch.inference_mode():
                module(x)

        return run

    with torch.inference_mode():
        torch.testing.assert_close(versions["ours, deploy form"](x), versions["plain layers"](x), rtol=1e-3, atol=1e-4)
    calls = {name: call(module) for name, module in versions.items()}
    seconds = alternate(calls, rounds, clock=time.process_time)
    ours = "ours, deploy form"
    found = {
        "seconds per call": {name: spread(values, 6) for name, values in seconds.items()},
        "ours as a multiple of": {name: ratio(seconds, ours, name) for name in versions if name != ours},
    }
    print(found["ours as a multiple of"], flush=True)
    return found


if __name__ == "__main__":
    main()
