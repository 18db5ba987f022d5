"""Speed of GLNet beside the official forward and timm's networks of about the same cost.

    python benchmarks/speed_glmix.py --official DIR      # a checkout of rayleizhu/GLMix
    python benchmarks/speed_glmix.py --device cuda --official DIR

Ours, its deploy form and the official network have the same weights and give the same answers; networks marked as peers
are others. All are timed in alternated rounds in one process; on the CPU with one thread, by the processor time of this
process. Ratios below 1 mean that ours is faster. Without --official only the peers are compared.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import sys
import time
import types
from pathlib import Path
from typing import Any

import timm
import torch
from rounds import PEER, alternate, calls, check, ratio, spread
from torch import nn

from torchstone import create_model
from torchstone.environment import write_result

RESULT = Path(__file__).parent / "results" / "speed" / "glmix.json"
NETWORKS = {"glnet_4g": ("convnext_tiny", "swin_tiny_patch4_window7_224"), "glnet_stl": ()}  # ours -> timm's peers
BATCHES = {"cpu": ((1, False), (2, True)), "cuda": ((1, False), (128, False), (64, True))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--official", type=Path, metavar="DIR", help="checkout of rayleizhu/GLMix")
    parser.add_argument("--device", choices=sorted(BATCHES), default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    clock = time.process_time if options.device == "cpu" else time.perf_counter

    results: dict[str, Any] = {"device": options.device, "image size": 224, "rounds": options.rounds}
    results |= {"clock": clock.__name__, "seconds per call": {}, "ours as a multiple of": {}}
    for name, peers in NETWORKS.items():
        modules = {key: module.to(options.device) for key, module in build(name, peers, options.official).items()}
        check(modules, torch.randn(1, 3, 224, 224, device=options.device))
        for batch, train in BATCHES[options.device]:
            label = f"{name}, {'training step' if train else 'inference'}, batch {batch}"
            x = torch.randn(batch, 3, 224, 224, device=options.device)
            chosen = {key: module for key, module in modules.items() if not (train and "deploy" in key)}
            seconds = alternate(calls(chosen, x, train), options.rounds, options.device, clock)
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

    official = " --official DIR" if options.official else ""
    changed = [
        f" --{name} {getattr(options, name)}"
        for name in ("device", "rounds")
        if getattr(options, name) != parser.get_default(name)
    ]
    command = f"python benchmarks/speed_glmix.py{official}{''.join(changed)}"
    write_result(options.out, command=command, seeds=[0], results=results)


def build(name: str, peers: tuple[str, ...], official: Path | None) -> dict[str, nn.Module]:
    """Ours, its deploy form, the official network with the same weights, and timm's networks of about the same cost."""
    torch.manual_seed(0)
    ours = create_model(name)
    found = {"ours": ours, "ours, deploy form": copy.deepcopy(ours).fuse()}
    if official:
        found["official"] = getattr(official_module(official), name)()
        found["official"].load_state_dict(ours.state_dict())
    return found | {f"timm {peer}{PEER}": timm.create_model(peer) for peer in peers}


def official_module(checkout: Path) -> types.ModuleType:
    """Load the official file, which imports what it does not use, and finds timm's layers where they were."""
    sys.path.insert(0, str(checkout))
    for name, content in {
        "fairscale": {},
        "fairscale.nn": {},
        "fairscale.nn.checkpoint": {"checkpoint_wrapper": None},
        "timm.models.layers": {key: value for key, value in vars(timm.layers).items() if not key.startswith("__")},
    }.items():
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update(content)
    return importlib.import_module("models.glnet")


if __name__ == "__main__":
    main()
