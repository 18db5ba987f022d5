import json
import pickle
import subprocess
import sys
from types import SimpleNamespace

import lightning
import numpy as np
import pytest
import torch
from _image_files import write_folder

from torchstone.data import open_images, open_source
from torchstone.data.images import SPLITS
from torchstone.errors import CallError, DataError, UnknownName


@pytest.fixture(scope="module")
def digits():
    return open_source("digits")


def epoch(data, number=0):
    loader = data.train_dataloader()
    loader.sampler.set_epoch(number)
    return list(loader)


def same(ours, theirs):
    return len(ours) == len(theirs) and all(
        a[0].equal(b[0]) and a[1].equal(b[1]) for a, b in zip(ours, theirs, strict=True)
    )


def test_digits_are_there_without_a_network():
    data = open_images("digits", batch_size=64)
    assert data.name == "digits"
    assert data.classes == list("0123456789")
    assert data.num_classes == 10
    assert data.sizes == {"train": 1294, "val": 144, "test": 359}
    assert (data.image_size, data.augment) == (32, "light")
    images, labels = next(iter(data.train_dataloader()))
    assert (images.shape, images.dtype) == ((64, 3, 32, 32), torch.float32)
    assert (labels.shape, labels.dtype) == ((64,), torch.int64)
    assert images.is_contiguous()


def test_digits_look_like_digits(digits):
    data = open_images(digits, batch_size=64)
    images, labels = next(iter(data.val_dataloader()))
    grey = images * torch.tensor(data.std).view(3, 1, 1) + torch.tensor(data.mean).view(3, 1, 1)
    assert torch.allclose(grey[:, 0], grey[:, 1], atol=1e-6)
    assert grey.min() > -1e-6
    assert grey.max() < 1 + 1e-6
    zeros = grey[labels == 0].mean(0)[0]  # (32, 32), the mean zero: a ring
    assert zeros[14:18, 14:18].mean() < 0.2 < 0.6 < zeros[2:6, 12:20].mean()


def test_splits_are_disjoint_complete_stratified_and_seeded(digits):
    data = open_images(digits, batch_size=64)
    indices = np.concatenate([data.splits.indices[name] for name in SPLITS])
    assert sorted(indices) == list(range(1797))
    for name in SPLITS:
        share = np.bincount(data.labels(name)) / data.sizes[name]
        assert np.abs(share - np.bincount(digits.labels) / 1797).max() < 0.01
    assert open_images(digits, batch_size=8, seed=5).splits.indices["test"].tolist() == indices[-359:].tolist()
    assert open_images(digits, batch_size=64, split_seed=1).splits.indices["test"].tolist() != indices[-359:].tolist()


def test_fractions_are_taken(digits):
    data = open_images(digits, batch_size=64, val_fraction=0.5, test_fraction=0.3)
    assert data.sizes == {"train": 629, "val": 629, "test": 539}


def test_the_description_is_json_and_says_how_the_splits_came_about(digits):
    data = open_images(digits, batch_size=64, limit=200)
    record = data.describe()
    assert json.loads(json.dumps(record)) == record
    assert record["splits"]["train"]["size"] == 200
    assert record["splits"]["train"]["origin"] == "200 of 1294 training images, by class"
    assert record["splits"]["test"]["origin"] == "0.2 of 1797 training images, by class"
    assert sum(record["splits"]["val"]["per_class"]) == 144
    assert (record["split_seed"], record["limit"]) == (0, 200)
    hashes = {split["indices_sha256"] for split in record["splits"].values()}
    assert len(hashes) == 3
    assert {len(text) for text in hashes} == {64}
    assert open_images(digits, batch_size=64, limit=200).describe() == record


def test_a_limit_takes_the_same_share_of_each_class_and_leaves_the_other_splits(digits):
    whole, limited = (open_images(digits, batch_size=10, limit=limit) for limit in (None, 100))
    assert np.bincount(limited.labels("train")).tolist() == [10] * 10
    assert set(limited.splits.indices["train"]) < set(whole.splits.indices["train"])
    for name in ("val", "test"):
        assert limited.splits.indices[name].tolist() == whole.splits.indices[name].tolist()
    assert open_images(digits, batch_size=10, limit=1292).sizes["train"] == 1292
    assert open_images(digits, batch_size=10, limit=5000).sizes == whole.sizes


@pytest.mark.parametrize("augment", ["light", "standard", "rand-m9-mstd0.5-inc1"])
def test_batches_are_the_same_with_any_number_of_workers(digits, augment):
    alone, helped = (
        open_images(digits, batch_size=16, limit=64, augment=augment, workers=workers) for workers in (0, 2)
    )
    loader = helped.train_dataloader()  # its workers stay from epoch to epoch
    for number in (0, 1):
        loader.sampler.set_epoch(number)
        assert same(list(loader), epoch(alone, number))
    assert same(list(helped.val_dataloader()), list(alone.val_dataloader()))


@pytest.mark.parametrize("augment", ["none", "light", "flip", "standard", "rand-m9-mstd0.5-inc1"])
def test_an_epoch_is_the_same_after_a_resume(digits, augment):
    data = open_images(digits, batch_size=32, limit=128, augment=augment)
    torch.manual_seed(1)
    epochs = [epoch(data, number) for number in range(3)]
    torch.manual_seed(2)
    resumed = open_images(digits, batch_size=32, limit=128, augment=augment)
    assert same(epoch(resumed, 2), epochs[2])
    assert not same(epochs[0], epochs[1])
    assert not same(epoch(open_images(digits, batch_size=32, limit=128, augment=augment, seed=1)), epochs[0])


def test_augmentation_belongs_to_the_sample_not_to_its_batch(digits):
    data = open_images(digits, batch_size=32, augment="standard")
    images = data.train_dataloader().dataset
    alone = images[3, 17][0]
    among_others = images.__getitems__([(3, 5), (3, 17), (0, 17)])
    assert alone.equal(among_others[1][0])
    assert not alone.equal(among_others[2][0])


@pytest.mark.parametrize("augment", ["none", "standard", "rand-m9-mstd0.5-inc1"])
def test_loading_leaves_the_global_generators_alone(digits, augment):
    import random

    def draws():
        return torch.rand(2).tolist(), np.random.rand(2).tolist(), random.random()  # noqa: NPY002

    data = open_images(digits, batch_size=32, limit=64, augment=augment)
    for generator in (torch.manual_seed, np.random.seed, random.seed):
        generator(0)
    expected = draws()
    for generator in (torch.manual_seed, np.random.seed, random.seed):
        generator(0)
    list(data.train_dataloader())
    list(data.test_dataloader())
    assert draws() == expected


def attached(data, rank, world):
    data.trainer = SimpleNamespace(global_rank=rank, world_size=world)
    return data


def test_processes_share_each_training_batch(digits):
    single = epoch(open_images(digits, batch_size=32, limit=100), 1)
    shares = [epoch(attached(open_images(digits, batch_size=32, limit=100), rank, 2), 1) for rank in range(2)]
    assert [len(share) for share in shares] == [len(single)] * 2 == [3, 3]
    for whole, first, second in zip(single, *shares, strict=True):
        assert whole[0][0::2].equal(first[0])
        assert whole[0][1::2].equal(second[0])
        assert whole[1][1::2].equal(second[1])


def test_processes_share_evaluation_without_repeats(digits):
    data = open_images(digits, batch_size=32)
    shares = [
        torch.cat([labels for _, labels in attached(data, rank, 2).test_dataloader()]).tolist() for rank in range(2)
    ]
    expected = data.labels("test").tolist()
    assert shares == [expected[0::2], expected[1::2]]
    assert [len(share) for share in shares] == [180, 179]


def test_lightning_leaves_the_samplers_of_several_processes_in_place(digits):
    data = attached(open_images(digits, batch_size=32), 0, 2)
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        assert isinstance(loader.sampler, torch.utils.data.DistributedSampler)  # what Lightning looks for


def test_evaluation_comes_whole_and_in_the_order_of_the_data(digits):
    data = open_images(digits, batch_size=100, eval_batch_size=90)
    for name, loader in (("val", data.val_dataloader()), ("test", data.test_dataloader())):
        batches = [labels for _, labels in loader]
        assert torch.cat(batches).tolist() == data.labels(name).tolist()
        assert len(batches[0]) == 90
        assert data.names(name)[0] == f"digits {data.splits.indices[name][0]}"


class Recorder(lightning.LightningModule):
    """Keeps the labels and first pixels of what it is given, in order."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen = []

    def training_step(self, batch, _):
        self.seen.append(batch)
        return self.weight.sum()

    def validation_step(self, batch, _):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.filterwarnings("ignore")
def test_lightning_tells_the_sampler_the_epoch(digits):
    data = open_images(digits, batch_size=50, limit=100)
    recorder = Recorder()
    lightning.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0,
    ).fit(recorder, datamodule=data)  # fmt: skip
    data.trainer = None
    assert same(recorder.seen, epoch(data, 0) + epoch(data, 1))


def test_a_training_set_smaller_than_a_batch_is_one_batch(digits):
    with pytest.warns(UserWarning, match="20 training images, fewer than a batch of 64"):
        data = open_images(digits, batch_size=64, limit=20)
    assert data.batch_size == data.describe()["batch_size"] == 20
    assert [len(labels) for _, labels in epoch(data)] == [20]
    assert [len(labels) for _, labels in epoch(attached(data, 1, 3))] == [6]  # 18 of 20 over three processes


def test_options_out_of_range_are_refused(digits):
    for options, said in (
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1; it is 0"),
        ({"batch_size": 2.5}, "batch_size must be a whole number of at least 1; it is 2.5"),
        ({"batch_size": 8, "size": 4}, "size must be a whole number of at least 8; it is 4"),
        ({"batch_size": 8, "workers": -1}, "workers must be a whole number of at least 0; it is -1"),
        ({"batch_size": 8, "limit": 0}, "limit must be a whole number of at least 1; it is 0"),
        ({"batch_size": 8, "limit": 9}, "limit must be at least 10, one image a class; it is 9"),
        ({"batch_size": 8, "val_fraction": 0}, "val_fraction must be between 0 and 1, exclusive; it is 0"),
        ({"batch_size": 8, "test_fraction": 1.0}, "test_fraction must be between 0 and 1, exclusive; it is 1.0"),
        ({"batch_size": 8, "eval_batch_size": 0}, "eval_batch_size must be a whole number of at least 1; it is 0"),
    ):
        with pytest.raises(CallError) as error:
            open_images(digits, **options)
        assert str(error.value) == said


@pytest.mark.parametrize("source", ["digits", "/no/such/folder"])
def test_a_mistyped_augmentation_is_refused_before_the_data_are_read(source):
    with pytest.raises(UnknownName, match="unknown augmentation 'filp': did you mean 'flip'"):
        open_images(source, batch_size=8, augment="filp")


def test_an_open_source_is_reused(digits, tmp_path):
    folder = write_folder(tmp_path, {"a": 5, "b": 5})
    data = open_images(folder, batch_size=2)
    for file in folder.rglob("*.png"):
        file.unlink()
    again = open_images(data.source, batch_size=4, seed=3)
    assert again.fingerprint == data.fingerprint
    assert len(epoch(again)) == data.sizes["train"] // 4


def test_datasets_can_be_sent_to_spawned_workers(digits):
    data = open_images(digits, batch_size=8, augment="rand-m9-mstd0.5-inc1")
    images = data.train_dataloader().dataset
    sent = pickle.loads(pickle.dumps(images))
    assert sent[1, 2][0].equal(images[1, 2][0])


def test_without_a_network_cifar10_says_what_to_do(monkeypatch, tmp_path):
    from urllib.error import URLError

    def unreachable(*_, **__):
        raise URLError("no route to host")

    monkeypatch.setattr("torchvision.datasets.CIFAR10", unreachable)
    monkeypatch.setenv("TORCHSTONE_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"could not be downloaded .*no route to host.*give a folder of Parquet files"):
        open_images("cifar10", batch_size=8)


def test_cifar10_keeps_its_test_split(monkeypatch, tmp_path):
    random = np.random.default_rng(0)

    def tiny(folder, train, download):
        assert folder == tmp_path
        assert download
        count = 50 if train else 20
        images = random.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        return FakeSet(images, [index % 10 for index in range(count)])

    class FakeSet(SimpleNamespace):
        def __init__(self, data, targets):
            super().__init__(data=data, targets=targets)

        def __len__(self):
            return len(self.targets)

    monkeypatch.setattr("torchvision.datasets.CIFAR10", tiny)
    monkeypatch.setenv("TORCHSTONE_DATA", str(tmp_path))
    data = open_images("cifar10", batch_size=8, val_fraction=0.2)
    assert data.sizes == {"train": 40, "val": 10, "test": 20}
    assert data.classes[3] == "cat"
    assert (data.image_size, data.augment) == (32, "flip")


def test_naming_the_data_room_costs_no_torch():
    code = (
        "import sys; import torchstone.data; from torchstone.data import IMAGE_SOURCES; "
        "assert 'digits' in IMAGE_SOURCES; assert hasattr(torchstone.data, 'open_source'); "
        "assert not {'torch', 'torchvision', 'timm', 'lightning', 'sklearn', 'pyarrow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(ImportError):
        from torchstone.data import no_such_name  # noqa: F401
