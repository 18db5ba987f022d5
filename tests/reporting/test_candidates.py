"""What a written candidate stands for, and what is said of one that stands for nothing."""

from dataclasses import replace

import pytest

from torchstone import catalog
from torchstone.errors import CallError, UnknownName
from torchstone.reporting.candidates import Candidate, Step, parse_candidates
from torchstone.reporting.limits import Limit, parse_limits
from torchstone.training.recipe import TransformSpec

INCEPTIONNEXT = "inceptionnext_mini32"


def names(*texts, **options):
    return [candidate.name for candidate in parse_candidates(texts, **options)[0]]


@pytest.fixture
def rooms(monkeypatch):
    """A catalogue in which a method and two transforms are finished."""
    card = catalog.card("inceptionnext")
    others = {
        key: replace(card, key=key, kind=kind, variants=())
        for key, kind in (("spark", "method"), ("nvit", "transform"), ("prune", "transform"))
    }
    monkeypatch.setattr(catalog, "cards", lambda: {card.key: card, **others})
    monkeypatch.setattr("torchstone.reporting.candidates.check_options", lambda name, options: None)


def test_a_bare_name_is_ours_and_a_prefix_names_another_library():
    ours, timm, torchvision = parse_candidates([INCEPTIONNEXT, "timm:resnet18", "torchvision:resnet18"])[0]
    assert ours == Candidate(INCEPTIONNEXT, INCEPTIONNEXT)
    assert (ours.source, timm.source, torchvision.source) == ("torchstone", "timm", "torchvision")
    assert ours.card is catalog.card("inceptionnext")
    assert timm.card is None
    assert {candidate.start for candidate in (ours, timm, torchvision)} == {"scratch"}


def test_a_glob_stands_for_every_model_that_matches():
    from timm import list_models

    assert names("inceptionnext_*") == sorted(name for name in catalog.variants() if name.startswith("inceptionnext_"))
    assert names("timm:test_conv*") == [f"timm:{name}" for name in list_models("test_conv*")]
    assert names("torchvision:squeezenet1_[01]") == ["torchvision:squeezenet1_0", "torchvision:squeezenet1_1"]


def test_a_candidate_named_twice_is_compared_once_and_a_note_says_so():
    candidates, notes = parse_candidates([INCEPTIONNEXT, "timm:resnet18", "inceptionnext_mini*"])
    assert [candidate.name for candidate in candidates] == [INCEPTIONNEXT, "timm:resnet18"]
    assert notes == [f"{INCEPTIONNEXT} is named more than once (inceptionnext_mini*); it is compared once"]


def test_the_same_model_from_scratch_and_from_weights_are_two_candidates(tmp_path):
    file = tmp_path / "weights.pth"
    file.touch()
    candidates, notes = parse_candidates(
        [
            INCEPTIONNEXT,
            f"{INCEPTIONNEXT}@{file}",
            "inceptionnext_tiny@pretrained",
            "timm:resnet18.a1_in1k@pretrained",
            "torchvision:resnet18@https://example.org/weights.pth",
        ]
    )
    assert [candidate.weights for candidate in candidates] == [
        None, str(file), "pretrained", "pretrained", "https://example.org/weights.pth"
    ]  # fmt: skip
    assert [candidate.start for candidate in candidates] == ["scratch"] + 4 * ["pretrained"]
    assert not notes


def test_start_pretrained_gives_released_weights_to_all_that_name_none():
    words = ["inceptionnext_tiny", "timm:resnet18", "timm:resnet18@pretrained"]
    candidates, notes = parse_candidates(words, "pretrained")
    assert [candidate.weights for candidate in candidates] == ["pretrained", "pretrained"]
    assert len(notes) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("inceptionext_mini32", f"unknown model 'inceptionext_mini32': did you mean '{INCEPTIONNEXT}'"),
        ("resnet18", "did you mean 'timm:resnet18' or 'torchvision:resnet18'"),
        ("timm:resnt18", "unknown model 'timm:resnt18': did you mean 'timm:resnet18'"),
        ("torchvision:resnt18", "did you mean 'torchvision:resnet18'"),
        ("tim:resnet18", "unknown library 'tim': did you mean 'timm'"),
        ("inceptionnext_zz*", "unknown model 'inceptionnext_zz*'"),
        (f"spark+{INCEPTIONNEXT}", "character 1: unknown method 'spark'"),
        (f"{INCEPTIONNEXT}+nvit:flops=0.5", "character 22: unknown transform 'nvit'"),
        ("a+b", "character 1: unknown model 'a'"),
    ],
)
def test_a_mistyped_name_gets_the_nearest_and_its_place(text, message):
    with pytest.raises(UnknownName) as caught:
        names(text)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "character 1: a name is missing"),
        (f"{INCEPTIONNEXT}++nvit", "character 22: a name is missing"),
        (f"{INCEPTIONNEXT}+", "character 22: a name is missing"),
        (f"a+b+{INCEPTIONNEXT}", "one method at most"),
        (f"{INCEPTIONNEXT}@", "weights are expected after @"),
        (f"{INCEPTIONNEXT}@nowhere.pth", "there is no weights file nowhere.pth"),
        (f"{INCEPTIONNEXT}@pretrained", "cannot start from pretrained weights: none were released"),
    ],
)
def test_a_malformed_candidate_is_refused_before_anything_is_trained(text, message):
    with pytest.raises(CallError) as caught:
        names(text)
    assert message in str(caught.value)


def test_a_peer_without_released_weights_cannot_start_from_them():
    from timm.models import get_pretrained_cfg, list_models

    without = next(name for name in list_models() if not get_pretrained_cfg(name).has_weights)
    with pytest.raises(CallError, match="cannot start from pretrained weights: timm has none"):
        names(f"timm:{without}", start="pretrained")


def test_a_file_that_must_be_fetched_by_hand_is_explained(monkeypatch):
    card = catalog.card("inceptionnext")
    by_hand = replace(card.variant(INCEPTIONNEXT), where="ask the authors")
    monkeypatch.setattr(catalog, "variants", lambda: {INCEPTIONNEXT: replace(card, variants=(by_hand,))})
    with pytest.raises(CallError, match=rf"get the file and write {INCEPTIONNEXT}@PATH \(ask the authors\)"):
        names(f"{INCEPTIONNEXT}@pretrained")


def test_steps_run_in_the_order_they_are_written(rooms):
    (candidate,), _ = parse_candidates([f"spark+{INCEPTIONNEXT}+nvit:flops=0.5:steps=3+prune:by=magnitude:soft=true"])
    assert candidate.method == Step("spark")
    assert candidate.transforms == (
        Step("nvit", (("flops", 0.5), ("steps", 3))),
        Step("prune", (("by", "magnitude"), ("soft", True))),
    )
    assert candidate.model == INCEPTIONNEXT


def test_the_options_of_a_transform_are_checked_and_become_a_recipes():
    (candidate,), _ = parse_candidates([f"{INCEPTIONNEXT}+tune_mode:freeze=true"])
    assert candidate.steps == (TransformSpec("tune_mode", {"freeze": True}),)
    with pytest.raises(UnknownName, match="unknown option of tune_mode 'freze': did you mean 'freeze'"):
        names(f"{INCEPTIONNEXT}+tune_mode:freze=true")


def test_every_model_of_a_glob_goes_through_the_same_steps(rooms):
    assert names("spark+timm:test_convnext?+nvit:flops=1e-1") == [
        "spark+timm:test_convnext2+nvit:flops=1e-1", "spark+timm:test_convnext3+nvit:flops=1e-1"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            f"spark+{INCEPTIONNEXT[:-1]}",
            f"character 7: unknown model '{INCEPTIONNEXT[:-1]}': did you mean '{INCEPTIONNEXT}'",
        ),
        (f"sparc+{INCEPTIONNEXT}", "unknown method 'sparc': did you mean 'spark'"),
        (f"{INCEPTIONNEXT}+nvit:flops", "'flops' is no option of nvit; options are written :key=value"),
        (f"{INCEPTIONNEXT}+nvit:flops=", "is no option"),
        (f"{INCEPTIONNEXT}+nvit:flops=1:flops=2", "option flops of nvit is given twice"),
        (f"{INCEPTIONNEXT}+nvit:flops=[1]", "must be a number, true, false or text"),
    ],
)
def test_wrong_steps_are_named(rooms, text, message):
    with pytest.raises(CallError) as caught:
        names(text)
    assert message in str(caught.value)


def test_no_candidate_and_an_unknown_start_are_refused():
    with pytest.raises(CallError, match="at least one model"):
        names()
    with pytest.raises(UnknownName, match="did you mean 'pretrained'"):
        names(INCEPTIONNEXT, start="pretained")


def test_limits_are_read_with_their_units():
    limits = {"latency": "5ms", "params": "2M", "macs": "1.5 G", "memory": "200mb"}
    assert parse_limits(limits) == [
        Limit("latency_ms_1", 5.0),
        Limit("params", 2e6),
        Limit("macs", 1.5e9),
        Limit("memory_mb", 200.0),
    ]
    assert parse_limits({"latency": "500us", "params": 100_000}) == [Limit("latency_ms_1", 0.5), Limit("params", 1e5)]


@pytest.mark.parametrize("text", ["5", "5 minutes", "fast", "-1ms", "0ms", "", "1e999ms"])
def test_a_limit_without_a_positive_number_or_a_known_unit_is_refused(text):
    with pytest.raises(CallError, match=r"limit latency=.*expected \(us, ms, s\)"):
        parse_limits({"latency": text})


def test_an_unknown_limit_gets_the_nearest():
    with pytest.raises(UnknownName, match="unknown limit 'latencey': did you mean 'latency'"):
        parse_limits({"latencey": "5ms"})


def test_a_limit_says_by_what_it_is_exceeded():
    limit = Limit("latency_ms_1", 5.0)
    assert limit.exceeded({"latency_ms_1": 7.25}) == "latency (batch 1) 7.25 ms, at most 5 ms"
    assert limit.exceeded({"latency_ms_1": 5.0}) == ""
    assert limit.exceeded({"params": 1e9}) == ""
