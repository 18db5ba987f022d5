"""VQGraph's networks - a teacher that writes every node's surroundings as a code, and a student without a graph.

Yang et al., VQGraph: Rethinking Graph Representation Space for Bridging GNNs and MLPs, ICLR 2024, arXiv 2308.02117.

A few class scores say little of a node's neighbourhood, so a perceptron that imitates them learns little of the graph.
VQGraph's teacher is a tokenizer as well: what a graph convolution sees around a node is replaced by the nearest of K
learned codes, from which node and edges must be restored. The codebook is the space in which a perceptron is then
taught (:mod:`torchstone.methods.vqgraph`): with which codes is this node's surroundings alike, and how much?

    h      = dropout(ReLU(conv(x)))                          (N, D)    the surroundings of every node
    k_i    = argmax_k <h_i, E_k> / |h_i| |E_k|,  q_i = E_k_i (N, D)    the nearest code; gradients go straight to h
    q^e, q^n = W_e q + b_e,  W_n q + b_n                     (N, D)    decoded for edges and for nodes
    logits = W ReLU(conv(q^e)) + b                           (N, C)

    loss = CE(labelled) + lambda_n MSE(h, q^n) + lambda_e sqrt(MSE(A, minmax(q^e q^e^T))) + beta MSE(sg(q), h)

A holds 0 and 1, self-loops included; ``minmax`` maps the smallest of all N x N entries to 0 and the largest to 1.
The codebook E (K, D) learns by moving averages, not by gradients; D is F unless given. ``conv`` is
``D_in^-1/2 (A + I) D_out^-1/2 x W + b`` (GCN), or the mean over a node and its neighbours, times W, plus b (GraphSAGE,
its aggregator ``gcn``).

Reading order: :mod:`codes <torchstone.models.graph.vqgraph.codes>`,
:mod:`edges <torchstone.models.graph.vqgraph.edges>`, :mod:`networks <torchstone.models.graph.vqgraph.networks>`, and
here the authors' layout and the networks by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from torchstone.errors import CallError
from torchstone.models.graph.vqgraph.codes import (
    CosineQuantizer,
    EuclideanQuantizer,
    Quantized,
    VectorQuantizer,
    cosine_scores,
    euclidean_scores,
    perplexity,
)
from torchstone.models.graph.vqgraph.edges import edge_loss, edge_loss_dense
from torchstone.models.graph.vqgraph.networks import Tokens, VQGraphGCN, VQGraphMLP, VQGraphSAGE
from torchstone.models.registry import build_plain_model, register_model

__all__ = [
    "CosineQuantizer",
    "EuclideanQuantizer",
    "Quantized",
    "Tokens",
    "VQGraphGCN",
    "VQGraphMLP",
    "VQGraphSAGE",
    "VectorQuantizer",
    "convert_official",
    "cosine_scores",
    "edge_loss",
    "edge_loss_dense",
    "euclidean_scores",
    "perplexity",
    "to_official",
    "vqgraph_gcn",
    "vqgraph_gcn_citeseer",
    "vqgraph_gcn_cora",
    "vqgraph_mlp",
    "vqgraph_mlp_citeseer",
    "vqgraph_mlp_cora",
    "vqgraph_sage",
]

# --- the authors' layout

_TEACHER = {
    "graph_layer_1.": "conv1.",
    "graph_layer_2.": "conv2.",
    "decoder_1.": "edge_decoder.",
    "decoder_2.": "node_decoder.",
    "linear.": "classifier.",
    "vq._codebook.": "quantizer.",
}
_LAYOUTS: Mapping[type[nn.Module], Mapping[str, str]] = {
    VQGraphGCN: _TEACHER,
    VQGraphMLP: {"linear.": "projection."},
    VectorQuantizer: {"_codebook.": ""},
}
_BUFFERS = {"embed": "codebook", "embed_avg": "code_sum", "cluster_size": "cluster_size"}


def convert_official(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The authors' state dict of a teacher, a student or a quantiser as ours.

    Their codebooks have a leading axis of one head and a flag ``initted``, which nothing here needs; a network that was
    saved within its wrapper has ``encoder.`` before every name.

    Raises:
        CallError: a network that the authors have no layout of; a :class:`VQGraphSAGE`, since theirs computes
            something else with the same names.
    """
    converted = {}
    for name, value in state.items():
        ours = name.removeprefix("encoder.")
        for official, prefix in _prefixes(model).items():
            if ours.startswith(official):
                ours = prefix + ours.removeprefix(official)
                if official.endswith("_codebook."):
                    buffer = ours.rpartition(".")[2]
                    ours, value = prefix + _BUFFERS.get(buffer, buffer), value[0]
                break
        if not ours.endswith("initted"):
            converted[ours] = value
    return converted


def to_official(model: nn.Module) -> dict[str, Tensor]:
    """The state dict of a teacher, a student or a quantiser in the authors' layout."""
    official_of = {ours: official for official, ours in _BUFFERS.items()}
    converted: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        for official, prefix in _prefixes(model).items():
            rest = name.removeprefix(prefix)
            if name.startswith(prefix) and not official.endswith("_codebook."):
                name = official + rest
            elif name.startswith(prefix) and rest in official_of:
                name, value = official + official_of[rest], value[None]
                converted[official + "initted"] = torch.ones(1)
            else:
                continue
            break
        converted[name] = value
    return converted


def _prefixes(model: nn.Module) -> Mapping[str, str]:
    if isinstance(model, VQGraphSAGE):
        raise CallError(
            "the authors' GraphSAGE teacher computes graph convolutions of sampled blocks, not the mean that "
            "vqgraph_sage does: its weights would mean something else here. On the whole graph they are those of a "
            "vqgraph_gcn"
        )
    for kind, prefixes in _LAYOUTS.items():
        if isinstance(model, kind):
            return prefixes
    raise CallError(f"the authors have no layout of a {type(model).__name__}")


# --- factories


def _build(cls: type[nn.Module], pretrained: bool, **kwargs: Any) -> nn.Module:
    return build_plain_model(cls, pretrained, convert=_either_layout, **kwargs)


def _either_layout(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    return state if state.keys() == model.state_dict().keys() else convert_official(state, model)


@register_model
def vqgraph_gcn(
    pretrained: bool = False, *, in_channels: int = 1433, out_channels: int = 7, **kwargs: Any
) -> nn.Module:
    """The teacher with graph convolutions, for any graph; sizes are Cora's unless given."""
    return _build(VQGraphGCN, pretrained, in_channels=in_channels, out_channels=out_channels, **kwargs)


@register_model
def vqgraph_sage(
    pretrained: bool = False, *, in_channels: int = 1433, out_channels: int = 7, **kwargs: Any
) -> nn.Module:
    """The teacher with GraphSAGE's convolutions, for any graph; sizes are Cora's unless given."""
    return _build(VQGraphSAGE, pretrained, in_channels=in_channels, out_channels=out_channels, **kwargs)


@register_model
def vqgraph_mlp(
    pretrained: bool = False, *, in_channels: int = 1433, out_channels: int = 7, **kwargs: Any
) -> nn.Module:
    """The student, for any graph; sizes are Cora's unless given."""
    return _build(VQGraphMLP, pretrained, in_channels=in_channels, out_channels=out_channels, **kwargs)


@register_model
def vqgraph_gcn_cora(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The teacher as the authors' code trains it on Cora."""
    return vqgraph_gcn(pretrained, **{"hidden_channels": 64, "num_codes": 5000, "dropout": 0.8, **kwargs})


@register_model
def vqgraph_gcn_citeseer(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The teacher as the authors' code trains it on CiteSeer."""
    citeseer = {"in_channels": 3703, "out_channels": 6, "hidden_channels": 128, "num_codes": 5000, "dropout": 0.8}
    return vqgraph_gcn(pretrained, **{**citeseer, **kwargs})


@register_model
def vqgraph_mlp_cora(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The student as the authors' code trains it on Cora."""
    return vqgraph_mlp(pretrained, **{"hidden_channels": 128, "dropout": 0.6, **kwargs})


@register_model
def vqgraph_mlp_citeseer(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The student as the authors' code trains it on CiteSeer."""
    citeseer = {"in_channels": 3703, "out_channels": 6, "hidden_channels": 128, "dropout": 0.1}
    return vqgraph_mlp(pretrained, **{**citeseer, **kwargs})
