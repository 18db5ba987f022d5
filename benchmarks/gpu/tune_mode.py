"""Tune mode on a GPU: step time, peak memory and bytes kept of ResNet-50-like networks in the four modes.

    python benchmarks/gpu/tune_mode.py

Writes ``benchmarks/results/gpu/tune_mode.json``; about a minute.
"""

from __future__ import annotations

import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[1]
sys.path.insert(0, str(BENCHMARKS))

from speed_tune_mode import measure  # noqa: E402

from torchstone.environment import write_result  # noqa: E402

if __name__ == "__main__":
    results = measure("cuda", size=224, batch=64, rounds=7)
    write_result(
        BENCHMARKS / "results" / "gpu" / "tune_mode.json",
        command="python benchmarks/gpu/tune_mode.py",
        seeds=[0],
        results=results,
    )
