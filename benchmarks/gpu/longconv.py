"""Networks of long convolutions on a GPU: the op, plain Fourier transforms and a Transformer, in alternated rounds.

The network of sequential CIFAR-10 (6 x 256 here) classifies sequences of 1024 and 4096 steps, evaluation and training
step: with the op's kernels where they fit, with the authors' product of spectra in plain operations, and as an encoder
of the same width and depth.

    benchmarks/gpu.sh longconv
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from rounds import alternate, ratio, spread
from torch import Tensor, nn

from torchstone.environment import write_result
from torchstone.models.registry import build_model
from torchstone.models.sequence.longconv import LongConvClassifier, WrappedLongConv

RESULT = Path(__file__).parents[1] / "results" / "gpu" / "longconv.json"


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 4096])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--result", type=Path, default=RESULT)
    given = parser.parse_args()
    found = {}
    for length in given.lengths:
        torch.manual_seed(0)
        ends = {"in_channels": 3, "num_classes": 10}
        sizes = {"width": given.width, "depth": given.depth, "max_length": length, **ends}
        ours = LongConvClassifier(**sizes)
        plain = LongConvClassifier(**sizes, layer=WrappedLongConv)
        plain.load_state_dict(ours.state_dict())
        candidates = {"ours": ours, "plain transforms": plain, "Transformer": build_model("torch:transformer", **sizes)}
        x = torch.randn(given.batch, length, 3, device=given.device)
        models = {name: model.to(given.device) for name, model in candidates.items()}
        with torch.no_grad():
            torch.testing.assert_close(ours.eval()(x), plain.eval()(x), rtol=0, atol=1e-3)
        found[str(length)] = {}
        for kind in ("eval", "train"):
            timed = {name: calls(model, x)[kind] for name, model in models.items()}
            seconds = alternate(timed, given.rounds, given.device)
            found[str(length)][kind] = {
                "milliseconds": {name: spread([1000 * value for value in values]) for name, values in seconds.items()},
                "times_plain_transforms": {name: ratio(seconds, name, "plain transforms") for name in seconds},
            }
        print(length, found[str(length)], flush=True)
    sizes = {"batch": given.batch, "width": given.width, "depth": given.depth}
    write_result(given.result, command="benchmarks/gpu.sh longconv", seeds=[0], results={**sizes, **found})


if __name__ == "__main__":
    main()
