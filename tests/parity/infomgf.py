"""Recorded cases of InfoMGF: bounds, learners, augmenter, classifier, and both steps of the whole method."""

import torch

from torchstone.methods.infomgf import (
    Augmenter,
    GraphClassifier,
    GraphEncoder,
    InfoMGF,
    StructureLearner,
    WeightedGraph,
    convert_official,
    lower_bound,
    reconstruction,
    upper_bound,
)
from torchstone.verification import load_state


def run(case):
    return ENTRIES[case.entry](case, **case.kwargs)


def run_bounds(case, temperature):
    pair = case.inputs["z1"], case.inputs["z2"]
    return {
        "lower": lower_bound(*pair, temperature).mean(),
        "upper": upper_bound(*pair, temperature),
        "sce": reconstruction(*pair),
    }


def run_learner(case, nlayers, isize, k, i, dropedge_rate, sparse, act):
    form = "summed" if sparse else "averaged"
    options = {"neighbours": k, "num_layers": nlayers, "activation": act, "edge_dropout": dropedge_rate, "form": form}
    learner = load_state(StructureLearner(isize, **options), case)
    features = case.inputs["features"]
    return {"embeddings": learner(features), "adj": learner.graph(features).to_dense()}


def run_augmenter(case, input_dim, hidden_dim, rep_dim, aug_lambda, temperature, bias):
    augmenter = Augmenter(input_dim, hidden_dim, rep_dim, temperature=temperature, bias=bias)
    load_state(augmenter, case, convert_official)
    logits = augmenter.logits(case.inputs["features"], case.inputs["edges"])
    return {"edge_logit": logits, "edge_weight": augmenter.gate(logits, case.inputs["uniform"])}


def run_classifier(case, in_channels, hidden_channels, out_channels, num_layers, dropout, dropout_adj, sparse):
    options = {"hidden_channels": hidden_channels, "num_layers": num_layers}
    model = GraphClassifier(in_channels, out_channels, dropout=dropout, edge_dropout=dropout_adj, **options)
    graph = WeightedGraph.from_dense(case.inputs["adj"])
    return {"logits": load_state(model, case)(case.inputs["features"], graph)}


def run_method(case, n_views, in_dim, hidden_dim, emb_dim, proj_dim, k, r, **told):
    names = [str(view) for view in range(n_views)]
    views = {name: WeightedGraph.from_dense(case.inputs[f"adj{name}"]).edge_index for name in names}

    def build(augmentation):
        method = InfoMGF(
            GraphEncoder(in_dim, emb_dim, hidden_channels=hidden_dim, dropout=told["dropout"]),
            views=names,
            augmentation=augmentation,
            projection_channels=proj_dim,
            neighbours=k,
            hops=r,
            learner_layers=told["nlayers"],
            activation=told["activation_learner"],
            redundancy=told["aug_lambda"],
        )
        method.observe(case.inputs["features"], views)
        return method

    method = load_state(build("generative"), case, convert_official)
    random = build("random").eval()
    own = random.state_dict()
    random.load_state_dict({name: value for name, value in method.state_dict().items() if name in own})

    refined, generated = method.refined_graphs(), method.augmented_graphs()
    fused = method.fused_graph()
    found = {
        "fused_adj": fused.to_dense(),
        "z_fused": method.embeddings(fused),
        "loss_gcl_random_aug_off": random.loss(None),
        "loss_gcl_generative": method.loss(None),
    }
    for name, features in zip(names, method.view_features(), strict=True):
        found[f"view_feature{name}"] = features
        found[f"specific_adj{name}"] = refined[name].to_dense()
        found[f"z_specific{name}"] = method.embeddings(refined[name])
        found[f"gen_adj{name}"] = generated[name].to_dense()

    augmenter = {name: p.detach().requires_grad_() for name, p in method.augmenter.named_parameters()}
    found["loss_dis"] = method.augmenter_loss(augmenter)
    contrasted = {
        "fused.w0": method.fused_learner.layers[0].w,
        "learner0.w1": method.learners[0].layers[1].w,
        "gcn0": method.network.layers[0].linear.weight,
    }
    generating = {"dis_emb": augmenter["embedding.weight"], "dis_dec": augmenter["decoder.weight"]}
    for loss, parameters in (("loss_gcl_generative", contrasted), ("loss_dis", generating)):
        gradients = torch.autograd.grad(found[loss], list(parameters.values()))
        for name, gradient in zip(parameters, gradients, strict=True):
            found[f"grad_x1000/{name}"] = 1000 * gradient  # recorded in thousandths
    return found


ENTRIES = {
    "model.calc_lower_bound / calc_upper_bound / sce_loss": run_bounds,
    "graph_learners.ATT_learner": run_learner,
    "augment.Discriminator": run_augmenter,
    "model.GCN": run_classifier,
    "main.Experiment.loss_gcl / loss_discriminator (dense)": run_method,
}
