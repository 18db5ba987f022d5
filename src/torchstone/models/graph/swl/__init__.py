"""SWL - A Complete Expressiveness Hierarchy for Subgraph GNNs via Subgraph Weisfeiler-Lehman Tests.

Zhang, Feng, Du, He and Wang, ICML 2023, arXiv 2302.07090.

A subgraph network sees a graph as a bag of subgraphs, one for every node u, and so tells apart what plain message
passing cannot. All such networks keep a state for every pair (u, v), v seen in the subgraph of u, and differ in what a
pair collects. The paper shows that they fall into six classes, ordered by power in part, and which few sums suffice.
Each step is strict, and neither of SWL(SV) and PSWL(VS) is above the other:

    SWL(VS) < SWL(SV) < PSWL(SV) < GSWL < SSWL,    SWL(VS) < PSWL(VS) < PSWL(SV)

    x_0[u, v] = type(v) + label(u, v)                                label: distance, or a mark at u, ...
    m_a[u, v] = MLP_a((1 + eps_a) x[u, v] + sum_a(x)[u, v])          a: an aggregation scheme
    x[u, v]  <- ReLU(BN(sum_a m_a[u, v]))                            (P, C), P = n^2 pairs
    out       = MLP(mean_uv ReLU(BN(MLP(sum_pool(x)[u, v]))))        pool: over v first (VS) or over u first (SV)

    test      network            schemes      pool  (each with the pair's own state)
    SWL(VS)   swl_vs             uL           VS    neighbours in the same subgraph
    SWL(SV)   swl_sv             uL           SV
    PSWL(VS)  pswl_vs            uL vv        VS    + the pair (v, v)
    PSWL(SV)  pswl_sv            uL vv        SV
    GSWL      gswl               uL vG        VS    + the same node in all subgraphs
    SSWL      gnn_sswl           uL vL        VS    + the same node in the subgraphs of the neighbours of u
    SSWL      gnn_sswl_plus      uL vL vv     VS    no stronger, but better in practice

Reading order: :mod:`pairs <torchstone.models.graph.swl.pairs>` (pairs, sums, policies),
:mod:`networks <torchstone.models.graph.swl.networks>`, :mod:`colours <torchstone.models.graph.swl.colours>` (the tests
themselves, which no training blurs), :mod:`furer <torchstone.models.graph.swl.furer>` (for every step of the hierarchy
a pair of graphs that shows it), and here the networks by name.

Example:
    >>> import torch, torchstone
    >>> model = torchstone.create_model("gnn_sswl", in_channels=4, out_channels=1).eval()
    >>> model(torch.tensor([0, 1, 3]), torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])).shape
    torch.Size([1, 1])
"""

from __future__ import annotations

from typing import Any

from torchstone.models.graph.swl.colours import TESTS, distinguishes, graph_colours, pair_colours
from torchstone.models.graph.swl.furer import SEPARATIONS, STEPS, Graph, furer_graphs
from torchstone.models.graph.swl.networks import AggregationLayer, SubgraphGNN, convert_official
from torchstone.models.graph.swl.pairs import POLICIES, SCHEMES, Pairs, aggregate, apply_policy, pair_distances
from torchstone.models.registry import build_plain_model, register_model

__all__ = [
    "POLICIES",
    "SCHEMES",
    "SEPARATIONS",
    "STEPS",
    "TESTS",
    "AggregationLayer",
    "Graph",
    "Pairs",
    "SubgraphGNN",
    "aggregate",
    "apply_policy",
    "convert_official",
    "distinguishes",
    "furer_graphs",
    "graph_colours",
    "pair_colours",
    "pair_distances",
]

ATOMS = (119, 5, 12, 12, 10, 6, 6, 2, 2)
"""Types in each column of OGB's atom features; ZINC has the first column only."""
BONDS = (5, 6, 2)
"""Types in each column of OGB's bond features."""
MOLECULES = {"in_channels": ATOMS, "edge_channels": BONDS}


def _network(pretrained: bool, schemes: tuple[str, ...], pool: str, given: dict[str, Any]) -> SubgraphGNN:
    """The network of these schemes; what the caller gave has precedence."""
    options = {"in_channels": 1, "out_channels": 1, "schemes": schemes, "pool": pool, **given}
    return build_plain_model(SubgraphGNN, pretrained, convert=convert_official, **options)


@register_model
def swl(pretrained: bool = False, **kwargs: Any) -> SubgraphGNN:
    """A subgraph network of any ``schemes``, ``pool`` and ``policy``: GNN-SSWL's unless given."""
    return _network(pretrained, ("uL", "vL"), "uG", kwargs)


@register_model
def swl_vs(pretrained: bool = False, **kwargs: Any) -> SubgraphGNN:
    """SWL(VS): neighbours within the subgraph; nodes are pooled first."""
    return _network(pretrained, ("uL",), "uG", kwargs)


@register_model
def swl_sv(pretrained: bool = False, **kwargs: Any) -> SubgraphGNN:
    """SWL(SV): neighbours within the subgraph; subgraphs are pooled first."""
    return _network(pretrained, ("uL",), "vG", kwargs)


@register_model
def pswl_vs(pretrained: bool = False, **kwargs: Any) -> SubgraphGNN:
    """PSWL(VS): with the pair (v, v); nodes are pooled first."""
    return _network(pretrained, ("uL", "vv"), "uG", kwargs)


@register_model
def pswl_sv(pretrained: bool = False, **kwargs: Any) -> SubgraphGNN:
    """PSWL(SV): with the pair (v, v); subgraphs are pooled first."""
    return _network(pretrained, ("uL", "vv"), "vG", kwargs)


@register_model
def gswl(pretrained: bool = False, **kwargs: Any) -> SubgraphGNN:
    """GSWL: with the same node in all subgraphs."""
    return _network(pretrained, ("uL", "vG"), "uG", kwargs)


@register_model
def gnn_sswl(pretrained: bool = False, **kwargs: Any) -> SubgraphGNN:
    """GNN-SSWL: with the same node in the subgraphs of the neighbours, the strongest class."""
    return _network(pretrained, ("uL", "vL"), "uG", kwargs)


@register_model
def gnn_sswl_plus(pretrained: bool = False, **kwargs: Any) -> SubgraphGNN:
    """GNN-SSWL+: the same with the pair (v, v)."""
    return _network(pretrained, ("uL", "vL", "vv"), "uG", kwargs)


@register_model
def gnn_sswl_g(pretrained: bool = False, **kwargs: Any) -> SubgraphGNN:
    """GNN-SSWL with the same node in all subgraphs."""
    return _network(pretrained, ("uL", "vL", "vG"), "uG", kwargs)


@register_model
def gnn_sswl_plus_g(pretrained: bool = False, **kwargs: Any) -> SubgraphGNN:
    """GNN-SSWL+ with the same node in all subgraphs."""
    return _network(pretrained, ("uL", "vL", "vv", "vG"), "uG", kwargs)


@register_model
def gnn_sswl_zinc(pretrained: bool = False, **kwargs: Any) -> SubgraphGNN:
    """GNN-SSWL in the authors' layout for molecules."""
    return gnn_sswl(pretrained, **{**MOLECULES, **kwargs})


@register_model
def gnn_sswl_plus_zinc(pretrained: bool = False, **kwargs: Any) -> SubgraphGNN:
    """GNN-SSWL+ in the authors' layout for molecules."""
    return gnn_sswl_plus(pretrained, **{**MOLECULES, **kwargs})


@register_model
def gswl_zinc(pretrained: bool = False, **kwargs: Any) -> SubgraphGNN:
    """GSWL in the authors' layout for molecules."""
    return gswl(pretrained, **{**MOLECULES, **kwargs})


@register_model
def pswl_vs_zinc(pretrained: bool = False, **kwargs: Any) -> SubgraphGNN:
    """PSWL(VS) in the authors' layout for molecules."""
    return pswl_vs(pretrained, **{**MOLECULES, **kwargs})


@register_model
def swl_mini(pretrained: bool = False, **kwargs: Any) -> SubgraphGNN:
    """GNN-SSWL, small: two layers of 32 channels."""
    return gnn_sswl(pretrained, **{"hidden_channels": 32, "num_layers": 2, **kwargs})
