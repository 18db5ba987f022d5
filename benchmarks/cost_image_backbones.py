"""Cost against resolution of the backbones that mix attention and convolution, beside a plain vision transformer.

    python benchmarks/cost_image_backbones.py                # measures, then draws
    python benchmarks/cost_image_backbones.py --draw         # draws anew from the result file
    python benchmarks/cost_image_backbones.py --only NAME    # measures one network anew, and keeps the others' results

Every network runs on one image of 224 to 1024 pixels a side: multiply-accumulates by counting, latency in alternated
rounds (processor time of one thread), peak memory of inference in a process of its own. The figures show the cost of a
pixel, that at 224 pixels being 1: a network whose cost is linear in the pixels stays at 1, the plain transformer, whose
tokens all meet, leaves it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from figures import Point, draw
from rounds import alternate, spread

from torchstone.environment import write_result
from torchstone.files import read_json
from torchstone.instruments.description import ModelDescription
from torchstone.instruments.macs import count_macs, count_parameters
from torchstone.instruments.memory import measure_memory
from torchstone.instruments.running import Conditions

RESULT = Path(__file__).parent / "results" / "costs" / "image_backbones.json"
FIGURES = Path(__file__).parents[1] / "docs" / "images"
SIDES = (224, 448, 672, 1024)
KINDS = {"macs": "multiply-accumulates", "latency": "latency", "memory": "peak memory"}

NETWORKS: dict[str, tuple[str, Callable[[int], dict[str, Any]]]] = {  # by name: whose, and its arguments at a side
    "GLNet-4G": ("glnet_4g", lambda side: {}),
    "BiFormer-T": ("biformer_tiny", lambda side: {"auto_pad": True}),
    "TransNeXt-Micro": ("transnext_micro", lambda side: {"img_size": side}),
    "MaxViT-T": ("maxvit_tiny_224", lambda side: {"img_size": side, "window_size": 8 if side % 224 else 7}),
    "ViT-S/16": ("timm:vit_small_patch16_224", lambda side: {"img_size": side}),
}


def description(name: str, side: int) -> ModelDescription:
    """A network for images of this side."""
    spec, arguments = NETWORKS[name]
    return ModelDescription(spec, (3, side, side), arguments(side))


def arithmetic(name: str, side: int) -> dict[str, float]:
    """Parameters, and multiply-accumulates of an image; nothing is computed."""
    one = description(name, side)
    with torch.device("meta"):
        model = one.build().eval()
    macs = count_macs(model, torch.empty(1, *one.input_shape, device="meta")).total
    return {"parameters": count_parameters(model), "macs": macs}


def latencies(networks: list[str], side: int, rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds of an image, by network: median, smallest and largest of the rounds."""
    calls = {}
    for name in networks:
        one = description(name, side)
        model, inputs = one.build().eval(), one.example_inputs(1)
        calls[name] = lambda model=model, inputs=inputs: model(*inputs)
    with torch.inference_mode():
        seconds = alternate(calls, rounds, clock=time.process_time)
    return {name: spread([1000 * value for value in values]) for name, values in seconds.items()}


def measure(networks: list[str], sides: tuple[int, ...], rounds: int) -> dict[str, dict[str, Any]]:
    """All costs, by network and side."""
    conditions = Conditions(threads=1, deploy=False)
    results: dict[str, dict[str, Any]] = {name: {} for name in networks}
    for side in sides:
        times = latencies(networks, side, rounds)
        for name, by_side in results.items():
            peak = measure_memory(description(name, side), conditions=conditions)[1]
            by_side[str(side)] = {**arithmetic(name, side), "milliseconds": times[name], "peak_bytes": peak}
            print(f"{side} pixels, {name}: {by_side[str(side)]}", flush=True)
    return results


def per_pixel(by_side: dict[str, Any], kind: str) -> list[Point]:
    """The cost of a pixel at every side, that at the smallest being 1."""
    pixels = {int(side): int(side) ** 2 for side in by_side}
    smallest = min(pixels)

    def cost(side: int, of: str) -> float:
        found = by_side[str(side)]
        value = {"macs": found["macs"], "memory": found["peak_bytes"], "latency": found["milliseconds"][of]}[kind]
        return value / pixels[side]

    one = cost(smallest, "median")
    return [
        Point(side, cost(side, "median") / one, (cost(side, "high") - cost(side, "low")) / (2 * one)) for side in pixels
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--draw", action="store_true", help="draw anew from the result file")
    parser.add_argument("--only", choices=list(NETWORKS), help="measure this network alone")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not options.draw:
        changed = f" --rounds {options.rounds}" if options.rounds != parser.get_default("rounds") else ""
        results = measure([options.only] if options.only else list(NETWORKS), SIDES, options.rounds)
        command = f"python benchmarks/cost_image_backbones.py{changed}"
        if options.only:
            kept = read_json(RESULT)
            results = {**kept["results"], **results}
            command = f"{kept['command']}; {command} --only {options.only}"
        write_result(RESULT, command=command, seeds=[0], results=results)
    results = read_json(RESULT)["results"]
    for kind, name in KINDS.items():
        lines = {network: per_pixel(by_side, kind) for network, by_side in results.items()}
        highest = max(point.mean for points in lines.values() for point in points)
        draw(
            FIGURES / f"backbones_{kind}.svg",
            lines,
            title=f"{name.capitalize()} of a pixel against resolution",
            x="height and width of the image, pixels",
            y="that at 224 pixels being 1",
            top=max(2.0, -(-highest // 0.5) * 0.5),
        )


if __name__ == "__main__":
    main()
