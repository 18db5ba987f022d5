"""Speed of ECA-Net beside the official forward and timm's networks.

    python benchmarks/speed_ecanet.py --official DIR      # a checkout of BangguWu/ECANet
    python benchmarks/speed_ecanet.py --device cuda --official DIR

The layers and networks that are compared have the same weights and give the same answers (timm's networks, marked as
peers, are others of about the same cost), and are timed in alternated rounds in one process. Ratios below 1 mean that
ours is faster. Without --official only timm's are compared.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import timm
import torch
from rounds import PEER, alternate, calls, check, ratio, spread
from timm.layers import EcaModule, SEModule
from torch import Tensor, nn

from torchstone import create_model
from torchstone.environment import write_result
from torchstone.layers import EfficientChannelAttention, EfficientChannelAttentionNS
from torchstone.models.image.ecanet import convert_official

RESULT = Path(__file__).parent / "results" / "speed" / "ecanet.json"
NETWORKS = {  # ours -> module of the official factory, its arguments, timm's networks of about the same cost
    "eca_resnet50": ("models.eca_resnet", {"k_size": [3, 5, 5, 7]}, ("resnet50", "seresnet50", "ecaresnet50d")),
    "eca_mobilenet_v2": ("models.eca_mobilenetv2", {}, ("mobilenetv2_100",)),
}
MAPS = ((64, 56, 3), (512, 14, 5), (2048, 7, 7))  # channels, side, kernel size: in a ResNet and behind its bottlenecks
BATCHES = {"cpu": (1, 16, 8), "cuda": (1, 128, 128)}  # inference, inference, training


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--official", type=Path, metavar="DIR", help="checkout of BangguWu/ECANet")
    parser.add_argument("--device", choices=sorted(BATCHES), default="cpu")
    parser.add_argument("--size", type=int, default=224, help="side of the images, pixels")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    if options.official:
        sys.path.insert(0, str(options.official))

    results: dict[str, Any] = {"device": options.device, "image size": options.size, "rounds": options.rounds}
    results |= {"seconds per call": {}, "ours as a multiple of": {}}
    small, large, training = BATCHES[options.device]
    for name, modules, (channels, side) in comparisons(options.official, options.size):
        for module in modules.values():
            module.to(options.device)
        check(modules, torch.randn(2, channels, side, side, device=options.device))
        for batch, train in ((small, False), (large, False), (training, True)):
            label = f"{name}, {'training step' if train else 'inference'}, batch {batch}"
            x = torch.randn(batch, channels, side, side, device=options.device)
            chosen = {key: module for key, module in modules.items() if not (train and "deploy" in key)}
            seconds = alternate(calls(chosen, x, train), options.rounds, options.device)
            results["seconds per call"][label] = {key: spread(values, 7) for key, values in seconds.items()}
            others = [key for key in seconds if not key.startswith("ours")]
            results["ours as a multiple of"][label] = {
                f"{ours} / {other}": ratio(seconds, ours, other)
                for ours in seconds
                if ours.startswith("ours")
                for other in others
            }
            medians = {key: value["median"] for key, value in results["ours as a multiple of"][label].items()}
            print(label, medians, flush=True)

    official = " --official DIR" if options.official else ""
    changed = [
        f" --{name} {getattr(options, name)}"
        for name in ("device", "size", "rounds")
        if getattr(options, name) != parser.get_default(name)
    ]
    command = f"python benchmarks/speed_ecanet.py{official}{''.join(changed)}"
    write_result(options.out, command=command, seeds=[0], results=results)


def comparisons(official: Path | None, size: int) -> Iterator[tuple[str, dict[str, nn.Module], tuple[int, int]]]:
    """What is compared: a name, the modules by what they are called in the result, channels and side of their input."""
    torch.manual_seed(0)
    for channels, side, k in MAPS:
        where = f"{channels}x{side}x{side}"
        yield f"ECA, {where}", shared_layers(channels, k, official), (channels, side)
        yield f"ECA-NS, {where}", unshared_layers(channels, k, official), (channels, side)
    for name in NETWORKS:
        yield name, networks(name, official), (3, size)


def shared_layers(channels: int, k: int, official: Path | None) -> dict[str, nn.Module]:
    """ECA and its peers."""
    ours = EfficientChannelAttention(channels, k)
    layers: dict[str, nn.Module] = {"ours": ours, "timm": EcaModule(kernel_size=k)}
    if official:
        layers["official"] = importlib.import_module("models.eca_module").eca_layer(channels, k)
    for layer in layers.values():
        layer.load_state_dict(ours.state_dict())
    return {**layers, f"timm SE, r = 16{PEER}": SEModule(channels, rd_channels=channels // 16)}


def unshared_layers(channels: int, k: int, official: Path | None) -> dict[str, nn.Module]:
    """ECA-NS; the naive formulation when the official one is not there."""
    ours = EfficientChannelAttentionNS(channels, k)
    layers: dict[str, nn.Module] = {"ours": ours, "one convolution per channel": Unfolded(channels, k)}
    if official:
        layers["official"] = importlib.import_module("models.eca_ns").eca_layer(channels, k)
    for layer in layers.values():
        layer.load_state_dict(ours.state_dict())
    return layers


class Unfolded(nn.Module):
    """ECA-NS as it reads: a depthwise convolution of every channel's neighbourhood."""

    def __init__(self, channels: int, k: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, channels, k, groups=channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        (k,) = self.conv.kernel_size
        neighbours = nn.functional.pad(x.mean((2, 3)), (k // 2, k // 2)).unfold(1, k, 1)
        return x * self.conv(neighbours).sigmoid()[..., None]


def networks(name: str, official: Path | None) -> dict[str, nn.Module]:
    """A network of ours, its deploy form, the official one, and timm's of about the same cost."""
    module, arguments, peers = NETWORKS[name]
    ours = create_model(name)
    found: dict[str, nn.Module] = {"ours": ours}
    if official:
        found["official"] = getattr(importlib.import_module(module), name)(**arguments)
        ours.load_state_dict(convert_official(found["official"].state_dict(), ours))
    found["ours, deploy form"] = copy.deepcopy(ours).fuse()
    return found | {f"timm {peer}{PEER}": timm.create_model(peer) for peer in peers}


if __name__ == "__main__":
    main()
