"""Checkpointed modules compute again and change nothing else."""

import copy

import torch
from torch import nn

from torchstone.layers.checkpointing import BlockSequence


def network():
    blocks = [nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU()) for _ in range(3)]
    return BlockSequence(*blocks)


def test_gradients_and_batch_statistics_are_those_without():
    plain, x = network(), torch.randn(4, 3, 5, 5)
    checkpointed = copy.deepcopy(plain)
    checkpointed.grad_checkpointing = True
    calls = {"plain": 0, "checkpointed": 0}
    for name, model in (("plain", plain), ("checkpointed", checkpointed)):
        model[1][0].register_forward_hook(lambda *_, name=name: calls.update({name: calls[name] + 1}))
        for _ in range(2):
            model(x).square().sum().backward()
    assert calls == {"plain": 2, "checkpointed": 4}
    for ours, expected in zip(checkpointed.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, expected.grad)
    for ours, expected in zip(checkpointed.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(ours, expected)


def test_a_part_of_the_modules_can_be_run():
    model, x = network().eval(), torch.randn(2, 3, 4, 4)
    assert torch.equal(model(model(x, 0, 2), 2), model(x))
    assert torch.equal(model(x, 1, 1), x)


def test_norms_are_left_as_they_were_when_the_recomputation_fails():
    model = network()
    model.grad_checkpointing = True
    loss = model(torch.randn(2, 3, 4, 4)).sum()
    failing = model[0][2].register_forward_hook(lambda *_: 1 / 0)
    try:
        loss.backward()
    except ZeroDivisionError:
        failing.remove()
    norm = model[0][1]
    assert norm.momentum == 0.1
    assert norm.num_batches_tracked == 1
