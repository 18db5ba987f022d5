"""The network: patches that overlap, blocks of attention and convolutional GLU, four resolutions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from timm.layers import DropPath
from torch import Tensor, nn

from torchstone.errors import CallError, unknown_name
from torchstone.layers.backbone import Backbone
from torchstone.layers.checkpointing import BlockSequence
from torchstone.layers.checks import check_images
from torchstone.models.image.transnext.attention import AggregatedAttention, CosineAttention, GlobalAttention
from torchstone.models.image.transnext.feed_forward import FEED_FORWARDS
from torchstone.models.image.transnext.gaze import Gaze, Size, times
from torchstone.models.image.transnext.initialization import conv, init
from torchstone.models.image.transnext.position_bias import ContinuousPositionBias, FixedPositionBias

LEARNED = ("query_embedding", "learnable_tokens")
UNDECAYED = ("query_embedding", "window_bias", "position", "temperature")


class Block(nn.Module):
    """``X = X + Attention(LN X)``, ``X = X + ConvGLU(LN X)``: (B, H, W, C) -> (B, H, W, C)."""

    def __init__(self, dim: int, attn: CosineAttention, mlp: nn.Module, eps: float, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = attn
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = mlp
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class PatchEmbed(nn.Module):
    """A convolution whose patches overlap, and LN: (B, in_channels, H, W) -> (B, H / stride, W / stride, C)."""

    def __init__(self, in_channels: int, dim: int, stride: int) -> None:
        super().__init__()
        self.proj = conv(in_channels, dim, 2 * stride - 1, stride)
        self.norm = nn.LayerNorm(dim, eps=1e-5)

    def forward(self, x: Float[Tensor, "b d h w"]) -> Float[Tensor, "b p q c"]:
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


class Stage(nn.Module):
    """Patches, the blocks of one resolution, LN: (B, in_channels, H, W) -> (B, C, H / stride, W / stride)."""

    def __init__(self, patch_embed: PatchEmbed, blocks: BlockSequence, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.patch_embed = patch_embed
        self.blocks = blocks
        self.norm = norm

    def forward(self, x: Float[Tensor, "b d h w"]) -> Float[Tensor, "b c p q"]:
        return self.norm(self.blocks(self.patch_embed(x))).permute(0, 3, 1, 2)


class TransNeXt(Backbone):
    """The TransNeXt network. It takes images of any size; a map always has one pooled cell at least.

    Args:
        img_size: the images' side, or height and width, in pixels, a multiple of the last stage's stride; geometry of
            this size is kept ready, and ``positions="interpolate"`` starts from it.
        pretrain_size: the image size of pre-training, in whose units offsets are measured, 224 for the released
            weights; by default ``img_size``.
        dims: channels of each stage.
        depths: blocks of each stage.
        heads: attention heads of each stage.
        mlp_ratios: hidden channels of each stage's feed-forward networks, as of :class:`ConvolutionalGLU`.
        windows: side of the neighbourhood in each stage, odd; None or 0 for pooled cells alone (or global attention).
        pools: pixels of a pooled cell's side in each stage; 1 for global attention.
        pooled: side of the pooled map, for every image size (the paper's linear inference mode); None: it grows.
        positions: ``extrapolate``: maps of another size have the bias of their own offsets; ``interpolate``: that of
            the map at ``img_size``, resized, as the authors' detectors have it by default.
        length_scale: ``image``: logits are scaled by the keys that there are; ``trained``: by those at ``img_size``.
        feed_forward: ``conv_glu``, the paper's; ``glu`` (no convolution), ``conv_mlp`` (no gate): its comparisons.
        learned: which of ``query_embedding`` and ``learnable_tokens`` there are; the paper's ablations leave some out.
        patch_size: stride of the first convolution, pixels.
        qkv_bias: whether queries, keys and values have a bias.
        norm_eps: of the LNs of blocks and stages.
        in_chans: channels of the image.
        num_classes: classes; 0 for no classifier.
        global_pool: ``avg``, ``max``, ``avgmax`` or ``catavgmax``; empty (with ``num_classes=0``) for the unpooled map.
        drop_rate: dropout before the classifier.
        proj_drop_rate: dropout of the attentions' outputs and within the feed-forward networks.
        attn_drop_rate: dropout of the attention weights.
        drop_path_rate: stochastic depth of the last block; it rises linearly from 0.

    Shape:
        (B, in_chans, H, W) -> (B, num_classes)

    Raises:
        CallError: an image size that the strides do not divide, a pre-training size too small to measure offsets in,
            channels that heads do not divide, lists of different lengths, an even window, cells without pixels.
        UnknownName: unknown ``positions``, ``length_scale``, ``feed_forward``, ``learned`` or pooling.
        ShapeError: on call, images of another rank or other channels.
    """

    classifier_name = "head"

    def __init__(
        self,
        img_size: int | Size = 224,
        pretrain_size: int | Size | None = None,
        dims: Sequence[int] = (72, 144, 288, 576),
        depths: Sequence[int] = (2, 2, 15, 2),
        heads: Sequence[int] = (3, 6, 12, 24),
        mlp_ratios: Sequence[float] = (8, 8, 4, 4),
        windows: Sequence[int | None] = (3, 3, 3, None),
        pools: Sequence[int] = (8, 4, 2, 1),
        pooled: int | None = None,
        positions: str = "extrapolate",
        length_scale: str = "image",
        feed_forward: str = "conv_glu",
        learned: Sequence[str] = LEARNED,
        patch_size: int = 4,
        qkv_bias: bool = True,
        norm_eps: float = 1e-6,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__(in_chans, drop_rate)
        lists = {"depths": depths, "heads": heads, "mlp_ratios": mlp_ratios, "windows": windows, "pools": pools}
        for name, values in lists.items():
            if len(values) != len(dims):
                raise CallError(f"{name} has {len(values)} values for {len(dims)} stages (the length of dims)")
        for name in learned:
            if name not in LEARNED:
                raise unknown_name("learned part", name, LEARNED)
        if feed_forward not in FEED_FORWARDS:
            raise unknown_name("feed_forward", feed_forward, FEED_FORWARDS)
        image = pair(img_size)
        unit = image if pretrain_size is None else pair(pretrain_size)
        strides = [patch_size * 2**i for i in range(len(dims))]
        _check_sizes(image, unit, strides[-1])
        self.feature_info = []

        self.stages = nn.Sequential()
        rates = iter(torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist())
        for i, (dim, stride) in enumerate(zip(dims, strides, strict=True)):
            gaze = Gaze(
                trained=(image[0] // stride, image[1] // stride),
                unit=(unit[0] // stride, unit[1] // stride),
                pool=pools[i],
                window=(windows[i] or 0) if pools[i] != 1 else 0,
                pooled=pooled if pools[i] != 1 else None,
                positions=positions,
                length_scale=length_scale,
            )
            attention = partial(
                GlobalAttention if pools[i] == 1 else partial(AggregatedAttention, tokens=LEARNED[1] in learned),
                dim,
                heads[i],
                gaze,
                embedding=LEARNED[0] in learned,
                qkv_bias=qkv_bias,
                attn_drop=attn_drop_rate,
                proj_drop=proj_drop_rate,
            )
            mlp = partial(FEED_FORWARDS[feed_forward], dim, mlp_ratios[i], proj_drop_rate)
            blocks = [Block(dim, attention(), mlp(), norm_eps, next(rates)) for _ in range(depths[i])]
            embed = PatchEmbed(dims[i - 1] if i else in_chans, dim, 2 if i else patch_size)
            self.stages.append(Stage(embed, BlockSequence(*blocks), nn.LayerNorm(dim, eps=norm_eps)))
            self.feature_info.append({"num_chs": dim, "reduction": stride, "module": f"stages.{i}"})

        self.num_features = dims[-1]
        self.reset_classifier(num_classes, global_pool)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Start a new classifier; arguments and errors as of :meth:`Backbone.reset_classifier`."""
        super().reset_classifier(num_classes, global_pool)
        classifier = self.get_classifier()
        if isinstance(classifier, nn.Linear):
            init(classifier.weight)
            init(classifier.bias, 0)

    def _check(self, x: Tensor) -> None:
        check_images(x, self.in_chans)

    def _stage(self, index: int, x: Tensor) -> Tensor:
        if index == 0:  # maps are channels last throughout
            x = x.contiguous(memory_format=torch.channels_last)
        return self.stages[index](x)

    def _tail(self, x: Tensor) -> Tensor:
        return x

    def _cut(self, last: int) -> None:
        self.stages = self.stages[: last + 1]

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns of parameter names by depth, for layer-wise learning rates."""
        return {
            "stem": r"^stages\.0\.patch_embed",
            "blocks": r"^stages\.(\d+)"
            if coarse
            else [
                (r"^stages\.(\d+)\.patch_embed", (-1,)),
                (r"^stages\.(\d+)\.blocks\.(\d+)", None),
                (r"^stages\.(\d+)\.norm", (99999,)),
            ],
        }

    def no_weight_decay(self) -> set[str]:
        """Temperatures, query embeddings and position biases; norms and other biases are left out by timm's rule."""
        return {name for name, _ in self.named_parameters() if any(part in name for part in UNDECAYED)}

    @torch.no_grad()
    def fuse(self) -> TransNeXt:
        """Turn the network, in place, into its deploy form: position biases of ``img_size`` are computed once.

        The network is set to eval mode. With ``positions="extrapolate"`` it then takes images of ``img_size`` only.

        Returns:
            The network itself.
        """
        self.eval()
        for module in self.modules():
            if isinstance(module, CosineAttention) and isinstance(module.position, ContinuousPositionBias):
                module.position = FixedPositionBias(module.position)
        return self


def _check_sizes(image: Size, unit: Size, stride: int) -> None:
    if any(side < stride or side % stride for side in image):
        nearest = [max(stride, (side + stride // 2) // stride * stride) for side in image]
        raise CallError(f"img_size must be multiples of {stride}, got {times(image)}; the nearest is {times(nearest)}")
    if any(side < 2 * stride for side in unit):
        raise CallError(
            f"offsets are measured in images of at least {2 * stride} pixels, got {times(unit)}: give a pretrain_size"
        )


def pair(size: int | Sequence[int]) -> Size:
    """Height and width."""
    if isinstance(size, int):
        return size, size
    height, width = size
    return height, width
