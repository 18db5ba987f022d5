"""Every sequence model is a function of each sequence alone, of any length; what is no sequence is refused."""

import pytest
import torch
from _image import assert_same
from _sequence import CHANNELS, CLASSES, LENGTH, SYSTEMS, build_sequence_model, sequences, takes_lengths

from torchstone.errors import ShapeError

pytestmark = pytest.mark.parametrize(
    "card", [pytest.param(card, id=card.key, marks=pytest.mark.system(card.key)) for card in SYSTEMS]
)


def answer(model, *inputs):
    with torch.no_grad():
        return model.eval()(*inputs)


@pytest.mark.parametrize("length", [1, 2, 7, LENGTH - 1, LENGTH])
def test_every_length_up_to_the_longest_is_classified(card, length):
    found = answer(build_sequence_model(card), sequences(length=length))
    assert found.shape == (2, CLASSES)
    assert found.isfinite().all()


def test_a_sequence_is_answered_without_its_neighbours_in_the_batch(card):
    model, x = build_sequence_model(card), sequences(4)
    each = torch.cat([answer(model, one[None]) for one in x])
    assert_same(answer(model, x), each)


def test_every_step_and_their_order_matter(card):
    model, x = build_sequence_model(card), sequences(1)
    expected = answer(model, x)
    for step in (0, LENGTH // 2, LENGTH - 1):
        other = x.clone()
        other[0, step] += 1
        assert not torch.allclose(answer(model, other), expected, atol=1e-5), step
    assert not torch.allclose(answer(model, x.flip(1)), expected, atol=1e-4)


def test_padding_behind_the_lengths_changes_nothing(card):
    model = build_sequence_model(card)
    if not takes_lengths(model):
        pytest.skip("takes no lengths")
    short, long = sequences(1, 9), sequences(1, LENGTH, seed=1)
    padded = torch.full((1, LENGTH, CHANNELS), float("nan"))
    padded[:, :9] = short
    found = answer(model, torch.cat([padded, long]), torch.tensor([9, LENGTH]))
    assert_same(found[:1], answer(model, short))
    assert_same(found[1:], answer(model, long))


def test_nan_in_a_sequence_reaches_no_other(card):
    model, x = build_sequence_model(card), sequences(3)
    clean = answer(model, x)
    x[1, 4, 0] = float("nan")
    found = answer(model, x)
    assert found[1].isnan().all()
    assert_same(found[[0, 2]], clean[[0, 2]])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x: x[..., :-1], rf"\(B, L, {CHANNELS}\), got \(2, {LENGTH}, {CHANNELS - 1}\)"),
        (lambda x: x[0], rf"\(B, L, {CHANNELS}\), got \({LENGTH}, {CHANNELS}\)"),
        (lambda x: x[:, :0], "at least one step"),
        (lambda x: x.long(), "floating-point"),
    ],
    ids=["channels", "no batch", "empty", "integers"],
)
def test_other_shapes_and_types_are_refused(card, spoil, message):
    with pytest.raises(ShapeError, match=message):
        build_sequence_model(card)(spoil(sequences()))


def test_lengths_that_do_not_fit_are_refused(card):
    model = build_sequence_model(card)
    if not takes_lengths(model):
        pytest.skip("takes no lengths")
    with pytest.raises(ShapeError, match=r"\(2,\), got \(3,\)"):
        model(sequences(), torch.tensor([1, 2, 3]))
    for wrong in (0, LENGTH + 1):
        with pytest.raises(ShapeError, match=f"from 1 to {LENGTH}"):
            model(sequences(), torch.tensor([1, wrong]))
