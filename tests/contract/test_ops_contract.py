"""Every operator: exact gradients, any memory layout, no elements, precisions, whole capture by compile and export."""

import pytest
import torch
from _ops import OP_CALLS, Calling
from torch.autograd import gradcheck


@pytest.fixture(params=OP_CALLS)
def call(request):
    return OP_CALLS[request.param]


def test_gradients_are_those_of_finite_differences(call):
    operands = [x.requires_grad_() for x in call.operands(torch.float64)]
    assert gradcheck(call, operands)


def test_operands_may_lie_in_memory_as_they_like(call):
    operands = call.operands()
    strided = [torch.stack([x, x], -1).transpose(0, -2)[..., 0].transpose(0, -1) for x in operands]
    assert not all(x.is_contiguous() for x in strided)
    torch.testing.assert_close(call(*strided), call(*operands))


def test_nothing_in_nothing_out(call):
    for shapes in call.empty:
        operands = [torch.randn(shape, requires_grad=True) for shape in shapes]
        result = call(*operands)
        assert result.shape[:2] == operands[0].shape[:2]
        assert not result.any()
        result.sum().backward()
        assert all(not x.grad.any() for x in operands)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(call, dtype):
    operands = call.operands(dtype)
    exact = call(*(x.float() for x in operands))
    result = call(*operands)
    rounding = {} if call.float32_inside else {"rtol": 0, "atol": 4 * torch.finfo(dtype).eps * exact.abs().max().item()}
    torch.testing.assert_close(result.float(), exact.to(result.dtype).float(), **rounding)


def test_float64_keeps_its_digits(call):
    operands = call.operands(torch.float64)
    assert call(*operands).dtype == torch.float64
    error = (call(*operands) - call(*(x.float() for x in operands))).abs().max()
    assert 0 < error < 1e-4


def test_samples_of_a_batch_do_not_meet(call):
    batch = call.operands()
    one = [x[:1] if index < call.batched else x for index, x in enumerate(batch)]
    torch.testing.assert_close(call(*batch)[:1], call(*one))


def test_compile_captures_values_and_gradients_whole(call):
    torch.compiler.reset()  # every call compiles one and the same forward anew
    eager = [x.requires_grad_() for x in call.operands()]
    compiled = [x.detach().clone().requires_grad_() for x in eager]
    expected = call(*eager)
    torch.compiler.reset()  # every call is compiled on its own: together they would reach the limit of recompilation
    result = torch.compile(Calling(call), backend="aot_eager", fullgraph=True)(*compiled)
    torch.testing.assert_close(result, expected)
    result.square().sum().backward()
    expected.square().sum().backward()
    for ours, theirs in zip(compiled, eager, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_export_meets_ordinary_operators_only_and_takes_any_batch(call):
    operands = call.operands()
    batch = torch.export.Dim("batch", min=2, max=64)
    dynamic = [{0: batch} if index < call.batched else None for index in range(len(operands))]
    with torch.no_grad():
        program = torch.export.export(Calling(call), tuple(operands), dynamic_shapes=(tuple(dynamic),))
    used = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert used
    assert not {name for name in used if "torchstone" in name}
    larger = [torch.cat([x] * 3) if index < call.batched else x for index, x in enumerate(operands)]
    torch.testing.assert_close(program.module()(*larger), call(*larger))
