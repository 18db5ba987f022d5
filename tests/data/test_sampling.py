import numpy as np
import pytest

from torchstone.data.sampling import PositionSampler
from torchstone.data.splits import index_hash, stratified
from torchstone.errors import CallError


def keys(sampler, epoch):
    sampler.set_epoch(epoch)
    return list(sampler)


def test_an_epoch_visits_each_sample_once_and_leaves_out_the_incomplete_batch():
    sampler = PositionSampler(23, 5, seed=0)
    drawn = keys(sampler, 4)
    assert len(drawn) == len(sampler) == 20
    assert {epoch for epoch, _ in drawn} == {4}
    indices = [index for _, index in drawn]
    assert len(set(indices)) == 20
    assert set(indices) <= set(range(23))


def test_order_depends_on_seed_and_epoch_and_on_nothing_else():
    sampler = PositionSampler(100, 10, seed=1)
    epochs = [keys(sampler, epoch) for epoch in range(4)]
    assert keys(PositionSampler(100, 10, seed=1), 3) == epochs[3]  # started at epoch 3
    assert keys(sampler, 1) == epochs[1]
    orders = [tuple(index for _, index in epoch) for epoch in epochs]
    orders.append(tuple(index for _, index in keys(PositionSampler(100, 10, seed=2), 0)))
    assert len(set(orders)) == 5


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_each_batch_of_a_single_process(world):
    single = keys(PositionSampler(50, 12, seed=0), 2)
    shares = [keys(PositionSampler(50, 12, seed=0, rank=rank, world=world), 2) for rank in range(world)]
    assert {len(share) for share in shares} == {48 // world}
    for start in range(0, 48, 12):
        mine = 12 // world
        batch = [share[start // world : start // world + mine] for share in shares]
        assert batch == [single[start : start + 12][rank::world] for rank in range(world)]


def test_a_batch_that_cannot_be_filled_or_shared_is_refused():
    with pytest.raises(CallError, match=r"in 1\.\.10"):
        PositionSampler(10, 11, seed=0)
    with pytest.raises(CallError, match="multiple of the 2 processes"):
        PositionSampler(10, 5, seed=0, world=2)


LABELS = np.repeat([0, 1, 2], [50, 30, 20])


def test_a_stratified_draw_has_every_class_in_proportion():
    drawn, rest = stratified(np.arange(100), LABELS, 20, "test", 0)
    assert np.bincount(LABELS[drawn]).tolist() == [10, 6, 4]
    assert sorted([*drawn, *rest]) == list(range(100))
    assert np.all(np.diff(drawn) > 0)


def test_rounding_keeps_the_total():
    for count in range(3, 95):
        drawn, rest = stratified(np.arange(100), LABELS, count, "test", 0)
        assert len(drawn) == count
        assert np.all(np.abs(np.bincount(LABELS[drawn]) - np.array([0.5, 0.3, 0.2]) * count) < 1)
        assert len(rest) == 100 - count


def test_a_small_class_gives_one_and_keeps_one():
    labels = np.array([0] * 40 + [1] * 2 + [2])
    drawn, rest = stratified(np.arange(43), labels, 4, "test", 0)
    assert np.bincount(labels[drawn], minlength=3).tolist() == [3, 1, 0]
    assert np.bincount(labels[rest], minlength=3).tolist() == [37, 1, 1]


def test_draws_follow_the_seed_alone():
    first, again, other = (stratified(np.arange(100), LABELS, 20, "test", seed)[0] for seed in (0, 0, 1))
    assert index_hash(first) == index_hash(again) != index_hash(other)
