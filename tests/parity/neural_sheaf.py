"""Recorded cases of Neural Sheaf Diffusion: the discrete networks with all their Laplacians, and orthogonal maps."""

import torch

from torchstone.models.graph.neural_sheaf import DiscreteSheafDiffusion, orthogonal_matrices
from torchstone.verification import load_state, record


def run(case):
    return ENTRIES[case.entry](case, **case.kwargs)


def run_network(maps):
    def run_one(case, args, edge_index):
        # The authors call the fixed coordinate with +1 between neighbours low-pass: by what it does it is high-pass.
        bundle = {"orthogonal": args["orth"], "edge_weights": args["edge_weights"]} if maps == "bundle" else {}
        model = DiscreteSheafDiffusion(
            args["input_dim"],
            args["output_dim"],
            maps=maps,
            stalk_dim=args["d"],
            num_layers=args["layers"],
            hidden_channels=args["hidden_channels"],
            high_pass=args["add_lp"],
            low_pass=args["add_hp"],
            pooled_maps=args["sparse_learner"],
            map_activation=args["sheaf_act"],
            normalization="sheaf" if args["normalised"] else "degree" if args["deg_normalised"] else "none",
            left_weights=args["left_weights"],
            right_weights=args["right_weights"],
            activation=args["use_act"],
            second_linear=args["second_linear"],
            shared_sheaf=args["linear"],
            dropout=args["dropout"],
            input_dropout=args["input_dropout"],
            **bundle,
        )
        load_state(model.eval(), case)
        x, edges = case.inputs["x"], case.inputs["edge_index"]
        inside = {f"map_params{k}": learner for k, learner in enumerate(model.sheaf_learners)}
        inside |= {f"edge_weights{k}": learner for k, learner in enumerate(model.weight_learners)}
        found = record(model, inside, x, edges)
        found["logp"] = found.pop("return")
        upper = edges[0] < edges[1]
        for k, laplacian in enumerate(model.sheaves(x, edges)):
            found[f"laplacian{k}"] = laplacian.to_sparse().to_dense()
            found[f"tril_transport{k}"] = laplacian.transport[upper]
        return found

    return run_one


def run_orthogonal(case, d, orthogonal_map):
    return {"Q": orthogonal_matrices(case.inputs["params"], d, orthogonal_map)}


def example(case):
    """A graph with both directions."""
    if "edge_index" not in case.inputs:
        return {}
    nodes, links = len(case.inputs["x"]), case.inputs["edge_index"].shape[1] // 2
    upper = torch.combinations(torch.arange(nodes))
    one_way = upper[torch.randperm(len(upper), generator=torch.Generator().manual_seed(0))[:links]].T
    return {"input/edge_index": torch.cat([one_way, one_way.flip(0)], 1)}


MODELS = "models.disc_models.Discrete"
ENTRIES = {
    f"{MODELS}DiagSheafDiffusion": run_network("diagonal"),
    f"{MODELS}BundleSheafDiffusion": run_network("bundle"),
    f"{MODELS}GeneralSheafDiffusion": run_network("general"),
    "models.orthogonal.Orthogonal": run_orthogonal,
}
