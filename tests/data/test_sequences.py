"""Images as sequences: pixels in raster order, the images' splits, nothing augmented."""

import numpy as np
import pytest
import torch
from _images import write_images
from sklearn.datasets import load_digits

from torchstone.data import open_images, open_sequences
from torchstone.data.sequences import image_source_of, is_sequence_source, preprocess_sequences
from torchstone.errors import CallError, DataError, UnknownName


@pytest.fixture(scope="module")
def digits():
    return open_sequences("sequential-digits", batch_size=16)


def test_a_digit_is_its_64_pixels_row_by_row(digits):
    assert (digits.length, digits.channels, digits.num_classes) == (64, 1, 10)
    x, y = next(iter(digits.test_dataloader()))
    assert x.shape == (16, 64, 1)
    assert x.dtype == torch.float32
    index = digits.splits.indices["test"][:16]
    pixels = np.rint(load_digits().images[index] * (255 / 16)) / 255  # (16, 8, 8)
    restored = x.squeeze(-1) * torch.tensor(digits.std) + torch.tensor(digits.mean)
    torch.testing.assert_close(restored, torch.from_numpy(pixels).float().flatten(1), rtol=1e-4, atol=1e-4)
    assert y.tolist() == load_digits().target[index].tolist()


def test_splits_and_order_are_those_of_the_images(digits):
    images = open_images("digits", batch_size=16, augment="none")
    for name in ("train", "val", "test"):
        assert digits.splits.indices[name].tolist() == images.splits.indices[name].tolist()
    (_, ours), (_, theirs) = next(iter(digits.train_dataloader())), next(iter(images.train_dataloader()))
    assert ours.tolist() == theirs.tolist()
    assert digits.fingerprint == images.fingerprint
    assert digits.augment == "none"
    assert digits.name == "sequential-digits"


def test_training_sees_the_pixels_as_they_are(digits):
    x, _ = next(iter(digits.train_dataloader()))
    again, _ = next(iter(digits.train_dataloader()))
    assert torch.equal(x, again)


def test_folders_in_colour_and_grey(tmp_path):
    folder = write_images(tmp_path / "tree", side=16)
    colour = open_sequences(f"sequential:{folder}", batch_size=4)
    grey = open_sequences(f"sequential-grey:{folder}", batch_size=4)
    (c, labels), (g, same) = next(iter(colour.val_dataloader())), next(iter(grey.val_dataloader()))
    assert c.shape[1:] == (256, 3)
    assert g.shape[1:] == (256, 1)
    assert labels.tolist() == same.tolist()
    luma = (c * torch.tensor(colour.std) + torch.tensor(colour.mean)) @ torch.tensor([0.299, 0.587, 0.114])
    torch.testing.assert_close(g.squeeze(-1) * grey.std[0] + grey.mean[0], luma, rtol=1e-4, atol=1e-4)


def test_large_images_are_made_smaller_unless_the_size_is_given(tmp_path):
    folder = write_images(tmp_path / "tree", side=48)
    assert open_sequences(f"sequential:{folder}", batch_size=4).length == 32 * 32
    assert open_sequences(f"sequential:{folder}", batch_size=4, size=40).length == 40 * 40


def test_prediction_prepares_an_image_as_evaluation_does(digits):
    x, _ = next(iter(digits.test_dataloader()))
    index = digits.splits.indices["test"][:16]
    images = [np.array(digits.source.images.image(i)) for i in index]
    assert torch.equal(preprocess_sequences(images, digits.preprocessing()), x)


def test_sources_are_told_apart():
    assert is_sequence_source("sequential-cifar10-grey")
    assert image_source_of("sequential-cifar10-grey") == ("cifar10", 1)
    assert not is_sequence_source("digits")
    assert is_sequence_source("sequential-digitz")
    with pytest.raises(UnknownName, match="did you mean 'sequential-digits'"):
        open_sequences("sequential-digitz", batch_size=4)
    with pytest.raises(CallError, match="sequential:PATH"):
        open_sequences("sequential:", batch_size=4)
    with pytest.raises(DataError, match="nowhere"):
        open_sequences("sequential:nowhere", batch_size=4)
    with pytest.raises(CallError, match="val_fraction"):
        open_sequences("sequential-digits", batch_size=4, val_fraction=1.5)
