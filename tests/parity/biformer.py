"""BiFormer: our objects for each recorded call of the authors' code."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from torchstone.models.image.biformer import (
    BiFormer,
    BiFormerSTL,
    BiFormerSTL2d,
    BiLevelRoutingAttention,
    BiLevelRoutingAttention2d,
    DenseBiFormer,
    convert_official,
)
from torchstone.verification import Case, load_state, record

OPTIONS = {  # the recorded configuration's names -> ours
    "depth": "depths",
    "embed_dim": "dims",
    "n_win": "regions",
    "n_wins": "regions",
}
SAME = {
    "auto_pad",
    "before_attn_dwconv",
    "diff_routing",
    "head_dim",
    "kv_downsample_mode",
    "kv_per_wins",
    "mlp_dwconv",
    "num_classes",
    "param_routing",
    "pre_norm",
    "qk_dims",
    "side_dwconv",
    "soft_routing",
    "topks",
}


def run(case: Case) -> dict[str, Tensor]:
    return _ENTRIES[case.entry](case)


def _options(told: dict[str, Any]) -> dict[str, Any]:
    found = {OPTIONS.get(name, name): value for name, value in told.items() if name in SAME or name in OPTIONS}
    (found["mlp_ratio"],) = set(told["mlp_ratios"])
    if told.get("layer_scale_init_value", -1) > 0:
        found["layer_scale"] = told["layer_scale_init_value"]
    return found


def _network(case: Case, network: type[nn.Module]) -> dict[str, Tensor]:
    model = load_state(network(**_options(case.kwargs)), case, convert_official)
    modules = {
        f"{name}{number}": part
        for name, parts in (("down", model.downsample_layers), ("stage", model.stages))
        for number, part in enumerate(parts, start=1)
    }
    found = record(model, modules, case.inputs["x"])
    return {"logits": found.pop("return"), **found}


def _dense(case: Case) -> dict[str, Tensor]:
    model = load_state(DenseBiFormer(BiFormer(**_options(case.kwargs))), case, convert_official)
    return {f"feat{number}": found for number, found in enumerate(model(case.inputs["x"]), start=1)}


def _attention(case: Case) -> dict[str, Tensor]:
    told = dict(case.kwargs)
    layer = BiLevelRoutingAttention(told.pop("dim"), regions=told.pop("n_win"), **told)
    found = load_state(layer, case, convert_official).trace(case.inputs["x"])
    answers = {
        "y": found.output,
        "r_weight": found.weights,
        "r_idx": found.routes,
        "attn": found.attention.flatten(0, 1),
    }
    return {name: answers[name] for name in case.outputs}


def _attention_2d(case: Case) -> dict[str, Tensor]:
    told = dict(case.kwargs)
    layer = BiLevelRoutingAttention2d(told.pop("dim"), regions=told.pop("n_win"), **told)
    found = load_state(layer, case, convert_official).trace(case.inputs["x"])
    return {"y": found.output, "attn": found.attention.transpose(1, 2)}


_ENTRIES: dict[str, Callable[[Case], dict[str, Tensor]]] = {
    "models.biformer.BiFormer": lambda case: _network(case, BiFormer),
    "models.biformer_stl.BiFormerSTL": lambda case: _network(case, BiFormerSTL),
    "models.biformer_stl_nchw.nchwBiFormerSTL": lambda case: _network(case, BiFormerSTL2d),
    "ops.bra_legacy.BiLevelRoutingAttention": _attention,
    "ops.bra_nchw.nchwBRA": _attention_2d,
    "semantic_segmentation/models_mm/biformer_mm.BiFormer_mm": _dense,
}
