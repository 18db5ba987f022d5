"""Networks that learn a sheaf at every layer, or at every instant, and diffuse along it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from torchstone.errors import unknown_name
from torchstone.layers.adjacency import check_graph, is_sparse, sparse_dropout, sparse_linear
from torchstone.models.graph.neural_sheaf.integration import METHODS, Integration
from torchstone.models.graph.neural_sheaf.laplacian import (
    NORMALIZATIONS,
    Links,
    SheafLaplacian,
    bundle_laplacian,
    diagonal_laplacian,
    general_laplacian,
    link,
)
from torchstone.models.graph.neural_sheaf.orthogonal import orthogonal_parameters

MAPS = ("diagonal", "bundle", "general")
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"tanh": torch.tanh, "elu": F.elu, "id": lambda values: values}


# --- from nodes to edges


class MapLearner(nn.Module):
    """Maps of the edges from their ends (equation 6): F_ij = act(W [x_i ; x_j]).

    W is split in two and applied to nodes, of which there are fewer than edges: W [x_i ; x_j] = W_1 x_i + W_2 x_j.

    Args:
        in_features: what a node has, D f.
        shape: of a map.
        activation: one of :data:`ACTIVATIONS`.

    Raises:
        UnknownName: no such activation.
    """

    def __init__(self, in_features: int, shape: tuple[int, ...], activation: str = "tanh") -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise unknown_name("activation of maps", activation, ACTIVATIONS)
        self.shape, self.activation = shape, activation
        self.linear1 = nn.Linear(2 * in_features, torch.Size(shape).numel(), bias=False)

    def ends(self, x: Float[Tensor, "n s f"]) -> tuple[Tensor, Tensor]:
        """The share of each node in its edges (N, out): as their first end, and as their second."""
        first, second = self.linear1.weight.chunk(2, 1)
        return F.linear(x.flatten(1), first), F.linear(x.flatten(1), second)

    def forward(self, x: Float[Tensor, "n s f"], links: Links) -> Float[Tensor, "e ..."]:
        """(N, D, f) to (E, *shape)."""
        first, second = self.ends(x)
        values = first.index_select(0, links.node) + second.index_select(0, links.neighbor)
        return ACTIVATIONS[self.activation](values).unflatten(1, self.shape)


class PooledMapLearner(MapLearner):
    """The same from sums over the stalks, which needs D times fewer parameters.

    The 2 D coordinates of [x_i ; x_j], of f channels each, are summed in turns: the first, third, ... are one half of
    what W sees, the others the second half. Where D is even both ends are summed alike, so F_ij = F_ji; where it is odd
    the halves of x_j are exchanged.

    Args:
        channels: f.
        shape: of a map.
        activation: as in :class:`MapLearner`.
    """

    def __init__(self, channels: int, shape: tuple[int, ...], activation: str = "tanh") -> None:
        super().__init__(channels, shape, activation)

    def ends(self, x: Float[Tensor, "n s f"]) -> tuple[Tensor, Tensor]:
        odd, even = x[:, 0::2].sum(1), x[:, 1::2].sum(1)  # the first, third, ...; the second, fourth, ...
        first = F.linear(torch.cat([odd, even], 1), self.linear1.weight)
        if x.shape[1] % 2 == 0:
            return first, first
        return first, F.linear(torch.cat([even, odd], 1), self.linear1.weight)


class EdgeWeightLearner(MapLearner):
    """Weights of the edges, equal in both directions: w_ij = a_ij a_ji, a_ij = sigmoid(W [x_i ; x_j])."""

    def __init__(self, in_features: int) -> None:
        super().__init__(in_features, (1,), "id")

    def forward(self, x: Float[Tensor, "n s f"], links: Links) -> Float[Tensor, "e 1"]:
        """(N, D, f) to (E, 1)."""
        weights = super().forward(x, links).sigmoid()
        return weights * links.mirrored(weights)


# --- networks


class SheafNetwork(nn.Module):
    """What the discrete and the continuous networks share: features to stalks, sheaves from stalks, stalks to classes.

    Args:
        in_channels: F, features of a node.
        out_channels: C, classes.
        maps: ``diagonal``, ``bundle`` (orthogonal) or ``general``.
        stalk_dim: d, the learned coordinates of a stalk.
        hidden_channels: f, channels on each coordinate.
        low_pass: one more coordinate, on which diffusion levels neighbours; nothing in it is learned.
        high_pass: one more coordinate, on which diffusion lets neighbours differ.
        orthogonal: of a bundle, how parameters become maps: ``householder`` unless given, ``cayley``, ``matrix_exp`` or
            ``euler``.
        edge_weights: of a bundle, learn a weight for each edge; true unless given.
        pooled_maps: learn maps from sums over the stalks (the authors' "sparse learner").
        map_activation: ``tanh``, ``elu`` or ``id``.
        normalization: of the Laplacian of diagonal or general maps: ``sheaf``, ``degree`` or ``none``.
        left_weights: mix the coordinates of the stalks by a D x D matrix.
        right_weights: mix the channels by an f x f matrix.
        activation: ELU after the first layer and after diffusion; without it the network is linear but for its sheaves.
        second_linear: one more linear layer before diffusion.
        dropout: rate behind the first layer and before every layer of diffusion.
        input_dropout: rate on the features.

    Raises:
        UnknownName: an unknown kind of maps, orthogonal map, activation or normalisation.
        ValueError: sizes or rates that are none, or options that the chosen maps do not have.
    """

    takes_sparse_features = True
    needs_undirected = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        maps: str = "bundle",
        stalk_dim: int = 3,
        hidden_channels: int = 20,
        low_pass: bool = False,
        high_pass: bool = False,
        orthogonal: str | None = None,
        edge_weights: bool | None = None,
        pooled_maps: bool = False,
        map_activation: str = "tanh",
        normalization: str = "sheaf",
        left_weights: bool = True,
        right_weights: bool = True,
        activation: bool = True,
        second_linear: bool = False,
        dropout: float = 0.5,
        input_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        _check_maps(maps, stalk_dim, normalization, {"orthogonal": orthogonal, "edge_weights": edge_weights})
        for name, rate in (("dropout", dropout), ("input_dropout", input_dropout)):
            if not 0 <= rate < 1:
                raise ValueError(f"{name} is a rate from 0 up to, not including, 1, got {rate}")
        if hidden_channels < 1:
            raise ValueError(f"hidden_channels must be at least 1, got {hidden_channels}")
        self.in_channels, self.out_channels = in_channels, out_channels
        self.maps, self.stalk_dim, self.hidden_channels = maps, stalk_dim, hidden_channels
        self.orthogonal = orthogonal or "householder"
        self.edge_weights = maps == "bundle" and edge_weights is not False
        self.pooled_maps, self.map_activation, self.normalization = pooled_maps, map_activation, normalization
        self.left_weights, self.right_weights, self.activation = left_weights, right_weights, activation
        self.dropout, self.input_dropout = dropout, input_dropout
        self.fixed = (1.0,) * high_pass + (-1.0,) * low_pass
        self.total_dim = stalk_dim + len(self.fixed)  # D
        width = self.total_dim * hidden_channels
        self.lin1 = nn.Linear(in_channels, width)
        self.lin12 = nn.Linear(width, width) if second_linear else None
        self.lin2 = nn.Linear(width, out_channels)

    def forward(self, x: Float[Tensor, "n f"], edge_index: Int[Tensor, "2 e"]) -> Float[Tensor, "n c"]:
        """Classify every node.

        Args:
            x: node features, (N, in_channels), dense or in compressed rows (``x.to_sparse_csr()``), which is faster
                where most features are zero.
            edge_index: edges, (2, E), both directions of each; edges of a node to itself change nothing.

        Returns:
            Log-probabilities, (N, out_channels).

        Raises:
            ShapeError: features or edges that the network cannot take.
        """
        check_graph(x, edge_index, self.in_channels)
        stalks = self.embed(x)
        stalks = self.diffuse(stalks, link(edge_index, x.shape[0], self.lin1.weight.dtype))
        return self.lin2(stalks.flatten(1)).log_softmax(-1)

    def embed(self, x: Float[Tensor, "n f"]) -> Float[Tensor, "n s c"]:
        """Node features (N, F) to signals on the stalks, (N, D, f)."""
        if is_sparse(x):
            x = sparse_linear(sparse_dropout(x, self.input_dropout, self.training), self.lin1.weight, self.lin1.bias)
        else:
            x = self.lin1(F.dropout(x, self.input_dropout, self.training))
        x = F.dropout(self._act(x), self.dropout, self.training)
        if self.lin12 is not None:
            x = self.lin12(x)
        return x.unflatten(1, (self.total_dim, self.hidden_channels))

    def diffuse(self, x: Float[Tensor, "n s c"], links: Links) -> Float[Tensor, "n s c"]:
        """Signals on the stalks (N, D, f) to what diffusion makes of them."""
        raise NotImplementedError

    def map_learner(self) -> MapLearner:
        """A new learner of this network's maps."""
        d = self.stalk_dim
        shapes = {"diagonal": (d,), "general": (d, d)}
        shape = shapes[self.maps] if self.maps in shapes else (orthogonal_parameters(d, self.orthogonal),)
        if self.pooled_maps:
            return PooledMapLearner(self.hidden_channels, shape, self.map_activation)
        return MapLearner(self.total_dim * self.hidden_channels, shape, self.map_activation)

    def weight_learner(self) -> EdgeWeightLearner:
        """A new learner of this network's edge weights."""
        return EdgeWeightLearner(self.total_dim * self.hidden_channels)

    def sheaf(
        self, x: Float[Tensor, "n s c"], links: Links, learner: nn.Module, weights: nn.Module | None
    ) -> SheafLaplacian:
        """The Laplacian of the sheaf that two learners make of signals on the stalks, in the parameters' precision."""
        maps = learner(x, links).to(links.degree.dtype)
        edge_weight = None if weights is None else weights(x, links).to(links.degree.dtype)
        with torch.autocast(x.device.type, enabled=False):
            if self.maps == "bundle":
                return bundle_laplacian(
                    maps,
                    links,
                    dim=self.stalk_dim,
                    orthogonal=self.orthogonal,
                    edge_weight=edge_weight,
                    fixed=self.fixed,
                )
            build = diagonal_laplacian if self.maps == "diagonal" else general_laplacian
            return build(maps, links, normalization=self.normalization, fixed=self.fixed)

    def _act(self, x: Tensor) -> Tensor:
        return F.elu(x) if self.activation else x


class DiscreteSheafDiffusion(SheafNetwork):
    """Layers of diffusion, each along a sheaf of its own (equation 5 and the released networks).

        X <- (1 + tanh eps) X - ELU(L(X) W_left X W_right)

    >>> model = DiscreteSheafDiffusion(1703, 5, maps="bundle", stalk_dim=3, num_layers=4)
    >>> log_probabilities = model(graph.x, graph.edge_index)  # (N, 5)

    Args:
        in_channels: F.
        out_channels: C.
        num_layers: how often it diffuses.
        shared_sheaf: diffuse along the first layer's sheaf in all layers.
        options: of :class:`SheafNetwork`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        num_layers: int = 2,
        shared_sheaf: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(in_channels, out_channels, **options)
        if num_layers < 1:
            raise ValueError(f"num_layers must be at least 1, got {num_layers}")
        self.num_layers, self.shared_sheaf = num_layers, shared_sheaf
        sheaves = 1 if shared_sheaf else num_layers
        self.lin_right_weights = _square_layers(self.hidden_channels, num_layers if self.right_weights else 0)
        self.lin_left_weights = _square_layers(self.total_dim, num_layers if self.left_weights else 0)
        for right in self.lin_right_weights:
            _initialize(right, nn.init.orthogonal_)
        for left in self.lin_left_weights:
            _initialize(left, nn.init.eye_)
        self.sheaf_learners = nn.ModuleList(self.map_learner() for _ in range(sheaves))
        self.weight_learners = nn.ModuleList(self.weight_learner() for _ in range(sheaves if self.edge_weights else 0))
        self.epsilons = nn.ParameterList(torch.zeros(self.total_dim, 1) for _ in range(num_layers))

    def diffuse(self, x: Float[Tensor, "n s c"], links: Links) -> Float[Tensor, "n s c"]:
        return self._layers(x, links)[0]

    def sheaves(self, x: Float[Tensor, "n f"], edge_index: Int[Tensor, "2 e"]) -> list[SheafLaplacian]:
        """The Laplacians along which node features diffuse, one for each layer that learns a sheaf.

        Args and errors as of a call of the network.
        """
        check_graph(x, edge_index, self.in_channels)
        return self._layers(self.embed(x), link(edge_index, x.shape[0], self.lin1.weight.dtype))[1]

    def _layers(self, x: Tensor, links: Links) -> tuple[Tensor, list[SheafLaplacian]]:
        laplacians: list[SheafLaplacian] = []
        for layer in range(self.num_layers):
            if layer == 0 or not self.shared_sheaf:
                seen = F.dropout(x, self.dropout, self.training and layer > 0)
                weights = self.weight_learners[layer] if self.edge_weights else None
                laplacians.append(self.sheaf(seen, links, self.sheaf_learners[layer], weights))
            moved = F.dropout(x, self.dropout, self.training)
            if self.left_weights:
                moved = _mix_stalks(self.lin_left_weights[layer], moved)
            if self.right_weights:
                moved = self.lin_right_weights[layer](moved)
            x = (1 + self.epsilons[layer].tanh()) * x - self._act(laplacians[-1] @ moved)
        return x, laplacians


class ContinuousSheafDiffusion(SheafNetwork):
    """Diffusion in continuous time, along a sheaf that follows the signals (equation 4).

        dX/dt = ELU(-L(X) W_left X W_right),   0 <= t <= time

    Gradients go through the steps of the integration, which is done in the precision of the parameters: under autocast
    too, whose numbers of few digits could not meet a tolerance.

    Args:
        in_channels: F.
        out_channels: C.
        time: how long it diffuses; 0 is not at all.
        method: ``dopri5``, which chooses its steps, or ``euler``, ``midpoint``, ``rk4`` with steps of ``step_size``.
        step_size: see ``method``.
        atol: absolute tolerance of ``dopri5``.
        rtol: relative tolerance of ``dopri5``.
        max_steps: steps after which the integration gives up.
        shared_sheaf: diffuse along the sheaf that is learned from the signals at t = 0.
        options: of :class:`SheafNetwork`.

    Raises:
        UnknownName: no such method.
        ValueError: a negative time, or steps and tolerances that are not positive.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        time: float = 1.0,
        method: str = "dopri5",
        step_size: float = 1.0,
        atol: float = 1e-7,
        rtol: float = 1e-9,
        max_steps: int = 1000,
        shared_sheaf: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(in_channels, out_channels, **options)
        if method not in METHODS:
            raise unknown_name("integration method", method, METHODS)
        if not time >= 0:
            raise ValueError(f"time cannot be negative, got {time}")
        for name, value in (("step_size", step_size), ("atol", atol), ("rtol", rtol), ("max_steps", max_steps)):
            if not value > 0:
                raise ValueError(f"{name} must be above 0, got {value}")
        self.time, self.shared_sheaf = time, shared_sheaf
        self.integration = Integration(method, step_size, atol, rtol, max_steps)
        self.lin_right_weights = _square_layers(self.hidden_channels, 1 if self.right_weights else 0)
        self.lin_left_weights = _square_layers(self.total_dim, 1 if self.left_weights else 0)
        self.sheaf_learner = self.map_learner()
        self.edge_weight_learner = self.weight_learner() if self.edge_weights else None

    def diffuse(self, x: Float[Tensor, "n s c"], links: Links) -> Float[Tensor, "n s c"]:
        if self.time == 0:
            return x
        with torch.autocast(x.device.type, enabled=False):
            start = x.to(links.degree.dtype)
            shared = self._sheaf_of(start, links) if self.shared_sheaf else None
            return self.integration(lambda x: self._slope(x, shared or self._sheaf_of(x, links)), start, self.time)

    def _slope(self, x: Tensor, laplacian: SheafLaplacian) -> Tensor:
        """dX/dt along a sheaf."""
        for left in self.lin_left_weights:
            x = _mix_stalks(left, x)
        for right in self.lin_right_weights:
            x = right(x)
        return self._act(-(laplacian @ x))

    def _sheaf_of(self, x: Tensor, links: Links) -> SheafLaplacian:
        return self.sheaf(x, links, self.sheaf_learner, self.edge_weight_learner)


def _check_maps(maps: str, stalk_dim: int, normalization: str, bundle_options: Mapping[str, object]) -> None:
    if maps not in MAPS:
        raise unknown_name("kind of maps", maps, MAPS)
    if normalization not in NORMALIZATIONS:
        raise unknown_name("normalization", normalization, NORMALIZATIONS)
    least = 1 if maps == "diagonal" else 2
    if stalk_dim < least:
        raise ValueError(f"{maps} maps need stalk_dim {least} or more, got {stalk_dim}")
    if maps == "bundle":
        orthogonal_parameters(stalk_dim, str(bundle_options["orthogonal"] or "householder"))
        if normalization != "sheaf":
            raise ValueError(f"the Laplacian of a bundle is always normalised: leave normalization={normalization} out")
        return
    for name, value in bundle_options.items():
        if value is not None:
            raise ValueError(f"{name} is for maps=bundle; {maps} maps have none: leave it out")


def _square_layers(size: int, count: int) -> nn.ModuleList:
    return nn.ModuleList(nn.Linear(size, size, bias=False) for _ in range(count))


def _initialize(layer: nn.Module, how: Callable[[Tensor], object]) -> None:
    weight = layer.get_parameter("weight")
    if not weight.is_meta:
        how(weight)


def _mix_stalks(layer: nn.Module, x: Tensor) -> Tensor:
    """A linear layer (D to D) on the coordinates of the stalks of x, (N, D, f)."""
    return layer(x.mT).mT
