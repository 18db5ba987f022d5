"""The fused ConvFirst block beside unfused cuDNN, and the claim about networks, on a GPU.

    python benchmarks/gpu/conv_efficiency.py            # about 2 minutes on one GPU

Peak and bandwidth are measured first; every speed is also given as an efficiency, operations / (time * peak).

* blocks: the author's benchmark shape and two more, the kernel against the same block eagerly in cuDNN (channels last,
  norms folded) and compiled by Inductor, forward, and forward with backward;
* agreement: the kernel's outputs and gradients against the reference in float32, largest error over largest value;
* networks: convfirst_tiny in its deploy form (its ConvFirst blocks of stride 1 are single kernels, the others cuDNN)
  against ConvNeXt-T compiled by Inductor.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
from rounds import alternate, ratio, spread

from torchstone import create_model
from torchstone.environment import write_result
from torchstone.instruments.macs import count_macs
from torchstone.instruments.roofline import measure_roofline
from torchstone.ops.fused_block import fused_block, reference

RESULT = Path(__file__).parents[1] / "results" / "gpu" / "conv_efficiency.json"
SHAPES = ((64, 64, 6), (128, 28, 6), (256, 14, 4))  # channels, side of the map, expansion
COMPILED = "Inductor"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("this benchmark needs a CUDA device")

    roof = measure_roofline("cuda", dtypes=("float16",)).roofs[0]
    results: dict[str, Any] = {
        "dtype": "float16",
        "batch": options.batch,
        "rounds": options.rounds,
        "measured peak, operations per second": roof.peak,
        "measured bandwidth, bytes per second": roof.bandwidth,
        "blocks": {},
    }
    for channels, side, expansion in SHAPES:
        label = f"{channels} channels, {side}x{side}, expansion {expansion}"
        results["blocks"][label] = block(channels, side, expansion, options.batch, options.rounds, roof.peak)
        print(label, results["blocks"][label], flush=True)
    results["networks"] = networks(options.batch, options.rounds, roof.peak)
    print("networks", results["networks"], flush=True)
    write_result(options.out, command="python benchmarks/gpu/conv_efficiency.py", seeds=[0], results=results)


def operands(channels: int, side: int, expansion: int, batch: int) -> list[Tensor]:
    torch.manual_seed(0)
    hidden = channels * expansion
    x = torch.randn(batch, channels, side, side, device="cuda").contiguous(memory_format=torch.channels_last)
    weights = [
        torch.randn(channels, 8, 3, 3, device="cuda") * 72**-0.5,
        torch.randn(channels, device="cuda"),
        torch.randn(hidden, channels, 1, 1, device="cuda") * channels**-0.5,
        torch.randn(hidden, device="cuda"),
        torch.randn(channels, hidden, 1, 1, device="cuda") * hidden**-0.5,
        torch.randn(channels, device="cuda"),
    ]
    return [tensor.half() for tensor in (x, *weights)]


def block(channels: int, side: int, expansion: int, batch: int, rounds: int, peak: float) -> dict[str, Any]:
    values = operands(channels, side, expansion, batch)
    layers = lambda *tensors: reference.fused_block(*tensors, residual=True)  # noqa: E731
    versions = {"one kernel": fused_block, "cuDNN": layers, COMPILED: torch.compile(layers)}
    trained = [value.clone().requires_grad_() for value in values]
    gradient = torch.randn_like(values[0])

    def forward(version: Any) -> Any:
        def call() -> None:
            with torch.inference_mode():
                version(*values)

        return call

    def training(version: Any) -> Any:
        return lambda: torch.autograd.grad(version(*trained), trained, gradient)

    found: dict[str, Any] = {"largest relative error": agreement(values, gradient)}
    x, w0, _, w1, _, w2, _ = values
    operations = 2 * reference.macs(x.shape, w0.shape, w1.shape, w2.shape)
    for kind, calls in (
        ("forward", {name: forward(version) for name, version in versions.items()}),
        ("forward and backward", {name: training(version) for name, version in versions.items()}),
    ):
        seconds = alternate(calls, rounds, "cuda")
        found[kind] = {
            "seconds": {name: spread(times, 8) for name, times in seconds.items()},
            "time of the kernel as a multiple of": {
                name: ratio(seconds, "one kernel", name) for name in versions if name != "one kernel"
            },
        }
        if kind == "forward":
            found[kind]["efficiency"] = {
                name: spread([operations / (time * peak) for time in times]) for name, times in seconds.items()
            }
    return found


def agreement(values: list[Tensor], gradient: Tensor) -> dict[str, float]:
    """Of the kernel in float16 against the reference in float32."""
    exact = [value.float().requires_grad_() for value in values]
    expected = reference.fused_block(*exact, residual=True)
    halves = [value.clone().requires_grad_() for value in values]
    found = fused_block(*halves)
    pairs = {"output": (found, expected)}
    gradients = torch.autograd.grad(found, halves, gradient)
    exact_gradients = torch.autograd.grad(expected, exact, gradient.float())
    names = ("x", "conv weight", "conv bias", "expand weight", "expand bias", "project weight", "project bias")
    for name, ours, theirs in zip(names, gradients, exact_gradients, strict=True):
        pairs[f"gradient of {name}"] = (ours, theirs)
    return {
        name: round(((ours.float() - theirs).abs().max() / theirs.abs().max()).item(), 6)
        for name, (ours, theirs) in pairs.items()
    }


def networks(batch: int, rounds: int, peak: float) -> dict[str, Any]:
    x = torch.randn(batch, 3, 224, 224, device="cuda").half().contiguous(memory_format=torch.channels_last)
    deployed = {
        name: create_model(name).cuda().half().to(memory_format=torch.channels_last).eval().fuse()
        for name in ("convfirst_tiny", "convnext_tiny")
    }
    operations = {
        name: 2 * batch * count_macs(create_model(name), torch.zeros(1, 3, 224, 224)).total for name in deployed
    }
    versions = {
        "convfirst_tiny": deployed["convfirst_tiny"],
        f"convfirst_tiny, {COMPILED}": torch.compile(deployed["convfirst_tiny"]),
        "convnext_tiny": deployed["convnext_tiny"],
        f"convnext_tiny, {COMPILED}": torch.compile(deployed["convnext_tiny"]),
    }

    def call(network: Any) -> Any:
        def run() -> None:
            with torch.inference_mode():
                network(x)

        return run

    seconds = alternate({name: call(network) for name, network in versions.items()}, rounds, "cuda")
    return {
        "images per second": {name: spread([batch / t for t in times], 1) for name, times in seconds.items()},
        "efficiency": {
            name: spread([operations[name.partition(",")[0]] / (t * peak) for t in times])
            for name, times in seconds.items()
        },
        f"time of ConvNeXt ({COMPILED}) as a multiple of ConvFirst ({COMPILED})": ratio(
            seconds, f"convnext_tiny, {COMPILED}", f"convfirst_tiny, {COMPILED}"
        ),
    }


if __name__ == "__main__":
    main()
