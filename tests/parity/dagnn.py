"""Recorded cases of DAGNN: the whole network, the one for ogbn-arxiv, and the weighted propagation alone."""

from torchstone.layers.adjacency import adjacency_matrix, normalized_adjacency, propagate_hops
from torchstone.models.graph.dagnn import DAGNN, AdaptivePropagation
from torchstone.verification import load_state, record


def run(case):
    return ENTRIES[case.entry](case, **case.kwargs)


def run_network(case, num_features, num_classes, hidden, K, dropout):
    model = DAGNN(num_features, num_classes, hidden_channels=hidden, hops=K, dropout=dropout)
    x, edge_index = case.inputs["x"], case.inputs["edge_index"]
    found = record(load_state(model, case), {"mlp_logits": model.lin2, "after_prop": model.prop}, x, edge_index)
    edges, weights = normalized_adjacency(edge_index, len(x))
    found["logp"] = found.pop("return")
    found["hop1"] = propagate_hops(found["mlp_logits"], edges, weights, hops=1)[:, 1]
    found["norm_adj_dense"] = adjacency_matrix(edges, weights, len(x)).to_dense()
    return found


def run_arxiv(case, num_features, num_classes, hidden, K, dropout):
    options = {"hidden_channels": hidden, "hops": K, "dropout": dropout, "input_dropout": 0.0, "batch_norm": True}
    model = load_state(DAGNN(num_features, num_classes, **options), case)
    return {"logp": model(case.inputs["x"], case.inputs["edge_index"])}


def run_propagation(case, num_classes, K):
    module = load_state(AdaptivePropagation(num_classes, K), case)
    x, edge_index, edge_weight = (case.inputs[name] for name in ("x", "edge_index", "edge_weight"))
    return {"out": module(x, *normalized_adjacency(edge_index, len(x), edge_weight))}


ENTRIES = {"dagnn.Net": run_network, "main_ogbnarxiv.Net": run_arxiv, "dagnn.Prop": run_propagation}
