"""GLNet on a GPU: how fast it answers and trains beside timm's networks of about the same cost; a minute or two."""

import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[1]

subprocess.run(
    [
        *(sys.executable, BENCHMARKS / "speed_glmix.py"),
        *("--device", "cuda", "--out", BENCHMARKS / "results" / "gpu" / "glmix.json"),
    ],
    check=True,
)
