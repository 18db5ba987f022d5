"""Recorded cases of the subgraph networks: whole networks of several schemes, and each aggregation by itself."""

import torch

from torchstone.models.graph.swl import (
    ATOMS,
    BONDS,
    Pairs,
    SubgraphGNN,
    aggregate,
    convert_official,
    pair_distances,
)
from torchstone.verification import load_state, record


def run(case):
    return ENTRIES[case.entry](case, **case.kwargs)


def graphs(case):
    """The recorded graphs, given one by one, as one batch."""
    count = sum(name.endswith(".x") for name in case.inputs)
    each = [{part: case.inputs.get(f"g{k}.{part}") for part in ("x", "edge_index", "edge_attr")} for k in range(count)]
    first = [sum(len(graph["x"]) for graph in each[:k]) for k in range(count)]
    x = torch.cat([graph["x"] for graph in each])
    edges = torch.cat([graph["edge_index"] + start for graph, start in zip(each, first, strict=True)], 1)
    batch = torch.repeat_interleave(torch.tensor([len(graph["x"]) for graph in each]))
    types = [graph["edge_attr"] for graph in each if graph["edge_attr"] is not None]
    return x, edges, batch, torch.cat(types) if types else None


def run_network(case, idim, odim, max_dis, encode, layers, pool, num_layer):
    model = SubgraphGNN(
        ATOMS,
        odim,
        schemes=layers,
        pool=pool,
        hidden_channels=idim,
        num_layers=num_layer,
        max_distance=max_dis,
        edge_channels=BONDS,
        node_types=encode,
    )
    load_state(model, case, convert_official)
    inside = {"after_encode": model.encoder, f"after_A{num_layer}": model.pool}
    inside |= {f"after_A{k}": layer for k, layer in enumerate(model.layers)}
    found = record(model, inside, *graphs(case))
    found["pred"] = found.pop("return")
    official = convert_official({name.removeprefix("buf/"): name for name in case.outputs if "buf/" in name}, model)
    found |= {name: model.get_buffer(ours) for ours, name in official.items()}
    for graph in (name.removeprefix("dist_") for name in case.outputs if name.startswith("dist_")):
        found[f"dist_{graph}"] = distances(case.inputs[f"{graph}.x"], case.inputs[f"{graph}.edge_index"])
    return found


def run_aggregations(case, schemes):
    x, edge_index = case.inputs["x"], case.inputs["edge_index"]
    pairs = Pairs(edge_index, len(x))
    found = {f"agg_{scheme}": aggregate(case.inputs["pair_features"], pairs, scheme) for scheme in schemes}
    return found | {"dist": distances(x, edge_index)}


def distances(x, edge_index):
    return pair_distances(Pairs(edge_index, len(x)), limit=len(x)).view(len(x), len(x))


ENTRIES = {"src.model.GNN": run_network, "src.utils.subgraph / src.utils.aggregate": run_aggregations}
