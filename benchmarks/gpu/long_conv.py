"""The long convolution's kernels on a GPU: right, and how fast beside cuFFT, direct convolution and attention.

    benchmarks/gpu.sh long_conv
    python benchmarks/gpu/long_conv.py

First every size of the kernels is compared with the reference in float64, values and gradients, with and without taps
ahead, one and two kernels a channel; then forward passes and training steps are timed over lengths, in float32 and
bfloat16. A difference above the bound stops the script before anything is written.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchstone.environment import write_result
from torchstone.instruments.op_bench import bench
from torchstone.instruments.running import Conditions
from torchstone.ops.long_conv import cuda, reference

RESULT = Path(__file__).parents[1] / "results" / "gpu" / "long_conv.json"
BOUNDS = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
CHECKED = [20, 100, 128, 256, 300, 512]
LENGTHS = [128, 256, 512, 1024, 4096, 16384, 65536, 1 << 20]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--channels", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=0.2, help="how long each is timed at each length")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("no GPU that PyTorch can use here: nothing was measured")

    results: dict[str, Any] = {"differences": check(), "bench": {}}
    for dtype in ("float32", "bfloat16"):
        for backward in (False, True):
            began = time.perf_counter()
            measured = bench(
                "long_conv",
                sizes=[n for n in LENGTHS if n * options.batch * options.channels <= 1 << 28],
                settings={"batch": options.batch, "channels": options.channels},
                contenders=["reference", "torch.fft, 2L points", "direct", "attention"],
                conditions=Conditions(device="cuda", dtype=dtype),
                backward=backward,
                seconds=options.seconds,
                limit=0.5,
            )
            label = f"{dtype}, {'forward and backward' if backward else 'forward'}"
            results["bench"][label] = {k: v for k, v in measured.to_dict().items() if k != "environment"}
            print(f"{label} ({time.perf_counter() - began:.0f} s)")
            for size in sorted({t.size for t in measured.timings}):
                times = {t.contender: f"{t.time.median_ms:.4g} ms" for t in measured.timings if t.size == size}
                print(f"  {size}: {times}", flush=True)
    write_result(options.out, command="python benchmarks/gpu/long_conv.py", seeds=[0], results=results)


def check() -> dict[str, dict[str, float]]:
    """Largest differences from the reference in float64, relative to its largest value, by precision.

    Raises:
        SystemExit: a difference above the bound, or a size that the kernels did not take.
    """
    worst: dict[str, dict[str, float]] = {}
    for dtype, bound in BOUNDS.items():
        found = {"values": 0.0, "gradient of u": 0.0, "gradient of taps": 0.0}
        for length in CHECKED:
            for maps, ahead in ((1, 0), (2, 0), (1, length // 2)):
                for name, difference in differences(length, maps, ahead, dtype).items():
                    found[name] = max(found[name], difference)
                    if not difference <= bound:
                        where = f"{name} of length {length}, {maps} kernels, {ahead} taps ahead, {dtype}"
                        raise SystemExit(f"the kernels are wrong: {where} differ by {difference:.2g} of the largest")
        worst[str(dtype).removeprefix("torch.")] = found
        print(dtype, found, flush=True)
    return worst


def differences(length: int, maps: int, ahead: int, dtype: torch.dtype) -> dict[str, float]:
    """How far kernels and reference are apart for one size."""
    generator = torch.Generator("cuda").manual_seed(length)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, device="cuda", generator=generator).to(dtype)

    u, taps, gradient = draw(5, 8, length), draw(maps, 8, length), draw(5, maps, 8, length)
    if not cuda.takes(u, taps, ahead):
        raise SystemExit(f"the kernels do not take length {length}, {ahead} taps ahead, {dtype}")
    ours = [u.requires_grad_(), taps.requires_grad_()]
    exact = [x.detach().double().requires_grad_() for x in ours]
    result, true = cuda.convolve(*ours, ahead), reference.convolve(*exact, ahead)
    pairs = zip(
        (result, *torch.autograd.grad(result, ours, gradient)),
        (true, *torch.autograd.grad(true, exact, gradient.double())),
        strict=True,
    )
    apart = [((x.double() - y).abs().max() / y.abs().max()).item() for x, y in pairs]
    return dict(zip(("values", "gradient of u", "gradient of taps"), apart, strict=True))


if __name__ == "__main__":
    main()
