"""Long convolutions beside the authors' code, a Transformer and an LSTM, in alternated rounds of one process.

The authors' standalone model (Apache-2.0; one file, which needs einops and opt_einsum) and ours of the same sizes and
weights classify the same sequences, evaluation and training step; the peers are PyTorch's encoder layers and its LSTM
of the same width and depth.

    python benchmarks/speed_longconv.py --official FOLDER    # holds standalone_long_convs.py
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from rounds import alternate, ratio, spread
from torch import Tensor, nn

from torchstone.environment import write_result
from torchstone.models.sequence.longconv import LongConvClassifier, convert_official
from torchstone.models.sequence.peers import build_peer

RESULT = Path(__file__).parent / "results" / "speed" / "longconv.json"
WIDTH, DEPTH, BATCH, LENGTH = 64, 2, 16, 1024


def calls(model: nn.Module, x: Tensor) -> dict[str, Callable[[], object]]:
    """An evaluation and a training step."""

    def evaluate() -> None:
        model.eval()
        with torch.inference_mode():
            model(x)

    def train() -> None:
        model.train()
        model(x).square().mean().backward()

    return {"eval": evaluate, "train": train}


def official(folder: Path) -> nn.Module:
    """The authors' standalone model."""
    sys.path.insert(0, str(folder))
    module = importlib.import_module("standalone_long_convs")
    return module.LongConvModel(3, 10, WIDTH, DEPTH, dropout=0.1, kernel_lam=0.001, kernel_dropout=0.2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--official", type=Path, required=True, help="folder of standalone_long_convs.py")
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x = torch.randn(BATCH, LENGTH, 3)
    theirs = official(given.official)
    ours = LongConvClassifier(
        WIDTH,
        DEPTH,
        1024,
        in_channels=3,
        num_classes=10,
        direction="two-sided",
        dropout=0.1,
        tie_dropout=True,
        squash=0.001,
    )
    ours.load_state_dict(convert_official(theirs.state_dict(), ours))
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=0, atol=1e-4)
    sizes = {"in_channels": 3, "num_classes": 10, "max_length": LENGTH, "width": WIDTH, "depth": DEPTH}
    peers = {"Transformer": build_peer("transformer", **sizes), "LSTM": build_peer("lstm", **sizes)}
    candidates = {"ours": ours, "authors'": theirs, **peers}
    found = {}
    for kind in ("eval", "train"):
        seconds = alternate({name: calls(model, x)[kind] for name, model in candidates.items()}, given.rounds)
        found[kind] = {
            "milliseconds": {name: spread([1000 * value for value in values]) for name, values in seconds.items()},
            "times_the_authors": {name: ratio(seconds, name, "authors'") for name in seconds},
            "times_the_transformer": {name: ratio(seconds, name, "Transformer") for name in seconds},
        }
        print(kind, found[kind], flush=True)
    write_result(
        RESULT,
        command="python benchmarks/speed_longconv.py --official FOLDER",
        seeds=[0],
        results={
            "rounds": given.rounds,
            "sequences": [BATCH, LENGTH, 3],
            "network": {"width": WIDTH, "depth": DEPTH, "maps": 2, "taps": 2 * LENGTH},
            **found,
        },
    )


if __name__ == "__main__":
    main()
