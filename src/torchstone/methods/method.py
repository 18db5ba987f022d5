"""What a method is: a network, a loss that needs no head on it, and what there is to see of it.

    class Denoising(Method):
        def __init__(self, network, *, noise=0.5):
            super().__init__(network)
            self.head = nn.Conv2d(network.num_features, 3, 1)
            ...

        def evaluation_loss(self, batch):
            images = self.inputs(batch)
            restored = self.head(self.network.forward_features(images + self.noise * torch.randn_like(images)))
            return (restored - images).square().mean((1, 2, 3))

    def build(model, **args):
        return Denoising(model, **args)

    PROTOCOL = {"optimizer": "lamb", "lr": 4e-3}

``torchstone.training`` trains a method by a recipe; a plain Lightning ``Trainer`` trains it as it is. ``PROTOCOL`` is
optional: keys of a recipe's section ``train`` in which the method differs from AdamW with a cosine schedule where a
comparison trains it; ``lr`` is that of a batch of 128, the card's unless given. ``FINISHES = True`` says that the
network is trained whole, for the task itself: see :meth:`Method.outputs`. A method that learns from a trained network
has a parameter ``teacher`` of ``build``, which a recipe's ``method.teacher`` names the run of.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn


class Method(LightningModule):
    """A way to train ``network``: what every system of kind ``method`` derives from.

    Its module exposes ``build(model, **args)``, which recipes and candidates of a comparison reach by the system's key.
    A run keeps the state of ``network`` in ``model.safetensors``, from where a later training starts, and the rest
    (decoder, tokens, ...) in ``method.safetensors``. So the state dict of ``network`` has at all times the names and
    shapes of the network that was given, whatever a method replaces in it for the time of training.

    Randomness is drawn from torch's global generators, which training seeds before every step and every batch that is
    evaluated.

    Args:
        network: the network that is trained, without a classifier (built with ``num_classes=0``).
    """

    network: nn.Module

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    # --- what a method says

    @abstractmethod
    def evaluation_loss(self, batch: Any) -> Tensor:
        """The loss of every sample of a batch, shape (B,). It is called in eval mode without gradients.

        Args:
            batch: what the data's loader yields; for images ``(images (B, 3, H, W) normalised, labels (B,))``.
        """

    def loss(self, batch: Any) -> Tensor:
        """The training loss of a batch: a scalar, the mean over its samples.

        Args:
            batch: as in :meth:`evaluation_loss`.
        """
        return self.evaluation_loss(batch).mean()

    def prepare(self, data: Any) -> None:
        """Called before training, and again where it goes on, with the data: what is the same in every step is computed
        here. A method on one graph takes it from here; its batches are masks (N,) of the nodes of a part.

        What is kept of the data are buffers that no checkpoint holds (``persistent=False``).

        Args:
            data: the task's data module, open; of a graph ``data.graph`` is PyG's ``Data`` with ``x``, ``edge_index``,
                ``y``, the masks, and of a multiplex graph ``views``.
        """

    def outputs(self, batch: Any) -> tuple[Tensor, Tensor]:
        """What the network makes of a batch, one row per sample, and the targets: of methods that finish the task only.

        The module of such a method states ``FINISHES = True``. Its runs are scored by the task's metric; prediction and
        comparison take its network as it is.
        """
        raise NotImplementedError(f"{type(self).__name__} leaves a network that is to be trained for a task")

    def at_step(self, progress: float) -> None:
        """Called before every optimizer step, for schedules of the method's own and moving averages.

        Args:
            progress: the share of all optimizer steps that are done, in [0, 1).
        """

    def pictures(self, batch: Any) -> Mapping[str, Tensor]:
        """What there is to see: name of a column -> images (B, 3, H, W), normalised as the batch's are.

        The run's ``pictures.png`` shows a row for each sample. Without pictures (the default) there is none.
        """
        return {}

    def inputs(self, batch: Any) -> Tensor:
        """The input tensor of a batch: its first member, or the batch itself."""
        return batch[0] if isinstance(batch, tuple | list) else batch

    def no_weight_decay(self) -> set[str]:
        """Names of the method's parameters, beside one-dimensional ones and biases, that are not to decay.

        By default those that the network names in its own ``no_weight_decay()``.
        """
        own: Collection[str] = getattr(self.network, "no_weight_decay", set)()
        return {f"network.{name}" for name in own}

    def forward(self, *inputs: Any) -> Any:
        """What the network makes of its inputs."""
        return self.network(*inputs)

    # --- with a Trainer of Lightning's, without torchstone.training

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.at_step(self.trainer.global_step / self.trainer.estimated_stepping_batches)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        losses = self.evaluation_loss(batch)
        self.log("val_loss", losses.mean(), batch_size=len(losses))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW at its usual settings; override it for another."""
        return torch.optim.AdamW(self.parameters())
