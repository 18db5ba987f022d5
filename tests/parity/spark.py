"""SparK: our objects for each recorded call of the authors' code."""

from collections import OrderedDict
from collections.abc import Callable

import torch
from timm.models.convnext import ConvNeXt
from timm.models.resnet import BasicBlock
from torch import Tensor, nn

from torchstone.methods.spark import (
    SparK,
    Visible,
    convert_official,
    official_names,
    visible_count,
    visible_patches,
)
from torchstone.training import TrainSpec
from torchstone.training.schedules import learning_rate, weight_decay
from torchstone.verification import Case, load_state


def run(case: Case) -> dict[str, Tensor]:
    return _ENTRIES[case.entry](case)


def _mask(case: Case) -> dict[str, Tensor]:
    side, ratio = case.kwargs["f"], case.kwargs["ratio"]
    count = visible_count(side * side, ratio)
    return {"active": visible_patches(case.inputs["noise"], count, side), "len_keep": torch.tensor(count)}


def _schedule(case: Case) -> dict[str, Tensor]:
    """Every step as an epoch of one step; of the two groups of parameters the second does not decay."""
    told = case.kwargs
    train = TrainSpec(
        epochs=told["max"],
        lr=told["lr"],
        schedule="cosine_last",
        warmup_epochs=told["wp"],
        warmup_lr=0.005 * told["lr"],
        min_lr=0.001 * told["lr"],
        weight_decay=told["wd"],
        weight_decay_end=told["wde"],
    )
    rows = []
    for step in range(told["max"]):
        lr, decay = learning_rate(train, step, 1), weight_decay(train, step, 1)
        rows.append([lr, lr, 0.0, decay, lr, decay, 0.0])
    return {"sched": 1000 * torch.tensor(rows, dtype=torch.float64)}  # recorded in thousandths


def _pretraining(case: Case) -> dict[str, Tensor]:
    told = case.kwargs
    network, options = _NETWORKS[told["arch"]](case)
    spark = SparK(network, mask_ratio=told["mask"], width=told["width"], **options)
    load_state(spark, case, convert_official)
    images, visible = case.inputs["x"], Visible(case.inputs["active"])

    maps = spark.encode(images, visible)
    prediction = spark.decode(maps, visible)
    loss = spark.hidden_loss(prediction, images, visible)
    outputs = {f"enc{i}": x for i, x in enumerate(reversed(maps), start=1)}
    outputs |= {"loss": loss, "rec": prediction, "rec_or_inp": spark.complete(prediction, images, visible)}
    loss.backward()

    ours = {official: name for name, official in official_names(spark).items()}
    for name in case.outputs:
        kind, _, rest = name.partition("/")
        if kind == "grad":
            outputs[name] = spark.get_parameter(ours[rest]).grad
        elif kind == "buf":
            outputs[name] = spark.get_buffer(ours[rest])
    return {name: value for name, value in outputs.items() if name in case.outputs}


def _convnext(case: Case) -> tuple[nn.Module, dict[str, object]]:
    network = ConvNeXt(depths=tuple(case.kwargs["depths"]), dims=tuple(case.kwargs["dims"]), num_classes=0)
    network.head = nn.Identity()
    return network, {"densify_norm": "ln"}


def _tiny_resnet(case: Case) -> tuple[nn.Module, dict[str, object]]:
    """The toy network of the notes: a stem and four basic blocks."""
    planes = case.kwargs["planes"]
    stem = {
        "conv1": nn.Conv2d(3, planes[0], 7, stride=2, padding=3, bias=False),
        "bn1": nn.BatchNorm2d(planes[0]),
        "act1": nn.ReLU(inplace=True),
        "maxpool": nn.MaxPool2d(3, stride=2, padding=1),
    }
    state = case.state or {}
    blocks = {}
    for i, (width, stride) in enumerate(zip(planes, (1, 2, 2, 2), strict=True)):
        before = planes[max(i - 1, 0)]
        place = f"sparse_encoder.sp_cnn.layer{i + 1}"
        nested = any(name.startswith(f"{place}.0.") for name in state)
        projected = any(".downsample." in name for name in state if name.startswith(place)) or stride > 1
        projection = nn.Sequential(nn.Conv2d(before, width, 1, stride=stride, bias=False), nn.BatchNorm2d(width))
        block = BasicBlock(before, width, stride, projection if projected else None)
        blocks[f"layer{i + 1}"] = nn.Sequential(block) if nested else block
    network = nn.Sequential(OrderedDict({**stem, **blocks}))
    return network, {"densify_norm": "bn", "stages": list(blocks)}


_NETWORKS = {"convnext": _convnext, "tinyresnet": _tiny_resnet}
_ENTRIES: dict[str, Callable[[Case], dict[str, Tensor]]] = {
    "spark.SparK.mask": _mask,
    "utils.lr_control.lr_wd_annealing": _schedule,
    "spark.SparK(SparseEncoder(cnn), LightDecoder)": _pretraining,
}
