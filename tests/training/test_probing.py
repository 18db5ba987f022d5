"""Linear probing and nearest neighbours on frozen features."""

import math

import pytest
import torch
from _images import write_images
from torch import nn

from torchstone.data.images import open_images
from torchstone.errors import CallError, UnknownName
from torchstone.models.registry import build_model
from torchstone.training.probing import (
    extract,
    linear_probe,
    nearest_neighbours,
    pooled_features,
    probe,
    wilson,
)

SMALL = "timm:test_convnext"


def clusters(spread, samples=60, classes=3, width=5, seed=0):
    """Features around a centre for each class, as three splits."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, width, generator=generator)
    found = {}
    for split in ("train", "val", "test"):
        labels = torch.arange(samples) % classes
        found[split] = centres[labels] + spread * torch.randn(samples, width, generator=generator), labels
    return found


@pytest.mark.parametrize("classifier", [linear_probe, nearest_neighbours])
def test_separate_classes_are_told_apart_and_noise_is_not(classifier):
    clear, noise = classifier(clusters(0.05)), classifier(clusters(1e3))
    assert (clear.val_accuracy, clear.test_accuracy, clear.high) == (1.0, 1.0, 1.0)
    assert noise.test_accuracy < 0.6
    assert noise.low < noise.test_accuracy < noise.high


def test_the_linear_probe_does_not_mind_scale_shift_and_constant_features():
    plain = clusters(0.6)
    scaled = {
        split: (torch.cat([1000 * f + 7, torch.full((len(f), 1), 3.0)], 1), labels)
        for split, (f, labels) in plain.items()
    }
    assert linear_probe(scaled).test_accuracy == pytest.approx(linear_probe(plain).test_accuracy, abs=1 / 60)


def test_neighbours_vote_by_similarity_and_the_fewest_of_equals_are_taken():
    direction = torch.tensor([0.0, 0.1, 0.2, 2.0, 2.1, 2.2])
    known = torch.stack([direction.cos(), direction.sin()], 1)
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    features = dict.fromkeys(("train", "val", "test"), (5 * known, labels))
    found = nearest_neighbours(features, counts=(6, 3, 1))
    assert (found.setting, found.test_accuracy) == (1, 1.0)
    assert nearest_neighbours(features, counts=(6,)).test_accuracy == 1.0  # near ones weigh more than far ones
    assert nearest_neighbours(features, counts=(100,)).setting == 6


def test_the_test_split_plays_no_part_in_the_choice():
    features = clusters(0.8)
    other = {**features, "test": (features["test"][0], 2 - features["test"][1])}
    for classifier in (linear_probe, nearest_neighbours):
        assert classifier(features).setting == classifier(other).setting


def test_the_interval_is_wilsons():
    low, high = wilson(0.9, 100)
    assert (round(low, 4), round(high, 4)) == (0.8256, 0.9448)
    assert wilson(1.0, 10)[1] == pytest.approx(1.0)
    assert math.isclose(wilson(0.0, 10)[0], 0.0, abs_tol=1e-12)


def test_features_are_those_before_the_classifier():
    images = torch.randn(2, 3, 32, 32)
    for name, width in ((SMALL, None), ("torchvision:resnet18", 512)):
        with torch.no_grad():
            model = build_model(name, num_classes=5).eval()
            headless = build_model(name, num_classes=0).eval()
            state = {key: value for key, value in model.state_dict().items() if key in headless.state_dict()}
            headless.load_state_dict({key: v for key, v in state.items() if not key.startswith("fc.")}, strict=False)
            features = pooled_features(model, images)
            torch.testing.assert_close(pooled_features(headless, images), features)
            assert features.shape == (2, width or model.num_features)
            last = model.fc if width else model.head.fc
            torch.testing.assert_close(last(features), model(images))


@pytest.mark.parametrize("model", [nn.Conv2d(3, 4, 1), nn.Sequential(nn.Conv2d(3, 4, 1), nn.Linear(32, 2))])
def test_a_network_without_pooled_features_is_refused(model):
    with pytest.raises(CallError, match=r"no (linear classifier|pooled features)"):
        pooled_features(model, torch.randn(2, 3, 32, 32))


def test_features_come_in_the_order_of_the_data_without_augmentation(tmp_path):
    data = open_images(write_images(tmp_path / "images"), batch_size=8, size=32, augment="none")
    model = build_model(SMALL, num_classes=0)
    once, again = extract(model, data), extract(model, data)
    for split, size in data.sizes.items():
        assert once[split][0].shape == (size, model.num_features)
        assert once[split][1].tolist() == data.labels(split).tolist()
        assert torch.equal(once[split][0], again[split][0])


def test_an_untrained_network_is_probed_alike_every_time(tmp_path):
    data = str(write_images(tmp_path / "images"))
    calls = []
    found = probe([SMALL], data, size=32, progress=lambda *call: calls.append(call))
    assert probe([SMALL], data, size=32, batch_size=5).to_dict() == found.to_dict() | {
        "data": {**found.data, "batch_size": 5}
    }
    (one,) = found.probes
    assert (one.name, one.start, one.features) == (SMALL, "untrained", 64)
    assert calls[-1] == (f"{SMALL}: fitting", 0, 0)


@pytest.mark.parametrize(
    ("models", "data", "error", "message"),
    [
        ([], "digits", CallError, "at least one run or model"),
        (["timm:resnt18"], "digits", UnknownName, "unknown timm model 'resnt18'"),
        ([SMALL], None, CallError, "name the data to probe on"),
        ([f"{SMALL}@"], "digits", CallError, "weights are expected after @"),
    ],
)
def test_what_cannot_be_probed_is_named(models, data, error, message):
    with pytest.raises(error, match=message):
        probe(models, data)


def test_a_run_brings_its_data(finished):
    found = probe([finished, "timm:test_convnext"])
    assert [one.start for one in found.probes] == ["trained", "untrained"]
    assert (found.data["source"], found.data["limit"]) == ("digits", 40)
