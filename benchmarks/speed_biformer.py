"""Speed of BiFormer beside the authors' forward and timm networks of about the same cost.

    python benchmarks/speed_biformer.py --official DIR      # a checkout of rayleizhu/BiFormer, which needs einops
    python benchmarks/speed_biformer.py --device cuda --official DIR

Ours, its deploy form and the authors' network have the same weights and give the same answers; networks marked as
peers are others. All are timed in alternated rounds in one process; on a CPU it is the processor's time with one
thread, so that other work on the machine does not count. Ratios below 1 mean that ours is faster. Without --official
only the peers are compared.
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
from torchstone.models.image.biformer import convert_official

RESULT = Path(__file__).parent / "results" / "speed" / "biformer.json"
VARIANTS = {  # ours -> the authors' module, peers
    "biformer_tiny": ("models.biformer", ("pvt_v2_b1",)),
    "biformer_stl_nchw": ("models.biformer_stl_nchw", ("swin_tiny_patch4_window7_224",)),
}
BATCHES = {"cpu": ((1, False), (1, True)), "cuda": ((1, False), (128, False), (64, True))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--official", type=Path, metavar="DIR", help="checkout of rayleizhu/BiFormer")
    parser.add_argument("--device", choices=sorted(BATCHES), default="cpu")
    parser.add_argument("--models", nargs="+", choices=sorted(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    if options.official:
        make_importable(options.official)

    cpu = options.device == "cpu"
    clock = time.process_time if cpu else time.perf_counter
    if cpu:
        torch.set_num_threads(1)
    results: dict[str, Any] = {"device": options.device, "image size": 224, "rounds": options.rounds}
    results["clock"] = "processor time, one thread" if cpu else "wall time"
    results |= {"seconds per call": {}, "ours as a multiple of": {}}
    for name in options.models:
        modules = {key: module.to(options.device) for key, module in build(name, bool(options.official)).items()}
        check(modules, torch.randn(2, 3, 224, 224, device=options.device))
        for batch, train in BATCHES[options.device]:
            label = f"{name}, {'training step' if train else 'inference'}, batch {batch}"
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

    official = " --official DIR" if options.official else ""
    models = "" if options.models == list(VARIANTS) else f" --models {' '.join(options.models)}"
    changed = [
        f" --{name} {getattr(options, name)}"
        for name in ("device", "rounds")
        if getattr(options, name) != parser.get_default(name)
    ]
    command = f"python benchmarks/speed_biformer.py{official}{models}{''.join(changed)}"
    write_result(options.out, command=command, seeds=[0], results=results)


def make_importable(checkout: Path) -> None:
    """Let the authors' files find what timm had at other places, and what they import without needing it."""
    sys.path.insert(0, str(checkout))
    stand_ins: dict[str, dict[str, Any]] = {
        "timm.models": {**vars(timm.models), "register_model": lambda factory: factory},
        "timm.models.layers": vars(timm.layers),
        "timm.models.vision_transformer": {"_cfg": dict},
        "fairscale": {},
        "fairscale.nn": {},
        "fairscale.nn.checkpoint": {"checkpoint_wrapper": lambda module: module},
    }
    for name, content in stand_ins.items():
        module = types.ModuleType(name)
        vars(module).update({key: value for key, value in content.items() if not key.startswith("__")})
        sys.modules[name] = module


def build(name: str, official: bool) -> dict[str, nn.Module]:
    """Ours, its deploy form, the authors' network with the same weights, and peers."""
    torch.manual_seed(0)
    module, peers = VARIANTS[name]
    ours = create_model(name)
    found = {f"timm {peer}{PEER}": timm.create_model(peer) for peer in peers}
    if official:
        theirs = getattr(importlib.import_module(module), name)()
        ours.load_state_dict(convert_official(theirs.state_dict(), ours))
        found["official"] = theirs
    return {"ours": ours, "ours, deploy form": copy.deepcopy(ours).fuse(), **found}


if __name__ == "__main__":
    main()
