"""GLMix's blocks: soft clustering into slots and back beside a convolution; and attention between all pixels."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers import DropPath, LayerNorm2d, trunc_normal_
from torch import Tensor, nn

from torchstone.errors import CallError, unknown_name

Layer = Callable[..., nn.Module]

_LAYER_NORM = partial(nn.LayerNorm, eps=1e-6)

SLOT_INITS = ("ada_avgpool", "param")
SCALE_MODES = ("learnable", "const")


# Parts ----------------------------------------------------------------------------------------------------------------


class MultiHeadAttention(nn.Module):
    """Attention between all tokens: ``W_o softmax(Q K^T / sqrt(d)) V`` in each head.

    Its parameters are those of ``nn.MultiheadAttention``.

    Args:
        dim: channels C, a multiple of ``heads``.
        heads: number of heads, of d = C / heads channels.
        dropout: of the attention weights while training.

    Shape:
        (B, L, C) -> (B, L, C)

    Raises:
        CallError: channels that the heads do not divide.
    """

    def __init__(self, dim: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        if heads < 1 or dim % heads:
            raise CallError(f"{dim} channels cannot be divided among {heads} heads")
        self.heads = heads
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, x: Float[Tensor, "b l c"]) -> Float[Tensor, "b l c"]:
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, L, d)
        out = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)
        return self.out_proj(out.transpose(1, 2).flatten(2))


class ResidualDepthwiseConv(nn.Conv2d):
    """``X + DWConv(X)``.

    Shape:
        (B, C, H, W) -> (B, C, H, W)
    """

    def __init__(self, dim: int, kernel_size: int) -> None:
        super().__init__(dim, dim, _odd("kernel", kernel_size), padding=kernel_size // 2, groups=dim)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return x + super().forward(x)

    @torch.no_grad()
    def folded(self) -> nn.Conv2d:
        """One convolution that gives the same answer: the identity is a kernel whose middle is 1."""
        size = self.kernel_size[0]
        conv = nn.Conv2d(self.in_channels, self.out_channels, size, padding=size // 2, groups=self.groups)
        conv.to(self.weight.device, self.weight.dtype).train(self.training)
        conv.weight.copy_(self.weight)
        conv.weight[:, :, size // 2, size // 2] += 1
        conv.bias.copy_(self.bias)  # type: ignore[union-attr, arg-type]
        return conv


class LayerScale(nn.Module):
    """``gamma * X``, a factor for every channel."""

    def __init__(self, shape: tuple[int, ...], value: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full(shape, value))

    def forward(self, x: Tensor) -> Tensor:
        return self.gamma * x


def mlp(dim: int, ratio: float, depthwise: bool) -> nn.Sequential:
    """``W_2 GELU(Z)``, ``Z = W_1 X`` or with ``depthwise`` ``Z = W_1 X + DWConv_3x3(W_1 X)``; on maps (B, C, H, W)."""
    hidden = int(ratio * dim)
    return nn.Sequential(
        nn.Conv2d(dim, hidden, 1),
        ResidualDepthwiseConv(hidden, 3) if depthwise else nn.Identity(),
        nn.GELU(),
        nn.Conv2d(hidden, dim, 1),
    )


def init_weights(module: nn.Module) -> None:
    """The authors': linear layers normal (deviation 0.02) with zero bias; convolutions as PyTorch has them."""
    if isinstance(module, nn.Linear) and not module.weight.is_meta:
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _tokens(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b l c"]:
    """The pixels row by row: a view where channels are last in memory."""
    return x.flatten(2).mT


def _map(tokens: Float[Tensor, "b l c"], like: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    return tokens.mT.unflatten(2, like.shape[2:])


def _odd(what: str, size: int) -> int:
    if size < 1 or size % 2 == 0:
        raise CallError(f"a {what} must have an odd size, got {size}: the nearest are {size - 1} and {size + 1}")
    return size


def _drop_path(rate: float) -> nn.Module:
    return DropPath(rate) if rate else nn.Identity()


def _scale(shape: tuple[int, ...], value: float) -> nn.Module:
    return LayerScale(shape, value) if value > 0 else nn.Identity()


# Slots ----------------------------------------------------------------------------------------------------------------


class Slots(NamedTuple):
    """What the global branch of a block makes of a map of L pixels.

    Attributes:
        logits: (B, M, L) the similarity A of slots and pixels.
        clustered: (B, M, C) the slots as weighted means of pixels.
        updated: (B, M, C) the slots after they attended to each other.
    """

    logits: Tensor
    clustered: Tensor
    updated: Tensor

    @property
    def assignment(self) -> Float[Tensor, "b m l"]:
        """What share of each pixel's answer comes from which slot: ``softmax_M(A)``, which sums to 1 over the slots."""
        return self.logits.softmax(1)


def similarity(
    slots: Float[Tensor, "a m c"], pixels: Float[Tensor, "b l c"], scale: Float[Tensor, ""]
) -> Float[Tensor, "b m l"]:
    """``A = scale cos(S_0, Y)``: of each slot and each pixel; a is b, or 1 for slots that all images share."""
    lengths = pixels.norm(dim=-1).clamp_min(1e-12)  # (B, L)
    return (scale * F.normalize(slots, dim=-1)) @ pixels.mT / lengths[:, None]


def cluster(logits: Float[Tensor, "b m l"], pixels: Float[Tensor, "b l c"]) -> Float[Tensor, "b m c"]:
    """``softmax_L(A) Y``: each slot becomes a mean of the pixels, weighted by its similarity to them."""
    return logits.softmax(2) @ pixels


def dispatch(logits: Float[Tensor, "b m l"], slots: Float[Tensor, "b m c"]) -> Float[Tensor, "b l c"]:
    """``softmax_M(A)^T S``: each pixel gets a mean of the slots, weighted by their similarity to it."""
    return logits.softmax(1).mT @ slots


# Blocks ---------------------------------------------------------------------------------------------------------------


class GLMixBlock(nn.Module):
    """Convolution on pixels beside attention on slots, then a feed-forward network; the equations head the package.

    Args:
        dim: channels C.
        heads: of the attention between slots.
        num_slots: slots M, a square number where they are pooled; 0 for no global branch.
        slot_init: ``ada_avgpool`` (pooled from the input) or ``param`` (learned, the same for all images).
        slot_scale: the similarity's scale at the start; by default C^-0.5.
        scale_mode: ``learnable`` or ``const``.
        local_dw_ks: side of the local branch's kernel, odd; 0 for no local branch: then N is Y itself.
        mlp_ratio: hidden channels of the feed-forward network, as a multiple of C.
        drop_path: probability that a sample skips a branch while training.
        norm_layer: norm of both halves, called with the channels.
        cpe_ks: side of the position encoding's kernel, odd; 0 for none.
        mlp_dw: a depthwise convolution within the feed-forward network.
        layerscale: start value of gamma; 0 or less for none.

    Shape:
        (B, C, H, W) -> (B, C, H, W), of any height and width.

    Raises:
        CallError: a number of slots that is negative or no square, an even kernel, channels that the heads do not
            divide.
        UnknownName: an unknown ``slot_init`` or ``scale_mode``.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        num_slots: int = 64,
        slot_init: str = "ada_avgpool",
        slot_scale: float | None = None,
        scale_mode: str = "learnable",
        local_dw_ks: int = 5,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        norm_layer: Layer = LayerNorm2d,
        cpe_ks: int = 0,
        mlp_dw: bool = False,
        layerscale: float = 0.0,
    ) -> None:
        super().__init__()
        if slot_init not in SLOT_INITS:
            raise unknown_name("slot_init", slot_init, SLOT_INITS)
        if scale_mode not in SCALE_MODES:
            raise unknown_name("scale_mode", scale_mode, SCALE_MODES)
        if num_slots < 0:
            raise CallError(f"num_slots must not be negative, got {num_slots}")
        self.num_slots = num_slots
        self.slot_init = slot_init
        if num_slots:
            scale = torch.tensor(dim**-0.5 if slot_scale is None else float(slot_scale))
            if scale_mode == "learnable":
                self.slot_scale: Tensor = nn.Parameter(scale)
            else:
                self.register_buffer("slot_scale", scale)
            if slot_init == "param":
                self.init_slots = nn.Parameter(torch.empty(1, num_slots, dim).normal_(std=0.02))
            else:
                self.pool_size = _root(num_slots)
        self.pos_conv = ResidualDepthwiseConv(dim, cpe_ks) if cpe_ks > 0 else nn.Identity()
        self.norm1 = norm_layer(dim)
        if num_slots:
            self.relation_mha = MultiHeadAttention(dim, heads)
        self.feature_conv = (
            nn.Sequential(
                nn.Conv2d(dim, dim, 1),
                nn.Conv2d(dim, dim, _odd("local kernel", local_dw_ks), padding=local_dw_ks // 2, groups=dim),
                nn.Conv2d(dim, dim, 1),
            )
            if local_dw_ks > 0
            else nn.Identity()
        )
        self.ls1 = _scale((1, dim, 1, 1), layerscale)
        self.norm2 = norm_layer(dim)
        self.mlp = mlp(dim, mlp_ratio, mlp_dw)
        self.ls2 = _scale((1, dim, 1, 1), layerscale)
        self.drop_path = _drop_path(drop_path)

    def slots(self, x: Float[Tensor, "b c h w"]) -> Slots:
        """What the global branch makes of the block's input: similarities, and the slots before and after attention.

        Raises:
            CallError: the block has no slots.
        """
        if not self.num_slots:
            raise CallError("this block has no slots; build it with num_slots")
        return self._slots(x, self.norm1(self.pos_conv(x)))

    def _slots(self, x: Tensor, y: Tensor) -> Slots:
        """From the block's input, which slots start from, and the normalised map, whose pixels they gather."""
        pixels = _tokens(y)
        start = self.init_slots if self.slot_init == "param" else _tokens(F.adaptive_avg_pool2d(x, self.pool_size))
        logits = similarity(start, pixels, self.slot_scale)
        clustered = cluster(logits, pixels)
        return Slots(logits, clustered, self.relation_mha(clustered))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        given, x = x, self.pos_conv(x)
        y = self.norm1(x)
        mixed = self.feature_conv(y)
        if self.num_slots:
            slots = self._slots(given, y)
            mixed = mixed + _map(dispatch(slots.logits, slots.updated), like=y)
        x = x + self.drop_path(self.ls1(mixed))
        return x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))

    def extra_repr(self) -> str:
        return f"num_slots={self.num_slots}, slot_init={self.slot_init}"


def _root(num_slots: int) -> int:
    """The side of a square of so many slots."""
    root = math.isqrt(num_slots)
    if root**2 != num_slots:
        squares = f"{root**2} or {(root + 1) ** 2}"
        raise CallError(f"pooled slots form a square: num_slots must be {squares}, got {num_slots}")
    return root


class AttentionBlock(nn.Module):
    """Attention between all pixels: ``X + gamma_1 MHA(LN X)``, ``X + gamma_2 FFN(LN X)``, on maps.

    Args:
        dim: channels C.
        heads: of the attention.
        dropout: of the attention weights while training.
        mlp_ratio: hidden channels of the feed-forward network, as a multiple of C.
        drop_path: probability that a sample skips a branch while training.
        norm_layer: norm before the feed-forward network; the one before attention is a LayerNorm.
        mlp_dw: a depthwise convolution within the feed-forward network.
        cpe_ks: side of the position encoding's kernel, odd; 0 for none.
        layerscale: start value of gamma; 0 or less for none.

    Shape:
        (B, C, H, W) -> (B, C, H, W)

    Raises:
        CallError: an even kernel, or channels that the heads do not divide.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        dropout: float = 0.0,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        norm_layer: Layer = LayerNorm2d,
        mlp_dw: bool = False,
        cpe_ks: int = 0,
        layerscale: float = 0.0,
    ) -> None:
        super().__init__()
        self.pos_conv = ResidualDepthwiseConv(dim, cpe_ks) if cpe_ks > 0 else nn.Identity()
        self.norm1 = _LAYER_NORM(dim)
        self.mha_op = MultiHeadAttention(dim, heads, dropout)
        self.ls1 = _scale((dim,), layerscale)
        self.norm2 = norm_layer(dim)
        self.mlp = mlp(dim, mlp_ratio, mlp_dw)
        self.ls2 = _scale((1, dim, 1, 1), layerscale)
        self.drop_path = _drop_path(drop_path)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        x = self.pos_conv(x)
        attended = self.ls1(self.mha_op(self.norm1(_tokens(x))))
        x = x + self.drop_path(_map(attended, like=x))
        return x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))


class TokenAttentionBlock(nn.Module):
    """Attention between all pixels as ViT has it: ``X + gamma_1 MHA(LN X)``, ``X + gamma_2 FFN(LN X)``, linear layers.

    Args:
        dim: channels C.
        heads: of the attention.
        dropout: of the attention weights while training.
        mlp_ratio: hidden channels of the feed-forward network, as a multiple of C.
        drop_path: probability that a sample skips a branch while training.
        norm_layer: of both halves, called with the channels.
        layerscale: start value of gamma; 0 or less for none.

    Shape:
        (B, C, H, W) -> (B, C, H, W)

    Raises:
        CallError: channels that the heads do not divide.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        dropout: float = 0.0,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        norm_layer: Layer = _LAYER_NORM,
        layerscale: float = 0.0,
    ) -> None:
        super().__init__()
        hidden = int(mlp_ratio * dim)
        self.norm1 = norm_layer(dim)
        self.mha_op = MultiHeadAttention(dim, heads, dropout)
        self.ls1 = _scale((dim,), layerscale)
        self.norm2 = norm_layer(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))
        self.ls2 = _scale((dim,), layerscale)
        self.drop_path = _drop_path(drop_path)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        tokens = _tokens(x)
        tokens = tokens + self.drop_path(self.ls1(self.mha_op(self.norm1(tokens))))
        tokens = tokens + self.drop_path(self.ls2(self.mlp(self.norm2(tokens))))
        return _map(tokens, like=x)
