"""The neighbourhood products and TransNeXt on a GPU: right, and how fast beside the unfolded path.

    benchmarks/gpu.sh transnext
    python benchmarks/gpu/transnext.py

First the kernels are compared with the reference in float64, values and gradients, in float32, float16 and bfloat16; a
difference above the bound stops the script before anything is written. Then both products, forward and with gradients,
are timed at the sizes of TransNeXt-Tiny's stages beside the reference and its compiled form, and the network beside
itself on the reference, in both half precisions.
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
from torchstone.ops.neighbourhood import cuda, reference

RESULT = Path(__file__).parents[1] / "results" / "gpu" / "transnext.json"
BOUNDS = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
CHECKED = ((24, 7, 5, 3), (32, 14, 14, 5), (100, 9, 20, 7))  # channels of a head, height, width, window
STAGES = ((3, 56), (6, 28), (12, 14))  # heads, side of the map
HEAD = 24
KERNELS, PLAIN, COMPILED = "kernels", "reference", "reference, compiled"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("no GPU that PyTorch can use here: nothing was measured")

    results: dict[str, Any] = {"batch": options.batch, "rounds": options.rounds, "differences": check(), "stages": {}}
    for heads, side in STAGES:
        label = f"{heads} heads, {side}x{side}"
        results["stages"][label] = stage(heads, side, options.batch, options.rounds)
        print(label, results["stages"][label], flush=True)
    for dtype in (torch.float16, torch.bfloat16):
        label = f"transnext_tiny, inference, {str(dtype).removeprefix('torch.')}"
        results[label] = network(options.batch, options.rounds, dtype)
        print(label, results[label], flush=True)
    write_result(options.out, command="python benchmarks/gpu/transnext.py", seeds=[0], results=results)


def products(source: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Both products, by the operators (``cuda``) or the ``reference``."""
    return source.total(source.scores(q, k, 3), v, 3, False)


def check() -> dict[str, float]:
    """Largest differences from the reference in float64, relative to its largest value, by precision.

    Raises:
        SystemExit: a difference above the bound.
    """
    worst = {}
    for dtype, bound in BOUNDS.items():
        found = 0.0
        for dim, height, width, window in CHECKED:
            generator = torch.Generator("cuda").manual_seed(dim)
            shapes = [(2, 3, channels, height, width) for channels in (dim, dim, window**2, dim)]
            q, k, w, v = (torch.randn(shape, device="cuda", generator=generator).to(dtype) for shape in shapes)
            calls: list[tuple[str, tuple[Tensor, ...], tuple[Any, ...]]] = [("scores", (q, k), (window,))]
            calls += [("total", (w, v), (window, back)) for back in (False, True)]
            for name, operands, extra in calls:
                ours = [x.clone().requires_grad_() for x in operands]
                exact = [x.double().requires_grad_() for x in operands]
                result, true = getattr(cuda, name)(*ours, *extra), getattr(reference, name)(*exact, *extra)
                gradient = torch.randn(result.shape, device="cuda", generator=generator).to(dtype)
                pairs = zip(
                    (result, *torch.autograd.grad(result, ours, gradient)),
                    (true, *torch.autograd.grad(true, exact, gradient.double())),
                    strict=True,
                )
                apart = max(((a.double() - b).abs().max() / b.abs().max()).item() for a, b in pairs)
                if not apart <= bound:
                    raise SystemExit(
                        f"the kernels are wrong: {name}{extra}, {dtype} differ by {apart:.2g} of the largest"
                    )
                found = max(found, apart)
        worst[str(dtype).removeprefix("torch.")] = found
    return worst


def stage(heads: int, side: int, batch: int, rounds: int) -> dict[str, Any]:
    """Times of both products at the size of a stage, in float16."""
    torch.manual_seed(0)
    operands = [torch.randn(batch, heads, HEAD, side, side, device="cuda").half() for _ in range(3)]
    trained = [x.clone().requires_grad_() for x in operands]
    gradient = torch.randn_like(operands[0])
    plain = lambda *x: products(reference, *x)  # noqa: E731
    versions = {KERNELS: lambda *x: products(cuda, *x), PLAIN: plain, COMPILED: torch.compile(plain)}

    def forward(version: Any) -> Any:
        def call() -> None:
            with torch.no_grad():
                version(*operands)

        return call

    def training(version: Any) -> Any:
        return lambda: torch.autograd.grad(version(*trained), trained, gradient)

    found = {}
    for kind, wrap in (("forward", forward), ("forward and backward", training)):
        seconds = alternate({name: wrap(version) for name, version in versions.items()}, rounds, "cuda")
        found[kind] = {
            "seconds": {name: spread(times, 8) for name, times in seconds.items()},
            "kernels as a multiple of": {name: ratio(seconds, KERNELS, name) for name in (PLAIN, COMPILED)},
        }
    return found


def network(batch: int, rounds: int, dtype: torch.dtype) -> dict[str, Any]:
    """TransNeXt-Tiny with the kernels, and with the reference in their place."""
    model = create_model("transnext_tiny").to("cuda", dtype).eval()
    x = torch.randn(batch, 3, 224, 224, device="cuda", dtype=dtype)
    takes = cuda.takes

    def call(kernels: bool) -> Any:
        def run() -> None:
            cuda.takes = takes if kernels else lambda *_, **__: False
            try:
                with torch.inference_mode():
                    model(x)
            finally:
                cuda.takes = takes

        return run

    seconds = alternate({KERNELS: call(True), PLAIN: call(False)}, rounds, "cuda")
    return {
        "images per second": {name: spread([batch / t for t in times], 1) for name, times in seconds.items()},
        "kernels as a multiple of the reference": ratio(seconds, KERNELS, PLAIN),
    }


if __name__ == "__main__":
    main()
