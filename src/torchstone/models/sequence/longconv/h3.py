"""Long convolutions in place of H3's state-space models, and the language model built of them.

H3 multiplies three projections q, k, v of a sequence around two causal convolutions; here both have free kernels::

    k  <- k * a + D_k k            the shift: what came before
    y   = (k v) * b + D (k v)      the memory
    out = W (q y) + bias

A language model stacks pre-norm blocks of mixer and perceptron as GPT-2 does. Two of its mixers are attention::

    x <- x + mixer(LN(x));   x <- x + W2 GELU(W1 LN(x))          (B, L, d)
    logits = LN(x) E^T                                           E: the token embedding, no positions are added
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchstone.errors import CallError, ShapeError
from torchstone.models.sequence.longconv.kernels import LongConvKernel
from torchstone.ops.long_conv import long_conv


class H3LongConv(nn.Module):
    """The H3 mixer with long convolutions, (B, L, d) to (B, L, d), causal.

    Args:
        width: d.
        max_length: the kernels' reach in steps; longer sequences are taken.
        kernel: arguments of :class:`LongConvKernel`, for both kernels.

    Source: the authors' ``H3Conv``.
    """

    def __init__(self, width: int, max_length: int, *, kernel: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.width = width
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.k_kernel = LongConvKernel(1, width, max_length, **(kernel or {}))
        self.k_D = nn.Parameter(torch.randn(width))
        self.kernel = LongConvKernel(1, width, max_length, **(kernel or {}))
        self.D = nn.Parameter(torch.randn(width))
        self.output_linear = nn.Linear(width, width)

    def convolve(self, u: Tensor, kernel: Tensor) -> Tensor:
        """(B, d, L) with taps (d, K), causally."""
        return long_conv(u, kernel)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the steps of x (B, L, d).

        Raises:
            ShapeError: x is no batch of sequences of d channels.
        """
        if x.ndim != 3 or x.shape[-1] != self.width:
            raise ShapeError(f"this mixer takes sequences (B, L, {self.width}), got {tuple(x.shape)}")
        q, k, v = (proj(x).transpose(1, 2) for proj in (self.q_proj, self.k_proj, self.v_proj))  # (B, d, L)
        k = self.convolve(k, self.k_kernel().squeeze(0)) + self.k_D.unsqueeze(-1) * k
        kv = k * v
        y = self.convolve(kv, self.kernel().squeeze(0)) + self.D.unsqueeze(-1) * kv
        return self.output_linear((y * q).transpose(1, 2))


class WrappedH3LongConv(H3LongConv):
    """The authors' mixer: spectra of 2 L points at every length, so that in sequences shorter than half the kernels
    the late taps are cut off, and in other short ones they wrap around to the first steps."""

    def convolve(self, u: Tensor, kernel: Tensor) -> Tensor:
        length = u.shape[-1]
        spectrum = torch.fft.rfft(u.float(), n=2 * length) * torch.fft.rfft(kernel, n=2 * length)
        return torch.fft.irfft(spectrum, n=2 * length)[..., :length]


class CausalAttention(nn.Module):
    """Multi-head attention of each step to those before it, (B, L, d) to (B, L, d)."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        if width % heads:
            raise CallError(f"the width must be a multiple of the {heads} heads, got {width}")
        self.heads, self.dropout = heads, dropout
        self.Wqkv = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.Wqkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, L, d / heads)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=self.dropout if self.training else 0.0)
        return self.out_proj(y.transpose(1, 2).flatten(2))


class Perceptron(nn.Module):
    """Linear, GELU (tanh form), linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class LanguageBlock(nn.Module):
    """Mixer and perceptron, each behind a layer norm and beside a skip."""

    def __init__(self, width: int, mixer: nn.Module, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.mixer = mixer
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Perceptron(width, 4 * width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop(self.mixer(self.norm1(x)))
        return x + self.drop(self.mlp(self.norm2(x)))


class LongConvLanguageModel(nn.Module):
    """A causal language model of H3 mixers with long convolutions.

    >>> model = LongConvLanguageModel(vocabulary=100, width=32, depth=4, heads=4, max_length=64)
    >>> logits = model(tokens)  # (B, L) to (B, L, 104): the vocabulary is padded to a multiple of 8

    Args:
        vocabulary: number of tokens.
        width: d.
        depth: number of blocks.
        heads: of the attention layers.
        attention: indices of the blocks whose mixer is attention.
        max_length: the kernels' reach in steps.
        embed_dropout, attention_dropout, dropout: rates on the embedding, the attention weights and each branch.
        kernel: arguments of :class:`LongConvKernel`.
        mixer: the class of the other blocks' mixers.
    """

    def __init__(
        self,
        *,
        vocabulary: int,
        width: int,
        depth: int,
        heads: int,
        max_length: int,
        attention: Sequence[int] = (1, 8),
        embed_dropout: float = 0.1,
        attention_dropout: float = 0.1,
        dropout: float = 0.0,
        kernel: Mapping[str, Any] | None = None,
        mixer: type[H3LongConv] = H3LongConv,
    ) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.embedding = nn.Embedding(-(-vocabulary // 8) * 8, width)
        self.embed_drop = nn.Dropout(embed_dropout)
        self.layers = nn.ModuleList(
            LanguageBlock(
                width,
                CausalAttention(width, heads, attention_dropout)
                if index in attention
                else mixer(width, max_length, kernel=kernel),
                dropout,
            )
            for index in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self._initialise(depth)

    def _initialise(self, depth: int) -> None:
        """Normal weights of deviation 0.02, zero biases; what adds to the residual is scaled by 1 / sqrt(2 depth)."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                residual = name.endswith(("out_proj", "fc2"))
                nn.init.normal_(module.weight, std=0.02 / math.sqrt(2 * depth) if residual else 0.02)
                if isinstance(module, nn.Linear):
                    nn.init.zeros_(module.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, L) to the logits of each next token, (B, L, padded vocabulary).

        Raises:
            ShapeError: these are no tokens.
        """
        if tokens.ndim != 2 or tokens.dtype not in (torch.int64, torch.int32):
            raise ShapeError(f"a language model takes tokens (B, L) of integers, got {tuple(tokens.shape)}")
        x = self.embed_drop(self.embedding(tokens))
        for block in self.layers:
            x = block(x)
        return F.linear(self.norm(x), self.embedding.weight)

    def loss(self, tokens: Tensor) -> Tensor:
        """The mean negative log likelihood of each token after those before it; its exponential is the perplexity."""
        return F.cross_entropy(self(tokens[:, :-1]).flatten(0, 1).float(), tokens[:, 1:].flatten())

    @torch.no_grad()
    def generate(self, tokens: Tensor, steps: int, generator: torch.Generator | None = None) -> Tensor:
        """Continue (B, L) by so many tokens: the likeliest ones, or with a generator drawn ones."""
        for _ in range(steps):
            logits = self(tokens)[:, -1, : self.vocabulary].float()
            if generator is None:
                following = logits.argmax(-1, keepdim=True)
            else:
                following = torch.multinomial(logits.softmax(-1), 1, generator=generator)
            tokens = torch.cat([tokens, following], dim=1)
        return tokens
