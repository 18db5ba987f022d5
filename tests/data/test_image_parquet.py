import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from _image_files import encoded, picture, write_parquet
from _shared import requires_shared, shared

from torchstone.data import open_images, open_source
from torchstone.errors import DataError

LABELS = [0, 1] * 6


def refusal(path) -> str:
    with pytest.raises(DataError) as error:
        open_source(path)
    return str(error.value)


def test_a_file_is_a_pool_of_images(tmp_path):
    source = open_source(write_parquet(tmp_path / "pets.parquet", LABELS))
    assert source.name == "pets"
    assert source.classes == ["0", "1"]
    assert source.labels.tolist() == LABELS
    assert source.names[3] == "pets.parquet row 3"
    assert set(source.splits) == {"train"}
    for index in range(12):
        np.testing.assert_array_equal(np.asarray(source.images.image(index)), np.asarray(picture(index)))


def test_file_names_give_the_splits(tmp_path):
    for name, count in {"train-0": 10, "train-1": 6, "validation": 2, "test": 4}.items():
        write_parquet(tmp_path / f"{name}.parquet", [0, 1] * (count // 2))
    assert open_images(tmp_path, batch_size=2).sizes == {"train": 16, "val": 2, "test": 4}


def test_folder_names_give_the_splits(tmp_path):
    write_parquet(tmp_path / "train/0.parquet", LABELS)
    write_parquet(tmp_path / "test/0.parquet", [0, 1])
    source = open_source(tmp_path)
    assert dict(zip(*np.unique(source.splits, return_counts=True), strict=True)) == {"train": 12, "test": 2}


def test_classes_json_names_the_classes(tmp_path):
    write_parquet(tmp_path / "train.parquet", LABELS)
    (tmp_path / "classes.json").write_text('["zebra", "ant"]')
    assert open_source(tmp_path).classes == ["zebra", "ant"]
    write_parquet(tmp_path / "train.parquet", ["ant", "zebra", "zebra"])
    assert open_source(tmp_path).labels.tolist() == [1, 0, 0]


def test_names_as_labels_are_sorted_classes(tmp_path):
    write_parquet(tmp_path / "train.parquet", ["dog", "cat", "dog"])
    source = open_source(tmp_path)
    assert source.classes == ["cat", "dog"]
    assert source.labels.tolist() == [1, 0, 1]
    write_parquet(tmp_path / "train.parquet", pa.array(["dog", "cat", "dog"]).dictionary_encode())
    assert open_source(tmp_path).labels.tolist() == [1, 0, 1]


def test_numbers_without_names_become_consecutive_classes(tmp_path):
    source = open_source(write_parquet(tmp_path / "a.parquet", [10, 2, 10, 7]))
    assert source.classes == ["2", "7", "10"]
    assert source.labels.tolist() == [2, 0, 2, 1]


def test_hugging_face_files_are_read_as_they_are(tmp_path):
    features = {"img": {"_type": "Image"}, "label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    images = [{"bytes": encoded(picture(seed)), "path": None} for seed in range(4)]
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    file = tmp_path / "data" / "train-00000-of-00001.parquet"
    write_parquet(file, [1, 0, 1, 0], images=images, metadata=metadata, image="img")
    source = open_source(tmp_path)
    assert source.classes == ["cat", "dog"]
    np.testing.assert_array_equal(np.asarray(source.images.image(3)), np.asarray(picture(3)))


def test_rows_in_several_row_groups_and_files_stay_in_order(tmp_path):
    images = [encoded(picture(seed)) for seed in range(10)]
    for file, rows in (("a", slice(0, 7)), ("b", slice(7, 10))):
        table = pa.table({"image": images[rows], "label": [0, 1, 0, 1, 0, 1, 0, 1, 0, 1][rows]})
        pq.write_table(table, tmp_path / f"{file}.parquet", row_group_size=3)
    source = open_source(tmp_path)
    for index in range(10):
        np.testing.assert_array_equal(np.asarray(source.images.image(index)), np.asarray(picture(index)))


def test_the_fingerprint_follows_labels_and_names(tmp_path):
    prints = set()
    for labels, names in ((LABELS, '["a", "b"]'), ([1, *LABELS[1:]], '["a", "b"]'), (LABELS, '["a", "c"]')):
        (tmp_path / "classes.json").write_text(names)
        write_parquet(tmp_path / "train.parquet", labels)
        prints.add(open_source(tmp_path).fingerprint)
    assert len(prints) == 3


def test_missing_and_corrupt_images_are_skipped_by_row(tmp_path):
    images = [encoded(picture(seed)) for seed in range(40)]
    images[5], images[6] = None, b"garbage"
    write_parquet(tmp_path / "train.parquet", [0, 1] * 20, images=images)
    with pytest.warns(UserWarning, match="2 of 40 images cannot be read"):
        data = open_images(tmp_path, batch_size=4)
    assert data.source.skipped == {"train.parquet row 5": "empty", "train.parquet row 6": "not an image"}
    np.testing.assert_array_equal(np.asarray(data.source.images.image(5)), np.asarray(picture(7)))


def test_encoded_images_that_are_not_kept_decoded_give_the_same_batches(tmp_path, monkeypatch):
    write_parquet(tmp_path / "train.parquet", [0, 1] * 20)
    kept = open_images(tmp_path, batch_size=4)
    monkeypatch.setattr("torchstone.data.examination.IN_MEMORY_BYTES", 0)
    lazy = open_images(tmp_path, batch_size=4)
    assert lazy.fingerprint == kept.fingerprint
    assert type(kept.source.images) is not type(lazy.source.images)
    for ours, theirs in zip(kept.train_dataloader(), lazy.train_dataloader(), strict=True):
        assert ours[0].equal(theirs[0])


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([0, None, 1, None], "column 'label' has no value in 2 rows: 1, 3"),
        ([0.0, 1.0], "column 'label' holds double; integers or class names are expected"),
        ([3, 3, 3], "has one class, '3'"),
        ([], "has no rows"),
    ],
)
def test_labels_that_cannot_be_classes_are_refused(tmp_path, labels, said):
    kind = None if labels else pa.int64()
    assert said in refusal(
        write_parquet(
            tmp_path / "train.parquet", pa.array(labels, kind), images=pa.array([b""] * len(labels), pa.binary())
        )
    )


def test_a_label_out_of_range_is_named_with_its_row(tmp_path):
    (tmp_path / "classes.json").write_text('["cat", "dog"]')
    write_parquet(tmp_path / "test.parquet", [0, 1])
    for labels, row in (([0, 1, 2, 5], 2), ([0, 1, 1, -1], 3)):
        write_parquet(tmp_path / "train.parquet", labels)
        assert f"train.parquet: label {labels[row]} in row {row}" in (message := refusal(tmp_path))
        assert "2 classes ('cat' = 0 ... 'dog' = 1)" in message
    write_parquet(tmp_path / "test.parquet", ["cat", "dog"])
    write_parquet(tmp_path / "train.parquet", ["cat", "dog", "cow"])
    assert "train.parquet: label cow in row 2" in refusal(tmp_path)


def test_a_class_without_training_images_is_refused(tmp_path):
    (tmp_path / "classes.json").write_text('["cat", "dog", "cow"]')
    write_parquet(tmp_path / "train.parquet", LABELS)
    assert "no training images of 'cow'" in refusal(tmp_path)


def test_missing_columns_are_named_with_those_that_are_there(tmp_path):
    write_parquet(tmp_path / "a.parquet", LABELS, label="weight")
    assert "no column 'label'" in (message := refusal(tmp_path))
    assert "image, weight" in message
    write_parquet(tmp_path / "a.parquet", LABELS, image="photo")
    assert "no column 'image' (encoded images)" in refusal(tmp_path)


def test_an_image_column_without_bytes_is_refused(tmp_path):
    write_parquet(tmp_path / "a.parquet", LABELS, images=["a.png"] * 12)
    assert "column 'image' holds string; encoded images (bytes) are expected" in refusal(tmp_path)


def test_a_truncated_file_is_named(tmp_path):
    file = write_parquet(tmp_path / "train.parquet", LABELS)
    file.write_bytes(file.read_bytes()[:-50])
    assert "train.parquet cannot be read as Parquet" in refusal(tmp_path)


def test_a_file_of_no_split_beside_files_of_splits_is_refused(tmp_path):
    for name in ("train", "more"):
        write_parquet(tmp_path / f"{name}.parquet", LABELS)
    assert "so more.parquet belongs to none" in refusal(tmp_path)


def test_a_test_file_alone_is_refused(tmp_path):
    write_parquet(tmp_path / "test.parquet", LABELS)
    assert "files for test but none for train" in refusal(tmp_path)


def test_names_and_numbers_as_labels_do_not_mix(tmp_path):
    write_parquet(tmp_path / "train.parquet", LABELS)
    write_parquet(tmp_path / "test.parquet", ["cat", "dog"])
    assert "class names as labels, others integers" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [("[", "is not JSON"), ('{"a": 0}', "must be a list of class names"), ('["a", "a"]', "names a class twice")],
)
def test_a_wrong_classes_file_is_named(tmp_path, content, said):
    write_parquet(tmp_path / "train.parquet", LABELS)
    (tmp_path / "classes.json").write_text(content)
    assert f"{tmp_path / 'classes.json'} {said}" in refusal(tmp_path)


@requires_shared("data/cifar10")
def test_cifar10_as_parquet(tmp_path):
    original = shared("data/cifar10")
    for name, rows in (("train-0", 1500), ("train-1", 500), ("test", 500)):
        pq.write_table(pq.read_table(original / f"{name}.parquet").slice(0, rows), tmp_path / f"{name}.parquet")
    (tmp_path / "classes.json").write_bytes((original / "classes.json").read_bytes())
    data = open_images(tmp_path, batch_size=128)
    assert data.sizes == {"train": 1800, "val": 200, "test": 500}
    assert data.classes[:2] == ["airplane", "automobile"]
    assert (data.image_size, data.augment) == (32, "flip")
    assert not data.skipped
    splits = data.describe()["splits"]
    in_training = np.array(splits["train"]["per_class"]) + splits["val"]["per_class"]
    assert np.abs(splits["val"]["per_class"] - 0.1 * in_training).max() < 1
    images = torch.cat([images for images, _ in data.train_dataloader()])
    assert images.mean((0, 2, 3)).abs().max() < 0.3  # ImageNet's statistics nearly fit
    assert (images.std((0, 2, 3)) - 1).abs().max() < 0.2
