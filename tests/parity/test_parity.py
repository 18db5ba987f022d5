"""Every carded system against the recorded answers of its authors' code, and against the layouts of released files.

Adding a card, an adapter ``tests/parity/<key>.py`` and one case in ``tests/parity/cases/<key>/`` is all a system needs.
"""

import json

import pytest
import torch
from _shared import SHARED, requires_shared, shared
from safetensors.torch import load_file

from torchstone.catalog import cards
from torchstone.verification.cases import case_files, draw_held_out, read_case, read_held_out
from torchstone.verification.layouts import check_variant, read_layouts
from torchstone.verification.parity import bound_of, check_described, check_recorded, load_adapter, parity_folder, run

LARGEST_COPIED_CASE = 150_000  # bytes


def deferred(key):
    return {entry.case for entry in cards()[key].deferred}


def of(key, *values):
    """A parameter set that counts towards the system's time."""
    return pytest.param(key, *values, marks=pytest.mark.system(key), id="-".join([key, *map(str, values[-1:])]))


def recorded_names(folder):
    if folder is None:
        return []
    return [(key, path.stem) for key in cards() for path in case_files(folder / key) if path.stem not in deferred(key)]


SHARED_CASES = [of(*name) for name in recorded_names(shared("parity"))]
COPIED_CASES = [of(*name) for name in recorded_names(parity_folder() / "cases")]
HELD_OUT = shared("parity/HELDOUT.json")
HELD_OUT_CASES = [
    of(told["system"], told["case"])
    for told in (json.loads(HELD_OUT.read_text()) if HELD_OUT else [])
    if told["system"] in cards() and told["case"] not in deferred(told["system"])
]
VARIANTS = [of(card.key, variant.name) for card in cards().values() for variant in card.variants if variant.keys]
PROVED = [of(card.key) for card in cards().values() if card.proof != "reconstruction"]


def assert_parity(folder, key, name):
    recorded = read_case(folder / key / f"{name}.json")
    checks = check_recorded(recorded, load_adapter(key), bound_of(recorded.case, cards()[key]))
    assert not [str(item) for item in checks if not item.ok]


@requires_shared("parity")
@pytest.mark.parametrize(("key", "name"), SHARED_CASES)
def test_recorded_case(key, name):
    assert_parity(shared("parity"), key, name)


@pytest.mark.parametrize(("key", "name"), COPIED_CASES)
def test_case_that_comes_with_the_project(key, name):
    assert_parity(parity_folder() / "cases", key, name)


@requires_shared("parity/HELDOUT.json")
@pytest.mark.parametrize(("key", "name"), HELD_OUT_CASES)
def test_held_out_entry_builds_and_gives_the_recorded_names_and_shapes(key, name):
    adapter = load_adapter(key)
    told = next(told for told in read_held_out(HELD_OUT, key) if told["case"] == name)
    folder = shared(f"parity/{key}")
    examples = [read_case(path).case for path in case_files(folder)] if folder else []
    case = draw_held_out(told, examples, getattr(adapter, "example", None))
    assert not [str(item) for item in check_described(case, run(case, adapter)) if not item.ok]


@requires_shared("keys")
@pytest.mark.parametrize(("key", "name"), VARIANTS)
def test_variant_takes_the_released_layout(key, name):
    path = shared(f"keys/{key}.json")
    assert path, f"the card says where {name}'s layout is listed, but there is no keys/{key}.json"
    layout = read_layouts(path).get(cards()[key].variant(name).keys)
    assert layout, f"keys/{key}.json lists no {cards()[key].variant(name).keys!r}"
    assert not check_variant(key, name, layout).problem


@requires_shared("keys")
@pytest.mark.parametrize("key", [of(key) for key in cards()])
def test_every_released_layout_is_claimed_by_a_variant(key):
    path = shared(f"keys/{key}.json")
    listed = set(read_layouts(path)) if path else set()
    claimed = {variant.keys for variant in cards()[key].variants if variant.keys}
    assert listed - claimed - deferred(key) == set()


@pytest.mark.parametrize("key", PROVED)
def test_one_telling_case_comes_with_the_project(key):
    """The recorded numbers unchanged; of a case that is too large, the first samples, or some of the outputs."""
    copied = case_files(parity_folder() / "cases" / key)
    assert len(copied) == 1, f"expected one recorded case in {parity_folder() / 'cases' / key}"
    path = copied[0]
    assert path.stat().st_size + path.with_suffix(".safetensors").stat().st_size <= LARGEST_COPIED_CASE
    original = shared(f"parity/{key}/{path.name}")
    if SHARED is None:
        return
    assert original, f"nothing recorded is called {path.stem}"
    told, whole = json.loads(path.read_text()), json.loads(original.read_text())
    kept = [name for name in whole["outputs"] if name in told["outputs"]]
    assert told == whole | {"outputs": kept}
    assert kept
    ours, recorded = load_file(path.with_suffix(".safetensors")), load_file(original.with_suffix(".safetensors"))
    left_out = {f"output/{name}" for name in whole["outputs"] if name not in kept}
    assert ours.keys() == recorded.keys() - left_out
    for name, value in ours.items():
        assert torch.equal(value, recorded[name][: len(value)] if value.dim() else recorded[name]), name


@requires_shared("parity")
@pytest.mark.parametrize("key", [of(key) for key in cards()])
def test_what_a_card_defers_or_bounds_exists(key):
    card = cards()[key]
    folder, layouts = shared(f"parity/{key}"), shared(f"keys/{key}.json")
    cases = {path.stem for path in case_files(folder)} if folder else set()
    cases |= {told["case"] for told in read_held_out(HELD_OUT, key)} if HELD_OUT else set()
    assert deferred(key) <= cases | (set(read_layouts(layouts)) if layouts else set())
    assert {entry.case for entry in card.tolerance} <= cases
    if card.proof != "reconstruction":
        assert cases - deferred(key), f"{key} is said to be proved, but nothing recorded is compared"
