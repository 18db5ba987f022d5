"""A small published system of our own making, with recorded cases: what the verification room is tried on."""

import json

import torch
from safetensors.torch import save_file
from torch import nn

from torchstone.models import registry

CARD = """
key = "toy"
title = "Toy"
arxiv = "2001.00001"
venue = "nowhere"
kind = "model"
room = "models/image"
proof = "official"
summary = "A convolution and a classifier."
[official]
repository = "toy/toy"
commit = "0123456789012345678901234567890123456789"
code_licence = "MIT"
[input]
min = 4
[[variants]]
name = "toy_mini32"
paper = false
[[variants]]
name = "toy_base"
paper = true
keys = "base"
[[variants]]
name = "toy_grey"
paper = true
keys = "grey"
"""

ADAPTER = """
import torch
from torchstone.models.image.toy import Toy, convert
from torchstone.verification import load_state, record

def run(case):
    model = load_state(Toy(**case.kwargs), case, convert)
    seen = record(model, {"stem": model.stem}, case.inputs["x"])
    return {"logits": seen["return"], "stem": seen["stem"], "label": seen["return"].argmax(1)}
"""


class Toy(nn.Module):
    """Two layers; the official names are those of ours with ``conv`` for ``stem``."""

    def __init__(self, in_chans=3, num_classes=10, width=4):
        super().__init__()
        self.num_classes = num_classes
        self.stem = nn.Conv2d(in_chans, width, 3)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x):
        return self.head(self.stem(x).mean((2, 3)))


def convert(state, model):
    return {name.replace("conv.", "stem."): value for name, value in state.items()}


def toy_factory(name, **defaults):
    def factory(pretrained=False, **kwargs):
        cfg = {"input_size": (3, 32, 32), "num_classes": 10, "first_conv": "stem", "classifier": "head"}
        return registry.build_image_model(Toy, name, pretrained, cfg=cfg, convert=convert, **{**defaults, **kwargs})

    factory.__name__ = name
    factory.__module__ = "torchstone.models.image.toy"
    return factory


def official_state(seed=0, in_chans=3, num_classes=10, width=4):
    torch.manual_seed(seed)
    state = Toy(in_chans, num_classes, width).state_dict()
    return {name.replace("stem.", "conv."): value for name, value in state.items()}


def write_case(folder, name="small", **changes):
    """Record a case of the toy as its authors would have: description and tensors."""
    kwargs = {"in_chans": 3, "num_classes": 10, "width": 4}
    state = official_state(**kwargs)
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    model = Toy(**kwargs).eval()
    model.load_state_dict(convert(state, model))
    with torch.no_grad():
        logits, stem = model(x), model.stem(x)
    tensors = {f"state/{key}": value for key, value in state.items()}
    tensors |= {"input/x": x, "output/logits": logits, "output/stem": stem, "output/label": logits.argmax(1)}
    told = {
        "system": "toy",
        "official": "toy/toy",
        "commit": "0123456",
        "entry": "toy.Toy",
        "kwargs": kwargs,
        "call": "forward",
        "inputs": ["x"],
        "outputs": ["logits", "stem", "label"],
        "mode": "eval",
        "notes": "compare at 1e-3 (solver tolerance)",
        "torch": "2.15.0",
        "values": {"logits": logits.tolist()},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps({**told, **changes}))
    save_file(tensors, folder / f"{name}.safetensors")
    return folder / f"{name}.json"


def write_layouts(path, **changes):
    """``keys/toy.json`` as the authors' networks would give it."""
    layouts = {}
    for name, kwargs in (("base", {}), ("grey", {"in_chans": 1})):
        state = official_state(**kwargs)
        layouts[name] = {
            "entry": "toy.Toy",
            "kwargs": kwargs,
            "params": sum(value.numel() for value in state.values()),
            "state": {key: list(value.shape) for key, value in state.items()},
        }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**layouts, **changes}))
    return layouts
