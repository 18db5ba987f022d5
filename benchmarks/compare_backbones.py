"""Compare the four backbones that mix attention and convolution, in their small forms, with networks of timm.

    python benchmarks/compare_backbones.py --data FOLDER

All are trained from scratch on 3,000 images of CIFAR-10 (``--data``: the folder of its Parquet files, or ``cifar10``)
for five epochs with two seeds by ``torchstone compare``, which also measures what they cost; ``--out`` keeps its report
and runs, and goes on where it stopped. The result file keeps scores and costs.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from torchstone.environment import write_result
from torchstone.reporting.compare import compare

MODELS = ["glmix_mini32", "biformer_mini32", "transnext_mini32", "maxvit_mini32"]
PEERS = ["timm:resnet10t", "timm:convnext_atto", "timm:mobilenetv3_small_100"]
RESULT = Path(__file__).parent / "results" / "compare" / "backbones.json"
COSTS = {"params": "parameters", "macs": "MACs", "latency_ms_1": "latency of one image, ms"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="cifar10, or the folder of its Parquet files")
    parser.add_argument("--out", type=Path, default=Path("backbones"), help="the comparison's folder")
    options = parser.parse_args()
    found = compare(
        options.data, MODELS + PEERS, out=options.out, epochs=5, seeds=2, limit=3000, progress=lambda state: None
    )
    rows = {
        candidate.name: {
            "accuracy": {
                "mean": round(candidate.score, 4),
                "low": round(candidate.low, 4),
                "high": round(candidate.high, 4),
            },
            **{word: round(candidate.cost[name], 3) for name, word in COSTS.items()},
            "tied with": ", ".join(candidate.tied_with) or "none",
        }
        for candidate in found.candidates
    }
    command = "python benchmarks/compare_backbones.py --data FOLDER"
    write_result(RESULT, command=command, seeds=[0, 1], results=rows)


if __name__ == "__main__":
    main()
