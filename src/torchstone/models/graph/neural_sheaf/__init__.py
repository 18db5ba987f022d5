"""Neural Sheaf Diffusion - A Topological Perspective on Heterophily and Oversmoothing in GNNs.

Bodnar, Di Giovanni, Chamberlain, Lio and Bronstein, NeurIPS 2022, arXiv 2202.04579.

A graph network takes it that neighbours should agree: what diffuses along a graph becomes constant, and where linked
nodes are of different classes (heterophily) or layers are many (over-smoothing) that erases what tells classes apart.
Here every node has a small space, its stalk, and every edge two maps from the stalks of its ends: a cellular sheaf.
Signals diffuse to where neighbours agree *after* their maps, and the maps are learned from the signals at every layer.

    F_ij = act(V [x_i ; x_j])                                        maps of the edge {i, j}: of i, and F_ji of j
    L_ii = sum_j F_ij^T F_ij,   L_ij = -F_ij^T F_ji                  the sheaf Laplacian, (N D, N D) in blocks
    L    = (diag L + 1)^-1/2 L (diag L + 1)^-1/2
    X   <- (1 + tanh eps) X - ELU(L W_left X W_right)                one layer; X is (N, D, f)

D is the dimension of the stalks, f the channels on each coordinate. The maps are diagonal, orthogonal (a bundle) or
any; the fewer constraints, the more kinds of graphs on which diffusion can separate the classes (section 3).
Continuous networks integrate dX/dt = ELU(-L W_left X W_right) instead.

Reading order: :mod:`laplacian <torchstone.models.graph.neural_sheaf.laplacian>`,
:mod:`orthogonal <torchstone.models.graph.neural_sheaf.orthogonal>`,
:mod:`networks <torchstone.models.graph.neural_sheaf.networks>`,
:mod:`integration <torchstone.models.graph.neural_sheaf.integration>`, and here the networks by name.

Example:
    >>> import torch, torchstone
    >>> model = torchstone.create_model("neural_sheaf", in_channels=16, out_channels=4).eval()
    >>> model(torch.rand(3, 16), torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])).shape
    torch.Size([3, 4])
"""

from __future__ import annotations

from typing import Any

from torchstone.models.graph.neural_sheaf.laplacian import (
    SheafLaplacian,
    bundle_laplacian,
    diagonal_laplacian,
    general_laplacian,
    link,
)
from torchstone.models.graph.neural_sheaf.networks import ContinuousSheafDiffusion, DiscreteSheafDiffusion
from torchstone.models.graph.neural_sheaf.orthogonal import orthogonal_matrices
from torchstone.models.registry import build_plain_model, register_model

__all__ = [
    "ContinuousSheafDiffusion",
    "DiscreteSheafDiffusion",
    "SheafLaplacian",
    "bundle_laplacian",
    "diagonal_laplacian",
    "general_laplacian",
    "link",
    "orthogonal_matrices",
]


@register_model
def neural_sheaf(
    pretrained: bool = False, *, in_channels: int = 1703, out_channels: int = 5, **kwargs: Any
) -> DiscreteSheafDiffusion:
    """Discrete diffusion for any graph, along a bundle unless ``maps`` says otherwise; the numbers of features and
    classes are those of Texas, Wisconsin and Cornell unless given."""
    kwargs |= {"in_channels": in_channels, "out_channels": out_channels}
    return build_plain_model(DiscreteSheafDiffusion, pretrained, **kwargs)


@register_model
def neural_sheaf_ode(
    pretrained: bool = False, *, in_channels: int = 1703, out_channels: int = 5, **kwargs: Any
) -> ContinuousSheafDiffusion:
    """Continuous diffusion for any graph, along a bundle unless ``maps`` says otherwise."""
    kwargs |= {"in_channels": in_channels, "out_channels": out_channels}
    return build_plain_model(ContinuousSheafDiffusion, pretrained, **kwargs)


@register_model
def neural_sheaf_diag(pretrained: bool = False, **kwargs: Any) -> DiscreteSheafDiffusion:
    """Diag-NSD: diagonal maps."""
    return neural_sheaf(pretrained, **{"maps": "diagonal", **kwargs})


@register_model
def neural_sheaf_general(pretrained: bool = False, **kwargs: Any) -> DiscreteSheafDiffusion:
    """Gen-NSD: any maps."""
    return neural_sheaf(pretrained, **{"maps": "general", **kwargs})


@register_model
def neural_sheaf_ode_diag(pretrained: bool = False, **kwargs: Any) -> ContinuousSheafDiffusion:
    """Continuous diffusion with diagonal maps."""
    return neural_sheaf_ode(pretrained, **{"maps": "diagonal", **kwargs})


@register_model
def neural_sheaf_ode_general(pretrained: bool = False, **kwargs: Any) -> ContinuousSheafDiffusion:
    """Continuous diffusion with any maps."""
    return neural_sheaf_ode(pretrained, **{"maps": "general", **kwargs})


@register_model
def neural_sheaf_texas(pretrained: bool = False, **kwargs: Any) -> DiscreteSheafDiffusion:
    """O(d)-NSD as the authors' script trains it on Texas."""
    texas = {"stalk_dim": 3, "num_layers": 4, "hidden_channels": 20, "pooled_maps": True, "dropout": 0.7}
    return neural_sheaf(pretrained, **{**texas, **kwargs})


@register_model
def neural_sheaf_wisconsin(pretrained: bool = False, **kwargs: Any) -> DiscreteSheafDiffusion:
    """O(d)-NSD as the authors' script trains it on Wisconsin, with both fixed coordinates."""
    wisconsin = {"stalk_dim": 3, "num_layers": 2, "hidden_channels": 32, "low_pass": True, "high_pass": True}
    return neural_sheaf(pretrained, **{**wisconsin, "dropout": 0.7276458263736642, **kwargs})


@register_model
def neural_sheaf_cornell(pretrained: bool = False, **kwargs: Any) -> DiscreteSheafDiffusion:
    """Diag-NSD as the authors' script trains it on Cornell."""
    cornell = {"stalk_dim": 4, "num_layers": 2, "hidden_channels": 16, "high_pass": True, "dropout": 0.7}
    return neural_sheaf_diag(pretrained, **{**cornell, "input_dropout": 0.2, **kwargs})


@register_model
def neural_sheaf_chameleon(pretrained: bool = False, **kwargs: Any) -> DiscreteSheafDiffusion:
    """Diag-NSD as the authors' script trains it on Chameleon."""
    chameleon = {"stalk_dim": 4, "num_layers": 5, "hidden_channels": 32, "high_pass": True, "second_linear": True}
    return neural_sheaf_diag(
        pretrained, **{"in_channels": 2325, **chameleon, "dropout": 0.0, "input_dropout": 0.7, **kwargs}
    )


@register_model
def neural_sheaf_squirrel(pretrained: bool = False, **kwargs: Any) -> DiscreteSheafDiffusion:
    """O(d)-NSD as the authors' script trains it on Squirrel."""
    squirrel = {"stalk_dim": 3, "num_layers": 5, "hidden_channels": 32, "high_pass": True, "second_linear": True}
    return neural_sheaf(pretrained, **{"in_channels": 2089, **squirrel, "dropout": 0.0, "input_dropout": 0.7, **kwargs})
