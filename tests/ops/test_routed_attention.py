"""Routed attention: against full attention, masks and its own equation."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from torchstone.errors import CallError, ShapeError
from torchstone.ops import route_regions, routed_attention, routed_attention_probabilities
from torchstone.ops.routed_attention.workload import WORKLOAD
from torchstone.ops.workload import workload


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def operands(batch=2, regions=9, tokens=5, keys=3, channels=8, width=12, count=4):
    query = torch.randn(batch, regions, tokens, channels)
    key, value = torch.randn(batch, regions, keys, channels), torch.randn(batch, regions, keys, width)
    routes = torch.rand(batch, regions, regions).topk(count, -1).indices
    return query, key, value, routes


def test_it_is_the_equation():
    query, key, value, routes = operands()
    found = routed_attention(query, key, value, routes, heads=2, scale=0.7)
    for sample, region in ((0, 0), (1, 7)):
        keys = torch.cat([key[sample, s] for s in routes[sample, region]])
        values = torch.cat([value[sample, s] for s in routes[sample, region]])
        q = query[sample, region]
        heads = [
            (0.7 * q[:, 4 * h : 4 * h + 4] @ keys[:, 4 * h : 4 * h + 4].T).softmax(-1) @ values[:, 6 * h : 6 * h + 6]
            for h in (0, 1)
        ]
        torch.testing.assert_close(found[sample, region], torch.cat(heads, -1))


def test_with_all_regions_it_is_full_attention():
    query, key, value, routes = operands(count=9)
    everything = [x.flatten(1, 2).unflatten(-1, (2, -1)).transpose(1, 2) for x in (query, key, value)]
    expected = F.scaled_dot_product_attention(*everything, scale=8**-0.5).transpose(1, 2).reshape(2, 9, 5, 12)
    torch.testing.assert_close(routed_attention(query, key, value, routes, heads=2), expected)


def test_the_order_of_routes_does_not_matter():
    query, key, value, routes = operands()
    found = routed_attention(query, key, value, routes)
    torch.testing.assert_close(routed_attention(query, key, value, routes.flip(-1)), found)
    torch.testing.assert_close(routed_attention(query, key, value, routes.int()), found)


def test_nothing_comes_from_regions_that_are_not_routed():
    query, key, value, routes = operands(count=2)
    key.requires_grad_()
    value.requires_grad_()
    routed_attention(query, key, value, routes)[0, 3].square().sum().backward()
    for gradient in (key.grad, value.grad):
        reached = gradient.abs().sum((2, 3)).nonzero().tolist()
        assert sorted(reached) == sorted([0, region] for region in routes[0, 3].tolist())


def test_there_may_be_other_regions_to_ask_than_those_that_ask():
    query, key, value, routes = operands()
    found = routed_attention(query[:, :4], key, value, routes[:, :4])
    torch.testing.assert_close(found, routed_attention(query, key, value, routes)[:, :4])


def test_weights_scale_keys_and_values():
    query, key, value, _ = operands()
    weights = torch.rand(2, 9, 1)
    own = torch.arange(9).expand(2, 9)[..., None]
    expected = routed_attention(query, key * weights[..., None], value * weights[..., None], own)
    torch.testing.assert_close(routed_attention(query, key, value, own, weights=weights), expected)


def test_probabilities_are_those_that_weigh_the_values():
    query, key, value, routes = operands()
    weights = torch.rand(2, 9, 4)
    found = routed_attention_probabilities(query, key, routes, heads=2, weights=weights)
    assert found.shape == (2, 9, 2, 5, 12)
    torch.testing.assert_close(found.sum(-1), torch.ones(2, 9, 2, 5))
    gathered = torch.stack([(value[b][routes[b]] * weights[b, ..., None, None]).flatten(1, 2) for b in (0, 1)])
    mixed = found @ gathered.unflatten(-1, (2, 6)).transpose(2, 3)  # (B, R, h, T, c)
    expected = routed_attention(query, key, value, routes, heads=2, weights=weights)
    torch.testing.assert_close(mixed.transpose(2, 3).flatten(3), expected)


def test_routes_are_the_largest_products():
    query, key = torch.randn(2, 9, 8), torch.randn(2, 6, 8)
    routes, weights = route_regions(query, key, 3, scale=0.5)
    products = 0.5 * query @ key.mT
    best = products.sort(-1, descending=True)
    assert torch.equal(routes, best.indices[..., :3])
    torch.testing.assert_close(weights, best.values[..., :3].softmax(-1))


def test_weights_carry_the_gradient_of_routing():
    query, key = torch.randn(1, 4, 8, requires_grad=True), torch.randn(1, 4, 8, requires_grad=True)
    routes, weights = route_regions(query, key, 2)
    assert not routes.requires_grad
    weights[..., 0].sum().backward()
    assert query.grad.abs().sum() > 0
    assert key.grad.abs().sum() > 0


def test_autocast_does_not_change_the_routes():
    """In bfloat16 the two products would be equal."""
    query, key = torch.tensor([[[1.0, 1.0]]]), torch.tensor([[[1.0, 0.0], [1.0, 1e-3]]])
    with torch.autocast("cpu", torch.bfloat16):
        routes, weights = route_regions(query, key, 1)
    assert routes.item() == 1
    assert weights.dtype == torch.float32


def test_cost_is_that_of_the_routed_pairs():
    query, key, value, routes = operands(channels=16, width=16)
    with FlopCounterMode(display=False) as counter:
        routed_attention(query, key, value, routes)
    pairs = 2 * 9 * 5 * (4 * 3)
    assert counter.get_total_flops() // 2 == pairs * (16 + 16)


def test_contenders_agree_with_the_operator_where_they_say_so():
    assert workload("routed_attention") is WORKLOAD
    tensors = [torch.randn(shape) for shape in WORKLOAD.shapes(4, WORKLOAD.settings)]
    expected = WORKLOAD.contenders["routed_attention"].call(*tensors)
    for name, contender in WORKLOAD.contenders.items():
        found = contender.call(*tensors)
        assert found.shape == expected.shape, name
        assert torch.allclose(found, expected, atol=1e-5) == contender.same, name


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"query": torch.zeros(2, 9, 8)}, ShapeError, r"query \(B, R, T, D\)"),
        ({"key": torch.zeros(2, 9, 3, 6)}, ShapeError, "must agree"),
        ({"value": torch.zeros(2, 8, 3, 12)}, ShapeError, "must agree"),
        ({"routes": torch.zeros(2, 8, 4, dtype=torch.long)}, ShapeError, r"routes must be \(2, 9, 'K'\)"),
        ({"routes": torch.zeros(2, 9, 4)}, CallError, "routes must be integers, got torch.float32"),
        ({"weights": torch.ones(2, 9, 3)}, ShapeError, r"weights must be as the routes, \(2, 9, 4\)"),
        ({"heads": 5}, CallError, "5 heads do not divide 8 and 12 channels"),
        ({"value": torch.zeros(2, 9, 3, 12).double()}, CallError, "of one type"),
        ({"value": torch.zeros(2, 9, 3, 12).long()}, CallError, "value must hold real floating-point numbers"),
    ],
)
def test_wrong_calls_are_refused(change, error, message):
    query, key, value, routes = operands()
    given = {"query": query, "key": key, "value": value, "routes": routes} | change
    with pytest.raises(error, match=message):
        routed_attention(**given)


@pytest.mark.parametrize(
    ("query", "key", "count", "error", "message"),
    [
        ((2, 9), (2, 9), 1, ShapeError, "descriptors must be"),
        ((2, 9, 8), (2, 9, 6), 1, ShapeError, "descriptors must be"),
        ((2, 9, 8), (2, 6, 8), 7, CallError, "7 of 6 regions cannot be chosen: give a count from 1 to 6"),
        ((2, 9, 8), (2, 6, 8), 0, CallError, "0 of 6 regions"),
    ],
)
def test_wrong_descriptors_are_refused(query, key, count, error, message):
    with pytest.raises(error, match=message):
        route_regions(torch.zeros(query), torch.zeros(key), count)
