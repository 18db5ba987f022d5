"""The shapes that operators state hold at run time: ``pytest -m shapes``."""

import pytest
import torch
from _checker import check
from jaxtyping import TypeCheckError, jaxtyped

from torchstone.ops import (
    block_fft,
    inverse_block_fft,
    long_conv,
    monarch_conv,
    route_regions,
    routed_attention,
    routed_attention_probabilities,
)
from torchstone.ops.long_conv.monarch import dft_matrices

pytestmark = pytest.mark.shapes


@pytest.mark.parametrize("convolve", [long_conv, monarch_conv])
def test_a_convolutions_annotations_hold(convolve):
    checked = jaxtyped(typechecker=check)(convolve)
    u = torch.rand(2, 3, 10)
    assert checked(u, torch.rand(3, 10), torch.rand(3, 4)).shape == (2, 3, 10)
    assert checked(u, torch.rand(5, 3, 7)).shape == (2, 5, 3, 10)
    with pytest.raises(TypeCheckError):
        checked(u, torch.rand(4, 10))
    with pytest.raises(TypeCheckError):
        checked(u[0], torch.rand(3, 10))


def test_annotations_of_learned_matrices_hold():
    checked = jaxtyped(typechecker=check)(monarch_conv)
    u, kernel = torch.rand(2, 3, 40), torch.rand(3, 40)
    assert checked(u, kernel, matrices=dft_matrices(), kernel_matrices=dft_matrices()).shape == u.shape


@pytest.mark.parametrize("transform", [block_fft, inverse_block_fft])
def test_a_transforms_annotations_hold(transform):
    checked = jaxtyped(typechecker=check)(transform)
    assert checked(torch.rand(2, 3, 20)).shape == (2, 3, 32)
    with pytest.raises(TypeCheckError):
        checked(torch.arange(4))


def test_annotations_of_routed_attention_hold():
    route, attend, weigh = (
        jaxtyped(typechecker=check)(function)
        for function in (route_regions, routed_attention, routed_attention_probabilities)
    )
    query, key, value = torch.rand(2, 4, 3, 8), torch.rand(2, 6, 5, 8), torch.rand(2, 6, 5, 4)
    routes, weights = route(query.mean(2), key.mean(2), 2)
    assert attend(query, key, value, routes, heads=2, weights=weights).shape == (2, 4, 3, 4)
    assert weigh(query, key, routes).shape == (2, 4, 1, 3, 10)
    with pytest.raises(TypeCheckError):
        attend(query, key, value, routes[0])
