"""ECA-Net on a GPU: the layers and networks beside timm's; a minute or two."""

import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[1]

subprocess.run(
    [
        *(sys.executable, BENCHMARKS / "speed_ecanet.py"),
        *("--device", "cuda"),
        *("--out", BENCHMARKS / "results" / "gpu" / "ecanet.json"),
    ],
    check=True,
)
