"""Speed of InceptionNeXt and its ConvNeXt ablation beside the official forward and timm's networks.

    python benchmarks/speed_inceptionnext.py --official DIR      # a checkout of sail-sg/inceptionnext
    python benchmarks/speed_inceptionnext.py --device cuda --official DIR

All networks of a comparison have the same weights and give the same answers, and are timed in alternated rounds in one
process. Ratios below 1 mean that ours is faster. The official network is timed in both memory layouts; ratios are to
the faster one. Without --official only timm's networks are compared.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import statistics
import sys
import types
from pathlib import Path

import timm
import torch
from rounds import alternate, ratio, spread
from torch import Tensor, nn

from torchstone import create_model
from torchstone.environment import write_result
from torchstone.models.image.inceptionnext import convert_convnext

RESULT = Path(__file__).parent / "results" / "speed" / "inceptionnext.json"
VARIANTS = {  # ours -> the official module, timm's network of the same weights
    "inceptionnext_atto": ("models.inceptionnext", "inception_next_atto"),
    "inceptionnext_tiny": ("models.inceptionnext", "inception_next_tiny"),
    "convnext_tiny_k3_par1_4": ("models.convnext", None),
}
BATCHES = {"cpu": (1, 16, 8), "cuda": (1, 128, 128)}  # inference, inference, training
CHANNELS_LAST = ", channels last"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--official", type=Path, metavar="DIR", help="checkout of sail-sg/inceptionnext")
    parser.add_argument("--device", choices=sorted(BATCHES), default="cpu")
    parser.add_argument("--models", nargs="+", choices=sorted(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--size", type=int, default=224, help="side of the images, pixels")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    if options.official:
        make_importable(options.official)

    results = {"device": options.device, "image size": options.size, "rounds": options.rounds, "seconds per call": {}}
    results["ours as a multiple of"] = {}
    small, large, training = BATCHES[options.device]
    for name in options.models:
        networks = build(name, bool(options.official), options.device)
        for batch, train in ((small, False), (large, False), (training, True)):
            x = torch.randn(batch, 3, options.size, options.size, device=options.device)
            label = f"{name}, {'training step' if train else 'inference'}, batch {batch}"
            chosen = {key: network for key, network in networks.items() if not (train and "deploy" in key)}
            seconds = alternate(calls(chosen, x, train), options.rounds, options.device)
            results["seconds per call"][label] = {key: spread(values, 6) for key, values in seconds.items()}
            results["ours as a multiple of"][label] = compared(seconds)
            print(label, results["ours as a multiple of"][label], flush=True)

    official = " --official DIR" if options.official else ""
    models = "" if options.models == list(VARIANTS) else f" --models {' '.join(options.models)}"
    changed = [
        f" --{name} {getattr(options, name)}"
        for name in ("device", "size", "rounds")
        if getattr(options, name) != parser.get_default(name)
    ]
    command = f"python benchmarks/speed_inceptionnext.py{official}{models}{''.join(changed)}"
    write_result(options.out, command=command, seeds=[0], results=results)


def make_importable(checkout: Path) -> None:
    """Let the official files find what timm 0.6 had at other places."""
    sys.path.insert(0, str(checkout))
    moved = {
        "timm.models.helpers": {"checkpoint_seq": timm.models.checkpoint_seq},
        "timm.models.layers": vars(timm.layers),
        "timm.models.layers.helpers": {"to_2tuple": timm.layers.to_2tuple},
        "timm.models.registry": {"register_model": lambda factory: factory},
    }
    for name, content in moved.items():
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update({key: value for key, value in content.items() if not key.startswith("__")})


def build(name: str, official: bool, device: str) -> dict[str, nn.Module]:
    """Networks of the same weights and answers, by what they are called in the result."""
    torch.manual_seed(0)
    module, peer = VARIANTS[name]
    ours = create_model(name)
    networks: dict[str, nn.Module] = {"ours": ours}
    if official:
        networks["official"] = getattr(importlib.import_module(module), name)()
        for parameter, value in networks["official"].named_parameters():
            if "gamma" in parameter:
                nn.init.normal_(value)  # as it starts, no answer would depend on the blocks
        state = networks["official"].state_dict()
        ours.load_state_dict(convert_convnext(state, ours) if module.endswith("convnext") else state)
        networks["official" + CHANNELS_LAST] = copy.deepcopy(networks["official"])
    if peer:
        networks["timm"] = timm.create_model(peer)
        networks["timm"].load_state_dict(ours.state_dict())
    networks["ours" + CHANNELS_LAST] = copy.deepcopy(ours)
    networks["ours, deploy form"] = copy.deepcopy(ours).fuse()
    x = torch.randn(2, 3, 64, 96, device=device)
    with torch.no_grad():
        answers = {key: network.to(device).eval()(x) for key, network in networks.items()}
    for key, answer in answers.items():
        if (answer - answers["ours"]).abs().max() > 1e-3 * answer.abs().max():
            raise SystemExit(f"{name}: {key} gives another answer than ours")
    return networks


def calls(networks: dict[str, nn.Module], x: Tensor, train: bool) -> dict:
    """A forward pass, or with ``train`` a forward and backward pass, of every network."""
    layouts = {True: x.contiguous(memory_format=torch.channels_last), False: x}

    def call(network: nn.Module, x: Tensor):
        def step() -> None:
            network.zero_grad(set_to_none=True)
            network(x).sum().backward()

        def forward() -> None:
            with torch.inference_mode():
                network(x)

        return step if train else forward

    for key, network in networks.items():
        network.train(train)
        if CHANNELS_LAST in key:
            network.to(memory_format=torch.channels_last)
    return {key: call(network, layouts[CHANNELS_LAST in key]) for key, network in networks.items()}


def compared(seconds: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Ratios of ours, in the layout that is given and in the deploy form, to the official network and timm's."""
    official = [key for key in seconds if key.startswith("official")]
    peers = ([min(official, key=lambda key: statistics.median(seconds[key]))] if official else []) + (
        ["timm"] if "timm" in seconds else []
    )
    ours = [key for key in seconds if key.startswith("ours")]
    return {f"{mine} / {peer}": ratio(seconds, mine, peer) for mine in ours for peer in peers}


if __name__ == "__main__":
    main()
