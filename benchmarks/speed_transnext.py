"""Speed of TransNeXt beside the official native (unfold) path and other networks of about the same cost.

    python benchmarks/speed_transnext.py --official DIR      # a checkout of DaiShiResearch/TransNeXt
    python benchmarks/speed_transnext.py --device cuda --official DIR

Ours, its deploy form and the official network have the same weights and give the same answers; networks marked as peers
are others. All are timed in alternated rounds in one process; on a CPU on one thread, by the processor time of the
process, so that what else the machine does counts little. Ratios below 1 mean that ours is faster. Without --official
only peers are compared.
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
import timm.layers
import timm.models
import torch
from rounds import PEER, alternate, calls, check, ratio, spread
from torch import nn

from torchstone import create_model
from torchstone.environment import write_result
from torchstone.models.image.transnext import convert_official

RESULT = Path(__file__).parent / "results" / "speed" / "transnext.json"
PEERS = ("pvt_v2_b1", "convnext_nano")
BATCHES = {"cpu": ((1, False), (2, True)), "cuda": ((1, False), (128, False), (64, True))}
OFFICIAL = "official, native"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--official", type=Path, metavar="DIR", help="checkout of DaiShiResearch/TransNeXt")
    parser.add_argument("--device", choices=sorted(BATCHES), default="cpu")
    parser.add_argument("--model", default="transnext_micro", choices=[f"transnext_{n}" for n in ("micro", "tiny")])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()

    clock = time.perf_counter
    if options.device == "cpu":
        torch.set_num_threads(1)
        clock = time.process_time
    results: dict[str, Any] = {"device": options.device, "image size": 224, "rounds": options.rounds}
    results |= {"clock": clock.__name__, "seconds per call": {}, "ours as a multiple of": {}}
    modules = {name: module.to(options.device) for name, module in networks(options.model, options.official).items()}
    check(modules, torch.randn(2, 3, 224, 224, device=options.device))
    for batch, train in BATCHES[options.device]:
        label = f"{options.model}, {'training step' if train else 'inference'}, batch {batch}"
        x = torch.randn(batch, 3, 224, 224, device=options.device)
        chosen = {key: module for key, module in modules.items() if not (train and "deploy" in key)}
        seconds = alternate(calls(chosen, x, train), options.rounds, options.device, clock)
        results["seconds per call"][label] = {key: spread(values, 6) for key, values in seconds.items()}
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
        for name in ("device", "model", "rounds")
        if getattr(options, name) != parser.get_default(name)
    ]
    official = " --official DIR" if options.official else ""
    command = f"python benchmarks/speed_transnext.py{official}{''.join(changed)}"
    write_result(options.out, command=command, seeds=[0], results=results)


def networks(name: str, official: Path | None) -> dict[str, nn.Module]:
    """Ours, its deploy form, the official network with the same weights, and peers."""
    torch.manual_seed(0)
    if official is None:
        ours = create_model(name)
        return {"ours": ours, "ours, deploy form": copy.deepcopy(ours).fuse()} | peers()
    theirs = getattr(official_module(official), name)(img_size=224)
    ours = create_model(name)
    ours.load_state_dict(convert_official(theirs.state_dict(), ours))
    return {"ours": ours, "ours, deploy form": copy.deepcopy(ours).fuse(), OFFICIAL: theirs} | peers()


def peers() -> dict[str, nn.Module]:
    return {f"timm {peer}{PEER}": timm.create_model(peer) for peer in PEERS}


def official_module(checkout: Path) -> types.ModuleType:
    """The official file, which asks an old package whether its CUDA extension is there."""
    asked = types.ModuleType("pkg_resources")

    class DistributionNotFound(Exception):
        pass

    def get_distribution(name: str) -> None:
        raise DistributionNotFound(name)  # no extension: the native path

    asked.DistributionNotFound, asked.get_distribution = DistributionNotFound, get_distribution  # type: ignore[attr-defined]
    moved = {"pkg_resources": asked, "timm.models.layers": timm.layers, "timm.models.registry": timm.models}
    for module, found in moved.items():
        sys.modules[module] = found
    sys.path.insert(0, str(checkout / "classification"))
    return importlib.import_module("transnext")


if __name__ == "__main__":
    main()
