"""The networks of InfoMGF: encoder, projectors, structure learners, augmenter, and the classifier of its protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from torchstone.errors import CallError
from torchstone.layers.adjacency import check_graph, normalized_adjacency, propagate_hops
from torchstone.methods.infomgf.graphs import (
    Search,
    WeightedGraph,
    averaged_neighbours,
    normalized,
    summed_neighbours,
)
from torchstone.models.registry import build_plain_model, register_model

Propagate = Callable[[Tensor], Tensor]
"""A sum over neighbours, (N, C) to (N, C)."""

FORMS = {"averaged": averaged_neighbours, "summed": summed_neighbours}
ACTIVATIONS = {"relu": torch.relu, "tanh": torch.tanh}


# Encoder --------------------------------------------------------------------------------------------------------------


class GraphConvolution(nn.Module):
    """``A (x W + b)``: the bias is propagated too; ``x`` may be given by its nonzero entries."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_channels, out_channels)

    def forward(self, x: Float[Tensor, "n c"] | WeightedGraph, propagate: Propagate) -> Float[Tensor, "n d"]:
        if isinstance(x, WeightedGraph):
            return propagate(x.propagate(self.linear.weight.t()) + self.linear.bias)
        return propagate(self.linear(x))


def _convolutions(in_channels: int, hidden_channels: int, out_channels: int, num_layers: int) -> nn.ModuleList:
    if num_layers < 1:
        raise CallError(f"num_layers must be at least 1, got {num_layers}")
    widths = [in_channels, *[hidden_channels] * (num_layers - 1), out_channels]
    return nn.ModuleList(GraphConvolution(*pair) for pair in pairwise(widths))


def _rate(name: str, value: float) -> float:
    if not 0 <= value < 1:
        raise CallError(f"{name} is a rate from 0 up to, not including, 1, got {value}")
    return value


class GraphEncoder(nn.Module):
    """The graph convolutional encoder that all graphs of InfoMGF share.

        h <- dropout(x);   h <- dropout(ReLU(A (h W_l + b_l)))  for all layers but the last;   A (h W_L + b_L)

    >>> encoder = GraphEncoder(1902, 64, hidden_channels=128)
    >>> embeddings = encoder(graph.x, graph.edge_index)  # (N, 64)

    Args:
        in_channels: features of a node.
        out_channels: width of an embedding, or classes where the encoder is used as a classifier.
        hidden_channels: width of the hidden layers.
        num_layers: convolutions.
        dropout: rate on the features and between the layers.

    Raises:
        CallError: no layer, or a rate that is none.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        hidden_channels: int = 128,
        num_layers: int = 2,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.hidden_channels = in_channels, out_channels, hidden_channels
        self.dropout = _rate("dropout", dropout)
        self.layers = _convolutions(in_channels, hidden_channels, out_channels, num_layers)

    def encode(self, x: Float[Tensor, "n f"] | WeightedGraph, propagate: Propagate) -> Float[Tensor, "n c"]:
        """(N, in_channels) to (N, out_channels), with the sums over neighbours as a function.

        Features that are mostly zeros may be given by their other entries, as the graph of edges feature -> node.
        """
        if isinstance(x, WeightedGraph):
            x = WeightedGraph(x.structure, F.dropout(x.weight, self.dropout, self.training))
        else:
            x = F.dropout(x, self.dropout, self.training)
        for layer in self.layers[:-1]:
            x = F.dropout(layer(x, propagate).relu(), self.dropout, self.training)
        return self.layers[-1](x, propagate)

    def forward(
        self,
        x: Float[Tensor, "n f"],
        edge_index: Int[Tensor, "2 e"],
        edge_weight: Float[Tensor, " e"] | None = None,
    ) -> Float[Tensor, "n c"]:
        """Encode every node of a graph.

        Args:
            x: node features, (N, in_channels).
            edge_index: edges, (2, E), row 0 the sources, row 1 the targets; self-loops and normalisation are added.
            edge_weight: (E,), ones when not given.

        Returns:
            (N, out_channels); the method divides these rows by their lengths.

        Raises:
            ShapeError: features or edges that the network cannot take.
        """
        check_graph(x, edge_index, self.in_channels, edge_weight)
        edge_index, edge_weight = normalized_adjacency(edge_index, x.shape[0], edge_weight)
        return self.encode(x, partial(_one_hop, edge_index=edge_index, edge_weight=edge_weight))


def _one_hop(x: Tensor, *, edge_index: Tensor, edge_weight: Tensor) -> Tensor:
    return propagate_hops(x, edge_index, edge_weight, 1)[:, 1]


# Projectors -----------------------------------------------------------------------------------------------------------


class Projectors(nn.Module):
    """Perceptrons of two layers that the losses look through: for every view one for its refined graph, one for its
    augmented graph, and one for the fused graph.

    Args:
        views: V.
        channels: width of the embeddings.
        projection_channels: width of hidden layer and output.
    """

    def __init__(self, views: int, channels: int, projection_channels: int) -> None:
        super().__init__()

        def one() -> nn.Sequential:
            output = nn.Linear(projection_channels, projection_channels)
            return nn.Sequential(nn.Linear(channels, projection_channels), nn.ReLU(), output)

        self.specific = nn.ModuleList(one() for _ in range(views))
        self.augmented = nn.ModuleList(one() for _ in range(views))
        self.fused = nn.ModuleList(one() for _ in range(views))


class Contrast(nn.Module):
    """Encoder and projectors: what the authors' files hold of the contrast.

    Args:
        in_channels, out_channels, hidden_channels, num_layers, dropout: the encoder's.
        views: V.
        projection_channels: width of the projections.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        views: int,
        projection_channels: int,
        hidden_channels: int = 128,
        num_layers: int = 2,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        options: dict[str, Any] = {"hidden_channels": hidden_channels, "num_layers": num_layers, "dropout": dropout}
        self.encoder = GraphEncoder(in_channels, out_channels, **options)
        self.projectors = Projectors(views, out_channels, projection_channels)

    def forward(self, x: Float[Tensor, "n f"], edge_index: Int[Tensor, "2 e"]) -> Float[Tensor, "n c"]:
        """The embeddings of :class:`GraphEncoder`, (N, out_channels)."""
        return self.encoder(x, edge_index)


# Structure learner ----------------------------------------------------------------------------------------------------


class ChannelWeights(nn.Module):
    """``x * w``: a weight for every channel, ones at first."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(channels))

    def forward(self, x: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        return x * self.w


class StructureLearner(nn.Module):
    """Refines a graph: the k most similar nodes of each node, after a learned weighing of the features.

        h = act(... act(x * w_1) ...) * w_L,    graph = top-k similarities of h

    >>> graph = StructureLearner(1902, neighbours=15).graph(features)
    >>> graph.edge_index, graph.weight  # (2, E), (E,)

    Args:
        channels: C.
        neighbours: k, beside the node itself.
        num_layers: L.
        activation: ``relu`` or ``tanh``, between the layers.
        form: ``averaged``, the paper's graph, or ``summed``, the one that the authors compute for large graphs.
        edge_dropout: the rate at which entries of the graph are dropped while training.

    Raises:
        CallError: an option that is none of these.
    """

    def __init__(
        self,
        channels: int,
        *,
        neighbours: int,
        num_layers: int = 2,
        activation: str = "relu",
        form: str = "averaged",
        edge_dropout: float = 0.5,
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise CallError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
        if form not in FORMS:
            raise CallError(f"form must be one of {', '.join(FORMS)}, got {form!r}")
        for name, count in (("neighbours", neighbours), ("num_layers", num_layers)):
            if count < 1:
                raise CallError(f"{name} must be at least 1, got {count}")
        self.neighbours, self.activation, self.form = neighbours, activation, form
        self.search = Search()
        self.edge_dropout = _rate("edge_dropout", edge_dropout)
        self.layers = nn.ModuleList(ChannelWeights(channels) for _ in range(num_layers))

    def forward(self, features: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        """The features as they are compared, (N, C) to (N, C)."""
        h = features
        for layer in self.layers[:-1]:
            h = ACTIVATIONS[self.activation](layer(h))
        return self.layers[-1](h)

    def graph(self, features: Float[Tensor, "n c"]) -> WeightedGraph:
        """The refined graph of features (N, C); gradients reach its weights.

        Raises:
            ShapeError: fewer than k + 1 nodes.
        """
        return FORMS[self.form](
            self(features), self.neighbours, self.edge_dropout if self.training else 0.0, search=self.search
        )


# Augmenter ------------------------------------------------------------------------------------------------------------


class Augmenter(nn.Module):
    """The generative augmentation: keeps of a view what says most about its features and least about its refined graph.

        e_i = ReLU(W x_i + b)
        s_ij = (m([e_i, e_j]) + m([e_j, e_i])) / 2 = u . (e_i + e_j) + c,  m linear, u the mean of its two halves
        w_ij = sigmoid((log eps - log(1 - eps) + s_ij) / T),   eps = (2 bias - 1) U + 1 - bias,   U uniform in [0, 1)

    With a bias of 0.5, eps is 0.5 whatever U is, and the gate is the deterministic sigmoid(s / T).

    Args:
        in_channels: features of a node.
        hidden_channels: width of e.
        out_channels: width of the embeddings, from which the decoder restores features.
        temperature: T.
        bias: how far the noise stays away from 0 and 1.

    Raises:
        CallError: a temperature or bias out of range.
    """

    def __init__(
        self, in_channels: int, hidden_channels: int, out_channels: int, *, temperature: float, bias: float
    ) -> None:
        super().__init__()
        if temperature <= 0 or not 0 < bias <= 0.5:
            raise CallError(f"temperature must be positive and bias in (0, 0.5], got {temperature} and {bias}")
        self.temperature, self.bias = temperature, bias
        self.embedding = nn.Linear(in_channels, hidden_channels)
        self.edge = nn.Linear(2 * hidden_channels, 1)
        self.decoder = nn.Linear(out_channels, in_channels)

    def logits(self, features: Float[Tensor, "n f"], edge_index: Int[Tensor, "2 e"]) -> Float[Tensor, " e"]:
        """s of every edge, (E,); the same in both directions."""
        embedded = self.embedding(features).relu()
        direction = self.edge.weight.view(2, -1).mean(0)
        score = embedded @ direction.to(embedded.dtype)
        return score[edge_index[0]] + score[edge_index[1]] + self.edge.bias

    def gate(self, logits: Float[Tensor, " e"], uniform: Float[Tensor, " e"] | None = None) -> Float[Tensor, " e"]:
        """w of every edge, (E,), between 0 and 1; ``uniform`` is drawn where it is not given and matters."""
        if self.bias == 0.5:
            return (logits / self.temperature).sigmoid()
        uniform = torch.rand_like(logits) if uniform is None else uniform
        eps = (2 * self.bias - 1) * uniform + 1 - self.bias
        return ((eps.log() - (-eps).log1p() + logits) / self.temperature).sigmoid()

    def forward(self, features: Float[Tensor, "n f"], view: WeightedGraph) -> WeightedGraph:
        """The augmented graph of a view: its edges weighed by the gate, its self-loops by 1, normalised."""
        weight = self.gate(self.logits(features, view.edge_index).float())
        return normalized(view.structure, torch.where(view.structure.loops, 1.0, weight))


def random_augmentation(view: WeightedGraph, rate: float, training: bool) -> WeightedGraph:
    """Drop normalised weights of a view at random, those kept divided by 1 - rate; self-loops stay as they are."""
    dropped = F.dropout(view.weight, rate, training)
    return WeightedGraph(view.structure, torch.where(view.structure.loops, view.weight, dropped))


# The classifier of the protocol ---------------------------------------------------------------------------------------


class GraphClassifier(nn.Module):
    """The graph convolutional classifier that InfoMGF's graphs are judged by.

    Args:
        in_channels: features of a node.
        out_channels: classes.
        hidden_channels: width of the hidden layers.
        num_layers: convolutions.
        dropout: rate between the layers.
        edge_dropout: rate on the weights of the graph.

    Raises:
        CallError: no layer, or a rate that is none.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        hidden_channels: int = 64,
        num_layers: int = 2,
        dropout: float = 0.5,
        edge_dropout: float = 0.25,
    ) -> None:
        super().__init__()
        self.dropout, self.edge_dropout = _rate("dropout", dropout), _rate("edge_dropout", edge_dropout)
        self.layers = _convolutions(in_channels, hidden_channels, out_channels, num_layers)

    def forward(self, x: Float[Tensor, "n f"], graph: WeightedGraph) -> Float[Tensor, "n c"]:
        """Logits (N, out_channels) of features (N, in_channels) on a normalised graph."""
        graph = WeightedGraph(graph.structure, F.dropout(graph.weight, self.edge_dropout, self.training))
        for layer in self.layers[:-1]:
            x = F.dropout(layer(x, graph.propagate).relu(), self.dropout, self.training)
        return self.layers[-1](x, graph.propagate)


# Factories and the authors' names -------------------------------------------------------------------------------------


@register_model
def infomgf_encoder(
    pretrained: bool = False, *, in_channels: int = 1902, out_channels: int = 64, **kwargs: Any
) -> GraphEncoder:
    """InfoMGF's encoder for any graph; its defaults are those of ACM."""
    return build_plain_model(GraphEncoder, pretrained, in_channels=in_channels, out_channels=out_channels, **kwargs)


@register_model
def infomgf_acm(pretrained: bool = False, **kwargs: Any) -> Contrast:
    """Encoder and projectors as the authors train them on ACM: two views."""
    return _contrast(pretrained, in_channels=1902, hidden_channels=128, width=64, views=2, **kwargs)


@register_model
def infomgf_dblp(pretrained: bool = False, **kwargs: Any) -> Contrast:
    """Encoder and projectors as the authors train them on DBLP: three views."""
    return _contrast(pretrained, in_channels=334, hidden_channels=64, width=32, views=3, **kwargs)


def _contrast(pretrained: bool, *, width: int, **kwargs: Any) -> Contrast:
    sizes = {"out_channels": width, "projection_channels": width, **kwargs}
    return build_plain_model(Contrast, pretrained, convert=convert_official, **sizes)


_OFFICIAL = (  # how a name begins: theirs -> ours
    ("gcl.encoder.gnn_encoder_layers.", "network.layers."),
    ("gcl.proj_", "proj_"),
    ("dis.embedding_layers.0.", "augmenter.embedding."),
    ("dis.edge_mlp.0.", "augmenter.edge."),
    ("dis.decoder.0.", "augmenter.decoder."),
    ("fused.", "fused_learner."),
    ("encoder.gnn_encoder_layers.", "encoder.layers."),
    ("proj_s.", "projectors.specific."),
    ("proj_u.", "projectors.augmented."),
    ("proj_f.", "projectors.fused."),
    ("embedding_layers.0.", "embedding."),
    ("edge_mlp.0.", "edge."),
    ("decoder.0.", "decoder."),
)


def convert_official(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Turn the authors' tensors into ours; ours pass unchanged.

    The model is a :class:`Contrast` or an :class:`Augmenter`, or the whole method, of which the authors' learners
    (``learners.``), fused learner (``fused.``), contrast (``gcl.``) and discriminator (``dis.``) are the parts; its own
    count of steps and moments of its second optimizer stay as they are. Learners and classifier have their names.
    """
    own = model.state_dict()
    kept = ("augmenter_optimizer.", "steps")
    converted = {name: value for name, value in own.items() if name.startswith(kept)}
    for name, value in state.items():
        mine = name
        for theirs, ours in _OFFICIAL:
            if mine not in own and mine.startswith(theirs):
                mine = ours + mine.removeprefix(theirs)
        converted[mine] = value
    return converted
