"""GLMix: our objects for each recorded call of the authors' code."""

from timm.layers import LayerNorm2d
from torch import nn

from torchstone.models.image.glmix import (
    GLMixBlock,
    GLNet,
    TokenLabelCrossEntropy,
    TokenLabelGLNet,
    TokenLabelOutputs,
)
from torchstone.verification import load_state, record

NORMS = {"BatchNorm2d": nn.BatchNorm2d, "LayerNorm2d": LayerNorm2d}
RENAMED = {"embed_dim": "dims", "depth": "depths"}


def run(case):
    return ENTRIES[case.entry](case)


def run_block(case):
    told = dict(case.kwargs)
    told["norm_layer"] = NORMS[told["norm_layer"]]
    block = load_state(GLMixBlock(told.pop("embed_dim"), told.pop("num_heads"), **told), case)
    slots = block.slots(case.inputs["x"])
    return {
        "slots_clustered": slots.clustered,
        "slots_updated": slots.updated,
        "logits": slots.logits,
        "y": block(case.inputs["x"]),
    }


def network(case, cls):
    told = {RENAMED.get(name, name): value for name, value in case.kwargs.items()}
    told["norm_layer"] = NORMS[told["norm_layer"]]
    return load_state(cls(**told), case)


def run_network(case, cls=GLNet):
    model = network(case, cls)
    modules = {f"down{i}": layer for i, layer in enumerate(model.downsample_layers, start=1)}
    modules |= {f"stage{i}": stage for i, stage in enumerate(model.stages, start=1)}
    found = record(model, modules, case.inputs["x"])
    found["logits"] = found.pop("return")
    return found


def run_token_labelling(case):
    if "bbox" not in case.inputs:
        return run_network(case, TokenLabelGLNet)
    outputs = network(case, TokenLabelGLNet).forward_mixed(case.inputs["x"], case.inputs["bbox"])
    return {"cls": outputs.cls, "aux": outputs.aux}


def run_loss(case):
    loss = TokenLabelCrossEntropy(case.kwargs["dense_weight"], case.kwargs["cls_weight"])
    outputs = TokenLabelOutputs(case.inputs["cls_logits"], case.inputs["aux_logits"], case.inputs["bbox"])
    return {"loss": loss(outputs, case.inputs["target"])[None]}


ENTRIES = {
    "models.glnet.GLMixBlock": run_block,
    "models.glnet.GLNet": run_network,
    "models.glnet_tklb.GLNet_tklb": run_token_labelling,
    "token_labeling.loss.TokenLabelCrossEntropy": run_loss,
}
