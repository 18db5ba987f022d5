"""ECA-Net: our objects for each recorded call of the authors' code."""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from torchstone.layers import EfficientChannelAttention, EfficientChannelAttentionNS
from torchstone.models.image.ecanet import (
    ECABasicBlock,
    ECABottleneck,
    ECAInvertedResidual,
    ECAMobileNetV2,
    ECAResNet,
    convert_official,
)
from torchstone.verification import Case, load_state, record

_BLOCKS = {"ECABasicBlock": ECABasicBlock, "ECABottleneck": ECABottleneck}


def run(case: Case) -> dict[str, Tensor]:
    outputs = _ENTRIES[case.entry](case)
    return {"out": outputs.pop("return"), **outputs}


def _layer(case: Case, layer: type[nn.Module]) -> dict[str, Tensor]:
    model = load_state(layer(case.kwargs["channel"], case.kwargs["k_size"]), case)
    return record(model, {}, case.inputs["x"])


def _residual_block(case: Case, block: type[nn.Module]) -> dict[str, Tensor]:
    told = case.kwargs  # the shortcut's projection follows from these four
    model = load_state(block(told["inplanes"], told["planes"], told["stride"], told["k_size"]), case)
    recorded = {name: model.get_submodule(name) for name in case.outputs if name != "out"}
    return record(model, recorded, case.inputs["x"])


def _inverted_residual(case: Case) -> dict[str, Tensor]:
    told = case.kwargs
    block = ECAInvertedResidual(told["inp"], told["oup"], told["stride"], told["expand_ratio"], told["k_size"])
    return record(load_state(block, case), {"pre_eca": block.conv[-2]}, case.inputs["x"])


def _resnet(case: Case) -> dict[str, Tensor]:
    told = case.kwargs
    model = ECAResNet(
        _BLOCKS[told["block"]],
        told["layers"],
        told["k_size"],
        width=told["width"],
        num_classes=told["num_classes"],
    )
    stages = {f"stage{i}": model.get_submodule(f"layer{i}") for i in (1, 2, 3, 4)}
    return record(load_state(model, case, convert_official), stages, case.inputs["x"])


def _mobilenet(case: Case) -> dict[str, Tensor]:
    model = ECAMobileNetV2(case.kwargs["width_mult"], num_classes=case.kwargs["num_classes"])
    trunk = model.features[: case.kwargs.get("cut")]
    called = trunk if "cut" in case.kwargs else model
    recorded = {name: trunk[int(name.removeprefix("f"))] for name in case.outputs if name != "out"}
    return record(load_state(called, case, convert_official), recorded, case.inputs["x"])


_ENTRIES: dict[str, Callable[[Case], dict[str, Tensor]]] = {
    "models.eca_module.eca_layer": partial(_layer, layer=EfficientChannelAttention),
    "models.eca_ns.eca_layer": partial(_layer, layer=EfficientChannelAttentionNS),
    "models.eca_resnet.ECABasicBlock": partial(_residual_block, block=ECABasicBlock),
    "models.eca_resnet.ECABottleneck": partial(_residual_block, block=ECABottleneck),
    "models.eca_resnet.ResNet": _resnet,
    "models.eca_mobilenetv2.InvertedResidual": _inverted_residual,
    "models.eca_mobilenetv2.ECA_MobileNetV2": _mobilenet,
}
