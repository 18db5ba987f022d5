"""Every image model takes the sizes on its card, and answers any other input with an error that says what is right."""

import pytest
import torch
from _image import SIZE, assert_same, channels, images

from torchstone import create_model
from torchstone.errors import ShapeError


@pytest.fixture(scope="module")
def smallest(card, warm_timm):
    """The first of the paper's networks, or else of ours, on the meta device: shapes without arithmetic."""
    name = next(iter(sorted(card.networks, key=lambda variant: not variant.paper))).name
    with torch.device("meta"):
        return create_model(name).eval()


def meta(card, height, width):
    return torch.empty(2, channels(card), height, width, device="meta")


def test_sizes_on_the_card_are_taken(card, smallest):
    step = card.input.multiple_of
    least = -(-card.input.min // step) * step
    with torch.no_grad():
        for height, width in ((least, least), (least, least + 3 * step), (least + step, least)):
            assert smallest(meta(card, height, width)).shape == (2, smallest.num_classes)


def test_smaller_images_are_refused(card, smallest):
    if card.input.min == 1:
        pytest.skip("takes images of any size")
    for height, width in ((card.input.min - 1, card.input.min), (card.input.min, 1)):
        with pytest.raises(ShapeError, match=str(card.input.min)):
            smallest(meta(card, height, width))


def test_sizes_between_are_refused(card, smallest):
    step = card.input.multiple_of
    if step == 1:
        pytest.skip("takes every size")
    for height, width in (
        (card.input.min * step + 1, card.input.min * step),
        (card.input.min * step, card.input.min + 1),
    ):
        with pytest.raises(ShapeError, match=str(step)):
            smallest(meta(card, height, width))


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 11, 17])
def test_no_size_fails_inside_the_network(card, mini, size):
    """A small image is either answered or refused, never a failure of some layer."""
    with torch.no_grad():
        try:
            answer = mini(images(card, 2, size))
        except ShapeError:
            return
    assert answer.shape == (2, mini.num_classes)


@pytest.mark.parametrize("cut", [lambda x: x[0], lambda x: x[0, 0], lambda x: x[None]], ids=["3-d", "2-d", "5-d"])
def test_another_rank_is_refused(mini, x, cut):
    with pytest.raises(ShapeError, match=r"\(B, .*, H, W\)"):
        mini(cut(x))


def test_other_channels_are_refused(card, mini):
    right = channels(card)
    with pytest.raises(ShapeError, match=f"{right} channels.*{right + 2}"):
        mini(torch.randn(2, right + 2, SIZE, SIZE))


def test_maps_are_refused_like_images(card, mini):
    with pytest.raises(ShapeError):
        mini.forward_intermediates(torch.randn(2, channels(card) + 2, SIZE, SIZE))


def test_channels_last_memory_gives_the_same_answer(mini, x):
    with torch.no_grad():
        assert_same(mini(x.contiguous(memory_format=torch.channels_last)), mini(x))


def test_each_image_is_answered_by_itself(card, mini):
    x = images(card, 4)
    with torch.no_grad():
        together = mini(x)
        alone = torch.cat([mini(image[None]) for image in x])
    assert_same(alone, together)


def test_nan_in_an_image_shows_in_its_answer_alone(mini, x):
    with torch.no_grad():
        clean = mini(x)
        spoilt = x.clone()
        spoilt[0, :, SIZE // 2, SIZE // 2] = float("nan")
        answer = mini(spoilt)
    assert answer[0].isnan().any()
    assert_same(answer[1], clean[1])
