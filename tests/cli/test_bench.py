"""``torchstone bench``: the table, the files, and what it says of wrong words."""

import json

import pytest

FEW = ["--size", 32, "--set", "channels=2", "--set", "batch=1", "--seconds", 0.01]


def test_without_an_operator_it_lists_them(torchstone):
    outcome = torchstone("bench")
    assert outcome.code == 0
    assert "long_conv" in outcome.out
    assert "batch=4, channels=64" in outcome.out


def test_it_shows_everyone_beside_the_operator_and_writes_what_was_measured(torchstone, tmp_path):
    numbers, picture = tmp_path / "out.json", tmp_path / "out.html"
    outcome = torchstone("bench", "long_conv", *FEW, "--size", "1k", "--json", numbers, "--plot", picture)
    assert outcome.code == 0, outcome.err
    for shown in ("long_conv", "monarch_conv", "direct", "attention", "x long_conv", "the roof, measured:"):
        assert shown in outcome.out
    written = json.loads(numbers.read_text())
    assert {t["size"] for t in written["timings"]} == {32, 1024}
    assert written["settings"] == {"batch": 1, "channels": 2}
    assert "long_conv and its peers" in picture.read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["long_cnv"], "unknown operator 'long_cnv': did you mean 'long_conv'"),
        (["long_conv", "--size", "1K"], "--size takes a whole number such as 3000, 64k or 1M, got '1K'"),
        (["long_conv", "--size", "0"], "sizes must be positive integers, got [0]"),
        (["long_conv", "--set", "channels"], "--set takes name=value, got 'channels'"),
        (["long_conv", "--set", "channels=many"], "--set channels takes a whole number"),
        (["long_conv", "--set", "heads=2"], "unknown setting of long_conv 'heads': valid: batch, channels"),
        (["long_conv", "--with", "fft"], "unknown contender of long_conv 'fft'"),
        (["long_conv", "--dtype", "float12"], "unknown precision 'float12'"),
        (["long_conv", "--device", "cuda:9"], "no device 'cuda:9' here"),
        (["long_conv", "--plot", "a.png"], "the plot is a page: name it a.html"),
    ],
)
def test_wrong_words_are_answered(refused, words, message):
    assert message in refused("bench", *words)
