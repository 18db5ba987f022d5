"""``torchstone inspect``: lists its instruments, writes JSON and a page, and says what is wrong with a call."""

import json

import pytest

from torchstone.cli import main


def run(capsys, *words):
    with pytest.raises(SystemExit) as stopped:
        main(["inspect", *map(str, words)])
    told = capsys.readouterr()
    return stopped.value.code, told.out, told.err


def test_without_a_name_the_instruments_are_listed(capsys):
    code, out, err = run(capsys)
    assert code == 0, err
    for name in ("waterline", "efficiency-gap", "convolution", "roofline"):
        assert name in out


def test_a_waterline_is_shown_written_and_drawn(capsys, tmp_path):
    json_file, page = tmp_path / "line.json", tmp_path / "line.html"
    code, out, err = run(
        capsys, "waterline", "convfirst_mini32", "--batch", 1, "--threads", 1, "--seconds", 0.05,
        "--json", json_file, "--plot", page,
    )  # fmt: skip
    assert code == 0, err
    assert "stages.0.0: convolution" in out
    assert "operations per byte" in out
    content = json.loads(json_file.read_text())
    assert content["latency"]["median_ms"] > 0
    assert set(content["levels"]) == {"layers", "pointwise", "epilogues", "blocks"}
    assert "Waterline of convfirst_mini32" in page.read_text()


def test_another_device_is_predicted(capsys):
    code, out, err = run(
        capsys, "waterline", "convfirst_mini32", "--dtype", "float16", "--peak", "111e12", "--bandwidth", "768e9"
    )
    assert code == 0, err
    assert "1.11e+05 Gop/s, 768 GB/s" in out
    assert "Measured" not in out


def test_a_convolution_is_counted(capsys, tmp_path):
    code, out, err = run(capsys, "convolution", 64, 56, "--groups-of", 1, "--json", tmp_path / "c.json")
    assert code == 0, err
    assert "grad_weight" in out
    assert json.loads((tmp_path / "c.json").read_text())["output"]["intensity"] == pytest.approx(4.5, abs=0.01)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["waterlin", "x"], "unknown instrument 'waterlin': did you mean 'waterline'"),
        (["waterline", "convfirst_mini23"], "did you mean 'convfirst_mini32'"),
        (["waterline", "convfirst_mini32", "--plot", "line.png"], "name it line.html"),
        (["waterline", "convfirst_mini32", "--peak", "1e12"], "needs both its --peak"),
        (["waterline", "convfirst_mini32", "--block", "stage"], "no module is called 'stage'"),
        (["waterline", "convfirst_mini32", "--device", "cuda:9"], "no device 'cuda:9' here"),
        (["waterline", "convfirst_mini32", "--batch", "0"], "batch_size must be positive"),
        (["efficiency-gap"], "name models, or a comparison"),
        (["efficiency-gap", "--from", "nowhere"], "cannot read the comparison nowhere"),
        (["convolution", "12", "56"], "groups of 8 do not divide 12 channels"),
        (["roofline", "--dtype", "float31"], "did you mean 'float32'"),
    ],
)
def test_a_wrong_call_says_what_would_be_right(capsys, words, message):
    code, _, err = run(capsys, *words)
    assert code == 2
    assert message in err
