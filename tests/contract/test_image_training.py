"""Every image model trains: gradients, stochastic depth, checkpointing, reduced precision, repeatability."""

from fnmatch import fnmatchcase

import torch
from _image import assert_same, build, build_lively, images


def loss_of(model, x):
    answer = model(x).float()
    return (answer * torch.linspace(-1, 1, answer.numel()).view_as(answer)).sum()


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_gradients_reach_every_parameter(card, trainee, x):
    loss_of(trainee, x).backward()
    patterns = [entry.pattern for entry in card.unused_parameters]
    reached = {name for name, gradient in gradients(trainee).items() if gradient.abs().sum() > 0}
    names = {name for name, _ in trainee.named_parameters()}
    unused = {name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)}
    assert names - unused - reached == set(), "no gradient"
    assert unused & reached == set(), "the card calls these parameters unused"


def test_gradients_reach_the_image(trainee, x):
    x.requires_grad_()
    loss_of(trainee, x).backward()
    assert x.grad.abs().sum((1, 2, 3)).gt(0).all()


def test_checkpointing_computes_again_and_changes_nothing_else(card, x):
    """The same gradients and batch statistics, from more forward computation."""
    calls = {False: 0, True: 0}
    results = {}
    for enable in (False, True):
        model = build_lively(card).train()
        model.set_grad_checkpointing(enable)
        for module in model.modules():
            if not list(module.children()):
                module.register_forward_hook(lambda *_, e=enable: calls.update({e: calls[e] + 1}))
        torch.manual_seed(1)
        loss_of(model, x).backward()
        results[enable] = {**gradients(model), **dict(model.named_buffers())}
    assert calls[True] > calls[False]
    assert results[True].keys() == results[False].keys()
    for name, expected in results[False].items():
        assert_same(results[True][name], expected)


def test_checkpointing_can_be_switched_off(trainee, x):
    calls = []
    for module in trainee.modules():
        if not list(module.children()):
            module.register_forward_hook(lambda *_: calls.append(1))
    trainee.set_grad_checkpointing()
    trainee.set_grad_checkpointing(False)
    trainee(x).sum().backward()
    forward_and_backward = len(calls)
    calls.clear()
    with torch.no_grad():
        trainee(x)
    assert len(calls) == forward_and_backward


def answers_differ(model, x):
    torch.manual_seed(1)
    first = model(x)
    torch.manual_seed(2)
    return not torch.equal(first, model(x))


def test_stochastic_depth_acts_while_training_only(card, mini):
    x = images(card, 16)
    with torch.no_grad():
        model = build_lively(card, drop_path_rate=0.9)
        assert answers_differ(model.train(), x)
        assert not answers_differ(build_lively(card, drop_path_rate=0.0).train(), x)
        model.load_state_dict(mini.state_dict())
        assert_same(model.eval()(x), mini(x))


def test_dropout_acts_while_training_only(card, mini, x):
    with torch.no_grad():
        model = build_lively(card, drop_rate=0.5)
        assert answers_differ(model.train(), x)
        model.load_state_dict(mini.state_dict())
        assert_same(model.eval()(x), mini(x))


def test_the_same_seed_gives_the_same_run(card, x):
    def step(seed):
        model = build(card, seed, drop_path_rate=0.2).train()
        loss_of(model, x).backward()
        return {**model.state_dict(), **{f"grad {name}": gradient for name, gradient in gradients(model).items()}}

    first, second, other = step(3), step(3), step(4)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_bfloat16_autocast_trains(trainee, x):
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(trainee, x)
    assert loss.isfinite()
    loss.backward()
    assert all(gradient.isfinite().all() for gradient in gradients(trainee).values())


def test_bfloat16_autocast_is_close_to_float32(mini, x):
    with torch.no_grad():
        expected = mini(x)
        with torch.autocast("cpu", torch.bfloat16):
            answer = mini(x)
    assert_same(answer.float(), expected, 0.1)
