"""What becomes of a mask in a network: with sparse layers, and with the same layers left dense.

Shows noise, 60 % of its patches masked, to timm's ResNet-18 and ConvNeXt-Atto as they start, and counts at every
convolution, in order, the positions whose answer depends on the image at all: where the mask is kept it
is the visible share everywhere; where it is not, every spatial convolution lets the visible patches grow. The count is
exact: two images that differ in all visible pixels, one mask; a position counts when its values differ.

    python benchmarks/figure_spark.py                  # results/claims/spark_mask.json, docs/images/spark_mask.svg

A few seconds on one core. Needs no data.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from torchstone.environment import write_result
from torchstone.methods.spark import SparK, Visible

HERE = Path(__file__).parent
RESULT = HERE / "results" / "claims" / "spark_mask.json"
FIGURE = HERE.parent / "docs" / "images" / "spark_mask.svg"
NETWORKS = {"ResNet-18": "resnet18", "ConvNeXt-Atto": "convnext_atto"}
SPARSE, DENSE = "sparse (SparK)", "dense (zeros for hidden patches)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=224, help="side of the images in pixels")
    parser.add_argument("--mask-ratio", type=float, default=0.6)
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--figure", type=Path, default=FIGURE)
    options = parser.parse_args()

    shares = {name: measure(model, options.size, options.mask_ratio) for name, model in NETWORKS.items()}
    visible = next(iter(shares.values()))["visible share of the image"]
    kept = all(share == visible for found in shares.values() for share in found[SPARSE])
    vanished = all(found[DENSE][-1] == 1.0 for found in shares.values())
    changed = [
        f" --{name.replace('_', '-')} {getattr(options, name)}"
        for name in ("size", "mask_ratio")
        if getattr(options, name) != parser.get_default(name)
    ]
    write_result(
        options.result,
        command=f"python benchmarks/figure_spark.py{''.join(changed)}",
        seeds=[0],
        results={"holds": "yes" if kept and vanished else "no", "size": options.size, "networks": shares},
    )
    draw(shares, options.figure)
    print(f"kept by sparse layers: {kept}; vanished from dense ones: {vanished}")


def measure(model: str, size: int, mask_ratio: float) -> dict[str, Any]:
    """The share of positions that depend on the image, by convolution, of the sparse and of the dense network."""
    torch.manual_seed(0)
    network = timm.create_model(model, num_classes=0).eval()
    spark = SparK(network, mask_ratio=mask_ratio)
    images = torch.randn(2, 3, size, size)
    visible = spark.draw_mask(images[:1])
    both = Visible(visible.active.expand(2, -1, -1, -1))
    masked = images * both.mask(size, size, images.dtype)
    with torch.no_grad():
        sparse = dependent(network, lambda: spark.encode(masked, both))
        dense = dependent(network, lambda: network.forward_features(masked))
    return {
        "visible share of the image": round(visible.share().item(), 6),
        "convolutions": list(dense),
        SPARSE: [sparse[name] for name in dense],
        DENSE: list(dense.values()),
    }


def dependent(network: nn.Module, call: Any) -> dict[str, float]:
    """By convolution, in the order in which they run: the share of positions at which the two images differ."""
    shares: dict[str, float] = {}
    hooks = []
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1):

            def keep(module: nn.Module, given: Any, answer: Tensor, name: str = name) -> None:
                differ = (answer[0] - answer[1]).abs().amax(0) > 0
                shares[name] = round(differ.float().mean().item(), 6)

            hooks.append(module.register_forward_hook(keep))
    call()
    for hook in hooks:
        hook.remove()
    return shares


WIDTH, HEIGHT, LEFT, TOP = 380, 200, 52, 40  # of a plot, and the space before it, pixels
COLOURS = {DENSE: "#c4522c", SPARSE: "#2563a8"}


def draw(shares: dict[str, Any], path: Path) -> None:
    """Write the figure as SVG: a plot for each network, a line for each kind of layers."""
    parts = []
    for index, (name, found) in enumerate(shares.items()):
        left = LEFT + index * (WIDTH + LEFT)
        parts.append(text(left, TOP - 20, f"{name}: positions that see the image", size=14, weight="bold"))
        for share in (0.0, 0.25, 0.5, 0.75, 1.0):
            y = TOP + HEIGHT * (1 - share)
            parts.append(f'<line x1="{left}" x2="{left + WIDTH}" y1="{y}" y2="{y}" stroke="#8884" />')
            parts.append(text(left - 8, y + 4, f"{share:.0%}", anchor="end"))
        for kind, colour in COLOURS.items():
            step = WIDTH / (len(found[kind]) - 1)
            points = [(left + i * step, TOP + HEIGHT * (1 - share)) for i, share in enumerate(found[kind])]
            line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2" />')
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}" />' for x, y in points]
        parts.append(text(left + WIDTH / 2, TOP + HEIGHT + 24, "spatial convolutions, first to last", anchor="middle"))
    for index, (kind, colour) in enumerate(COLOURS.items()):
        x, y = LEFT + index * 230, TOP + HEIGHT + 50
        parts.append(f'<circle cx="{x + 5}" cy="{y - 4}" r="5" fill="{colour}" />')
        parts.append(text(x + 16, y, kind))
    width, height = len(shares) * (WIDTH + LEFT) + 20, TOP + HEIGHT + 64
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        f'role="img" aria-label="Share of positions that see the image, by convolution">\n'
        f'<rect width="{width}" height="{height}" fill="#ffffff" />\n' + "\n".join(parts) + "\n</svg>\n"
    )


def text(x: float, y: float, words: str, *, size: int = 12, anchor: str = "start", weight: str = "normal") -> str:
    style = f'font-size="{size}" text-anchor="{anchor}" font-weight="{weight}" fill="#333333"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{words}</text>'


if __name__ == "__main__":
    main()
