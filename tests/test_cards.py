"""Cards say what is true: strict fields, variants that exist, results that a command wrote."""

import csv
import datetime
import re
from pathlib import Path

import pytest
import torch
from _shared import requires_shared, shared

from torchstone.catalog import Card, card, cards, read_card, result, system_of, variants
from torchstone.environment import write_result
from torchstone.errors import CallError, UnknownName

CARDS = [pytest.param(item, id=item.key, marks=pytest.mark.system(item.key)) for item in cards().values()]
NETWORKS = [param for param in CARDS if param.values[0].models_room == "models/image"]
SOURCE = Path(__file__).parents[1] / "src" / "torchstone"
ROOMS = {
    "op": r"ops",
    "model": r"models/(image|graph|geometry|sequence|dense|detection|generation)",
    "method": r"methods",
    "transform": r"transforms",
    "instrument": r"instruments",
    "data": r"data",
}


def test_cards_are_read_by_key():
    assert cards(), "there is no card"
    for key in cards():
        assert card(key).key == key
    with pytest.raises(UnknownName, match=next(iter(cards()))):
        card(next(iter(cards()))[:-1])


@pytest.mark.parametrize("item", CARDS)
def test_facts_are_well_formed(item: Card):
    assert re.fullmatch(r"\d{4}\.\d{4,5}", item.arxiv)
    assert item.title
    assert item.venue
    assert re.fullmatch(ROOMS[item.kind], item.room), f"a {item.kind} does not live in {item.room}"
    assert (SOURCE / item.room / f"{item.key}.py").is_file() or (
        SOURCE / item.room / item.key / "__init__.py"
    ).is_file()
    assert item.summary.endswith(".")
    assert ". " not in item.summary, "one sentence"


@pytest.mark.parametrize("item", CARDS)
def test_official_code_is_pinned(item: Card):
    if item.official is None:
        assert item.proof in ("definition", "reconstruction"), "what was recorded, and where is it from?"
        return
    assert re.fullmatch(r"[\w.-]+/[\w.-]+", item.official.repository)
    assert re.fullmatch(r"[0-9a-f]{40}", item.official.commit)
    assert item.official.code_licence


@pytest.mark.parametrize("item", CARDS)
def test_no_measured_number_is_typed(item: Card):
    """Accuracies, speeds and sizes come from result files; a card's own words carry none."""
    figures = re.compile(r"\d[\d.,]*\s*(%|percent|points?\b|images/s|img/s|ms\b|GFLOPs|GMACs|MACs|M parameters)", re.I)
    texts = [item.summary, item.gpu, item.claim.text if item.claim else "", *item.parts]
    for text in [*texts, *(entry.what for entry in item.deviations)]:
        assert not figures.search(text), f"typed by hand: {figures.search(text).group()!r} in {text!r}"


@pytest.mark.parametrize("item", CARDS)
def test_variants_are_the_registered_factories(item: Card):
    from torchstone.models.registry import factories

    names = [variant.name for variant in item.variants]
    assert len(names) == len(set(names))
    assert all(system_of(name) is item and variants()[name] is item for name in names)
    if item.room.startswith("models/"):
        assert set(names) == set(factories(item.key))
    for name in names:
        assert factories(item.key)[name].__doc__, f"{name} has no docstring"


@pytest.mark.parametrize("item", CARDS)
def test_released_weights_can_be_found(item: Card):
    for variant in item.variants:
        assert not (variant.weights and variant.where), f"{variant.name}: a link, or where to get the file; not both"
        if variant.weights:
            assert variant.weights.startswith("https://")
            assert item.official
            assert item.official.weights_licence, "under which licence are the weights?"
        if variant.sha256:
            assert re.fullmatch(r"[0-9a-f]{64}", variant.sha256)
        assert variant.paper or not (variant.weights or variant.where or variant.keys), f"{variant.name} is ours"


@pytest.mark.parametrize("item", NETWORKS)
def test_image_model_has_a_small_form(item: Card):
    from torchstone.models.registry import create_model

    name = item.small_form
    assert not item.variant(name).paper
    with torch.device("meta"):
        model = create_model(name, num_classes=10)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert 300_000 <= parameters <= 2_000_000, f"{name} has {parameters:,} parameters"
    assert model.pretrained_cfg["input_size"][1:] == (32, 32)


@pytest.mark.parametrize("item", NETWORKS)
def test_image_model_says_what_it_takes_and_how_to_start(item: Card):
    assert item.task == "image-classification"
    assert 1e-5 <= item.lr <= 1e-1
    assert item.input is not None
    assert item.input.min >= 1
    assert item.input.multiple_of >= 1
    assert item.input.in_chans == "any" or item.input.in_chans >= 1
    assert any(variant.paper for variant in item.variants)


def written_by_a_command(name: str) -> dict:
    """A result file, checked for what makes a number repeatable."""
    written = result(name)
    assert re.search(r"torchstone|benchmarks/", written["command"])
    assert "/home/" not in written["command"]
    assert datetime.date.fromisoformat(written["date"]) <= datetime.date.today()
    assert written["hardware"]["processor"]
    assert written["hardware"]["threads"] >= 1
    assert {"torchstone", "torch"} <= written["versions"].keys()
    assert all(isinstance(seed, int) for seed in written["seeds"])
    assert written["results"]
    return written


@pytest.mark.parametrize("item", CARDS)
def test_results_were_written_by_a_command(item: Card):
    for name in item.results.values():
        written_by_a_command(name)


@pytest.mark.parametrize("item", CARDS)
def test_parity_result_is_of_this_system_and_good(item: Card):
    if item.proof == "reconstruction":
        assert "parity" not in item.results, "there is nothing to compare a reconstruction with"
        return
    assert "parity" in item.results, "torchstone verify KEY --cases DIR --json FILE writes it"
    results = written_by_a_command(item.results["parity"])["results"]
    assert results["system"] == item.key
    assert results["ok"]
    assert results["failed"] == 0
    folder = shared(f"parity/{item.key}")
    if folder:
        recorded = {path.stem for path in folder.glob("*.json")} - {entry.case for entry in item.deferred}
        assert {row["case"] for row in results["checks"]} == recorded, "the result does not cover the recorded cases"


@pytest.mark.parametrize("item", CARDS)
def test_claim_was_checked(item: Card):
    assert item.claim, "what does the paper claim, and does it hold at small scale?"
    assert written_by_a_command(item.claim.result)["command"] == item.claim.command


@pytest.mark.parametrize("item", NETWORKS)
def test_speed_was_measured(item: Card):
    assert "speed" in item.results, (
        "how fast is it beside the official code or the naive formulation, and beside peers?"
    )


@requires_shared("systems.tsv")
@pytest.mark.parametrize("item", CARDS)
def test_facts_are_those_of_the_list_of_systems(item: Card):
    with open(shared("systems.tsv"), newline="") as file:
        rows = {row["key"]: row for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)}
    assert item.key in rows, f"the list of systems has no {item.key}: add a row with its key, kind, room and title"
    row = rows[item.key]
    assert (item.arxiv, item.kind, item.room, item.title) == (row["arxiv"], row["kind"], row["room"], row["title"])
    assert item.proof == row["proof"].split()[0]


GOOD = """
key = "good"
title = "Good"
arxiv = "2001.00001"
venue = "nowhere"
kind = "op"
room = "ops"
proof = "definition"
summary = "Adds."
"""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text + 'sumary = "x"\n', "sumary.*summary"),
        (lambda text: text.replace("key =", "# key ="), "missing key"),
        (lambda text: text.replace('"op"', '"layer"'), "must be one of 'op'"),
        (lambda text: text.replace('"definition"', '"proved"'), "must be one of 'official'"),
        (lambda text: text.replace('"2001.00001"', "2001.00001"), "must be of type str"),
        (lambda text: text.replace('key = "good"', 'key = "better"'), "must be the file's name"),
        (lambda text: text + "[input]\nmim = 3\n", "mim.*min"),
        (lambda text: text + '[input]\nin_chans = "many"\n', 'must be an integer or "any"'),
        (lambda text: text + "[input]\nmin = true\n", "must be of type int"),
        (lambda text: text + '[[variants]]\nname = "x"\n', "missing paper"),
        (lambda text: text + '[[variants]]\nname = "x"\npaper = "yes"\n', "must be of type bool"),
        (lambda text: text + '[variants]\nname = "x"\n', "must be a list"),
        (lambda text: text + "[results]\nspeed = 3\n", "table of strings"),
        (lambda text: text + '[official]\nrepository = "a/b"\n', "missing commit, code_licence"),
        (lambda text: text + '[claim]\ntext = "x"\ncommand = "x"\nresult = "x"\nholds = "maybe"\n', "one of 'yes'"),
        (lambda text: text + '[[tolerance]]\ncase = "x"\nbound = "big"\nreason = "x"\n', "must be of type float"),
        (lambda text: text + "key = \n", "not valid TOML"),
    ],
)
def test_a_card_with_a_mistake_is_refused(tmp_path, change, message):
    path = tmp_path / "good.toml"
    path.write_text(GOOD)
    assert read_card(path).key == "good"
    path.write_text(change(GOOD))
    with pytest.raises(CallError, match=message) as error:
        read_card(path)
    assert "good.toml" in str(error.value)


def test_a_result_that_nobody_wrote_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("torchstone.catalog._CHECKOUT", tmp_path)
    with pytest.raises(CallError, match="no result file 'parity/none"):
        result("parity/none.json")
    write_result(
        tmp_path / "benchmarks/results/parity/one.json",
        command="torchstone verify one",
        seeds=[0],
        results={"ok": True},
    )
    assert written_by_a_command("parity/one.json")["results"] == {"ok": True}
