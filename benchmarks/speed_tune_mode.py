"""Step time, peak memory and bytes kept for the backward pass of a network in Train, Eval, Tune and Deploy mode.

    python benchmarks/speed_tune_mode.py
    python benchmarks/speed_tune_mode.py --device cuda --size 224 --batch 64

The modes share weights and input. A step is a forward and a backward pass with all gradients; the modes are timed in
alternated rounds of one process. Peak memory is that of two steps of SGD in a process of its own. On a CPU time is the
processor's (``time.process_time``, one thread), so that other work on the machine does not count.

One block is timed beside PyTorch's own pass of the same arithmetic (``torch._inductor.fx_passes``, called directly) and
beside the plain convolution and norm. Ratios below 1 mean that ours is faster.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rounds import alternate, ratio, spread
from torch import Tensor, nn
from torch._inductor.fx_passes.efficient_conv_bn_eval import efficient_conv_bn_eval

from torchstone.environment import write_result
from torchstone.instruments import Conditions, ModelDescription, probe_training_step
from torchstone.models.registry import build_model
from torchstone.training.transforming import TransformedDescription
from torchstone.transforms import tune_mode

RESULT = Path(__file__).parent / "results" / "speed" / "tune_mode.json"
NETWORKS: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {  # device -> name -> model, arguments
    "cpu": {"ResNet-50 of half the width": ("timm:resnet50", {"channels": (32, 64, 128, 256), "stem_width": 32})},
    "cuda": {
        "ResNet-50": ("torchvision:resnet50", {}),
        "ResNeXt-50": ("torchvision:resnext50_32x4d", {}),
        "RegNetY": ("torchvision:regnet_y_3_2gf", {}),
    },
}
CLASSES = 100
OPTIONS: dict[str, dict[str, Any]] = {
    "train": {},
    "eval": {"mode": "eval"},
    "tune": {"freeze": True},
    "deploy": {"mode": "deploy"},
}
BLOCKS = ((64, 28), (256, 7))  # channels, side


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--size", type=int, default=96, help="side of the images, pixels")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()

    results = measure(options.device, options.size, options.batch, options.rounds)
    changed = "".join(
        f" --{name} {getattr(options, name)}"
        for name in ("device", "size", "batch", "rounds")
        if getattr(options, name) != parser.get_default(name)
    )
    command = f"python benchmarks/speed_tune_mode.py{changed}"
    write_result(options.out, command=command, seeds=[0], results=results)


def measure(device: str, size: int, batch: int, rounds: int) -> dict[str, Any]:
    """Networks in their modes, and single blocks."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    results: dict[str, Any] = {"device": device, "image size": size, "batch": batch, "rounds": rounds}
    results["clock"] = clock.__name__
    results["networks"] = {
        name: network(model, args, device, size, batch, rounds, clock)
        for name, (model, args) in NETWORKS[device].items()
    }
    results["blocks"] = {
        f"{channels} channels, {side}x{side}": block(channels, side, device, batch, rounds, clock)
        for channels, side in BLOCKS
    }
    return results


def network(
    name: str,
    args: dict[str, Any],
    device: str,
    size: int,
    batch: int,
    rounds: int,
    clock: Callable[[], float],
) -> dict[str, Any]:
    """A network in each mode."""
    torch.manual_seed(0)
    plain = build_model(name, num_classes=CLASSES, **args).to(device).train()
    x = torch.randn(batch, 3, size, size, device=device)
    with torch.no_grad():
        plain(x)  # statistics of these images
    results = {mode: tune_mode.transform(plain, x[:2], **told) if told else None for mode, told in OPTIONS.items()}
    modes = {mode: result.model if result else plain for mode, result in results.items()}
    described = ModelDescription(name, (3, size, size), {"num_classes": CLASSES, **args})
    found: dict[str, Any] = {}
    for mode, result in results.items():
        description = TransformedDescription.of(described, [result.plan]) if result else described
        probe = probe_training_step(
            description,
            batch_size=batch,
            num_classes=CLASSES,
            optimizer="sgd",
            conditions=Conditions(device, threads=torch.get_num_threads()),
        )
        if probe.memory_bytes is None:
            raise RuntimeError(f"{name}, {mode}: {probe.failure}")
        found[mode] = {
            "bytes kept for the backward pass": tune_mode.saved_for_backward(modes[mode], (x,), training=True),
            "peak memory of a step, bytes": probe.memory_bytes,
        }
    seconds = alternate({mode: step(model.train(), x) for mode, model in modes.items()}, rounds, device, clock)
    for mode in modes:
        found[mode]["seconds of a step"] = spread(seconds[mode])
        found[mode]["as a multiple of eval"] = {
            "seconds": ratio(seconds, mode, "eval"),
            **{
                what: round(found[mode][what] / found["eval"][what], 4)
                for what in ("bytes kept for the backward pass", "peak memory of a step, bytes")
            },
        }
        print(name, mode, found[mode], flush=True)
    return found


def block(channels: int, side: int, device: str, batch: int, rounds: int, clock: Callable[[], float]) -> dict[str, Any]:
    """One convolution and norm: ours, PyTorch's pass, the naive formulation."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))
    plain = plain.to(device).eval()
    x = torch.randn(batch, channels, side, side, device=device, requires_grad=True)
    ours = tune_mode.transform(plain, x).model
    folded = {
        "ours": ours,
        "PyTorch's pass": PyTorchPass(plain),
        "convolution and norm (eval)": plain,
    }
    for answer in folded.values():
        torch.testing.assert_close(answer(x), plain(x), rtol=1e-3, atol=1e-4)
    seconds = alternate({name: step(model, x) for name, model in folded.items()}, rounds, device, clock)
    return {
        "seconds of a step": {name: spread(values, 6) for name, values in seconds.items()},
        "ours as a multiple of": {name: ratio(seconds, "ours", name) for name in folded if name != "ours"},
    }


class PyTorchPass(nn.Module):
    """A block as the code that inductor's pass puts in its place."""

    def __init__(self, block: nn.Sequential) -> None:
        super().__init__()
        self.conv, self.norm = block

    def forward(self, x: Tensor) -> Tensor:
        return efficient_conv_bn_eval(self.norm, self.conv, x)


def step(model: nn.Module, x: Tensor) -> Callable[[], None]:
    """A forward and backward pass."""

    def call() -> None:
        model.zero_grad(set_to_none=True)
        model(x).sum().backward()

    return call


if __name__ == "__main__":
    main()
