import numpy as np
import pytest
import torch
from _image_files import encoded, picture
from PIL import Image
from timm.data import create_transform
from torchvision.transforms import RandomCrop

from torchstone.data import open_images, preprocess
from torchstone.data.augmentation import RandomShift, resolve_augment, training_transform
from torchstone.data.preprocessing import imagenet_preprocessing
from torchstone.errors import CallError, DataError, UnknownName


@pytest.mark.parametrize(("height", "width"), [(32, 32), (40, 60), (8, 8), (100, 37)])
@pytest.mark.parametrize("crop_pct", [1.0, 0.875])
def test_preprocessing_is_timms_evaluation_transform(height, width, crop_pct):
    image = picture(0, height, width)
    theirs = create_transform(32, interpolation="bicubic", crop_pct=crop_pct)(image)
    assert preprocess(image, imagenet_preprocessing(32, crop_pct))[0].equal(theirs)


def test_prediction_sees_what_evaluation_saw(tmp_path):
    data = open_images("digits", batch_size=4)
    images, _ = next(iter(data.test_dataloader()))
    pictures = [data.source.images.image(index) for index in data.splits.indices["test"][:4]]
    paths = []
    for index, image in enumerate(pictures):
        paths.append(tmp_path / f"{index}.png")
        image.save(paths[-1])
    settings = data.preprocessing()
    assert preprocess(pictures, settings).equal(images)
    assert preprocess(paths, settings).equal(images)
    assert preprocess([str(path) for path in paths], settings).equal(images)
    assert preprocess([encoded(image) for image in pictures], settings).equal(images)
    assert preprocess([np.asarray(image) for image in pictures], settings).equal(images)
    assert preprocess(np.asarray(pictures[0].convert("L")), settings).equal(images[:1])


def test_what_is_no_image_is_named(tmp_path):
    settings = imagenet_preprocessing(32, 1.0)
    (tmp_path / "a.png").write_bytes(b"text")
    for wrong, said in (
        (tmp_path / "a.png", "a.png cannot be read as an image: not an image"),
        (str(tmp_path / "b.png"), "no such image file: .*b.png"),
        (b"text", "the given bytes cannot be read as an image"),
        (np.zeros((4, 4, 3)), r"must be uint8 \(H, W\) or \(H, W, 3\); it is float64 \(4, 4, 3\)"),
        (np.zeros((3, 4, 4), np.uint8), r"it is uint8 \(3, 4, 4\)"),
    ):
        with pytest.raises(DataError, match=said):
            preprocess(wrong, settings)
    with pytest.raises(CallError, match="no images"):
        preprocess([], settings)
    with pytest.raises(CallError, match="keys size, mean, std, interpolation, crop_pct; this one has size"):
        preprocess(picture(0), {"size": 32})


@pytest.mark.parametrize(
    "augment", ["none", "light", "flip", "standard", "rand-m9-mstd0.5-inc1", "rand-m7-n3-p0.5-t3aw"]
)
def test_training_images_have_the_networks_size(augment):
    transform = training_transform(augment, imagenet_preprocessing(24, 1.0))
    for shape in ((24, 24), (30, 90), (5, 7)):
        image = transform(picture(0, *shape))
        assert (image.shape, image.dtype) == ((3, 24, 24), torch.uint8)


def test_a_shift_is_a_crop_of_the_mirrored_image():
    image = torch.from_numpy(np.array(picture(0, 16, 16))).permute(2, 0, 1)
    ours, theirs = RandomShift(16, 3), RandomCrop(16, padding=3, padding_mode="reflect")
    mirrored = np.pad(image.numpy(), ((0, 0), (3, 3), (3, 3)), mode="reflect")
    crops = {mirrored[:, y : y + 16, x : x + 16].tobytes(): (y, x) for y in range(7) for x in range(7)}
    torch.manual_seed(0)
    seen = {crops[ours(image).numpy().tobytes()] for _ in range(600)}
    assert len(seen) == 49  # every shift by -3..3 in both directions, and no other
    assert theirs(image).numpy().tobytes() in crops


def test_light_never_mirrors_and_flip_mirrors_half():
    image = Image.new("RGB", (32, 32), "black")
    image.paste("white", (0, 0, 16, 32))
    for augment, low, high in (("light", 0, 0), ("flip", 70, 130)):
        transform = training_transform(augment, imagenet_preprocessing(32, 1.0))
        torch.manual_seed(0)
        flipped = sum(int(transform(image)[0, 16, 28] == 255) for _ in range(200))
        assert low <= flipped <= high


def test_none_is_what_evaluation_does():
    settings = imagenet_preprocessing(32, 1.0)
    image = picture(0, 50, 40)
    trained = training_transform("none", settings)(image)
    expected = create_transform(32, interpolation="bicubic", crop_pct=1.0, normalize=False)(image)
    assert trained.equal(expected)


def test_standard_is_timms_training_transform():
    import random

    settings = imagenet_preprocessing(32, 0.875)
    theirs = create_transform(32, is_training=True, interpolation="bicubic", normalize=False)
    for seed in range(5):
        results = []
        for transform in (training_transform("standard", settings), theirs):
            torch.manual_seed(seed)
            random.seed(seed)
            results.append(transform(picture(0, 60, 60)))
        assert results[0].equal(results[1])


def test_the_strongest_posterisation_keeps_a_bit():
    transform = training_transform("rand-m10-inc1-p1", imagenet_preprocessing(16, 1.0))
    (augment,) = [step for step in transform.transforms if hasattr(step, "ops")]
    (posterize,) = [op for op in augment.ops if "Posterize" in op.name]
    strongest = np.asarray(posterize(picture(0)))
    assert set(np.unique(strongest)) == {0, 128}


def test_auto_follows_the_data_and_the_size():
    assert [resolve_augment("auto", size) for size in (32, 64, 65, 224)] == ["flip", "flip", "standard", "standard"]
    assert resolve_augment("auto", 224, "light") == "light"
    assert resolve_augment("none", 224, "light") == "none"


@pytest.mark.parametrize("wrong", ["Flip", "rand-m9-std0.5", "rand-m", "random", "rand-m9-"])
def test_a_mistyped_augmentation_is_refused(wrong):
    with pytest.raises(UnknownName, match="unknown augmentation"):
        resolve_augment(wrong, 32)


def test_evaluation_looks_at_the_centre_only_where_training_crops():
    for augment, crop_pct in (("none", 1.0), ("light", 1.0), ("flip", 1.0), ("standard", 0.875), ("rand-m9", 0.875)):
        assert open_images("digits", batch_size=8, augment=augment).preprocessing()["crop_pct"] == crop_pct
