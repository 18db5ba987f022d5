import random

import numpy as np
import torch

from torchstone.seeding import position_seed, preserved_randomness, seed_cpu_at, seed_everything_at


def draws():
    return torch.rand(3).tolist(), np.random.rand(3).tolist(), [random.random() for _ in range(3)]  # noqa: NPY002


def test_a_position_has_the_same_seed_for_ever():
    assert position_seed(0) == 4246866556266386882
    assert position_seed("order", 3, 14) == 6564184983768918449


def test_seeds_fit_where_seeds_go():
    seeds = [position_seed("range", index) for index in range(2000)]
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert len(set(seeds)) == 2000
    assert max(seeds) > 2**62


def test_positions_that_look_alike_differ():
    assert (
        len({position_seed(*position) for position in [(1, 23), (12, 3), (123,), (1, 2, 3), (-1, 23), ("a", 1)]}) == 6
    )


def test_integers_of_numpy_and_torch_are_integers():
    assert position_seed(np.int64(7), torch.tensor(3)) == position_seed(7, 3)


def test_equal_positions_give_equal_draws():
    seed_everything_at("step", 0, 5)
    first = draws()
    seed_everything_at("step", 0, 6)
    assert draws() != first
    seed_everything_at("step", 0, 5)
    assert draws() == first
    seed_cpu_at("step", 0, 5)
    assert draws() == first


def test_outer_randomness_goes_on_as_if_nothing_had_been_drawn():
    seed_everything_at(1)
    expected = [draws(), draws()][1]
    seed_everything_at(1)
    draws()
    with preserved_randomness():
        seed_cpu_at(2)
        draws()
    assert draws() == expected
