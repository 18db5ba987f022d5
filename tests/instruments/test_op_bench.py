"""Operators beside their peers: what is timed, checked, counted, left out."""

import json

import pytest
import torch

from torchstone import ops
from torchstone.errors import CallError, UnknownName
from torchstone.instruments import op_bench
from torchstone.instruments.op_bench import bench, slope
from torchstone.instruments.roofline import Roof
from torchstone.instruments.running import Conditions
from torchstone.ops import workload
from torchstone.ops.routed_attention.workload import route_and_attend
from torchstone.ops.workload import Contender, Workload

ROOF = Roof("float32", 1, 1e10, 1e9, 1e10, 1e9, 256, 1024, 3)


class KnownRoof:
    def __init__(self, *args, **kwargs):
        pass

    def roof(self, dtype):
        return ROOF


@pytest.fixture(autouse=True)
def known_roof(monkeypatch):
    monkeypatch.setattr(op_bench, "measure_roofline", KnownRoof)


@pytest.fixture
def toy(monkeypatch):
    """An operator that doubles, one that does it wrong, one that has no memory for it above 8."""

    def hungry(x):
        if x.numel() > 8:
            raise torch.OutOfMemoryError
        return 2 * x

    work = Workload(
        op="double",
        summary="twice",
        size="length",
        sizes=(4, 8, 16),
        settings={"rows": 1},
        shapes=lambda size, settings: ((settings["rows"], size),),
        contenders={
            "double": Contender(lambda x: 2 * x, True, "twice"),
            "wrong": Contender(lambda x: 3 * x, True, "thrice"),
            "hungry": Contender(hungry, True, "twice"),
            "square": Contender(lambda x: x @ x.T, False, "another"),
        },
    )
    monkeypatch.setattr(op_bench, "workload", lambda name: work)
    return work


def test_contenders_are_timed_side_by_side_and_compared_with_the_operator(toy):
    measured = bench("double", seconds=0.01)
    assert measured.contenders() == ["double", "wrong", "hungry", "square"]
    assert [t.size for t in measured.of("double")] == [4, 8, 16]
    assert [t.difference for t in measured.of("wrong")] == [pytest.approx(0.5)] * 3
    assert all(t.difference is None for name in ("double", "square") for t in measured.of(name))
    assert all(t.time.calls >= 3 for t in measured.timings)


def test_who_has_no_memory_is_left_out_from_there_on(toy):
    measured = bench("double", seconds=0.01)
    assert measured.stopped == {"hungry": (16, "it ran out of memory")}
    assert [t.size for t in measured.of("hungry")] == [4, 8]


def test_who_would_take_too_long_is_left_out_before_it_does(toy, monkeypatch):
    def foreseen(known, size):
        return 7.0 if known and known[0].contender == "square" else 0.0

    monkeypatch.setattr(op_bench, "_foreseen", foreseen)
    measured = bench("double", seconds=0.01, limit=1)
    assert measured.stopped["square"] == (8, "a call would take about 7 s, the limit is 1 s")


def test_arithmetic_and_traffic_are_those_of_the_call(toy):
    (timing,) = bench("double", sizes=[10], settings={"rows": 3}, contenders=["square"], seconds=0.01).of("square")
    assert timing.macs == 3 * 3 * 10
    assert timing.moved_bytes == 2 * 4 * 3 * 10  # what the operator reads and writes
    assert timing.roof_ms == pytest.approx(1000 * max(2 * 90 / 1e10, 240 / 1e9))
    assert timing.roof_share == pytest.approx(timing.roof_ms / timing.time.median_ms)


SMALL = {
    "fused_block": ([3, 6], {"batch": 2, "channels": 8, "expansion": 2}),
    "long_conv": ([48, 300], {"batch": 2, "channels": 3}),
    "routed_attention": ([2, 6], {"batch": 2, "channels": 8, "regions": 3}),
    "neighbour_scores": ([3, 6], {"batch": 2, "heads": 2}),
}
CALLED = {"routed_attention": route_and_attend}  # what is timed where it is not the operator alone


@pytest.mark.parametrize("op", workload.workload_names())
def test_an_operator_agrees_with_all_that_claim_to_be_it(op):
    sizes, settings = SMALL[op]
    measured = bench(op, sizes=sizes, settings=settings, seconds=0.01)
    work = workload.workload(op)
    assert set(measured.contenders()) == set(work.contenders)
    assert work.contenders[op].call is CALLED.get(op, getattr(ops, op))
    for timing in measured.timings:
        same = work.contenders[timing.contender].same and timing.contender != op
        assert (timing.difference is not None) == same
        assert not same or timing.difference < 1e-6


def test_backward_passes_cost_more():
    settings = {"sizes": [64], "settings": {"batch": 2, "channels": 4}, "seconds": 0.01}
    forward, both = bench("long_conv", **settings), bench("long_conv", backward=True, **settings)
    for name in forward.contenders():
        (once,), (twice,) = forward.of(name), both.of(name)
        assert 1.9 < twice.macs / once.macs < 4
        assert twice.moved_bytes > once.moved_bytes


def test_growth_is_the_exponent_of_the_time():
    assert slope([(n, 3 * n**2) for n in (10, 20, 50)]) == pytest.approx(2)
    assert slope([(1, 1), (2, 2)]) is None


def test_everything_can_be_written_and_drawn(toy):
    measured = bench("double", seconds=0.01)
    plain = json.loads(json.dumps(measured.to_dict()))
    assert set(plain["growth"]) == set(measured.contenders())
    assert plain["timings"][0]["contender"] == "double"
    names = [trace.name for trace in measured.plot().data]
    assert len(names) == 5
    assert names[-1] == "least time of double's arithmetic and memory traffic"


def test_processor_time_is_told_apart(toy):
    measured = bench("double", seconds=0.01, clock="processor", conditions=Conditions(threads=1))
    assert measured.clock == "processor"
    assert "processor time" in measured.plot().layout.yaxis.title.text
    with pytest.raises(CallError, match="processor time is that of a CPU with one thread"):
        bench("double", clock="processor", conditions=Conditions(threads=2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"op": "long_cov"}, "unknown operator 'long_cov': did you mean 'long_conv'"),
        ({"contenders": ["attentoin"]}, "unknown contender of long_conv 'attentoin': did you mean 'attention'"),
        ({"settings": {"chanels": 3}}, "unknown setting of long_conv 'chanels': did you mean 'channels'"),
        ({"clock": "sun"}, "unknown clock 'sun'"),
    ],
)
def test_wrong_names_are_answered_with_the_nearest(arguments, message):
    with pytest.raises(UnknownName, match=message):
        bench(**{"op": "long_conv", **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sizes": [0, 4]}, r"sizes must be positive integers, got \[0, 4\]"),
        ({"sizes": []}, r"sizes must be positive integers, got \[\]"),
        ({"settings": {"batch": 0}}, "batch must be positive, got 0"),
    ],
)
def test_sizes_of_nothing_are_refused(arguments, message):
    with pytest.raises(CallError, match=message):
        bench("long_conv", **arguments)
