"""BiFormer on a GPU: the networks beside timm's of about the same cost; a minute or two."""

import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[1]

subprocess.run(
    [
        *(sys.executable, BENCHMARKS / "speed_biformer.py"),
        *("--device", "cuda"),
        *("--out", BENCHMARKS / "results" / "gpu" / "biformer.json"),
    ],
    check=True,
)
