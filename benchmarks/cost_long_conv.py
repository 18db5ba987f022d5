"""Cost of the long convolution against length, 1k to 1M, beside torch.fft, direct convolution and attention.

    python benchmarks/cost_long_conv.py
    python benchmarks/cost_long_conv.py --page long_conv.html       # the same numbers as a picture

All are timed in one run, interleaved, on the same operands, in processor time of one thread; whoever would take longer
than the limit a call is left out from there on. ``torchstone bench long_conv`` measures the same with other settings.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from torchstone.environment import write_result
from torchstone.files import write_text
from torchstone.instruments.figures import page
from torchstone.instruments.op_bench import OpBench, bench, slope
from torchstone.instruments.running import Conditions

RESULT = Path(__file__).parent / "results" / "ops" / "long_conv.json"
LENGTHS = [1 << power for power in range(10, 21, 2)]
CONTENDERS = ["monarch_conv", "torch.fft, 2L points", "direct", "attention"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=0.5, help="how long each is timed at each length")
    parser.add_argument("--limit", type=float, default=2.0, help="seconds of the longest call")
    parser.add_argument("--page", type=Path, metavar="FILE.html")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    measured = bench(
        "long_conv",
        sizes=LENGTHS,
        settings={"batch": 1, "channels": options.channels},
        contenders=CONTENDERS,
        conditions=Conditions(threads=1),
        seconds=options.seconds,
        limit=options.limit,
        clock="processor",
        progress=lambda doing: print(doing, flush=True),
    )
    results = {key: value for key, value in measured.to_dict().items() if key != "environment"}
    results["growth of n log n over the same lengths"] = log_linear(measured)
    write_result(options.out, command="python benchmarks/cost_long_conv.py", seeds=[0], results=results)
    if options.page:
        write_text(options.page, page(measured.plot()))
    for name in measured.contenders():
        print(name, [f"{t.time.median_ms:.3g}" for t in measured.of(name)], measured.growth(name))


def log_linear(measured: OpBench) -> float | None:
    """The slope that n log n itself has over the lengths from which growth was read."""
    sizes = [t.size for t in measured.of(measured.op) if t.size >= 4096]
    return slope([(size, size * size.bit_length()) for size in sizes])


if __name__ == "__main__":
    main()
