"""MaxViT: our objects for each recorded call."""

from torchstone.layers.relative_position import RelativePositionBias
from torchstone.layers.windows import grid_partition, window_partition
from torchstone.models.image.maxvit import MaxViT, convert_official
from torchstone.verification import load_state, record

OPTIONS = {  # the recorded configuration's names -> ours
    "embed_dim": "dims",
    "depths": "depths",
    "stem_width": "stem_width",
    "head_hidden_size": "head_hidden",
    "dim_head": "head_dim",
    "window_size": "window_size",
    "grid_size": "grid_size",
}


def run(case):
    return ENTRIES[case.entry](case)


def run_network(case):
    options = {OPTIONS[name]: value for name, value in case.kwargs["tf_cfg"].items()}
    model = MaxViT(case.kwargs["img_size"], num_classes=case.kwargs["num_classes"], **options)
    load_state(model, case, convert_official)
    first = model.stages[0].blocks[0]
    modules = {
        "stem": model.stem,
        "s1b0_mbconv": first.conv,
        "s1b0_block": first.attn_block,
        **{f"stage{number}": stage for number, stage in enumerate(model.stages, start=1)},
        "pre_logits": model.head.drop,
    }
    found = record(model, modules, case.inputs["x"])
    found["out"] = found.pop("return")
    return {name: found[name] for name in case.outputs}


def run_partitions(case):
    x, size = case.inputs["x"], tuple(case.kwargs["size"])
    return {"window": window_partition(x, size), "grid": grid_partition(x, size)}


def run_bias(case):
    bias = load_state(RelativePositionBias(tuple(case.kwargs["window_size"]), case.kwargs["num_heads"]), case)
    return {"bias": bias()}


ENTRIES = {
    "timm.models.maxxvit.MaxxVit": run_network,
    "timm.models.maxxvit.window_partition / grid_partition": run_partitions,
    "timm.layers.RelPosBiasTf.get_bias": run_bias,
}
