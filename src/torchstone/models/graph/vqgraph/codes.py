"""The codebook: rows of numbers are replaced by the nearest of K learned vectors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from torchstone.errors import ShapeError


def cosine_scores(x: Float[Tensor, "n f"], codebook: Float[Tensor, "k f"]) -> Float[Tensor, "n k"]:
    """``<x_i, E_k> / |x_i| |E_k|``: how alike every row is to every code, from -1 to 1."""
    return F.normalize(x, dim=-1) @ F.normalize(codebook, dim=-1).t()


def euclidean_scores(x: Float[Tensor, "n f"], codebook: Float[Tensor, "k f"]) -> Float[Tensor, "n k"]:
    """``-|x_i - E_k|``: the negative distance of every row from every code."""
    return -torch.cdist(x[None], codebook[None])[0]


class Quantized(NamedTuple):
    """What a quantiser makes of N rows.

    Attributes:
        vectors: (N, F), the codes' vectors; in training their gradient goes to the rows as it is.
        codes: (N,), numbers of the codes.
        scores: (N, K), how near every code is, larger is nearer; without gradient.
        commitment: scalar, ``beta MSE(sg(vectors), rows)`` in training, else 0.
    """

    vectors: Tensor
    codes: Tensor
    scores: Tensor
    commitment: Tensor


class VectorQuantizer(ABC, nn.Module):
    """Replaces rows by the nearest of K learned vectors, which follow the rows they replace as moving averages.

    Every training call uses the codebook as it stands and then moves it. A code whose moving count of rows has fallen
    below ``dead_below`` is dead: it starts again at a random row of the call.

    Args:
        dim: F, width of a row.
        num_codes: K.
        decay: share of the old in a moving average.
        commitment: beta, weight of the loss that keeps rows near their codes.
        dead_below: the count below which a code is dead; 0, the authors' setting, lets dead codes be.

    Raises:
        ValueError: sizes below 1, a decay outside [0, 1), a negative weight or count.
    """

    codebook: Tensor
    cluster_size: Tensor

    def __init__(
        self, dim: int, num_codes: int, *, decay: float = 0.8, commitment: float = 0.25, dead_below: float = 0.0
    ) -> None:
        super().__init__()
        if dim < 1 or num_codes < 1:
            raise ValueError(f"a codebook holds at least one code of at least one number, got {num_codes} of {dim}")
        if not 0 <= decay < 1:
            raise ValueError(f"decay is a share from 0 up to, not including, 1, got {decay}")
        if commitment < 0 or dead_below < 0:
            raise ValueError(f"commitment and dead_below cannot be negative, got {commitment} and {dead_below}")
        self.decay, self.commitment, self.dead_below = decay, commitment, dead_below
        self.register_buffer("codebook", self.first_codes(nn.init.kaiming_uniform_(torch.empty(num_codes, dim))))
        self.register_buffer("cluster_size", torch.ones(num_codes))

    def first_codes(self, drawn: Tensor) -> Tensor:
        """The codebook (K, F) to start from, made of a random draw."""
        return drawn

    @abstractmethod
    def scores(self, x: Float[Tensor, "n f"]) -> Float[Tensor, "n k"]:
        """How near every code is to every row; larger is nearer."""

    @abstractmethod
    def follow(self, x: Float[Tensor, "n f"], codes: Int[Tensor, " n"], counts: Float[Tensor, " k"]) -> None:
        """Move the codebook towards the rows (N, F) that were given its codes, ``counts`` (K,) of them to each."""

    @abstractmethod
    def restart(self, dead: Tensor, rows: Float[Tensor, "k f"]) -> None:
        """Put the codes of a mask (K,) at the rows of the same place."""

    def forward(self, x: Float[Tensor, "n f"]) -> Quantized:
        """Rows (N, F) to their codes.

        Raises:
            ShapeError: rows of another width.
        """
        if x.ndim != 2 or x.shape[1] != self.codebook.shape[1]:
            raise ShapeError(f"expected rows (N, {self.codebook.shape[1]}), got {tuple(x.shape)}")
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(self.codebook.dtype)
            with torch.no_grad():
                scores = self.scores(x)
                codes = scores.argmax(-1)
                vectors = self.codebook[codes]
            if not self.training:
                return Quantized(vectors, codes, scores, x.new_zeros(()))
            self._learn(x.detach(), codes)
            commitment = self.commitment * F.mse_loss(vectors, x)
            return Quantized(x + (vectors - x).detach(), codes, scores, commitment)

    @torch.no_grad()
    def _learn(self, x: Tensor, codes: Tensor) -> None:
        counts = torch.zeros_like(self.cluster_size).index_add(0, codes, x.new_ones(len(x)))
        self.cluster_size.copy_(self.decay * self.cluster_size + (1 - self.decay) * counts)
        self.follow(x, codes, counts)
        if self.dead_below > 0:
            dead = self.cluster_size < self.dead_below
            self.restart(dead, x[torch.randint(len(x), dead.shape, device=x.device)])
            self.cluster_size.copy_(torch.where(dead, self.dead_below, self.cluster_size))


class CosineQuantizer(VectorQuantizer):
    """Nearest by the cosine. With x^ and E^ rows of length one, and n_k rows at code k:

    ``E_k <- decay E_k + (1 - decay) t_k``, ``t_k = normalize(mean of the x^ at k)``, or ``E^_k`` where there is none.

    The codebook is not normalised again, and vectors are its rows as they are.
    """

    def first_codes(self, drawn: Tensor) -> Tensor:
        return F.normalize(drawn, dim=-1)

    def scores(self, x: Float[Tensor, "n f"]) -> Float[Tensor, "n k"]:
        return cosine_scores(x, self.codebook)

    def follow(self, x: Float[Tensor, "n f"], codes: Int[Tensor, " n"], counts: Float[Tensor, " k"]) -> None:
        sums = torch.zeros_like(self.codebook).index_add(0, codes, F.normalize(x, dim=-1))
        means = F.normalize(sums / counts.clamp(min=1)[:, None], dim=-1)
        targets = torch.where(counts[:, None] > 0, means, F.normalize(self.codebook, dim=-1))
        self.codebook.copy_(self.decay * self.codebook + (1 - self.decay) * targets)

    def restart(self, dead: Tensor, rows: Float[Tensor, "k f"]) -> None:
        self.codebook.copy_(torch.where(dead[:, None], F.normalize(rows, dim=-1), self.codebook))


class EuclideanQuantizer(VectorQuantizer):
    """Nearest by the distance. Moving averages of counts c_k and of sums s_k of the rows at a code:

    ``E_k = s_k / c~_k``, ``c~_k = (c_k + eps) / (sum_j c_j + K eps) * sum_j c_j``, ``eps = 1e-5``.

    Raises:
        ValueError: as :class:`VectorQuantizer`.
    """

    EPS = 1e-5
    code_sum: Tensor

    def __init__(self, dim: int, num_codes: int, **options: Any) -> None:
        super().__init__(dim, num_codes, **options)
        self.register_buffer("code_sum", self.codebook.clone())

    def scores(self, x: Float[Tensor, "n f"]) -> Float[Tensor, "n k"]:
        return euclidean_scores(x, self.codebook)

    def follow(self, x: Float[Tensor, "n f"], codes: Int[Tensor, " n"], counts: Float[Tensor, " k"]) -> None:
        sums = torch.zeros_like(self.codebook).index_add(0, codes, x)
        self.code_sum.copy_(self.decay * self.code_sum + (1 - self.decay) * sums)
        total = self.cluster_size.sum()
        smoothed = (self.cluster_size + self.EPS) / (total + len(counts) * self.EPS) * total
        self.codebook.copy_(self.code_sum / smoothed[:, None])

    def restart(self, dead: Tensor, rows: Float[Tensor, "k f"]) -> None:
        self.code_sum.copy_(torch.where(dead[:, None], rows * self.dead_below, self.code_sum))
        self.codebook.copy_(torch.where(dead[:, None], rows, self.codebook))


def perplexity(codes: Int[Tensor, " n"], num_codes: int) -> Tensor:
    """How many codes are in use: ``exp(-sum_k p_k log p_k)`` with p_k the share of rows at code k; from 1 to K."""
    shares = torch.bincount(codes, minlength=num_codes).double() / len(codes)
    return torch.special.entr(shares).sum().exp()


QUANTIZERS: Mapping[str, type[VectorQuantizer]] = {"cosine": CosineQuantizer, "euclidean": EuclideanQuantizer}
