"""A small method: restore images from noise. It is honest, quick, and not from a paper."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchstone.errors import CallError
from torchstone.methods.method import Method


class Denoising(Method):
    """With noise e ~ N(0, 1), features f of the network and a linear map up to pixels g, the loss of an image x is

        mean (g(f(x + noise * e)) - x)^2

    Args:
        network: any network of timm's interface.
        noise: standard deviation of the noise at the end of training; it grows linearly from 0.
        fixed: the same noise in every batch, so that processes which share a batch see one process's inputs.
    """

    reached: Tensor

    def __init__(self, network: nn.Module, *, noise: float = 0.5, fixed: bool = False) -> None:
        super().__init__(network)
        if noise < 0:
            raise CallError(f"noise must not be negative, got {noise}")
        self.noise = noise
        self.fixed = fixed
        reduction = network.feature_info[-1]["reduction"]
        self.decoder = nn.Conv2d(network.num_features, 3 * reduction**2, 1)
        self.up = nn.PixelShuffle(reduction)
        self.register_buffer("reached", torch.zeros(()))

    def at_step(self, progress: float) -> None:
        self.reached.fill_(progress)

    def noisy(self, images: Tensor) -> Tensor:
        noise = torch.linspace(-1, 1, images[0].numel()).view_as(images[0]) if self.fixed else torch.randn_like(images)
        return images + self.noise * self.reached * noise.to(images)

    def restored(self, noisy: Tensor) -> Tensor:
        rough = self.up(self.decoder(self.network.forward_features(noisy)))
        return F.interpolate(rough, noisy.shape[2:], mode="bilinear")

    def evaluation_loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        images = self.inputs(batch)
        return (self.restored(self.noisy(images)) - images).square().mean((1, 2, 3))

    def pictures(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        images = self.inputs(batch)
        noisy = self.noisy(images)
        return {"image": images, "noisy": noisy, "restored": self.restored(noisy)}


def build(model: nn.Module, **args) -> Denoising:
    return Denoising(model, **args)
