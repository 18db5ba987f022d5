"""Speed of MaxViT beside timm's port of the official network.

    python benchmarks/speed_maxvit.py
    python benchmarks/speed_maxvit.py --device cuda

The authors' TensorFlow code does not run beside PyTorch; timm's port, which reads the same weights, stands in for it.
Ours, its deploy form and timm's have the same weights and give the same answers; networks marked as peers are others of
about the same cost. All are timed in alternated rounds in one process. Ratios below 1 mean that ours is faster.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import Any

import timm
import torch
from rounds import PEER, alternate, calls, check, ratio, spread
from torch import nn

from torchstone import create_model
from torchstone.environment import write_result

RESULT = Path(__file__).parent / "results" / "speed" / "maxvit.json"
PEERS = ("convnext_tiny", "swin_tiny_patch4_window7_224")
BATCHES = {"cpu": ((1, False), (8, False), (4, True)), "cuda": ((1, False), (128, False), (64, True))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=sorted(BATCHES), default="cpu")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()

    results: dict[str, Any] = {"device": options.device, "image size": 224, "rounds": options.rounds}
    results |= {"seconds per call": {}, "ours as a multiple of": {}}
    modules = {name: module.to(options.device) for name, module in networks().items()}
    check(modules, torch.randn(2, 3, 224, 224, device=options.device))
    for batch, train in BATCHES[options.device]:
        label = f"maxvit_tiny_224, {'training step' if train else 'inference'}, batch {batch}"
        x = torch.randn(batch, 3, 224, 224, device=options.device)
        chosen = {key: module for key, module in modules.items() if not (train and "deploy" in key)}
        seconds = alternate(calls(chosen, x, train), options.rounds, options.device)
        results["seconds per call"][label] = {key: spread(values, 7) for key, values in seconds.items()}
        results["ours as a multiple of"][label] = {
            f"{ours} / {other}": ratio(seconds, ours, other)
            for ours in seconds
            if ours.startswith("ours")
            for other in seconds
            if not other.startswith("ours")
        }
        medians = {key: value["median"] for key, value in results["ours as a multiple of"][label].items()}
        print(label, medians, flush=True)

    changed = [
        f" --{name} {getattr(options, name)}"
        for name in ("device", "rounds")
        if getattr(options, name) != parser.get_default(name)
    ]
    write_result(
        options.out, command=f"python benchmarks/speed_maxvit.py{''.join(changed)}", seeds=[0], results=results
    )


def networks() -> dict[str, nn.Module]:
    """Ours, its deploy form, timm's port with the same weights, and timm's networks of about the same cost."""
    torch.manual_seed(0)
    ours, theirs = create_model("maxvit_tiny_224"), timm.create_model("maxvit_tiny_tf_224")
    theirs.load_state_dict(ours.state_dict())
    found = {"ours": ours, "ours, deploy form": copy.deepcopy(ours).fuse(), "timm's port": theirs}
    return found | {f"timm {peer}{PEER}": timm.create_model(peer) for peer in PEERS}


if __name__ == "__main__":
    main()
