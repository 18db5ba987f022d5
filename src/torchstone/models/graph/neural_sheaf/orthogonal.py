"""Orthogonal matrices from free parameters, for the maps of a bundle (section 4.1, "O(d)" of the paper).

All four are batched over the edges; d is the dimension of the stalks, three or four in practice.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from torchstone.errors import ShapeError, unknown_name

ORTHOGONAL_MAPS = ("householder", "cayley", "matrix_exp", "euler")


def orthogonal_parameters(dim: int, kind: str) -> int:
    """How many parameters a d x d map of this kind has.

    Raises:
        UnknownName: no such kind.
        ValueError: d below 2, or Euler angles in other than two or three dimensions.
    """
    if kind not in ORTHOGONAL_MAPS:
        raise unknown_name("orthogonal map", kind, ORTHOGONAL_MAPS)
    if dim < 2:
        raise ValueError(f"orthogonal maps need stalks of dimension 2 or more, got {dim}; diagonal maps take 1")
    if kind == "euler" and dim > 3:
        raise ValueError(f"Euler angles are for stalks of dimension 2 or 3, got {dim}; householder takes any")
    return dim * (dim + 1) // 2 if kind in ("cayley", "matrix_exp") else dim * (dim - 1) // 2


def orthogonal_matrices(params: Float[Tensor, "e p"], dim: int, kind: str) -> Float[Tensor, "e d d"]:
    """A batch of orthogonal matrices Q from unconstrained parameters.

    With P the lower triangular matrix that the parameters fill row by row, and A = P - P^T:

    * ``householder``: Q = H_1 ... H_d, H_k = I - 2 v_k v_k^T / |v_k|^2, v_k column k of P + I (P without diagonal);
    * ``cayley``: Q = (I - A/2)^-1 (I + A/2), a rotation;
    * ``matrix_exp``: Q = exp(A), a rotation;
    * ``euler``: one angle (d = 2), or three about the axes z, y, x (d = 3), in turns.

    The diagonals of P that Cayley's map and the exponential are given cancel in A; the authors' networks have them.

    Args:
        params: (E, p), p as :func:`orthogonal_parameters` says.
        dim: d.
        kind: one of :data:`ORTHOGONAL_MAPS`.

    Returns:
        (E, d, d).

    Raises:
        UnknownName, ValueError: as :func:`orthogonal_parameters`.
        ShapeError: another number of parameters.
    """
    expected = orthogonal_parameters(dim, kind)
    if params.ndim != 2 or params.shape[1] != expected:
        raise ShapeError(f"{kind} maps of dimension {dim} take parameters (E, {expected}), got {tuple(params.shape)}")
    if kind == "euler":
        return _rotation(2 * math.pi * params, dim)
    if kind == "householder":
        return _reflections(_lower_triangle(params, dim, -1)).permute(2, 0, 1)
    triangle = _lower_triangle(params, dim, 0).permute(2, 0, 1)
    skew = triangle - triangle.mT
    if kind == "matrix_exp":
        return torch.matrix_exp(skew)
    identity = torch.eye(dim, dtype=params.dtype, device=params.device)
    return torch.linalg.solve(identity - skew / 2, identity + skew / 2)


def _lower_triangle(params: Tensor, dim: int, offset: int) -> Tensor:
    """(E, p) to (d, d, E), filled row by row up to the diagonal ``offset``.

    With the edges last, in memory too, products of such small matrices are sums of long vectors.
    """
    row, column = torch.tril_indices(dim, dim, offset, device=params.device)
    place = (row * dim + column)[:, None].expand(-1, params.shape[0])
    return params.new_zeros(dim * dim, params.shape[0]).scatter(0, place, params.t()).unflatten(0, (dim, dim))


def _reflections(triangle: Tensor) -> Tensor:
    """The product of the reflections along the columns of a strictly lower triangle with ones on its diagonal, both
    (d, d, E)."""
    dim = triangle.shape[0]
    identity = torch.eye(dim, dtype=triangle.dtype, device=triangle.device)[:, :, None]
    normals = triangle + identity
    scaled = 2 * normals / normals.square().sum(0)
    product = identity - 2 * identity[:, -1:] * identity[-1:]  # the last normal is the last axis
    for k in reversed(range(dim - 1)):
        product = product - scaled[:, k, None] * (normals[:, k, None] * product).sum(0)
    return product


def _rotation(angles: Tensor, dim: int) -> Tensor:
    """Rotations of the plane by an angle (E, 1), or of space by R_z(a) R_y(b) R_x(c) for angles (E, 3) in radians."""
    sin, cos = angles.sin(), angles.cos()
    if dim == 2:
        return torch.cat([cos, -sin, sin, cos], 1).unflatten(1, (2, 2))
    (sin_a, sin_b, sin_c), (cos_a, cos_b, cos_c) = sin.unbind(1), cos.unbind(1)
    entries = [
        cos_a * cos_b, cos_a * sin_b * sin_c - sin_a * cos_c, cos_a * sin_b * cos_c + sin_a * sin_c,
        sin_a * cos_b, sin_a * sin_b * sin_c + cos_a * cos_c, sin_a * sin_b * cos_c - cos_a * sin_c,
        -sin_b, cos_b * sin_c, cos_b * cos_c,
    ]  # fmt: skip
    return torch.stack(entries, 1).unflatten(1, (3, 3))
