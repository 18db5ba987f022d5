"""STABLE: our objects for each recorded call of the authors' code."""

import torch

from torchstone.layers.adjacency import adjacency_matrix
from torchstone.methods.stable_gnn import contrastive_loss, convert_official, view_of
from torchstone.models.graph.stable_gcn import (
    Classifier,
    ContrastiveEncoder,
    add_neighbours,
    degree_power_weights,
    degrees,
    looped_adjacency,
    prune_cosine,
    prune_jaccard,
    reliable_neighbours,
)
from torchstone.verification import load_state


def run(case):
    return ENTRIES[case.entry](case, **case.kwargs)


def edges_of(adjacency):
    """Edges from column to row, and their weights."""
    target, source = adjacency.nonzero(as_tuple=True)
    return torch.stack([source, target]), adjacency[target, source]


def dense(edges, weights, like):
    return adjacency_matrix(edges, weights.float(), len(like)).to_dense()


def run_prune(case, threshold, jaccard, metric):
    adjacency, x = case.inputs["adj"], case.inputs["features"]
    edges, weights = edges_of(adjacency)
    kept = (prune_jaccard if jaccard else prune_cosine)(x, edges, threshold)
    return {"pruned_adj": dense(edges[:, kept], weights[kept], adjacency)}


def run_refine(case, k, degree_threshold, alpha):
    adjacency, embedding = case.inputs["adj"], case.inputs["embeds"]
    edges, weights = edges_of(adjacency)
    kept = weights.bool()
    reliable = degrees(edges, kept, len(adjacency)) > degree_threshold
    edges, present = add_neighbours(edges, kept, reliable_neighbours(embedding, reliable, k))
    normalized = degree_power_weights(edges, present.float(), len(adjacency), alpha)
    return {"adj_added": dense(edges, present, adjacency), "adj_norm": dense(*normalized, adjacency)}


def run_contrast(case, n_in, n_h, activation, beta):
    pair = load_state(ContrastiveEncoder(n_in, n_h), case, convert_official)
    x, nodes = case.inputs["features"], len(case.inputs["features"])
    anchor = looped_adjacency(*edges_of(case.inputs["adj"]), nodes, beta)
    views = []
    for name in ("aug_adj1", "aug_adj2"):
        edges, weights = edges_of(case.inputs[name])
        views.append(view_of(edges, weights.bool(), nodes, beta))
    logits = pair(x, case.inputs["perm"], anchor, views)
    loss = contrastive_loss(logits).mean()
    loss.backward()
    return {
        "norm_adj": dense(*anchor, x),
        "norm_aug1": dense(*views[0], x),
        "norm_aug2": dense(*views[1], x),
        "logits": logits.reshape(1, -1),
        "loss": loss,
        "embeds": pair.encoder(x, *anchor)[None],
        "grad/gcn.fc.weight": pair.encoder.conv.weight.grad,
        "grad/disc.f_k.weight": pair.discriminator.bilinear.weight.grad,
    }


def run_classifier(case, in_feats, n_hidden, out_dims):
    model = load_state(Classifier(in_feats, out_dims, hidden_channels=n_hidden), case, convert_official)
    return {"logits": model(case.inputs["features"], *edges_of(case.inputs["adj_norm"]))}


ENTRIES = {
    "utils.preprocess_adj": run_prune,
    "utils.get_reliable_neighbors then utils.adj_new_norm": run_refine,
    "robcon.DGI (contrastive step of get_contrastive_emb)": run_contrast,
    "model.GCN": run_classifier,
}
