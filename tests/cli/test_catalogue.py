"""``list``, ``show``, ``--help`` and ``--version``: quick, without torch."""

import json
import subprocess
import sys
import time

import pytest

from torchstone import __version__, catalog

COMMANDS = (
    "list",
    "show",
    "compare",
    "train",
    "recipes",
    "probe",
    "predict",
    "profile",
    "verify",
    "convert",
    "transform",
    "export",
    "inspect",
    "bench",
)

LIGHT = """
import sys, time
from torchstone.cli import main
began = time.process_time()
for words in ([], ["list"], ["list", "--json"], ["show", "inceptionnext"], ["compare", "--help"], ["--version"]):
    try:
        main(words)
    except SystemExit:
        pass
print(time.process_time() - began, sorted({"torch", "timm", "numpy", "pandas"} & set(sys.modules)), file=sys.stderr)
"""


def test_reading_commands_need_neither_torch_nor_a_second():
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, check=True)
    seconds, _, heavy = done.stderr.splitlines()[-1].partition(" ")
    assert heavy == "[]"
    assert float(seconds) < 2.0, "six commands together"
    assert time.monotonic() - began < 30.0


def test_list_filters_by_kind_domain_proof_and_words(torchstone):
    def keys(*words):
        return [facts["key"] for facts in json.loads(torchstone("list", "--json", *words).out)]

    everything = list(catalog.cards())
    assert keys() == everything
    assert keys("--kind", "model", "--domain", "image") == [
        key for key, card in catalog.cards().items() if card.kind == "model" and card.domain == "image"
    ]
    assert "inceptionnext" in keys("--proof", "official")
    assert keys("2303.16900") == keys("LARGE", "depthwise", "bands") == ["inceptionnext"]
    assert keys("no such word") == []


def test_list_shows_a_line_for_each_system(torchstone):
    lines = torchstone("list").out.splitlines()
    assert [line.split()[0] for line in lines] == ["system", *catalog.cards()]
    assert catalog.card("inceptionnext").title in torchstone("list").out


def test_json_names_every_model(torchstone):
    told = {facts["key"]: facts["models"] for facts in json.loads(torchstone("list", "--json").out)}
    assert {name for names in told.values() for name in names} == set(catalog.variants())


def test_show_gives_facts_variants_and_evidence(torchstone):
    page = torchstone("show", "inceptionnext").out
    card = catalog.card("inceptionnext")
    for fact in (card.title, card.summary, card.arxiv, catalog.PROOF_MEANING[card.proof]):
        assert fact in page
    assert all(variant.name in page for variant in card.variants)


def test_version(torchstone):
    assert torchstone("--version").out == f"torchstone {__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_is_complete_and_has_examples(torchstone, command):
    outcome = torchstone(command, "--help")
    assert outcome.code == 0
    assert f"torchstone {command}" in outcome.out.split("Examples:")[1]


def test_help_lists_every_command(torchstone):
    for words in (["--help"], ["-h"]):
        text = torchstone(*words).out
        assert all(f" {command} " in text for command in COMMANDS)


def test_mistyped_words_get_the_nearest(refused, torchstone):
    assert "did you mean 'inceptionnext'" in refused("show", "inceptionext")
    assert "unknown kind 'modl': did you mean 'model'" in refused("list", "--kind", "modl")
    assert "unknown proof 'oficial': did you mean 'official'" in refused("list", "--proof", "oficial")
    assert "unknown domain 'imag': did you mean 'image'" in refused("list", "--domain", "imag")
    mistyped = torchstone("lst")
    assert mistyped.code == 2
    assert "list" in mistyped.err
    mistyped = torchstone("list", "--knd", "model")
    assert mistyped.code == 2
    assert "--kind" in mistyped.err


def test_an_unexpected_error_is_one_line_and_debug_shows_where(torchstone, monkeypatch):
    def broken():
        raise ZeroDivisionError("by nothing")

    monkeypatch.setattr(catalog, "cards", broken)
    outcome = torchstone("list")
    assert outcome.code == 1
    assert outcome.err == "error: ZeroDivisionError: by nothing (torchstone --debug ... shows where)\n"
    outcome = torchstone("--debug", "list")
    assert outcome.code == 1
    assert "Traceback" in outcome.err
    assert "in broken" in outcome.err
