"""Weights on the l0 ball, and the loss that they are trained with."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from torchstone.errors import ShapeError
from torchstone.transforms.teddy.edges import check_share


@torch.no_grad()
def project_l0(parameters: Iterable[Tensor], sparsity: float) -> int:
    """Project parameters, taken together, on the l0 ball: zero the smallest ``ceil(P sparsity)`` of all P magnitudes.

    Parameters with that many zeros are on the ball already and are not written to.

    Args:
        parameters: any shapes; changed in place.
        sparsity: the share of zeros, from 0 to 1.

    Returns:
        ``ceil(P sparsity)``.

    Raises:
        CallError: a sparsity that is no share.

    Source:
        Section 4.2: theta <- projection on {theta : |theta|_0 <= (1 - sparsity) P} of an optimizer's step.
    """
    check_share("weight_sparsity", sparsity)
    tensors = list(parameters)
    elements = sum(tensor.numel() for tensor in tensors)
    count = math.ceil(elements * sparsity)
    if sum(tensor.numel() - int(tensor.count_nonzero()) for tensor in tensors) >= count:
        return count
    magnitude = torch.cat([tensor.detach().abs().flatten() for tensor in tensors])
    threshold = magnitude.kthvalue(count).values
    zeroed = magnitude < threshold
    equal = (magnitude == threshold).nonzero().flatten()
    zeroed[equal[: count - int(zeroed.sum())]] = True
    for tensor, mask in zip(tensors, zeroed.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.masked_fill_(mask.view_as(tensor), 0)
    return count


def zero_share(parameters: Iterable[Tensor]) -> float:
    """The share of elements that are zero."""
    tensors = list(parameters)
    zeros = sum(tensor.numel() - int(tensor.count_nonzero()) for tensor in tensors)
    return zeros / max(sum(tensor.numel() for tensor in tensors), 1)


def distillation_loss(logits: Float[Tensor, "n c"], teacher_logits: Float[Tensor, "n c"]) -> Float[Tensor, ""]:
    """How far the sparse network's answers are from the dense one's, at all nodes.

        KL = (1 / N) sum_i sum_c t_ic (log t_ic - log p_ic),   t = softmax(teacher_logits),  p = softmax(logits)

    Args:
        logits: (N, C).
        teacher_logits: (N, C), of the dense network.

    Returns:
        A scalar.

    Raises:
        ShapeError: different shapes.
    """
    if logits.shape != teacher_logits.shape:
        raise ShapeError(f"the teacher answered {tuple(teacher_logits.shape)}, the network {tuple(logits.shape)}")
    return F.kl_div(logits.log_softmax(-1), teacher_logits.log_softmax(-1), reduction="batchmean", log_target=True)


class Losses(NamedTuple):
    """The loss of a sparse network and its two parts."""

    cross_entropy: Tensor
    distillation: Tensor
    total: Tensor


def sparse_training_loss(
    logits: Float[Tensor, "n c"],
    labels: Int[Tensor, " n"],
    train: Tensor,
    teacher_logits: Float[Tensor, "n c"],
    distill: float,
) -> Losses:
    """Cross entropy of the labelled nodes plus ``distill`` times :func:`distillation_loss` of all nodes.

    Args:
        logits: (N, C).
        labels: (N,).
        train: the labelled nodes, a mask (N,) or their numbers.
        teacher_logits: (N, C).
        distill: the weight of the distillation.
    """
    cross_entropy = F.cross_entropy(logits[train], labels[train])
    distillation = distillation_loss(logits, teacher_logits)
    return Losses(cross_entropy, distillation, cross_entropy + distill * distillation)
