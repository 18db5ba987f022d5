"""VQGraph: our objects for each recorded call of the authors' code."""

import torch

from torchstone.methods.vqgraph import (
    ReleasedTokenDistillation,
    convert_official,
    released_token_divergence,
    soft_label_divergence,
    to_official,
)
from torchstone.models.graph.vqgraph import CosineQuantizer, EuclideanQuantizer, VQGraphGCN, VQGraphMLP
from torchstone.verification import load_state


def run(case):
    return ENTRIES[case.entry](case, **case.kwargs)


def run_teacher(
    case,
    num_layers,
    input_dim,
    hidden_dim,
    output_dim,
    dropout_ratio,
    activation,
    norm_type,
    codebook_size,
    lamb_edge,
    lamb_node,
):
    assert (num_layers, activation, norm_type) == (2, "relu", "none"), "what the class is"
    model = VQGraphGCN(
        input_dim,
        output_dim,
        hidden_channels=hidden_dim,
        num_codes=codebook_size,
        dropout=dropout_ratio,
        node_weight=lamb_node,
        edge_weight=lamb_edge,
    )
    load_state(model, case, convert_official)
    x, edge_index = case.inputs["x"], case.inputs["edge_index"]
    tokens = model.tokenize(x, edge_index)
    found = {
        "h_gcn1": tokens.hidden,
        "quantized": tokens.quantized.vectors,
        "h_gcn2": tokens.readout,
        "logits": tokens.logits,
        "loss": model.tokenizer_loss(tokens, edge_index)[None],
        "dist": tokens.quantized.scores,
        "codebook": to_official(model)["vq._codebook.embed"],
        "code_index": tokens.quantized.codes,
        "feature_rec_loss": model.node_loss(tokens),
        "quantized_edge": tokens.edges,
    }
    if case.mode == "train":  # the gradients of the notes: labels i mod C of the first 8 nodes
        nodes = torch.arange(len(x))
        model.loss_of(tokens, edge_index, nodes % output_dim, nodes < 8).backward()
        after = to_official(model)
        found |= {f"state_after/{name}": after[f"vq._codebook.{name}"] for name in ("embed", "cluster_size")}
        found |= {
            "grad/graph_layer_1.weight": model.conv1.weight.grad,
            "grad/decoder_1.weight": model.edge_decoder.weight.grad,
            "grad/linear.weight": model.classifier.weight.grad,
        }
    return found


def run_quantizer(case, dim, codebook_size, decay, commitment_weight, use_cosine_sim):
    quantizer = CosineQuantizer if use_cosine_sim else EuclideanQuantizer
    model = load_state(quantizer(dim, codebook_size, decay=decay, commitment=commitment_weight), case, convert_official)
    x = case.inputs["x"].requires_grad_()
    found = model(x)
    (found.commitment + found.vectors.square().sum()).backward()
    after = model.eval()(x)
    return {
        "quantized": found.vectors,
        "index": found.codes,
        "loss": found.commitment[None],
        "dist": found.scores[None],
        "grad_x": x.grad,
        "quantized_eval_after_update": after.vectors,
        "index_eval_after_update": after.codes,
        **{f"state_after/{name}": value for name, value in to_official(model).items()},
    }


def run_student(case, num_layers, input_dim, hidden_dim, output_dim, dropout_ratio, norm_type, temperature):
    sizes = {"hidden_channels": hidden_dim, "num_layers": num_layers, "dropout": dropout_ratio, "norm": norm_type}
    model = load_state(VQGraphMLP(input_dim, output_dim, **sizes), case, convert_official)
    x, (codebook,), teacher = case.inputs["x"], case.inputs["codebook"], case.inputs["teacher_assign"]
    logits, projection = model(x), model.projection(model.features(x))
    scores = ReleasedTokenDistillation(temperature).student_scores(projection, codebook)
    return {
        "logits": logits,
        "hidden_proj": projection,
        "student_assign": scores[None],
        "token_loss": released_token_divergence(scores, teacher, temperature).sum(),
        "soft_label_loss": soft_label_divergence(logits.log_softmax(-1), case.inputs["teacher_logp"]).mean(),
    }


ENTRIES = {
    "models.GCN": run_teacher,
    "vq.VectorQuantize": run_quantizer,
    "models.MLP + train_and_eval.train_mini_batch_token loss": run_student,
}
