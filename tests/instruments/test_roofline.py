import json
from dataclasses import FrozenInstanceError

import pytest
import torch

from torchstone.errors import CallError, UnknownName
from torchstone.instruments import roofline as module
from torchstone.instruments.roofline import Roof, Roofline, measure_roofline


@pytest.fixture(scope="module")
def measured():
    return measure_roofline(dtypes=("float32", "float64"), threads=1, seconds=0.05)


def a_roof(dtype="float32", threads=1, peak=100e9, bandwidth=10e9):
    return Roof(dtype, threads, peak, bandwidth, peak, bandwidth, 512, 1 << 28, 9)


def test_attainable_speed_is_the_lower_of_both_bounds():
    roof = a_roof()
    assert roof.balance == 10
    assert roof.attainable(1) == 10e9
    assert roof.attainable(10) == roof.attainable(1000) == 100e9


def test_a_kernel_takes_the_longer_of_computing_and_moving():
    roof = a_roof()
    assert roof.seconds(100e9, 1e9) == 1
    assert roof.seconds(1e9, 20e9) == 2


def test_a_cpu_computes_and_moves_at_plausible_speeds(measured):
    for roof in measured.roofs:
        assert 1e8 < roof.median_peak <= roof.peak < 1e14
        assert 1e8 < roof.median_bandwidth <= roof.bandwidth < 1e13


def test_the_peak_is_the_fastest_run_of_the_fastest_size(monkeypatch):
    """On a device of which the clock says that larger products are faster, and that single runs are disturbed."""
    sides = []

    def times(work, device, seconds):
        result = work()
        if result.ndim == 1:
            return [2 * result.nbytes / rate for rate in (5e9, 10e9, 8e9)]
        sides.append(len(result))
        return [2 * len(result) ** 3 / (rate * len(result)) for rate in (0.5e7, 1e7, 0.8e7)]

    monkeypatch.setattr(module, "_times", times)
    roof = measure_roofline(threads=1, seconds=1).roof()
    assert len(sides) > 1
    assert roof.matrix == max(sides)
    assert roof.peak == pytest.approx(1e7 * max(sides))
    assert roof.median_peak == pytest.approx(0.8e7 * max(sides))
    assert roof.bandwidth == pytest.approx(10e9)
    assert roof.median_bandwidth == pytest.approx(8e9)


def test_measuring_leaves_the_number_of_threads_alone():
    before = torch.get_num_threads()
    found = measure_roofline(threads=[1, 2], seconds=0.01)
    assert torch.get_num_threads() == before
    assert [roof.threads for roof in found.roofs] == [1, 2]
    assert found.roof("float32").threads == 2
    assert found.roof(torch.float32, 1).threads == 1


def test_it_is_a_frozen_value_that_can_be_written_down(measured):
    content = json.loads(json.dumps(measured.to_dict()))
    assert content["roofs"][0]["balance"] == pytest.approx(measured.roofs[0].balance)
    assert content["environment"]["versions"]["torch"]
    with pytest.raises(FrozenInstanceError):
        measured.device = "tpu"


def test_the_picture_has_a_line_per_roof_and_the_points():
    figure = Roofline("cpu", (a_roof(), a_roof("bfloat16", peak=400e9)), {}).plot({"gelu": (0.5, 4e9)})
    assert len(figure.data) == 3
    assert max(figure.data[0].y) == 100
    assert list(figure.data[2].text) == ["gelu"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"device": "cuda:7"}, "no device 'cuda:7' here; this machine has cpu"),
        ({"dtypes": ("float23",)}, "did you mean 'float32'"),
        ({"dtypes": ()}, "name at least one precision"),
        ({"threads": 0}, "threads must be positive"),
        ({"threads": []}, "threads must be positive"),
    ],
)
def test_a_wrong_call_says_what_would_be_right(call, message):
    with pytest.raises(CallError, match=message):
        measure_roofline(**call)


def test_asking_for_what_was_not_measured_says_what_was():
    found = Roofline("cpu", (a_roof(),), {})
    with pytest.raises(UnknownName, match="'float32'"):
        found.roof("float16")
    with pytest.raises(CallError, match="with 1 threads, not with 8"):
        found.roof("float32", 8)
