"""The Fourier transform as a butterfly of small matrices that may be learned.

FlashButterfly computes the transform of N points as a chain of products with matrices F_p of at most 16 rows and
twiddle factors (:func:`torchstone.ops.long_conv.block_fft`). The learned butterfly makes F_2, F_4, F_8 and F_16
parameters, F_p = exp(-2 pi i j k / p) at the start; every place that needs a size uses the same matrix. That is more
expressive than a Fourier transform, at the same cost.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchstone.errors import CallError, unknown_name
from torchstone.ops.long_conv import block_fft, inverse_block_fft
from torchstone.ops.long_conv.monarch import dft_matrices

SIZES = (2, 4, 8, 16)

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu, "tanh": F.tanh}


class BlockFFT(nn.Module):
    """A transform by small matrices.

    Args:
        learned: the matrices are parameters, starting at the exact ones (with ``additive``, near them).
        additive: F_p + dropout(parameter), the parameter starting at 0.01 N(0, 1).
        channels: sets of matrices: 1, shared by all channels, or one for each of H.
        dropout: rate on learned entries while training.
        activation: ``"relu"``, ``"gelu"``, ``"silu"`` or ``"tanh"``, on real and imaginary parts after every matrix.
        lr: learning rate of the matrices, which never decay.

    Raises:
        CallError: a learning rate, a dropout or channels out of range; additive without learned.
        UnknownName: an activation that does not exist.

    Source: the paper's learned butterfly and the authors' ``BlockFFT``.
    """

    def __init__(
        self,
        *,
        learned: bool = True,
        additive: bool = False,
        channels: int = 1,
        dropout: float = 0.0,
        activation: str | None = None,
        lr: float = 1e-3,
    ) -> None:
        super().__init__()
        if not lr > 0:
            raise CallError(f"the learning rate of the matrices must be positive, got {lr}")
        if not 0 <= dropout < 1:
            raise CallError(f"dropout must be at least 0 and below 1, got {dropout}")
        if channels < 1:
            raise CallError(f"channels must be at least 1, got {channels}")
        if additive and not learned:
            raise CallError("additive says how matrices are learned; it needs learned=True")
        if activation is not None and activation not in _ACTIVATIONS:
            raise unknown_name("activation", activation, _ACTIVATIONS)
        self.learned, self.additive, self.dropout, self.lr = learned, additive, dropout, lr
        self.activation = activation
        for size, exact in dft_matrices(SIZES if learned else ()).items():
            shape = (channels, size, size, 2)
            start = 0.01 * torch.randn(shape) if additive else torch.view_as_real(exact).expand(shape).clone()
            self.register_parameter(f"mat_{size}", nn.Parameter(start))  # real and imaginary parts

    def parameter_settings(self) -> dict[str, dict[str, Any]]:
        """How the optimizer treats the matrices: their own learning rate, no weight decay."""
        return {f"mat_{size}": {"lr": self.lr, "weight_decay": 0.0} for size in SIZES} if self.learned else {}

    def matrices(self) -> dict[int, Tensor] | None:
        """The learned matrices by size, complex (channels, p, p), after dropout; None stands for the exact ones."""
        if not self.learned:
            return None
        learned = {
            size: torch.view_as_complex(F.dropout(self.get_parameter(f"mat_{size}"), self.dropout, self.training))
            for size in SIZES
        }
        if not self.additive:
            return learned
        exact = dft_matrices(SIZES, device=learned[SIZES[0]].device)
        return {size: exact[size] + learned[size] for size in SIZES}

    def act(self, x: Tensor) -> Tensor:
        """What follows every product with a matrix, on its real or imaginary part."""
        return x if self.activation is None else _ACTIVATIONS[self.activation](x)

    def forward(self, x: Tensor, points: int) -> Tensor:
        """The transform; x is padded with zeros behind.

        Args:
            x: real or complex, (..., H, L).
            points: at least L; rounded up to a power of two N.

        Returns:
            complex (..., H, N).

        Raises:
            ShapeError: fewer points than values.
        """
        return block_fft(x, self.matrices(), points=points, activation=self.act if self.activation else None)

    def inverse(self, x: Tensor, points: int) -> Tensor:
        """conj(B(conj(x))) / N, the inverse transform when the matrices are exact; shapes as in :meth:`forward`."""
        return inverse_block_fft(x, self.matrices(), points=points, activation=self.act if self.activation else None)

    def extra_repr(self) -> str:
        return f"learned={self.learned}, additive={self.additive}, activation={self.activation}"
