import pytest
import torch
from safetensors.torch import save_file

from torchstone.data.images import open_images
from torchstone.errors import CallError
from torchstone.models.registry import build_model
from torchstone.training.fit import evaluate
from torchstone.training.predict import find_images, load_classifier, predict


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Twelve test digits as files, in their order, and one file that is no image."""
    folder = tmp_path_factory.mktemp("scans")
    data = open_images("digits", batch_size=8)
    for place, index in enumerate(data.splits.indices["test"][:12]):
        data.source.images.image(index).save(folder / f"{place:02}.png")
    (folder / "07b.png").write_bytes(b"not an image")
    (folder / "notes.txt").write_text("not an image either")
    return folder


def test_a_run_says_of_files_what_it_said_of_the_test_split(finished, scans):
    expected = evaluate(finished, "test", device="cpu").predictions[:12]
    predictions = predict(finished, [scans], device="cpu", batch_size=5, top=3)
    readable = [prediction for prediction in predictions if not prediction.error]
    assert [prediction.label for prediction in readable] == [str(label) for label in expected.tolist()]
    for prediction in readable:
        assert len(prediction.top) == 3
        assert prediction.top[0] == (prediction.label, prediction.probability)
        assert prediction.top[0][1] >= prediction.top[1][1] >= prediction.top[2][1] > 0


def test_all_classes_together_are_certain(finished, scans):
    (prediction,) = predict(finished, [scans / "00.png"], device="cpu", top=100)
    assert sum(probability for _, probability in prediction.top) == pytest.approx(1)
    assert sorted(label for label, _ in prediction.top) == [str(digit) for digit in range(10)]


def test_an_unreadable_image_is_named_and_the_rest_goes_on(finished, scans):
    seen = []
    predictions = predict(finished, [scans], device="cpu", progress=lambda done, total: seen.append((done, total)))
    assert len(predictions) == 13
    (failed,) = [prediction for prediction in predictions if prediction.error]
    assert failed.path == scans / "07b.png"
    assert str(failed.path) in failed.error
    assert (failed.label, failed.top) == ("", ())
    assert seen[-1] == (13, 13)


def test_only_unreadable_images(finished, scans):
    (prediction,) = predict(finished, [scans / "07b.png"], device="cpu")
    assert prediction.error


def test_files_and_folders_keep_their_order(scans):
    found = find_images([scans / "03.png", scans])
    assert [file.name for file in found[:3]] == ["03.png", "00.png", "01.png"]
    assert len(found) == 14


@pytest.mark.parametrize(
    ("paths", "message"),
    [(["absent.png"], "there is no file or folder"), (["empty"], "there are no images in the folder"), ([], "name at")],
)
def test_paths_without_images_are_refused(tmp_path, paths, message):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CallError, match=message):
        find_images([tmp_path / path for path in paths])


@pytest.mark.parametrize("spec", ["inceptionnext_mini32", "timm:test_resnet", "torchvision:shufflenet_v2_x0_5"])
@pytest.mark.parametrize("count", [7, 1000])
def test_a_model_with_a_weights_file_classifies(tmp_path, scans, spec, count):
    torch.manual_seed(0)
    model = build_model(spec, num_classes=count).eval()
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    loaded = load_classifier(f"{spec}@{tmp_path / 'weights.safetensors'}")
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(loaded.model(images), model(images), rtol=0, atol=0)
    assert len(loaded.classes) == count
    assert (loaded.classes[0] == "class 0") == (count == 7)
    assert set(loaded.preprocessing) == {"size", "mean", "std", "interpolation", "crop_pct"}

    (prediction,) = predict(f"{spec}@{tmp_path / 'weights.safetensors'}", [scans / "00.png"], device="cpu")
    assert prediction.label in loaded.classes


def test_a_model_without_weights_is_refused():
    with pytest.raises(CallError, match="name a run, timm:test_resnet@pretrained or timm:test_resnet@FILE"):
        load_classifier("timm:test_resnet")


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"top": 0}])
def test_numbers_must_be_positive(finished, scans, wrong):
    with pytest.raises(CallError, match="must be positive integers"):
        predict(finished, [scans], device="cpu", **wrong)
