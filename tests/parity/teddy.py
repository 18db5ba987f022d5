"""Recorded cases of TEDDY: scores and pruning, the l0 projection, the loss, and the five networks."""

from torch_geometric.utils import sort_edge_index

from torchstone.models.graph import teddy_networks
from torchstone.transforms import teddy
from torchstone.verification import load_state


def run(case):
    return ENTRIES[case.entry](case, **case.kwargs)


def run_pruning(case, adj_percent, n_nodes):
    edges = sort_edge_index(case.inputs["edge_index"])
    kept = teddy.kept_edges(edges, n_nodes, adj_percent)
    mask = teddy.edge_values(kept, edges.shape[1])
    return {
        "edge_index_sorted": edges,
        "edge_score": teddy.edge_scores(edges, n_nodes),
        "kept_mask": mask,
        "adj_sparsity": teddy.remaining_percent(mask),
    }


def run_projection(case, wei_percent):
    teddy.project_l0(case.inputs.values(), wei_percent)
    return dict(case.inputs)


def run_loss(case, lamb):
    logits = case.inputs["logits"].requires_grad_()
    loss = teddy.sparse_training_loss(
        logits, case.inputs["labels"], case.inputs["train_idx"], case.inputs["teacher_logits"], lamb
    )
    loss.total.backward()
    return {"ce": loss.cross_entropy, "distill": loss.distillation, "total": loss.total, "grad_logits": logits.grad}


def run_network(case, n_nodes, val_test, heads, **sizes):
    """The authors' edges are (target, source); those of value 0 are left out (``val_test``), or have that value."""
    name = case.entry.rpartition(".")[2]
    more = {"heads": heads} if name in SOFT else {}
    model = load_state(getattr(teddy_networks, name)(**sizes, **more), case)
    edges, values = case.inputs["edge_index"].flip(0), case.inputs["pruned_values"]
    graph = (edges[:, values.bool()],) if val_test else (edges, values)
    return {"logits": model(case.inputs["x"], *graph)}


SOFT = ("GAT", "GraphTransformer")
ENTRIES = {
    "pruning.compute_edge_score then pruning.prune_adj": run_pruning,
    "main_teddy.run_fix_mask (L0 projection lines)": run_projection,
    "main_teddy.run_fix_mask (loss lines)": run_loss,
    **{f"net_teddy.{name}": run_network for name in ("GCN", "GIN", "GAT", "SAGE", "GraphTransformer")},
}
