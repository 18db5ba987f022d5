"""TransNeXt: our objects for each recorded call of the authors' code."""

from torchstone.models.image.transnext import TransNeXt, convert_official, relative_positions
from torchstone.verification import load_state, record

OPTIONS = {  # the recorded arguments' names -> ours
    "img_size": "img_size",
    "pretrain_size": "pretrain_size",
    "window_size": "windows",
    "patch_size": "patch_size",
    "embed_dims": "dims",
    "num_heads": "heads",
    "mlp_ratios": "mlp_ratios",
    "qkv_bias": "qkv_bias",
    "depths": "depths",
    "sr_ratios": "pools",
    "norm_eps": "norm_eps",
    "fixed_pool_size": "pooled",
}


def run(case):
    return ENTRIES[case.entry](case)


def tokens(x):
    """A map as the authors hand it on: (B, H, W, C) -> (B, H * W, C)."""
    return x.flatten(1, 2)


def inner(model):
    """What both entries record inside, before it is laid out as tokens."""
    first = model.stages[0]
    return {"patch_embed1": first.patch_embed, "block1_0": first.blocks[0]}


def build(case, **options):
    told = {OPTIONS[name]: value for name, value in case.kwargs.items() if name in OPTIONS}
    return load_state(TransNeXt(**told, **options), case, convert_official)


def run_classifier(case):
    model = build(case, num_classes=case.kwargs["num_classes"])
    stages = {f"stage{number}": stage.norm for number, stage in enumerate(model.stages, start=1)}
    found = record(model, inner(model) | stages, case.inputs["x"])
    return {"out": found.pop("return"), **{name: tokens(value) for name, value in found.items()}}


def run_backbone(case):
    positions = "extrapolate" if case.kwargs["is_extrapolation"] else "interpolate"
    model = build(case, positions=positions, num_classes=0)  # these backbones have no classifier
    found = record(model, inner(model) | {f"out{i}": stage for i, stage in enumerate(model.stages)}, case.inputs["x"])
    return {name: tokens(found[name]) if name in inner(model) else found[name] for name in case.outputs}


def run_positions(case):
    sizes = (tuple(case.kwargs[name]) for name in ("query_size", "key_size", "pretrain_size"))
    found = relative_positions(*sizes)
    return {"relative_pos_index": found.index, "relative_coords_table": found.table.flatten(0, 1)}


ENTRIES = {
    "transnext.TransNeXt": run_classifier,
    "segmentation/upernet/transnext_native.TransNeXt": run_backbone,
    "transnext.get_relative_position_cpb": run_positions,
}
