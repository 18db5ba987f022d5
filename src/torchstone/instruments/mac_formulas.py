"""Multiply-accumulates of operators that torch's FLOP counter counts as nothing, or counts for another case.

``FlopCounterMode`` knows dense real matrix products, convolutions and scaled dot-product attention. This file adds the
other operators of ATen and torchvision that compute: Fourier transforms, vector and sparse products, complex numbers,
recurrent layers, distances, sampling and interpolation, deformable convolutions, dense linear algebra. Every formula
takes the operator's arguments, tensors replaced by their shapes, and returns MACs (half of the usual FLOPs).

Sources: real and complex transforms 2.5 and 5 ``N log2 N`` FLOPs (Frigo and Johnson, benchFFT); linear algebra after
Golub and Van Loan, Matrix Computations, and LAPACK Working Note 41, leading terms. A custom operator brings its own
formula by ``torch.utils.flop_counter.register_flop_formula``; none is needed here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil, log2, prod
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

Shape = Sequence[int]
Formula = Callable[..., int | float]
F = TypeVar("F", bound=Formula)

_FORMULAS: dict[str, Formula] = {}
_RAW_FORMULAS: dict[str, Formula] = {}


def mac_formulas() -> dict[Any, Callable[..., int]]:
    """The formulas as FLOPs, by operator, for ``FlopCounterMode(custom_mapping=...)``.

    Operators that this build of torch lacks are left out; so is what torch counts itself by now, but for the products,
    where only torch's formula is replaced by one that knows sparse and complex operands.
    """
    resolved: dict[Any, Callable[..., int]] = {}
    for name, formula in {**_FORMULAS, **_RAW_FORMULAS}.items():
        namespace, operator = name.split("::")
        packet = getattr(getattr(torch.ops, namespace), operator, None)
        if packet is not None and (name in _RAW_FORMULAS or packet not in flop_registry):
            resolved[packet] = _as_flops(formula, raw=name in _RAW_FORMULAS)
    return resolved


def _as_flops(formula: Formula, raw: bool) -> Callable[..., int]:
    def flops(*args: Any, **kwargs: Any) -> int:
        return 2 * round(formula(*args, **kwargs))

    flops._get_raw = raw  # type: ignore[attr-defined]
    return flops


def _counts(*operators: str, namespace: str = "aten", raw: bool = False) -> Callable[[F], F]:
    """Decorator: the formula of these operators. With ``raw`` it is given tensors, else shapes."""

    def register(formula: F) -> F:
        for operator in operators:
            (_RAW_FORMULAS if raw else _FORMULAS)[f"{namespace}::{operator}"] = formula
        return formula

    return register


# Products -------------------------------------------------------------------------------------------------------------


def _product(a: Tensor, b: Tensor) -> int:
    """(..., M, K) times (..., K, N): one MAC per pair of factors.

    A sparse operand has its stored elements only; a complex MAC is four real ones.
    """
    sparse = [x.layout != torch.strided for x in (a, b)]
    terms: int
    if all(sparse):
        stored_in_row = torch.bincount(b.to_sparse_coo()._indices()[0], minlength=b.shape[0])
        terms = int(stored_in_row[a.to_sparse_coo()._indices()[1]].sum())
    elif sparse[0]:
        terms = a._nnz() * b.shape[-1]
    elif sparse[1]:
        terms = a.shape[-2] * b._nnz()
    else:
        terms = a.numel() * b.shape[-1]
    return terms * _real_macs(a)


def _real_macs(x: Tensor) -> int:
    return 4 if x.is_complex() else 1


@_counts("mm", "bmm", "_int_mm", raw=True)
def _mm(a: Tensor, b: Tensor, *args: Any, **kwargs: Any) -> int:
    return _product(a, b)


@_counts("addmm", "addmm_", "baddbmm", "baddbmm_", "addbmm", "addbmm_", "_addmm_activation", "_sparse_addmm", raw=True)
def _addmm(bias: Tensor, a: Tensor, b: Tensor, *args: Any, **kwargs: Any) -> int:
    return _product(a, b)


@_counts("_sparse_mm_reduce_impl", raw=True)
def _sparse_mm_reduce(a: Tensor, b: Tensor, *args: Any, **kwargs: Any) -> int:
    return _product(a, b)


@_counts("sparse_sampled_addmm", raw=True)
def _sampled_product(kept: Tensor, a: Tensor, b: Tensor, **kwargs: Any) -> int:
    return kept._nnz() * a.shape[-1] * _real_macs(a)


@_counts("dot", "vdot", "mv", raw=True)
def _mv(a: Tensor, b: Tensor, **kwargs: Any) -> int:
    terms: int = a._nnz() if a.layout != torch.strided else a.numel()
    return terms * _real_macs(a)


@_counts("addmv", "addmv_", raw=True)
def _addmv(bias: Tensor, a: Tensor, b: Tensor, **kwargs: Any) -> int:
    return _mv(a, b)


@_counts("addr", "addr_", raw=True)
def _addr(bias: Tensor, a: Tensor, b: Tensor, **kwargs: Any) -> int:
    return a.numel() * b.numel() * _real_macs(a)


@_counts("_foreach_mm", raw=True)
def _foreach_mm(a: Sequence[Tensor], b: Sequence[Tensor], **kwargs: Any) -> int:
    return sum(_product(left, right) for left, right in zip(a, b, strict=True))


@_counts("_scaled_mm_v2")
def _scaled_mm(a: Shape, b: Shape, *args: Any, **kwargs: Any) -> int:
    return prod(a) * b[-1]


@_counts("_grouped_mm", "_scaled_grouped_mm", "_scaled_grouped_mm_v2")
def _grouped_mm(a: Shape, b: Shape, *args: Any, **kwargs: Any) -> int:
    """Groups along rows, columns or the contraction share one M x K x N; groups in both operands have one each."""
    return (a[0] if len(a) == len(b) == 3 else 1) * a[-2] * a[-1] * b[-1]


@_counts("_weight_int8pack_mm", "_weight_int4pack_mm", "_weight_int4pack_mm_for_cpu", "_dyn_quant_matmul_4bit")
def _packed_mm(a: Shape, *args: Any, out_shape: Shape, **kwargs: Any) -> int:
    return prod(a) * out_shape[-1]


@_counts("mkldnn_linear")
def _linear(x: Shape, weight: Shape, *args: Any, **kwargs: Any) -> int:
    return prod(x) * weight[0]


@_counts("_trilinear")
def _trilinear(
    a: Shape, b: Shape, c: Shape, expand_a: Shape, expand_b: Shape, expand_c: Shape, *args: Any, **kwargs: Any
) -> int:
    """Sum over products of three: one MAC per term, of the weight with the product of the other two."""
    full = []
    for shape, expanded in ((a, expand_a), (b, expand_b), (c, expand_c)):
        sizes = list(shape)
        for dim in sorted(expanded):
            sizes.insert(dim, 1)
        full.append(sizes)
    return prod(max(sizes) for sizes in zip(*full, strict=True))


@_counts("_cdist_forward", "_euclidean_dist")
def _pairwise_distances(a: Shape, b: Shape, *args: Any, out_shape: Shape, **kwargs: Any) -> int:
    return prod(out_shape) * a[-1]


@_counts("_pdist_forward")
def _distances_within(x: Shape, *args: Any, out_shape: Shape, **kwargs: Any) -> int:
    return prod(out_shape) * x[-1]


@_counts(
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_fused_attention_overrideable",
    "_scaled_dot_product_attention_math_for_mps",
)
def _attention(query: Shape, key: Shape, value: Shape, *args: Any, **kwargs: Any) -> int:
    """Scores and weighted values, (..., N, D), of every query with every key, masked or not."""
    return prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


@_counts("_scaled_dot_product_flash_attention_for_cpu_backward")
def _attention_backward(gradient: Shape, query: Shape, key: Shape, value: Shape, *args: Any, **kwargs: Any) -> int:
    """Five products: the scores again, and the gradients of weights, values, queries and keys."""
    return prod(query[:-1]) * key[-2] * (3 * query[-1] + 2 * value[-1])


# Messages -------------------------------------------------------------------------------------------------------------


@_counts("index_add", "index_add_")
def _add_at(x: Shape, dim: int, index: Shape, source: Shape, *args: Any, **kwargs: Any) -> int:
    """What a graph network sums over neighbours: each element of a message is weighed and added, one MAC."""
    return prod(source)


@_counts("scatter_add", "scatter_add_")
def _scatter_add(x: Shape, dim: int, index: Shape, *args: Any, **kwargs: Any) -> int:
    return prod(index)


@_counts("scatter_reduce", "scatter_reduce_")
def _scatter_reduce(x: Shape, dim: int, index: Shape, source: Shape, reduce: str, *args: Any, **kwargs: Any) -> int:
    return prod(index) if reduce in ("sum", "mean") else 0


# Convolutions ---------------------------------------------------------------------------------------------------------


@_counts("conv_tbc")
def _conv_tbc(x: Shape, weight: Shape, *args: Any, out_shape: Shape, **kwargs: Any) -> int:
    return out_shape[0] * out_shape[1] * prod(weight)


@_counts("mkldnn_convolution", "_mps_convolution", "cudnn_convolution_relu", "cudnn_convolution_add_relu")
def _convolution(x: Shape, weight: Shape, *args: Any, out_shape: Shape, **kwargs: Any) -> int:
    return out_shape[0] * prod(out_shape[2:]) * prod(weight)


@_counts("convolution_backward", raw=True)
def _convolution_backward(gradient: Tensor, x: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> int:
    """As much as the convolution for each of the gradients of input and weight; torch's own formula forgets groups."""
    *_, transposed, _, _, wanted = args
    return (x if transposed else gradient).numel() * weight[0].numel() * sum(map(bool, wanted[:2]))


@_counts("deform_conv2d", namespace="torchvision")
def _deformable_convolution(x: Shape, weight: Shape, *args: Any, out_shape: Shape, **kwargs: Any) -> int:
    """The convolution, and before it the bilinear sample of every channel at every tap: four MACs each."""
    pixels = out_shape[0] * prod(out_shape[2:])
    return pixels * prod(weight) + 4 * pixels * x[1] * prod(weight[2:])


# Fourier transforms ---------------------------------------------------------------------------------------------------


def _fourier(elements: int, shape: Shape, dims: Sequence[int], per_point: float) -> float:
    """``per_point * n log2 n`` for every transform of ``n`` points, n the product of the transformed sizes."""
    points = prod(shape[dim] for dim in dims)
    return per_point * elements * log2(points) if points > 1 else 0


@_counts("_fft_r2c")
def _real_fft(x: Shape, dims: Sequence[int], *args: Any, **kwargs: Any) -> float:
    return _fourier(prod(x), x, dims, 1.25)


@_counts("_fft_c2r")
def _inverse_real_fft(x: Shape, dims: Sequence[int], *args: Any, out_shape: Shape, **kwargs: Any) -> float:
    return _fourier(prod(out_shape), out_shape, dims, 1.25)


@_counts("_fft_c2c")
def _complex_fft(x: Shape, dims: Sequence[int], *args: Any, **kwargs: Any) -> float:
    return _fourier(prod(x), x, dims, 2.5)


# Sampling and interpolation: a sample is a weighted sum of its neighbours ---------------------------------------------


@_counts("grid_sampler_2d", "grid_sampler_3d", "_grid_sampler_2d_cpu_fallback")
def _grid_sample(x: Shape, grid: Shape, mode: int, *args: Any, out_shape: Shape, **kwargs: Any) -> int:
    neighbours = {0: 2, 1: 0, 2: 4}[mode] ** grid[-1]  # bilinear, nearest, bicubic
    return neighbours * prod(out_shape)


@_counts("cudnn_grid_sampler")
def _cudnn_grid_sample(x: Shape, grid: Shape, *, out_shape: Shape, **kwargs: Any) -> int:
    return 4 * prod(out_shape)


@_counts("affine_grid_generator", "cudnn_affine_grid_generator")
def _affine_grid(theta: Shape, *args: Any, out_shape: Shape, **kwargs: Any) -> int:
    return prod(out_shape) * theta[-1]


def _interpolation(neighbours: int) -> Formula:
    def formula(x: Shape, *args: Any, out_shape: Shape, **kwargs: Any) -> int:
        return neighbours * prod(out_shape)

    return formula


_counts("upsample_linear1d")(_interpolation(2))
_counts("upsample_bilinear2d")(_interpolation(4))
_counts("upsample_trilinear3d")(_interpolation(8))
_counts("upsample_bicubic2d")(_interpolation(16))


def _antialiased(support: int) -> Formula:
    """Separable filters of ``2 * support * max(1, scale)`` taps, along the width first."""

    def formula(x: Shape, *args: Any, out_shape: Shape, **kwargs: Any) -> int:
        *_, height, width = x
        *_, new_height, new_width = out_shape
        rows, columns = (
            min(old, ceil(2 * support * max(1.0, old / new))) for old, new in ((height, new_height), (width, new_width))
        )
        return prod(x[:2]) * new_width * (height * columns + new_height * rows)

    return formula


_counts("_upsample_bilinear2d_aa")(_antialiased(1))
_counts("_upsample_bicubic2d_aa")(_antialiased(2))
_counts("_upsample_lanczos2d_aa")(_antialiased(3))


@_counts("roi_align", "ps_roi_align", namespace="torchvision", raw=True)
def _roi_align(
    x: Tensor, rois: Tensor, scale: float, height: int, width: int, samples: int, *args: Any, out_val: Any
) -> int:
    """Four MACs a bilinear sample, ``samples^2`` of them a bin; ``samples <= 0`` is one per input pixel of the bin."""
    output = out_val if isinstance(out_val, Tensor) else out_val[0]
    if samples > 0:
        return 4 * samples**2 * output.numel()
    sides = (rois[:, 3:] - rois[:, 1:3]) * scale  # width, height of each region
    per_bin = (sides / sides.new_tensor([width, height])).ceil().clamp(min=1).prod(1)
    return int(4 * per_bin.sum()) * output[0].numel() if len(rois) else 0


# Recurrent layers -----------------------------------------------------------------------------------------------------


@_counts("mkldnn_rnn_layer")
def _onednn_rnn(x: Shape, input_weight: Shape, hidden_weight: Shape, *args: Any, **kwargs: Any) -> int:
    """One layer in one direction: both weight matrices meet every time step of every sequence."""
    return prod(x[:-1]) * (prod(input_weight) + prod(hidden_weight))


@_counts("_cudnn_rnn", "miopen_rnn")
def _stacked_rnn(x: Shape, weights: Sequence[Shape], *args: Any, **kwargs: Any) -> int:
    """All layers and directions; a packed sequence is (steps, features), others (T, B, features)."""
    return prod(x[:-1]) * sum(prod(weight) for weight in weights if len(weight) == 2)


@_counts("_lstm_mps")
def _mps_lstm(x: Shape, state: Sequence[Shape], weights: Sequence[Shape], *args: Any, **kwargs: Any) -> int:
    return _stacked_rnn(x, weights)


# Linear algebra, (..., n, n) or (..., m, n) ---------------------------------------------------------------------------


@_counts("linalg_lu_factor_ex", "linalg_lu", "_linalg_det", "_linalg_slogdet")
def _lu(a: Shape, *args: Any, **kwargs: Any) -> float:
    long, short = max(a[-2:]), min(a[-2:])
    return prod(a[:-2]) * short**2 * (long - short / 3) / 2


@_counts("linalg_inv_ex")
def _inverse(a: Shape, **kwargs: Any) -> int:
    return prod(a[:-2]) * a[-1] ** 3


@_counts("_linalg_solve_ex")
def _solve(a: Shape, b: Shape, *args: Any, out_shape: Sequence[Shape], **kwargs: Any) -> float:
    return _lu(a) + prod(out_shape[0]) * a[-1]


@_counts("linalg_lu_solve")
def _lu_solve(lu: Shape, pivots: Shape, b: Shape, *args: Any, out_shape: Shape, **kwargs: Any) -> int:
    return prod(out_shape) * lu[-1]


@_counts("linalg_ldl_solve")
def _ldl_solve(factor: Shape, pivots: Shape, b: Shape, *args: Any, out_shape: Shape, **kwargs: Any) -> int:
    return prod(out_shape) * factor[-1]


@_counts("linalg_cholesky_ex", "linalg_ldl_factor_ex")
def _cholesky(a: Shape, **kwargs: Any) -> float:
    return prod(a[:-2]) * a[-1] ** 3 / 6


@_counts("cholesky_solve", "_cholesky_solve_helper")
def _cholesky_solve(b: Shape, factor: Shape, *args: Any, out_shape: Shape, **kwargs: Any) -> int:
    return prod(out_shape) * factor[-1]


@_counts("cholesky_inverse")
def _cholesky_inverse(factor: Shape, *args: Any, **kwargs: Any) -> float:
    return prod(factor[:-2]) * factor[-1] ** 3 / 3


@_counts("linalg_solve_triangular")
def _solve_triangular(a: Shape, b: Shape, *args: Any, out_shape: Shape, **kwargs: Any) -> float:
    return prod(out_shape) * a[-1] / 2


@_counts("triangular_solve")
def _triangular_solve(b: Shape, a: Shape, *args: Any, out_shape: Sequence[Shape], **kwargs: Any) -> float:
    return prod(out_shape[0]) * a[-1] / 2


def _householder(m: int, n: int) -> float:
    """Reduction of an m x n matrix to triangular form by reflections."""
    long, short = max(m, n), min(m, n)
    return short**2 * (long - short / 3)


@_counts("linalg_qr")
def _qr(a: Shape, mode: str = "reduced", **kwargs: Any) -> float:
    m, n = a[-2:]
    k = min(m, n)
    explicit = {"r": 0, "reduced": k**2 * (m - k / 3), "complete": 2 * (m**2 * k - m * k**2 + k**3 / 3)}[mode]
    return prod(a[:-2]) * (_householder(m, n) + explicit)


@_counts("geqrf")
def _reflections(a: Shape, **kwargs: Any) -> float:
    return prod(a[:-2]) * _householder(*a[-2:])


@_counts("linalg_householder_product")
def _orthogonal_factor(a: Shape, tau: Shape, **kwargs: Any) -> float:
    m, n, k = a[-2], a[-1], tau[-1]
    return prod(a[:-2]) * (2 * m * n * k - (m + n) * k**2 + 2 * k**3 / 3)


@_counts("ormqr")
def _apply_reflections(a: Shape, tau: Shape, other: Shape, left: bool = True, *args: Any, **kwargs: Any) -> int:
    m, n, k = other[-2], other[-1], tau[-1]
    return prod(other[:-2]) * k * (n * (2 * m - k) if left else m * (2 * n - k))


@_counts("linalg_lstsq")
def _least_squares(a: Shape, b: Shape, *args: Any, **kwargs: Any) -> float:
    """By QR: the reflections, their application to the right-hand sides, a triangular system."""
    m, n = a[-2:]
    k = min(m, n)
    sides = b[-1] if len(b) == len(a) else 1
    return prod(a[:-2]) * (_householder(m, n) + sides * (k * (2 * m - k) + k**2 / 2))


# Where only values are wanted, torch asks for vectors as well while its operators are watched: both count alike.


@_counts("_linalg_eigh")
def _symmetric_eigen(a: Shape, *args: Any, **kwargs: Any) -> float:
    return prod(a[:-2]) * a[-1] ** 3 * 4.5


@_counts("linalg_eig", "_linalg_eigvals")
def _eigen(a: Shape, **kwargs: Any) -> float:
    return prod(a[:-2]) * a[-1] ** 3 * 12.5


@_counts("_linalg_svd")
def _singular(a: Shape, full_matrices: bool = False, *args: Any, **kwargs: Any) -> float:
    m, n = max(a[-2:]), min(a[-2:])
    each = 2 * m**2 * n + 4 * m * n**2 + 4.5 * n**3 if full_matrices else 7 * m * n**2 + 4 * n**3
    return prod(a[:-2]) * each


@_counts("linalg_pinv")
def _pseudoinverse(a: Shape, *args: Any, hermitian: bool = False, **kwargs: Any) -> float:
    """The decomposition, then the product of its factors."""
    decomposition = _symmetric_eigen(a) if hermitian else _singular(a)
    return decomposition + prod(a) * min(a[-2:])


@_counts("linalg_matrix_exp")
def _matrix_exponential(a: Shape, **kwargs: Any) -> int:
    """The Taylor polynomial of degree 18: five products. Squarings, as many as the norm wants, are left out."""
    return 5 * prod(a[:-2]) * a[-1] ** 3
