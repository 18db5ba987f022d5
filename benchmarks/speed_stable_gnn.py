"""STABLE's speed beside the authors' code and the dense formulation of its steps, in alternated rounds.

    git clone https://github.com/likuanppd/STABLE OFFICIAL
    python benchmarks/speed_stable_gnn.py --official OFFICIAL --data FOLDER

FOLDER holds ``robust_citation``; the graph is Cora, a fifth of whose edges Metattack changed. Timed are one step of
pre-training (loss and gradients), the prune by features, the refinement of the graph by given representations, and one
step of the classifier on the refined graph. The authors' modules run as they are: pre-training, classifier, and the
prunes, which loop over edges. Adding neighbours and normalising, which they write for a GPU alone, is written here with
their dense matrices and without their loop over nodes. A GCN of PyTorch Geometric of the classifier's size is the peer.
Every answer is compared before the clock starts, which is this process's own time (one thread). Ratios below 1
mean that ours is faster.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from rounds import alternate, ratio, spread
from torch import Tensor, nn
from torch.nn import functional as F

from torchstone import create_model
from torchstone.data.graphs import GraphData, open_graph
from torchstone.environment import write_result
from torchstone.layers.adjacency import adjacency_matrix
from torchstone.methods.stable_gnn import StableGNN, contrastive_loss, convert_official
from torchstone.models.graph.peers import build_peer
from torchstone.models.graph.stable_gcn import Classifier, contrast_logits

RESULT = Path(__file__).parent / "results" / "speed" / "stable_gnn.json"
QUIET = logging.getLogger("quiet")


def import_official(folder: Path) -> tuple[Any, Any, Any]:
    """The authors' robcon, utils and model; what these take from DeepRobust is not called here."""
    sys.modules["deeprobust"] = ModuleType("deeprobust")
    sys.modules["deeprobust.graph"] = ModuleType("deeprobust.graph")
    sys.modules["deeprobust.graph.utils"] = ModuleType("deeprobust.graph.utils")
    sys.path.insert(0, str(folder))
    import model  # type: ignore[import-not-found]
    import robcon  # type: ignore[import-not-found]
    import utils  # type: ignore[import-not-found]

    return robcon, utils, model


def scipy_of(edge_index: Tensor, weight: Tensor, nodes: int) -> sp.csr_matrix:
    target, source = edge_index.flip(0).numpy()
    return sp.csr_matrix((weight.numpy(), (target, source)), shape=(nodes, nodes))


def pretraining(method: StableGNN, robcon: Any) -> dict[str, Callable[[], object]]:
    """A step of both, with equal weights; answers are compared for one permutation."""
    nodes, width = method.x.shape[0], len(method.network.encoder.conv.bias)
    theirs = robcon.DGI(method.x.shape[1], width, "prelu")
    converted = convert_official(theirs.state_dict())
    method.network.encoder.load_state_dict({k[8:]: v for k, v in converted.items() if k.startswith("encoder.")})
    method.discriminator.load_state_dict({k[14:]: v for k, v in converted.items() if k.startswith("discriminator.")})
    x = method.x.to_dense()[None]
    graphs = [method.graph(name) for name in ("anchor", "view0", "view1")]
    matrices = [adjacency_matrix(*graph, nodes) for graph in graphs]
    targets = torch.cat([torch.ones(1, nodes), torch.zeros(1, nodes)], 1)

    def official_loss(order: np.ndarray) -> Tensor:
        logits = theirs(x, x[:, order, :], x, x, *matrices, True, None, None, None, aug_type="edge")
        return F.binary_cross_entropy_with_logits(logits, targets)

    def official() -> None:
        theirs.zero_grad(set_to_none=True)
        official_loss(np.random.permutation(nodes)).backward()  # noqa: NPY002 - as the authors do

    def ours() -> None:
        method.zero_grad(set_to_none=True)
        method.loss(None).backward()

    order = torch.randperm(nodes)
    with torch.no_grad():
        encoder, discriminator = method.network.encoder, method.discriminator
        logits = contrast_logits(encoder, discriminator, method.features(), order, graphs[0], graphs[1:])
        torch.testing.assert_close(contrastive_loss(logits).mean(), official_loss(order.numpy()), rtol=1e-4, atol=1e-5)
    return {"ours": ours, "official": official}


def pruning(method: StableGNN, edge_index: Tensor, utils: Any) -> dict[str, Callable[[], object]]:
    """Of the graph by features."""
    network, x, dense = method.network, method.features(), method.x.to_dense().numpy()
    adjacency = scipy_of(edge_index, torch.ones(edge_index.shape[1]), len(dense))

    def official() -> Any:
        return utils.preprocess_adj(dense, adjacency, QUIET, threshold=network.jaccard)

    def ours() -> Tensor:
        return network.roughly_kept(x, edge_index)

    theirs = official()
    theirs.eliminate_zeros()
    if (theirs != scipy_of(edge_index[:, ours()], torch.ones(int(ours().sum())), len(dense))).nnz:
        raise SystemExit("the prunes by features differ")
    return {"ours": ours, "official": official}


def refinement(network: Any, embedding: Tensor, edge_index: Tensor, utils: Any) -> dict[str, Callable[[], object]]:
    """Prune by representations, add neighbours, normalise."""
    nodes, array = len(embedding), embedding.numpy()
    adjacency = scipy_of(edge_index, torch.ones(edge_index.shape[1]), nodes)

    def official() -> Tensor:
        pruned = utils.preprocess_adj(array, adjacency, QUIET, jaccard=False, threshold=network.cosine)
        matrix = torch.from_numpy(pruned.toarray())
        unit = F.normalize(embedding, dim=1)
        similarity = unit @ unit.t()
        similarity[:, matrix.sum(1) <= network.degree] = 0
        matrix.scatter_(1, similarity.topk(network.neighbours, dim=1).indices, 1.0)
        matrix.fill_diagonal_(1.0)
        power = matrix.sum(1).pow(network.alpha)
        matrix = power[:, None] * matrix * power
        return matrix / matrix.sum(1, keepdim=True)

    def ours() -> tuple[Tensor, Tensor]:
        return network.refine(embedding, edge_index)

    torch.testing.assert_close(adjacency_matrix(*ours(), nodes).to_dense(), official(), rtol=1e-4, atol=1e-6)
    return {"ours": ours, "official prune, then dense": official}


def classifier(network: Any, inputs: tuple[Tensor, Tensor, Tensor], model: Any) -> dict[str, Callable[[], object]]:
    """A step on the refined graph."""
    embedding, edge_index, weight = inputs
    theirs = model.GCN(embedding.shape[1], 16, network.out_channels)
    mine = Classifier(embedding.shape[1], network.out_channels)
    mine.load_state_dict(convert_official(theirs.state_dict()))
    peer = build_peer("gcn", in_channels=embedding.shape[1], out_channels=network.out_channels, hidden_channels=16)
    dense = adjacency_matrix(edge_index, weight, len(embedding)).to_dense()

    def step(module: nn.Module, *given: Tensor) -> Callable[[], None]:
        def run() -> None:
            module.zero_grad(set_to_none=True)
            module(*given).square().mean().backward()

        return run

    with torch.no_grad():
        expected = theirs.eval()(dense, embedding)
        torch.testing.assert_close(mine.eval()(*inputs), expected, rtol=1e-3, atol=1e-4)
    return {
        "ours": step(mine.train(), *inputs),
        "official": step(theirs.train(), dense, embedding),
        "PyG GCN (peer)": step(peer.train(), embedding, edge_index, weight),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--official", type=Path, required=True, help="a checkout of likuanppd/STABLE")
    parser.add_argument("--data", type=Path, required=True, help="the folder of robust_citation")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    robcon, utils, model = import_official(given.official)
    source = f"robust:{given.data / 'robust_citation' / 'cora-meta-0.2'}"
    data = GraphData(open_graph(source, normalize=False))
    torch.manual_seed(0)
    network: Any = create_model("stable_gcn_cora")
    method = StableGNN(network)
    method.prepare(data)
    edge_index = data.graph.edge_index
    timed = {"pre-training step": pretraining(method, robcon), "prune by features": pruning(method, edge_index, utils)}
    optimizer = torch.optim.Adam(method.parameters(), lr=1e-3)
    for _ in range(30):  # representations that tell nodes apart
        optimizer.zero_grad()
        method.loss(None).backward()
        optimizer.step()
    inputs = network.precompute(method.features(), edge_index)
    timed["refinement"] = refinement(network, inputs[0], edge_index, utils)
    timed["classifier step"] = classifier(network, inputs, model)
    found = {}
    for what, calls in timed.items():
        seconds = alternate(calls, given.rounds, clock=time.process_time)
        other = next(name for name in calls if name != "ours")
        found[what] = {
            "milliseconds": {name: spread([1000 * value for value in values]) for name, values in seconds.items()},
            f"times_{other.replace(',', '').replace(' ', '_')}": ratio(seconds, "ours", other),
        }
        print(what, found[what], flush=True)
    write_result(
        RESULT,
        command="python benchmarks/speed_stable_gnn.py --official OFFICIAL --data FOLDER",
        seeds=[0],
        results={"rounds": given.rounds, "graph": "Cora, Metattack at 0.2", **found},
    )


if __name__ == "__main__":
    main()
