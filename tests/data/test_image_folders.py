import os
import re
import warnings

import numpy as np
import pytest
from _image_files import encoded, picture, write_folder
from PIL import Image

from torchstone.data import examination as examination_module
from torchstone.data import open_images, open_source
from torchstone.errors import DataError


def refusal(path) -> str:
    with pytest.raises(DataError) as error:
        open_source(path)
    return str(error.value)


def test_class_folders_give_classes_and_labels(tmp_path):
    source = open_source(write_folder(tmp_path / "pets", {"dog": 3, "cat": 2}))
    assert source.name == "pets"
    assert source.classes == ["cat", "dog"]
    assert source.labels.tolist() == [0, 0, 1, 1, 1]
    assert source.names == ["cat/000.png", "cat/001.png", "dog/000.png", "dog/001.png", "dog/002.png"]
    assert set(source.splits) == {"train"}
    np.testing.assert_array_equal(np.asarray(source.images.image(2)), np.asarray(picture(0)))


def test_split_folders_are_kept(tmp_path):
    counts = {"train/a": 4, "train/b": 4, "valid/a": 1, "valid/b": 2, "test/a": 3, "test/b": 1}
    data = open_images(write_folder(tmp_path, counts), batch_size=2)
    assert data.sizes == {"train": 8, "val": 3, "test": 4}
    assert data.names("val") == ["valid/a/000.png", "valid/b/000.png", "valid/b/001.png"]
    assert data.describe()["splits"]["test"]["origin"] == "the data's own"


def test_only_the_missing_split_is_drawn(tmp_path):
    data = open_images(write_folder(tmp_path, {"train/a": 10, "train/b": 10, "test/a": 2, "test/b": 2}), batch_size=2)
    assert data.sizes == {"train": 18, "val": 2, "test": 4}
    origins = {name: split["origin"] for name, split in data.describe()["splits"].items()}
    assert origins == {
        "train": "the data's own",
        "val": "0.1 of 20 training images, by class",
        "test": "the data's own",
    }


def test_images_count_at_any_depth_and_files_that_are_no_images_do_not(tmp_path):
    root = write_folder(tmp_path, {"a/summer/june": 2, "a": 1, "b": 2})
    for name in ("a/notes.txt", "a/._000.png", ".DS_Store", "overview.png"):
        (root / name).write_bytes(b"not an image")
    (root / "__MACOSX" / "a").mkdir(parents=True)
    (root / ".git").mkdir()
    (root / "a" / "LOUD.JPEG").write_bytes(encoded(picture(9), "JPEG"))
    source = open_source(root)
    assert source.names[:4] == ["a/000.png", "a/LOUD.JPEG", "a/summer/june/000.png", "a/summer/june/001.png"]
    assert source.names[4:] == ["b/000.png", "b/001.png"]
    assert not source.skipped


def test_a_class_may_be_called_train(tmp_path):
    assert open_source(write_folder(tmp_path, {"train": 2, "plane": 2})).classes == ["plane", "train"]


def test_mixed_colour_modes_all_become_rgb(tmp_path):
    root = write_folder(tmp_path, {"a": 2, "b": 2})
    for name, image in {
        "a/grey.png": picture(0).convert("L"),
        "a/alpha.png": picture(0).convert("RGBA"),
        "b/palette.gif": picture(0).quantize(8),
        "b/deep.png": Image.fromarray(np.full((5, 5), 65535, np.uint16)),
        "b/cmyk.jpg": picture(0).convert("CMYK"),
    }.items():
        image.save(root / name)
    source = open_source(root)
    assert {np.asarray(source.images.image(index)).shape[2] for index in range(9)} == {3}


def test_an_empty_folder_is_refused_with_what_is_expected(tmp_path):
    assert "no images" in (message := refusal(tmp_path))
    assert "it is empty" in message
    assert "FOLDER/<class>/<image>" in message


def test_images_without_class_folders_are_refused(tmp_path):
    write_folder(tmp_path, {".": 3})
    assert "it holds 3 .png files" in refusal(tmp_path)


def test_one_class_is_refused(tmp_path):
    assert "one class, 'cat'" in refusal(write_folder(tmp_path, {"cat": 5}))


def test_a_class_folder_without_images_is_refused(tmp_path):
    root = write_folder(tmp_path, {"cat": 2, "dog": 2, "horse": 0})
    assert "without images: 'horse'" in refusal(root)


def test_a_test_class_that_training_lacks_is_refused(tmp_path):
    root = write_folder(tmp_path, {"train/a": 2, "train/b": 2, "test/a": 1, "test/zebra": 1})
    assert "without a training folder: 'zebra'" in refusal(root)


def test_a_test_folder_without_classes_is_refused(tmp_path):
    root = write_folder(tmp_path, {"train/a": 2, "train/b": 2, "test": 3})
    message = refusal(root)
    assert f"{root / 'test'} has no class folders (it holds 3 .png files)" in message


def test_images_beside_the_splits_are_refused(tmp_path):
    root = write_folder(tmp_path, {"train/a": 2, "train/b": 2, "extra/a": 1})
    assert "images in 'extra'" in refusal(root)


def test_two_folders_for_one_split_are_refused(tmp_path):
    root = write_folder(tmp_path, {"train/a": 2, "train/b": 2, "val/a": 1, "valid/a": 1})
    assert "two folders for one split: train, val, valid" in refusal(root)


def test_too_few_images_to_split_are_refused(tmp_path):
    source = open_source(write_folder(tmp_path, {"a": 1, "b": 1}))
    with pytest.raises(DataError, match="too few images to split off a test set"):
        open_images(source, batch_size=1)


def test_a_mistyped_name_gets_the_nearest_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "did you mean 'digits'?" in refusal("digitss")
    assert "did you mean 'cifar10'?" in refusal("cifar-10")
    (tmp_path / "flowers").mkdir()
    assert f"did you mean '{tmp_path / 'flowers'}'?" in refusal(tmp_path / "flower")
    assert "digits, cifar10" in refusal("/no/such/place")


def test_a_file_that_is_no_table_is_refused(tmp_path):
    (tmp_path / "data.csv").write_text("a,b")
    assert "data.csv is a file and not Parquet" in refusal(tmp_path / "data.csv")


def test_an_unreadable_folder_is_named(tmp_path, monkeypatch):
    root = write_folder(tmp_path, {"a": 2, "b": 2})
    scandir = os.scandir

    def forbidden(path):
        if os.fspath(path).endswith("b"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", forbidden)
    assert f"cannot read the folder {root / 'b'}: Permission denied" in refusal(root)


@pytest.fixture(params=["in memory", "from files"])
def storage(request, monkeypatch):
    if request.param == "from files":
        monkeypatch.setattr(examination_module, "IN_MEMORY_BYTES", 0)
    return request.param


@pytest.mark.usefixtures("storage")
def test_corrupt_images_are_skipped_listed_and_named_in_one_warning(tmp_path):
    root = write_folder(tmp_path, {"a": 20, "b": 20}, "JPEG", height=30, width=30)
    whole = (root / "a/003.jpeg").read_bytes()
    (root / "a/003.jpeg").write_bytes(whole[: len(whole) // 2])
    (root / "b/007.jpeg").write_bytes(b"")
    (root / "b/008.jpeg").write_text("<html>404</html>")
    with pytest.warns(UserWarning, match="3 of 40 images cannot be read") as record:
        data = open_images(root, batch_size=4)
    assert len(record) == 1
    message = str(record[0].message)
    assert "b/007.jpeg: empty; b/008.jpeg: not an image" in message
    assert message.count("\n") == 0
    assert data.skipped == ["a/003.jpeg", "b/007.jpeg", "b/008.jpeg"]
    assert sum(data.sizes.values()) == 37
    assert set(data.describe()["skipped"]) == set(data.skipped)
    assert sum(len(labels) for _, labels in data.train_dataloader()) == data.sizes["train"] // 4 * 4


@pytest.mark.usefixtures("storage")
def test_many_corrupt_images_are_refused(tmp_path):
    root = write_folder(tmp_path, {"a": 10, "b": 10})
    for index in range(3):
        (root / f"a/00{index}.png").write_bytes(b"garbage")
    message = refusal(root)
    assert "3 of 20 images cannot be read (a/000.png: not an image; " in message
    assert "more than 10%" in message


@pytest.mark.parametrize(
    ("counts", "broken", "lost"),
    [
        ({"a": 20, "b": 1}, "b/000.png", "No training image of class 'b' is left"),
        ({"train/a": 20, "train/b": 20, "test/a": 1}, "test/a/000.png", "No image of the test split is left"),
    ],
)
def test_a_class_or_split_that_is_all_corrupt_is_refused(tmp_path, counts, broken, lost):
    root = write_folder(tmp_path, counts)
    (root / broken).write_bytes(b"garbage")
    message = refusal(root)
    assert broken in message
    assert lost in message


def test_an_image_that_breaks_after_opening_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(examination_module, "IN_MEMORY_BYTES", 0)
    data = open_images(write_folder(tmp_path, {"a": 4, "b": 4}), batch_size=2)
    for file in tmp_path.rglob("*.png"):
        file.write_bytes(b"gone")
    with pytest.raises(DataError, match=re.escape(str(tmp_path)) + r"/[ab]/00\d.png cannot be read: not an image"):
        next(iter(data.test_dataloader()))


def test_images_in_memory_and_from_files_give_the_same_batches(tmp_path, monkeypatch):
    write_folder(tmp_path, {"a": 20, "b": 20}, "JPEG", height=50, width=70)
    kept = open_images(tmp_path, batch_size=4)
    monkeypatch.setattr(examination_module, "IN_MEMORY_BYTES", 0)
    read = open_images(tmp_path, batch_size=4)
    assert type(kept.source.images) is not type(read.source.images)
    assert kept.describe()["splits"] == read.describe()["splits"]
    for ours, theirs in zip(kept.train_dataloader(), read.train_dataloader(), strict=True):
        assert ours[0].equal(theirs[0])
        assert ours[1].equal(theirs[1])


@pytest.mark.usefixtures("storage")
def test_the_fingerprint_follows_the_content_not_the_place(tmp_path):
    counts = {"a": 6, "b": 6}
    first = open_source(write_folder(tmp_path / "here", counts)).fingerprint
    assert open_source(write_folder(tmp_path / "there", counts)).fingerprint == first
    prints = {first}

    (tmp_path / "there/a/000.png").write_bytes(encoded(picture(99, 13, 11)))
    prints.add(open_source(tmp_path / "there").fingerprint)
    (tmp_path / "there/a/001.png").rename(tmp_path / "there/b/001b.png")
    prints.add(open_source(tmp_path / "there").fingerprint)
    (tmp_path / "there/a").rename(tmp_path / "there/A")
    prints.add(open_source(tmp_path / "there").fingerprint)
    (tmp_path / "there/b/000.png").unlink()
    prints.add(open_source(tmp_path / "there").fingerprint)
    assert len(prints) == 5


def test_the_fingerprint_follows_the_splits(tmp_path):
    pool = open_source(write_folder(tmp_path / "pool", {"a": 3, "b": 3}))
    split = open_source(write_folder(tmp_path / "split", {"train/a": 3, "train/b": 3}))
    assert split.fingerprint == pool.fingerprint  # all of it is training data either way
    (tmp_path / "split/test/b").mkdir(parents=True)
    (tmp_path / "split/train/b/002.png").rename(tmp_path / "split/test/b/002.png")
    assert open_source(tmp_path / "split").fingerprint != pool.fingerprint


@pytest.mark.parametrize(("side", "size"), [(8, 32), (40, 32), (41, 64), (80, 64), (81, 224)])
def test_the_default_size_suits_the_shorter_side(tmp_path, side, size):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = open_images(write_folder(tmp_path, {"a": 3, "b": 3}, height=side + 30, width=side), batch_size=2)
    assert data.image_size == size


def test_progress_reaches_the_end(tmp_path):
    steps = []
    open_source(write_folder(tmp_path, {"a": 90, "b": 60}), progress=lambda done, total: steps.append((done, total)))
    assert steps == [(64, 150), (128, 150), (150, 150)]
