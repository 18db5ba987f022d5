"""What a sparsified network does before each call of its own forward: trim the graph, keep its weights on the l0 ball.

Both are forward pre-hooks, so the network stays an object of its class with its own forward and the names in its state
dict; they are copied and pickled with it.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from torchstone.errors import CallError
from torchstone.layers.adjacency import check_graph
from torchstone.transforms.teddy.edges import edge_values, kept_edges
from torchstone.transforms.teddy.weights import project_l0

PER_EDGE = ("edge_weight", "edge_attr", "edge_value")
"""Inputs that have a row for every edge and are trimmed with them."""


def graph_inputs(model: nn.Module) -> list[str]:
    """The names of a graph network's inputs, ``x`` and ``edge_index`` the first two.

    Raises:
        CallError: it is no such network.
    """
    names = list(inspect.signature(model.forward).parameters)
    if names[1:2] != ["edge_index"]:
        raise CallError(
            f"teddy trims the edges of graph networks, whose forward takes (x, edge_index, ...); that of "
            f"{type(model).__name__} takes ({', '.join(names)})"
        )
    return names


class TrimEdges:
    """Trims the edges of every graph that a network is given, by degree alone.

    Args:
        names: the network's inputs.
        sparsity: the share that is trimmed.
        criterion, self_loops, seed: see :func:`torchstone.transforms.teddy.edges.rank_edges`.
        soft: in training keep all edges and give the network ``edge_value``, 0 for those that are to go; it multiplies
            the caller's.
    """

    last: tuple[Tensor, int, int, Tensor] | None = None
    """The graph met last - its edges, their version, its nodes - and which edges are kept: one graph is ranked once."""

    def __init__(
        self, names: list[str], *, sparsity: float, criterion: str, self_loops: bool, seed: int, soft: bool
    ) -> None:
        self.names = names
        self.sparsity = sparsity
        self.options: dict[str, Any] = {"criterion": criterion, "self_loops": self_loops, "seed": seed}
        self.soft = soft

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "last"}

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = {**dict(zip(self.names, args, strict=False)), **kwargs}
        if not {self.names[0], "edge_index"} <= given.keys():
            return None  # the network's own error says what is missing
        if given.get("batch") is not None:
            raise CallError("teddy trims one graph; a batch of several would be trimmed as if it were one")
        x, edge_index = given[self.names[0]], given["edge_index"]
        if not isinstance(edge_index, Tensor) or edge_index.layout != torch.strided:
            raise CallError(f"teddy trims edges given as edge_index (2, E), got {type(edge_index).__name__}")
        check_graph(x, edge_index, x.shape[-1])
        kept = self.kept(edge_index, x.shape[0])
        if self.soft and module.training:
            values, own = edge_values(kept, edge_index.shape[1]).to(x.dtype), given.get("edge_value")
            given["edge_value"] = values if own is None else values * own
        else:
            for name in PER_EDGE:
                if isinstance(given.get(name), Tensor):
                    given[name] = given[name][kept]
            given["edge_index"] = edge_index[:, kept]
        positional = self.names[: len(args)]
        return tuple(given.pop(name) for name in positional), given

    def kept(self, edge_index: Tensor, num_nodes: int) -> Tensor:
        """The positions of the edges that are kept, (K,)."""
        if torch.compiler.is_compiling() or edge_index.is_inference():
            return kept_edges(edge_index, num_nodes, self.sparsity, **self.options)
        last = self.last
        if last is None or last[0] is not edge_index or last[1:3] != (edge_index._version, num_nodes):
            with torch.inference_mode(False):  # what is kept may be used in training later
                kept = kept_edges(edge_index, num_nodes, self.sparsity, **self.options)
            self.last = last = (edge_index, edge_index._version, num_nodes, kept)
        return last[3]


class ProjectWeights:
    """Projects a network's parameters on the l0 ball before each of its forward passes.

    That is after an optimizer's step and before the next: projected gradient descent, by whatever loop the network is
    trained. Parameters on the ball, as they are in every further pass, are only counted. Compiled or exported code
    holds no projection in eval mode; while a compiled network is trained the projection runs outside of that code.

    Args:
        sparsity: the share of all parameters that is zero.
    """

    def __init__(self, sparsity: float) -> None:
        self.sparsity = sparsity

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if torch.compiler.is_exporting() or (torch.compiler.is_compiling() and not module.training):
            return
        self.project(module)

    @torch.compiler.disable
    def project(self, module: nn.Module) -> None:
        project_l0(module.parameters(), self.sparsity)


def sparsify(model: nn.Module, *, trim: TrimEdges, weight_sparsity: float) -> None:
    """Give a network both hooks, in place; it trims nothing or projects nothing where the sparsity is 0."""
    if trim.sparsity > 0:
        model.register_forward_pre_hook(trim, with_kwargs=True)
    if weight_sparsity > 0:
        model.register_forward_pre_hook(ProjectWeights(weight_sparsity))


def project(model: nn.Module) -> None:
    """Project the weights of a sparsified network now, for instance before they are saved after a last step."""
    for hook in list(model._forward_pre_hooks.values()):
        if isinstance(hook, ProjectWeights):
            hook.project(model)
