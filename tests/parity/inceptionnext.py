"""Recorded cases of InceptionNeXt: the block, MetaNeXt networks, and the ConvNeXt ablation network."""

from functools import partial

from torchstone.models.image.inceptionnext import (
    ConvNeXt,
    InceptionDWConv2d,
    MetaNeXt,
    MetaNeXtBlock,
    convert_convnext,
)
from torchstone.verification import load_state, record

MIXERS = {"InceptionDWConv2d": InceptionDWConv2d}


def run(case):
    return ENTRIES[case.entry](case, **case.kwargs)


def run_block(case, token_mixer, **options):
    block = load_state(MetaNeXtBlock(token_mixer=mixer(**token_mixer), **options), case)
    found = record(block, {"mixer": block.token_mixer, "normed": block.norm}, case.inputs["x"])
    found |= {"y": found["return"], "bn_mean": block.norm.running_mean, "bn_var": block.norm.running_var}
    return {name: found[name] for name in case.outputs}


def run_metanext(case, token_mixers, **options):
    model = load_state(MetaNeXt(token_mixers=mixer(**token_mixers), **options), case)
    return maps_and_logits(model, {"stem": model.stem}, case)


def run_convnext(case, conv_fns, **options):
    ratios = 1.0 if conv_fns == "Conv2d" else conv_fns["conv_ratio"]
    model = load_state(ConvNeXt(conv_ratios=ratios, **options), case, convert_convnext)
    return maps_and_logits(model, {}, case)


def mixer(type, **options):
    return partial(MIXERS[type], **options)


def maps_and_logits(model, modules, case):
    stages = {f"stage{number}": stage for number, stage in enumerate(model.stages, start=1)}
    found = record(model, {**modules, **stages}, case.inputs["x"])
    found["logits"] = found.pop("return")
    return found


ENTRIES = {
    "models.inceptionnext.MetaNeXtBlock": run_block,
    "models.inceptionnext.MetaNeXt": run_metanext,
    "models.convnext.ConvNeXt": run_convnext,
}
