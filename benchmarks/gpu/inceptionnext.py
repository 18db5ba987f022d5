"""InceptionNeXt on a GPU: how fast it trains and answers beside ConvNeXt, in both memory layouts; a minute or two."""

import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[1]

subprocess.run(
    [
        *(sys.executable, BENCHMARKS / "claim_inceptionnext.py"),
        *("--device", "cuda", "--part", "speed"),
        *("--result", BENCHMARKS / "results" / "gpu" / "inceptionnext.json"),
    ],
    check=True,
)
