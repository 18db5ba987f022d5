"""Cost of the long convolution against length, 1k to 1M, beside torch.fft, direct convolution and attention.

    python benchmarks/cost_long_conv.py
    python benchmarks/cost_long_conv.py --page long_conv.html       # the same numbers as a picture

All are timed in one run, interleaved, on the same operands, in processor time of one thread; whoever would take longer
than the limit a call is left out from there on. ``torchstone bench long_conv`` measures the same with other settings.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import torch

from torchstone.environment import write_result
from torchstone.files import write_text
from torchstone.instruments.figures import page
from torchstone.instruments.op_bench import SETTLED, bench, slope
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
    results = table(measured.to_dict())
    write_result(options.out, command="python benchmarks/cost_long_conv.py", seeds=[0], results=results)
    if options.page:
        write_text(options.page, page(measured.plot()))
    for name in measured.contenders():
        print(name, [f"{t.time.median_ms:.3g}" for t in measured.of(name)], measured.growth(name))


def table(measured: dict[str, Any]) -> dict[str, Any]:
    """The numbers by contender and length."""
    timings = measured["timings"]
    own = {t["size"]: t["time"]["median_ms"] for t in timings if t["contender"] == measured["op"]}
    results: dict[str, Any] = {
        "settings": {**measured["settings"], "clock": measured["clock"], **measured["conditions"]},
        "ms per call: median, quartiles": {},
        "time, long_conv's being 1": {},
        "MACs": {},
        "share of the roof": {},
        "difference from long_conv, relative": {},
    }
    for t in timings:
        name, length, time = t["contender"], str(t["size"]), t["time"]
        entries = {
            "ms per call: median, quartiles": [time["median_ms"], time["low_ms"], time["high_ms"]],
            "time, long_conv's being 1": time["median_ms"] / own[t["size"]],
            "MACs": t["macs"],
            "share of the roof": t["roof_share"],
            "difference from long_conv, relative": t["difference"],
        }
        for heading, value in entries.items():
            if value is not None:
                results[heading].setdefault(name, {})[length] = value
    log_linear = slope([(size, size * math.log2(size)) for size in own if size >= SETTLED])
    results["growth: exponent of the length"] = {**measured["growth"], "n log n itself": log_linear}
    results["not run"] = {name: f"from {size} on, {why}" for name, (size, why) in measured["stopped"].items()}
    results["roof"] = {name: measured["roof"][name] for name in ("dtype", "threads", "peak", "bandwidth")}
    return results


if __name__ == "__main__":
    main()
