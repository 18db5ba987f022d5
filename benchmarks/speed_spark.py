"""Speed of SparK's sparse encoder and of a whole pre-training step beside the authors' code.

    python benchmarks/speed_spark.py --official DIR      # a checkout of keyu-tian/SparK
    python benchmarks/speed_spark.py --device cuda --official DIR

The authors' encoder is their SparseEncoder, converted from the same timm ResNet with the same weights; decoder and
densifying layers of the two steps have the same weights as well, and both see the same mask. They are compared before
they are timed, and timed in alternated rounds of one process; on the CPU it is processor time of one thread, which
other work on the machine does not lengthen. Without --official the naive formulation takes its place: every layer
computes all positions and its answer is masked. Ratios below 1 mean that ours is faster. The dense network, which sees
the whole image, is timed for comparison.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from rounds import alternate, ratio, spread
from torch import Tensor, nn

from torchstone.environment import write_result
from torchstone.methods.spark import SparK, Visible, to_official

RESULT = Path(__file__).parent / "results" / "speed" / "spark.json"
NETWORKS = {"resnet50": 64}  # decoder width


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--official", type=Path, metavar="DIR", help="checkout of keyu-tian/SparK")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--size", type=int, default=64, help="side of the images, pixels")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    if options.device == "cpu":
        torch.set_num_threads(1)

    clock = time.process_time if options.device == "cpu" else time.perf_counter
    results: dict[str, Any] = {"device": options.device, "image size": options.size, "batch": options.batch}
    results |= {"rounds": options.rounds, "clock": clock.__name__, "seconds per call": {}, "ours as a multiple of": {}}
    for name, width in NETWORKS.items():
        torch.manual_seed(0)
        network = timm.create_model(name, num_classes=0, global_pool="").to(options.device)
        images = torch.randn(options.batch, 3, options.size, options.size, device=options.device)
        ours = SparK(copy.deepcopy(network), width=width).to(options.device)
        visible = ours.draw_mask(images)
        other, theirs = peer(options.official, network, ours, options.size)
        for what, train in (("sparse encoder, inference", False), ("pre-training step", True)):
            named = calls(ours, other, theirs, network, images, visible, train)
            if not train:
                check(ours, theirs, images, visible)
            label = f"{name}, {what}"
            seconds = alternate(named, options.rounds, options.device, clock)
            results["seconds per call"][label] = {key: spread(values, 5) for key, values in seconds.items()}
            results["ours as a multiple of"][label] = {
                key: ratio(seconds, "ours", key) for key in seconds if key != "ours"
            }
            print(label, results["ours as a multiple of"][label], flush=True)

    official = " --official DIR" if options.official else ""
    changed = [
        f" --{name} {getattr(options, name)}"
        for name in ("device", "size", "batch", "rounds")
        if getattr(options, name) != parser.get_default(name)
    ]
    write_result(
        options.out,
        command=f"python benchmarks/speed_spark.py{official}{''.join(changed)}",
        seeds=[0],
        results=results,
    )


def encode(spark: SparK, images: Tensor, active: Tensor) -> list[Tensor]:
    """With a mask made anew, as every step has one."""
    return spark.encode(images, Visible(active))


def loss(spark: SparK, images: Tensor, active: Tensor) -> Tensor:
    visible = Visible(active)
    return spark.hidden_loss(spark.decode(spark.encode(images, visible), visible), images, visible)


def peer(official: Path | None, network: nn.Module, ours: SparK, size: int) -> tuple[str, Any]:
    """What ours is compared with, and its name."""
    if official is None:
        return "naive", Naive(network, ours)
    return "official", Official(official, network, ours, size)


class Naive(nn.Module):
    """Every layer computes all positions, and its answer is masked; batch norms take statistics of gathered rows."""

    def __init__(self, network: nn.Module, ours: SparK) -> None:
        super().__init__()
        self.spark = copy.deepcopy(ours)
        self.active: Tensor | None = None
        self.spark.sparse.undo()
        for module in self.spark.network.modules():
            if isinstance(module, nn.Conv2d | nn.MaxPool2d):
                module.register_forward_hook(lambda module, given, y: y * self.mask(y))
            elif isinstance(module, nn.BatchNorm2d):
                module.forward = types.MethodType(self.norm(module.forward), module)

    def mask(self, y: Tensor) -> Tensor:
        assert self.active is not None
        down, across = y.shape[2] // self.active.shape[2], y.shape[3] // self.active.shape[3]
        return self.active.repeat_interleave(down, 2).repeat_interleave(across, 3)

    def norm(self, own: Callable[[Tensor], Tensor]) -> Callable[[nn.Module, Tensor], Tensor]:
        def forward(module: nn.Module, x: Tensor) -> Tensor:
            places = self.mask(x)[:, 0]
            y = torch.zeros_like(x.permute(0, 2, 3, 1))
            y[places] = own(x.permute(0, 2, 3, 1)[places][:, :, None, None])[:, :, 0, 0]
            return y.permute(0, 3, 1, 2)

        return forward

    def encode(self, images: Tensor, active: Tensor) -> list[Tensor]:
        self.active = active
        return self.spark.pyramid.maps(self.spark.network, images * self.mask(images))

    def loss(self, images: Tensor, active: Tensor) -> Tensor:
        visible = Visible(active)
        return self.spark.hidden_loss(self.spark.decode(self.encode(images, active), visible), images, visible)


class Official(nn.Module):
    """The authors' SparK around the same network, with the same weights."""

    def __init__(self, checkout: Path, network: nn.Module, ours: SparK, size: int) -> None:
        super().__init__()
        sys.path.insert(0, str(checkout / "pretrain"))
        # Their modules import from timm 0.5's places, and a file of logging helpers for one function.
        sys.modules.setdefault("timm.models.layers", importlib.import_module("timm.layers"))
        sys.modules["utils"], sys.modules["utils.misc"] = types.ModuleType("utils"), types.ModuleType("utils.misc")
        sys.modules["utils.misc"].is_pow2n = lambda n: n & (n - 1) == 0  # type: ignore[attr-defined]
        self.encoder = importlib.import_module("encoder")
        with_pyramid = copy.deepcopy(network)
        with_pyramid.get_downsample_ratio = lambda: ours.patch  # type: ignore[assignment]
        with_pyramid.get_feature_map_channels = lambda: ours.pyramid.channels[::-1]  # type: ignore[assignment]
        sparse = self.encoder.SparseEncoder(with_pyramid, size)
        sparse.forward = lambda x: sparse.sp_cnn.forward_intermediates(x, [1, 2, 3, 4], intermediates_only=True)
        decoder = importlib.import_module("decoder").LightDecoder(
            ours.patch, ours.decoder.dec[0].up_sample.in_channels, False
        )
        self.spark = importlib.import_module("spark").SparK(sparse, decoder, ours.mask_ratio, "bn")
        self.spark.load_state_dict(to_official(ours, size=size))

    def encode(self, images: Tensor, active: Tensor) -> list[Tensor]:
        self.encoder._cur_active = active
        size = images.shape[2] // active.shape[2]
        masked = images * active.repeat_interleave(size, 2).repeat_interleave(size, 3)
        return self.spark.sparse_encoder(masked)[::-1]

    def loss(self, images: Tensor, active: Tensor) -> Tensor:
        return self.spark(images, active)


def check(ours: SparK, theirs: Any, images: Tensor, visible: Visible) -> None:
    """Refuse to time what does not give the same answer."""
    ours.eval()
    theirs.eval()
    with torch.no_grad():
        for x, y in zip(encode(ours, images, visible.active), theirs.encode(images, visible.active), strict=True):
            torch.testing.assert_close(x, y, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(loss(ours, images, visible.active), theirs.loss(images, visible.active))


def calls(
    ours: SparK, other: str, theirs: Any, network: nn.Module, images: Tensor, visible: Visible, train: bool
) -> dict[str, Callable[[], None]]:
    """What is timed: forward and backward pass of the loss, or the encoders' forward pass."""
    active = visible.active
    if train:
        return {
            "ours": step(ours, lambda: loss(ours, images, active)),
            other: step(theirs, lambda: theirs.loss(images, active)),
        }
    return {
        "ours": inference(ours, lambda: encode(ours, images, active)),
        other: inference(theirs, lambda: theirs.encode(images, active)),
        "dense network": inference(network, lambda: network(images)),
    }


def inference(module: nn.Module, call: Callable[[], Any]) -> Callable[[], None]:
    def run() -> None:
        module.eval()
        with torch.inference_mode():
            call()

    return run


def step(module: nn.Module, call: Callable[[], Tensor]) -> Callable[[], None]:
    def run() -> None:
        module.train()
        module.zero_grad(set_to_none=True)
        call().backward()

    return run


if __name__ == "__main__":
    main()
