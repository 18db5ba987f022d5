"""SparK: BERT-style pre-training for convolutional networks (Tian, Jiang, Diao, Lin, Wang, Yuan; ICLR 2023, arXiv
2301.03580).

Patches of an image are hidden, and a network learns to paint them from those that are visible. A transformer drops
hidden patches from its sequence; a convolution cannot: it would fill the holes layer by layer until none is left, and
would see statistics that no full image has. SparK treats the visible patches as a sparse map, makes every layer keep it
so, and decodes the network's maps of all resolutions, not only the last one.

For images x (B, C, H, W) and a network of total stride r, patches have r x r pixels, h = H / r rows and w = W / r
columns of them (Sections 3.1 to 3.3)::

    mask     visible: a random  round(h w (1 - ratio))  of the patches of every image
    encode   S_0, S_1, ... = network(x * mask), sparse, of strides r, r/2, ...     (B, C_i, h 2^i, w 2^i)
    densify  z_i = proj_i(where(visible, norm_i(S_i), token_i))                    (B, D / 2^i, h 2^i, w 2^i)
    decode   y = UNet(z_0, z_1, ...)                                               (B, C, H, W)
    loss     t = (x - mean) / sqrt(var + 1e-6)     per patch, over its r r C values; var is unbiased
             mean over hidden patches of mean over their values of (y - t)^2

Nothing of the network is changed but the ``forward`` of its layers while a mask is shown to it: a network that SparK
trained is the network that was given, and after :meth:`SparK.restore` nothing reminds of SparK.

Reading order: :mod:`sparse <torchstone.methods.spark.sparse>` (masks, and layers that respect them),
:mod:`pyramid <torchstone.methods.spark.pyramid>` (a network's maps), :mod:`decoder <torchstone.methods.spark.decoder>`
(tokens and UNet), this module (mask, loss, the method), :mod:`official <torchstone.methods.spark.official>` (released
checkpoints and variants). The authors' learning rate and weight decay are keys of a recipe: ``warmup_lr``,
``schedule: cosine_last``, ``weight_decay_end``.

Example:
    >>> import torch, torchstone
    >>> from torchstone.methods.spark import SparK
    >>> method = SparK(torchstone.create_model("convnext_mini32", num_classes=0))
    >>> loss = method.loss(torch.randn(4, 3, 32, 32))
    >>> loss.backward()
    >>> network = method.restore()  # pre-trained, ready for a classifier
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from torchstone.errors import CallError, ShapeError
from torchstone.layers.checks import check_images
from torchstone.methods.method import Method
from torchstone.methods.spark.decoder import Densify, LightDecoder
from torchstone.methods.spark.pyramid import Pyramid
from torchstone.methods.spark.sparse import Rule, SparseLayers, Visible, leaking_layers

__all__ = [
    "SparK",
    "SparseLayers",
    "Visible",
    "build",
    "convert_official",
    "load_encoder",
    "official_names",
    "patch_statistics",
    "reconstruction_error",
    "to_official",
    "visible_count",
    "visible_patches",
]


# Mask and loss --------------------------------------------------------------------------------------------------------


def visible_count(patches: int, mask_ratio: float) -> int:
    """How many of an image's patches are visible: ``round(patches (1 - mask_ratio))``, a tie going to the even number.

    Raises:
        CallError: none would be visible, or all.
    """
    count = round(patches * (1 - mask_ratio))
    if not 0 < count < patches:
        raise CallError(
            f"mask_ratio={mask_ratio:g} leaves {count} of {patches} patches visible; at least one must be visible and "
            "one hidden: give larger images, or another ratio"
        )
    return count


def visible_patches(noise: Float[Tensor, "b n"], count: int, width: int) -> Bool[Tensor, "b 1 h w"]:
    """The mask that uniform noise draws: the ``count`` patches of least noise are visible.

    Args:
        noise: a number for each patch, row by row of the image, (B, h * w).
        count: visible patches of every image.
        width: w, patches in a row.

    Returns:
        (B, 1, h, w), True where a patch is visible.
    """
    chosen = noise.argsort(dim=1)[:, :count]
    visible = torch.zeros_like(noise, dtype=torch.bool).scatter(1, chosen, True)
    return visible.unflatten(1, (1, -1, width))


def patch_statistics(images: Float[Tensor, "b c h w"], patch: int) -> tuple[Tensor, Tensor]:
    """Mean and ``sqrt(variance + 1e-6)`` of every patch, over its patch * patch * C values.

    Args:
        images: (B, C, H, W).
        patch: side of a patch in pixels.

    Returns:
        Two tensors (B, 1, H / patch, 1, W / patch, 1), which broadcast against the images' patches.
    """
    variance, mean = torch.var_mean(_patches(images, patch), dim=(1, 3, 5), keepdim=True, correction=1)
    return mean, (variance + 1e-6).sqrt()


def reconstruction_error(
    prediction: Float[Tensor, "b c h w"], images: Float[Tensor, "b c h w"], patch: int
) -> Float[Tensor, "b p q"]:
    """The mean squared error of every patch against its pixels, normalised by :func:`patch_statistics`.

    Returns:
        (B, H / patch, W / patch).
    """
    mean, deviation = patch_statistics(images, patch)
    error = _patches(prediction, patch) - (_patches(images, patch) - mean) / deviation
    return error.square().mean((1, 3, 5))


def _patches(images: Tensor, patch: int) -> Tensor:
    """(B, C, H, W) -> (B, C, h, patch, w, patch), without a copy."""
    return images.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))


# The method -----------------------------------------------------------------------------------------------------------


class SparK(Method):
    """Sparse and hierarchical masked modelling of images by any convolutional network.

    Args:
        network: a convolutional network with maps of several strides: timm's, ours, or any other. Its total stride must
            be a power of two.
        mask_ratio: hidden share of the patches.
        width: D, channels of the decoder at its start, a multiple of the total stride; None for the paper's 768, or the
            channels of the deepest map where these are fewer.
        densify_norm: ``bn`` or ``ln``; None for ``bn`` where the network has batch norms, else ``ln``.
        levels: maps that are decoded, from the deepest on.
        stages: names of submodules whose outputs are the maps; None finds them.
        rules: how layers of classes that :mod:`sparse <torchstone.methods.spark.sparse>` does not know become sparse.

    Raises:
        CallError: an argument out of range, a network whose maps cannot be decoded, or one with a layer that does not
            keep hidden positions at zero and has no rule.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        mask_ratio: float = 0.6,
        width: int | None = None,
        densify_norm: str | None = None,
        levels: int = 4,
        stages: Sequence[str] | None = None,
        rules: Mapping[type[nn.Module], Rule] | None = None,
    ) -> None:
        super().__init__(network)
        if not 0 < mask_ratio < 1:
            raise CallError(f"mask_ratio must be between 0 and 1, exclusive, got {mask_ratio}")
        if densify_norm not in ("bn", "ln", None):
            raise CallError(f"densify_norm must be bn, ln or None, got {densify_norm!r}")
        self.mask_ratio = mask_ratio
        self.in_chans = _in_chans(network)
        self.pyramid = Pyramid(network, stages, levels, self.in_chans)
        self.patch = self.pyramid.stride
        deepest = self.pyramid.channels[0]
        if width is None:
            width = max(1, min(768, deepest) // self.patch) * self.patch
        norm = densify_norm or ("bn" if _has_batch_norm(network) else "ln")
        self.decoder = LightDecoder(self.patch, width, self.in_chans)
        self.densify = nn.ModuleList(
            Densify(channels, width // 2**i, norm, kernel_size=3 if i else 1)
            for i, channels in enumerate(self.pyramid.channels)
        )
        self.sparse = SparseLayers(network, rules)
        self._refuse_leaks()

    def _refuse_leaks(self) -> None:
        """Show the network a mask and see whether it keeps to it."""
        if next(self.network.parameters()).is_meta:
            return
        leaks = leaking_layers(self.network, self.sparse, self.pyramid, self.in_chans)
        if leaks:
            raise CallError(
                f"{type(self.network).__name__} does not keep hidden positions at zero: {', '.join(leaks)}. Give rules="
                "{CLASS: one of torchstone.methods.spark.sparse's forwards} for layers that SparK does not know"
            )

    # --- what it computes

    def draw_mask(self, images: Float[Tensor, "b c h w"]) -> Visible:
        """A random mask for a batch, from the global generator of its device.

        Raises:
            ShapeError: sides that are no multiples of the network's total stride.
            CallError: images of so few patches that the ratio hides none or all.
        """
        self._check(images)
        height, width = images.shape[2] // self.patch, images.shape[3] // self.patch
        count = visible_count(height * width, self.mask_ratio)
        noise = torch.rand(len(images), height * width, device=images.device)
        return Visible(visible_patches(noise, count, width), count)

    def _check(self, images: Tensor) -> None:
        check_images(images, self.in_chans, self.patch, self.patch)

    def encode(self, images: Float[Tensor, "b c h w"], visible: Visible) -> list[Float[Tensor, "b d p q"]]:
        """The network's sparse maps of the visible patches, from the deepest: (B, C_i, h 2^i, w 2^i)."""
        self._check(images)
        if images.shape[2] != visible.height * self.patch or images.shape[3] != visible.width * self.patch:
            raise ShapeError(
                f"images of {images.shape[2]}x{images.shape[3]} pixels have {images.shape[2] // self.patch}x"
                f"{images.shape[3] // self.patch} patches, the mask {visible.height}x{visible.width}"
            )
        with self.sparse.showing(visible):
            return self.pyramid.maps(
                self.network, images * visible.mask(images.shape[2], images.shape[3], images.dtype)
            )

    def decode(self, maps: Sequence[Float[Tensor, "b d p q"]], visible: Visible) -> Float[Tensor, "b c h w"]:
        """The prediction for every pixel, in units of its patch's standard deviation, from the patch's mean."""
        return self.decoder([densify(x, visible) for densify, x in zip(self.densify, maps, strict=True)])

    def hidden_loss(
        self, prediction: Float[Tensor, "b c h w"], images: Float[Tensor, "b c h w"], visible: Visible
    ) -> Float[Tensor, ""]:
        """The error of the hidden patches: a scalar, their mean."""
        error = reconstruction_error(prediction.float(), images.float(), self.patch)
        hidden = ~visible.active[:, 0]
        return (error * hidden).sum() / (hidden.sum() + 1e-8)

    def complete(
        self, prediction: Float[Tensor, "b c h w"], images: Float[Tensor, "b c h w"], visible: Visible
    ) -> Float[Tensor, "b c h w"]:
        """The images with their hidden patches as predicted: ``y sqrt(var + 1e-6) + mean``."""
        mean, deviation = patch_statistics(images, self.patch)
        painted = (_patches(prediction.to(images.dtype), self.patch) * deviation + mean).flatten(4, 5).flatten(2, 3)
        return torch.where(visible.mask(images.shape[2], images.shape[3], torch.bool), images, painted)

    # --- Method

    def loss(self, batch: Any) -> Tensor:
        images = self.inputs(batch)
        visible = self.draw_mask(images)
        return self.hidden_loss(self.decode(self.encode(images, visible), visible), images, visible)

    def evaluation_loss(self, batch: Any) -> Float[Tensor, " b"]:
        images = self.inputs(batch)
        visible = self.draw_mask(images)
        prediction = self.decode(self.encode(images, visible), visible)
        hidden = ~visible.active[:, 0]
        error = reconstruction_error(prediction.float(), images.float(), self.patch)
        return (error * hidden).sum((1, 2)) / hidden.sum((1, 2))

    @torch.no_grad()
    def pictures(self, batch: Any) -> Mapping[str, Tensor]:
        """The images, what is visible of them, and what the network makes of it."""
        images = self.inputs(batch)
        visible = self.draw_mask(images)
        prediction = self.decode(self.encode(images, visible), visible)
        return {
            "image": images,
            "visible": images * visible.mask(images.shape[2], images.shape[3], images.dtype),
            "reconstruction": self.complete(prediction, images, visible),
        }

    def no_weight_decay(self) -> set[str]:
        """Mask tokens, layer scales, and what the network names itself; biases and norms never decay."""
        named = ("cls_token", "pos_embed", "mask_token", "gamma")
        return super().no_weight_decay() | {
            name for name, _ in self.named_parameters() if any(part in name for part in named)
        }

    def at_step(self, progress: float) -> None:
        """Convert anew where a strategy has replaced batch norms by such as share their statistics among processes."""
        if not self.sparse.covers(self.network):
            self.sparse.convert(self.network)

    def restore(self) -> nn.Module:
        """Undo the conversion.

        Returns:
            The network, pre-trained and otherwise as it was given. This method can train it no more.
        """
        self.sparse.undo()
        return self.network


def build(model: nn.Module, **args: Any) -> SparK:
    """SparK around a network, for recipes; the arguments are those of :class:`SparK`."""
    return SparK(model, **args)


def _in_chans(network: nn.Module) -> int:
    """The channels that the first convolution takes."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            return module.in_channels
    raise CallError(f"{type(network).__name__} has no convolution: SparK trains convolutional networks")


def _has_batch_norm(network: nn.Module) -> bool:
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules())


from torchstone.methods.spark.official import (  # noqa: E402 - its variants are made of the class above
    convert_official,
    load_encoder,
    official_names,
    to_official,
)
