"""The kernels do what the reference does, values and gradients, under the interpreter: ``pytest -m interpreter``.

In float32 and float16: the interpreter's bfloat16 arithmetic is wrong. benchmarks/gpu/transnext.py compares the kernels
in bfloat16 as well, on a GPU.
"""

import os

import pytest
import torch

from torchstone.ops.neighbourhood import cuda, reference

pytestmark = pytest.mark.interpreter

SIZES = [  # batch, heads, dim, height, width, window
    (1, 1, 1, 1, 1, 3),
    (2, 2, 24, 4, 5, 3),
    (1, 1, 100, 5, 9, 3),  # two blocks, the last of them ragged, padded channels
    (1, 1, 4, 2, 5, 5),  # a window larger than the map
]
BOUNDS = [(torch.float32, 1e-6), (torch.float16, 2e-3)]


@pytest.fixture(scope="module")
def on_the_cpu():
    """The operators, with the interpreted kernels in the place of CUDA's."""
    pytest.importorskip("triton", reason="Triton's kernels exist on Linux only")
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.fail("set TRITON_INTERPRET=1 before this process starts: TRITON_INTERPRET=1 pytest -m interpreter")
    from torchstone.ops.neighbourhood import triton_kernels

    cuda.scores.register_kernel("cpu")(triton_kernels.scores)
    cuda.total.register_kernel("cpu")(triton_kernels.total)
    return cuda


def draw(*shape, seed, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_same(ours, exact, bound, dtype):
    assert ours.dtype == dtype
    assert (ours.double() - exact).abs().max() <= bound * exact.abs().max().clamp(min=1)


def compare(operator, definition, operands, options, bound, dtype):
    """Values and both gradients, against the reference in float64."""
    exact = [x.double().requires_grad_() for x in operands]
    ours = [x.requires_grad_() for x in operands]
    result, true = operator(*ours, *options), definition(*exact, *options)
    assert_same(result, true, bound, dtype)
    gradient = draw(*result.shape, seed=7, dtype=dtype)
    found = torch.autograd.grad(result, ours, gradient)
    expected = torch.autograd.grad(true, exact, gradient.double())
    for mine, theirs in zip(found, expected, strict=True):
        assert_same(mine, theirs, bound, dtype)


@pytest.mark.parametrize("sizes", SIZES, ids=lambda sizes: "x".join(map(str, sizes)))
@pytest.mark.parametrize(("dtype", "bound"), BOUNDS, ids=str)
def test_scores_and_their_gradients(on_the_cpu, sizes, dtype, bound):
    *shape, window = sizes
    operands = [draw(*shape, seed=seed, dtype=dtype) for seed in (0, 1)]
    compare(on_the_cpu.scores, reference.scores, operands, [window], bound, dtype)


@pytest.mark.parametrize("back", [False, True])
@pytest.mark.parametrize("sizes", SIZES, ids=lambda sizes: "x".join(map(str, sizes)))
@pytest.mark.parametrize(("dtype", "bound"), BOUNDS, ids=str)
def test_sums_and_their_gradients(on_the_cpu, sizes, dtype, bound, back):
    batch, heads, dim, height, width, window = sizes
    weights = draw(batch, heads, window**2, height, width, seed=0, dtype=dtype)
    values = draw(batch, heads, dim, height, width, seed=1, dtype=dtype)
    compare(on_the_cpu.total, reference.total, [weights, values], [window, back], bound, dtype)


def test_second_derivatives_are_those_of_the_reference(on_the_cpu):
    def second(scores, total, dtype):
        q, k, v = (draw(1, 2, 4, 3, 5, seed=seed).to(dtype).requires_grad_() for seed in range(3))
        y = total(scores(q, k, 3).softmax(2), v, 3, False)
        first = torch.autograd.grad(y.square().sum(), (q, k, v), create_graph=True)
        return torch.autograd.grad(sum(x.square().sum() for x in first), (q, k, v))

    ours = second(on_the_cpu.scores, on_the_cpu.total, torch.float32)
    exact = second(reference.scores, reference.total, torch.float64)
    for mine, true in zip(ours, exact, strict=True):
        assert_same(mine, true, 1e-4, torch.float32)


def test_any_memory_layout_and_mixed_types_are_read(on_the_cpu):
    q, k = draw(2, 2, 4, 5, 6, seed=0), draw(2, 2, 4, 6, 5, seed=1).half().transpose(3, 4)
    assert_same(on_the_cpu.scores(q, k, 3), reference.scores(q.double(), k.double(), 3), 1e-6, torch.float32)
