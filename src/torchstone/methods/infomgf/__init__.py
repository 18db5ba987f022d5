"""InfoMGF - Beyond Redundancy: Information-aware Unsupervised Multiplex Graph Structure Learning.

Shen, Wang and Kang, NeurIPS 2024, arXiv 2409.17386.

A multiplex graph has several sets of edges, its views, on the same nodes. They are noisy, and what matters for a task
is partly in all of them and partly in one alone. Without labels, InfoMGF refines the graph of every view, and fuses
them into one graph that keeps what the views share and what each of them has of its own. A graph convolutional encoder
sees all graphs; an augmented graph of each view stands in for what the unknown task would leave out of it.

    f_v = rows of A_v^r X, divided by their lengths             (N, F)         A_v normalised, with self-loops
    G_v = learner_v(f_v),   G = learner(f_1 | ... | f_V | X)    refined and fused graph, k neighbours a node
    z   = encoder(X, graph), rows divided by their lengths      (N, C)
    L   = mean_v I(G, G_v) + mean_{v<w} I(G_v, G_w) + mean_v I(G_v, G_v')

where I is a lower bound of mutual information (InfoNCE of projected embeddings) and G_v' the augmented view. The first
term ties the fused graph to every view, the second keeps what views share, the third what each has alone.

InfoMGF-RA drops edges of A_v at random. InfoMGF-LA weighs them by a network (the augmenter), which after each step of
the others takes one of its own, with an optimizer of its own:

    min  sum_v  lambda (how alike z_v' and z_v are, an upper bound) + (1 - cos(decoder(z_v'), f_v))

``method.fused_graph()``, ``method.refined_graphs()`` and ``method.embeddings()`` are what comes out;
:func:`cluster` and :func:`classify` are the paper's protocols to judge it by.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from torchstone.errors import CallError, ShapeError, unknown_name
from torchstone.layers.adjacency import check_graph, is_mostly_zero
from torchstone.methods.infomgf.graphs import (
    Structure,
    WeightedGraph,
    averaged_neighbours,
    normalized,
    summed_neighbours,
    top_similarities,
    view_structure,
)
from torchstone.methods.infomgf.losses import lower_bound, reconstruction, upper_bound
from torchstone.methods.infomgf.networks import (
    Augmenter,
    Contrast,
    GraphClassifier,
    GraphEncoder,
    Projectors,
    StructureLearner,
    convert_official,
    infomgf_acm,
    infomgf_dblp,
    infomgf_encoder,
    random_augmentation,
)
from torchstone.methods.infomgf.protocols import Scores, classify, cluster
from torchstone.methods.method import Method

__all__ = [
    "Augmenter",
    "Contrast",
    "GraphClassifier",
    "GraphEncoder",
    "InfoMGF",
    "Projectors",
    "Scores",
    "Structure",
    "StructureLearner",
    "WeightedGraph",
    "averaged_neighbours",
    "build",
    "classify",
    "cluster",
    "convert_official",
    "infomgf_acm",
    "infomgf_dblp",
    "infomgf_encoder",
    "lower_bound",
    "random_augmentation",
    "reconstruction",
    "summed_neighbours",
    "top_similarities",
    "upper_bound",
]

PROTOCOL = {"optimizer": "adam", "lr": 1e-2, "weight_decay": 0.0, "schedule": "constant"}

LOWEST_TEMPERATURE = 0.025

MOSTLY_ZEROS = 0.25
"""Up to this share of entries that are not zero, the encoder is given these entries alone."""

AUGMENTATIONS = {  # of the generative gate, temperature and bias
    "generative": (0.5, 0.5),
    "generative_stochastic": (1.0, 1e-4),
    "random": None,
}


class InfoMGF(Method):
    """Learns refined graphs, a fused graph and an encoder from a multiplex graph without labels.

    >>> method = InfoMGF(infomgf_encoder(in_channels=1902), views=2)
    >>> method.observe(x, {"pap": pap, "psp": psp})
    >>> ...                                     # train
    >>> method.eval().fused_graph().edge_index  # (2, E)

    Args:
        network: the encoder, a :class:`GraphEncoder`.
        views: how many views the graph has, at least two, or the names of those to look at; each has a learner.
        augmentation: ``generative``, InfoMGF-LA as the authors run it, whose gate is deterministic;
            ``generative_stochastic``, with the noise of their class's defaults; ``random``, InfoMGF-RA.
        projection_channels: width of the projections.
        neighbours: k, of the refined and fused graphs.
        hops: r, how often features are averaged over a view before its learner sees them.
        learner_layers, activation: of the learners.
        form: ``averaged``, the paper's graph, or ``summed``, the one that the authors compute for large graphs.
        edge_dropout: of learned graphs while training, and of the views in the random augmentation.
        temperature: of the bounds.
        redundancy: lambda, the weight of the upper bound against the reconstruction of features.
        augmenter_lr: learning rate of the augmenter's Adam; without an effect on the random augmentation.
        contrast_batch: nodes that are contrasted with one another, in batches drawn anew every time; None is all.

    Raises:
        CallError: an option that is none of these, or a network that is no such encoder.
    """

    network: GraphEncoder
    x: Tensor
    edges_x: Tensor | None
    steps: Tensor

    def __init__(
        self,
        network: nn.Module,
        *,
        views: int | Sequence[str] = 2,
        augmentation: str = "generative",
        projection_channels: int = 64,
        neighbours: int = 15,
        hops: int = 2,
        learner_layers: int = 2,
        activation: str = "relu",
        form: str = "averaged",
        edge_dropout: float = 0.5,
        temperature: float = 0.2,
        redundancy: float = 0.01,
        augmenter_lr: float = 1e-3,
        contrast_batch: int | None = None,
    ) -> None:
        if not isinstance(network, GraphEncoder):
            raise CallError(f"infomgf trains infomgf_encoder, whose graphs have weights; got {type(network).__name__}")
        super().__init__(network)
        if isinstance(views, int):
            names, count = None, views
        else:
            names = [views] if isinstance(views, str) else list(views)
            count = len(set(names))
        if count < 2 or (names is not None and count < len(names)):
            raise CallError(f"views is the number of views, 2 or more, or their names, each once; got {views!r}")
        if augmentation not in AUGMENTATIONS:
            raise unknown_name("augmentation", augmentation, AUGMENTATIONS)
        if hops < 0 or temperature < LOWEST_TEMPERATURE or redundancy < 0 or augmenter_lr <= 0:
            raise CallError(
                f"hops and redundancy cannot be negative, augmenter_lr must be positive and temperature at least "
                f"{LOWEST_TEMPERATURE}, below which float32 rounds similarities to zero; got "
                f"hops={hops}, redundancy={redundancy}, temperature={temperature}, augmenter_lr={augmenter_lr}"
            )
        if contrast_batch is not None and contrast_batch < 2:
            raise CallError(f"contrast_batch must be at least 2, so that there is a contrast, got {contrast_batch}")
        self.names, self.augmentation, self.hops = names, augmentation, hops
        self.edge_dropout, self.temperature, self.redundancy = edge_dropout, temperature, redundancy
        self.contrast_batch = contrast_batch
        channels = network.in_channels
        options: dict[str, Any] = {
            "neighbours": neighbours,
            "num_layers": learner_layers,
            "activation": activation,
            "form": form,
            "edge_dropout": edge_dropout,
        }
        self.learners = nn.ModuleList(StructureLearner(channels, **options) for _ in range(count))
        self.fused_learner = StructureLearner(channels * (count + 1), **options)
        self.projectors = Projectors(count, network.out_channels, projection_channels)
        self.augmenter: Augmenter | None = None
        self.augmenter_optimizer: CarriedAdam | None = None
        gate = AUGMENTATIONS[augmentation]
        if gate is not None:
            self.augmenter = Augmenter(
                channels, network.hidden_channels, network.out_channels, temperature=gate[0], bias=gate[1]
            )
            self.augmenter.requires_grad_(False)  # not of the recipe's optimizer: it steps in at_step
            self.augmenter_optimizer = CarriedAdam(self.augmenter, augmenter_lr)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.views: list[str] = []  # of the graph at hand, in the order of the learners
        self.structures: dict[str, Structure] = {}  # by the names of the buffers of edges

    # --- the data

    def prepare(self, data: Any) -> None:
        """Take the graph of a data module: ``data.graph`` with ``x`` and ``views``, name -> (2, E).

        Raises:
            CallError: it has no views, or not those of the method.
        """
        views = getattr(data.graph, "views", None)
        if not views:
            raise CallError("infomgf needs a multiplex graph: an .npz file with edge_index_VIEW for two or more views")
        self.observe(data.graph.x, views)

    def observe(self, x: Float[Tensor, "n f"], views: Mapping[str, Int[Tensor, "2 e"]]) -> None:
        """Take a multiplex graph; all that is asked of the method afterwards is about it.

        Args:
            x: node features, (N, in_channels).
            views: edges (2, E) by the view's name, row 0 the sources, row 1 the targets; self-loops are added, edges
                that are given twice count once. A method that was built with names looks at those views alone.

        Raises:
            UnknownName: a view of the method is missing.
            CallError: another number of views than the method was built for.
            ShapeError: features or edges that the encoder cannot take, or no more nodes than neighbours.
        """
        names = sorted(views) if self.names is None else self.names  # sorted: each learner meets its view again
        if len(names) != len(self.learners):
            raise CallError(
                f"the graph has {len(names)} views ({', '.join(names)}), the method was built for "
                f"{len(self.learners)}: set its argument views to their number, or to the names of some"
            )
        for name in names:
            if name not in views:
                raise unknown_name("view", name, views)
            check_graph(x, views[name], self.network.in_channels)
        neighbours = self.fused_learner.neighbours
        if len(x) <= neighbours:
            raise ShapeError(f"{neighbours} neighbours and the node itself need more than {len(x)} nodes")
        device = self.steps.device
        x = x.to(device)
        self.register_buffer("x", x, persistent=False)
        self.views, self.structures = names, {}
        for buffer in ("edges_x", "weight_x"):
            self.register_buffer(buffer, None, persistent=False)
        if is_mostly_zero(x, below=MOSTLY_ZEROS):
            sparse = WeightedGraph.from_dense(x)
            self.register_buffer("edges_x", sparse.edge_index, persistent=False)
            self.register_buffer("weight_x", sparse.weight, persistent=False)
        for index, name in enumerate(names):
            structure = view_structure(views[name].to(device), len(x))
            graph = normalized(structure, torch.ones(structure.edge_index.shape[1], device=device))
            features = x
            for _ in range(self.hops):
                features = graph.propagate(features)
            self.register_buffer(f"edges_{index}", structure.edge_index, persistent=False)
            self.register_buffer(f"weight_{index}", graph.weight, persistent=False)
            self.register_buffer(f"features_{index}", F.normalize(features), persistent=False)

    def given_graphs(self) -> dict[str, WeightedGraph]:
        """The normalised graphs of the views, as they were given."""
        self._check_observed()
        return {name: self._graph(str(index)) for index, name in enumerate(self.views)}

    def _graph(self, name: str, num_sources: int | None = None) -> WeightedGraph:
        """The graph whose buffers have a name; its structure is computed anew where they are new, moved or copied."""
        edges, known = self.get_buffer(f"edges_{name}"), self.structures.get(name)
        if known is None or known.edge_index is not edges:
            known = self.structures[name] = Structure(edges, len(self.x), num_sources)
        return WeightedGraph(known, self.get_buffer(f"weight_{name}"))

    def view_features(self) -> list[Float[Tensor, "n f"]]:
        """f_v of every view, (N, F)."""
        self._check_observed()
        return [self.get_buffer(f"features_{index}") for index in range(len(self.views))]

    def _check_observed(self) -> None:
        if not hasattr(self, "x"):
            raise CallError("the method has seen no graph yet: call observe(x, views), or prepare(data)")

    # --- what comes out

    def refined_graphs(self) -> dict[str, WeightedGraph]:
        """G_v by the view's name: normalised, k neighbours a node; in train mode with edges dropped."""
        features = dict(zip(self.views, self.view_features(), strict=True))
        learners: Any = self.learners
        return {name: learner.graph(features[name]) for name, learner in zip(self.views, learners, strict=True)}

    def fused_graph(self) -> WeightedGraph:
        """G, the one graph of all views: normalised, k neighbours a node; in train mode with edges dropped."""
        return self.fused_learner.graph(torch.cat([*self.view_features(), self.x], 1))

    def augmented_graphs(self) -> dict[str, WeightedGraph]:
        """G_v' by the view's name."""
        given = self.given_graphs()
        if self.augmenter is None:
            return {name: random_augmentation(view, self.edge_dropout, self.training) for name, view in given.items()}
        return self._generated(dict(self.augmenter.named_parameters()))

    def embeddings(self, graph: WeightedGraph | None = None) -> Float[Tensor, "n c"]:
        """The encoder's embeddings of length one, (N, out_channels), on a graph; the fused one when not given."""
        self._check_observed()
        graph = self.fused_graph() if graph is None else graph
        sparse = self.edges_x is not None
        x = self._graph("x", self.x.shape[1]) if sparse else self.x
        return F.normalize(self.network.encode(x, graph.propagate))

    # --- the contrast

    def loss(self, batch: Any) -> Tensor:
        """L over all nodes: a scalar. No label is looked at, so the batch's mask (N,) is not either."""
        return self.contrast().mean()

    def evaluation_loss(self, batch: Tensor) -> Tensor:
        """L of the nodes of a mask (N,), contrasted as in training."""
        return self.contrast()[batch]

    def inputs(self, batch: Tensor) -> Tensor:
        """The features of the nodes of a mask (N,)."""
        self._check_observed()
        return self.x[batch]

    def contrast(self) -> Float[Tensor, " n"]:
        """The terms of L for every node, (N,)."""
        with torch.no_grad():
            augmented = list(self.augmented_graphs().values())
        refined, heads = self.refined_graphs().values(), self.projectors
        specific = [head(self.embeddings(graph)) for head, graph in zip(heads.specific, refined, strict=True)]
        fused = self.embeddings()
        unique = [
            self._bound(one, head(self.embeddings(graph)))
            for one, head, graph in zip(specific, heads.augmented, augmented, strict=True)
        ]
        tied = [self._bound(head(fused), one) for head, one in zip(heads.fused, specific, strict=True)]
        shared = [self._bound(one, other) for one, other in combinations(specific, 2)]
        means = [torch.stack(terms).mean(0) for terms in (tied, shared, unique)]
        return torch.stack(means).sum(0)

    def _bound(self, a: Tensor, b: Tensor) -> Tensor:
        """The lower bound of every node, (N,), contrasted with all others or in random batches of them."""
        if self.contrast_batch is None:
            return lower_bound(a, b, self.temperature)
        order = torch.randperm(len(a), device=a.device)
        parts = [lower_bound(a[part], b[part], self.temperature) for part in order.split(self.contrast_batch)]
        return torch.cat(parts)[order.argsort()]

    # --- the augmenter's own step

    def at_step(self, progress: float) -> None:
        """The step of the augmenter that follows each step of all else; before the first there is none."""
        if self.augmenter_optimizer is not None and self.steps > 0:
            self.step_augmenter()
        self.steps += 1

    def step_augmenter(self) -> Tensor:
        """One step of Adam on the augmenter alone; returns its loss before the step."""
        assert self.augmenter is not None
        assert self.augmenter_optimizer is not None
        training = self.training
        self.eval()
        with torch.enable_grad():
            parameters = {name: p.detach().requires_grad_() for name, p in self.augmenter.named_parameters()}
            loss = self.augmenter_loss(parameters)
            gradients = torch.autograd.grad(loss, list(parameters.values()))
        self.train(training)
        self.augmenter_optimizer.step(list(self.augmenter.parameters()), list(gradients))
        return loss.detach()

    def augmenter_loss(self, parameters: Mapping[str, Tensor] | None = None) -> Float[Tensor, ""]:
        """What the augmenter minimises: lambda x upper bound + reconstruction, summed over the views.

        Args:
            parameters: those of the augmenter, by name; its own when not given.

        Raises:
            CallError: the random augmentation learns nothing.
        """
        if self.augmenter is None:
            raise CallError("augmentation=random learns nothing; generative does")
        parameters = dict(self.augmenter.named_parameters()) if parameters is None else dict(parameters)
        with torch.no_grad():
            refined = [self.embeddings(graph) for graph in self.refined_graphs().values()]
        generated = self._generated(parameters).values()
        decoder = {name: value for name, value in parameters.items() if name.startswith("decoder.")}
        total = self.x.new_zeros(())
        for graph, specific, features in zip(generated, refined, self.view_features(), strict=True):
            found = self.embeddings(graph)
            restored = F.linear(found, decoder["decoder.weight"], decoder["decoder.bias"])
            alike = upper_bound(found, specific, self.temperature)
            total = total + self.redundancy * alike + reconstruction(restored, features)
        return total

    def _generated(self, parameters: dict[str, Tensor]) -> dict[str, WeightedGraph]:
        assert self.augmenter is not None
        given = self.given_graphs().items()
        return {name: functional_call(self.augmenter, parameters, (self.x, view)) for name, view in given}


class CarriedAdam(nn.Module):
    """Adam whose moments are buffers: they are saved, restored and moved with the module that carries them, so that a
    training which was killed goes on exactly.

    Args:
        module: what is trained.
        lr: the learning rate.
    """

    def __init__(self, module: nn.Module, lr: float) -> None:
        super().__init__()
        self.lr = lr
        size = sum(parameter.numel() for parameter in module.parameters())
        self.register_buffer("step_count", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("square", torch.zeros(size))

    @torch.no_grad()
    def step(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        """Change parameters in place by one step; Adam is elementwise, so they are one vector to it."""
        vector = nn.utils.parameters_to_vector(parameters)
        vector.grad = nn.utils.parameters_to_vector(gradients)
        adam = torch.optim.Adam([vector], lr=self.lr)
        adam.state[vector] = {"step": self.step_count, "exp_avg": self.mean, "exp_avg_sq": self.square}
        adam.step()
        nn.utils.vector_to_parameters(vector, parameters)


def build(model: nn.Module, **args: Any) -> InfoMGF:
    """InfoMGF around an encoder; the arguments are those of :class:`InfoMGF`."""
    return InfoMGF(model, **args)
