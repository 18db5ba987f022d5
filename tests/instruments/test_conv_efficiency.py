"""Waterline and efficiency gap: the paper's formulas, bytes counted by hand, fusion, and what cannot be analysed."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from torchstone.errors import CallError, UnknownName
from torchstone.instruments.conv_efficiency import (
    conv_statistics,
    efficiency_gap,
    gap_of_comparison,
    measure_efficiency_gap,
    waterline,
)
from torchstone.instruments.conv_efficiency.fusion import group, moved_bytes, residual_blocks
from torchstone.instruments.conv_efficiency.kernels import time_kernels, trace_kernels
from torchstone.instruments.figures import page
from torchstone.instruments.macs import count_macs
from torchstone.instruments.roofline import stated_roof
from torchstone.models.image.convfirst import ConvFirst, StackedBlocks

pytestmark = pytest.mark.system("conv_efficiency")

ROOF = stated_roof(100e9, 10e9)
NUMBER = 4  # bytes of a float32


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


class Residual(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.expand = nn.Conv2d(channels, 4 * channels, 1, bias=False)
        self.project = nn.Conv2d(4 * channels, channels, 1, bias=False)

    def forward(self, x):
        return x + self.project(F.silu(self.expand(self.conv(x))))


class Network(nn.Module):
    def __init__(self, channels=8):
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 1, bias=False)
        self.blocks = nn.Sequential(Residual(channels), Residual(channels))

    def forward(self, x):
        return self.blocks(self.stem(x))


def line(model=None, shape=(3, 6, 6), **options):
    return waterline(model or Network(), shape, batch_size=2, roof=ROOF, **options)


# Kernels and their bytes


def test_operations_are_those_that_the_counter_finds():
    inputs = (torch.zeros(2, 3, 6, 6),)
    trace = trace_kernels(Network(), inputs)
    assert trace.macs == count_macs(Network(), inputs).total > 0


def test_every_kernel_reads_its_operands_and_writes_its_result_once():
    pixels, c = 2 * 36, 8
    maps = pixels * c * NUMBER
    expected = [
        ("stem: convolution", (pixels * 3 + 3 * c) * NUMBER + maps),
        ("blocks.0.conv: convolution", 2 * maps + 9 * c * NUMBER),
        ("blocks.0.expand: convolution", 5 * maps + 4 * c * c * NUMBER),
        ("blocks.0: silu", 8 * maps),
        ("blocks.0.project: convolution", 5 * maps + 4 * c * c * NUMBER),
        ("blocks.0: add", 3 * maps),
    ]
    assert [(bar.name, bar.bytes) for bar in line().levels["layers"][:6]] == expected


def test_a_fused_block_reads_its_input_and_weights_and_writes_its_output():
    pixels, c = 2 * 36, 8
    block = line().levels["blocks"][1]
    assert block.name == "blocks.0"
    assert block.bytes == (2 * pixels * c + 9 * c + 8 * c * c) * NUMBER
    assert block.operators == ("convolution", "convolution", "silu", "convolution", "add")


def test_views_move_nothing_and_repeated_elements_are_read_once():
    class Views(nn.Module):
        def forward(self, x):
            return x[:, :1].expand(-1, 5, -1, -1).transpose(2, 3).flatten(2).contiguous() @ torch.ones(36, 1)

    trace = trace_kernels(Views(), (torch.zeros(2, 3, 6, 6),))
    copied = next(kernel for kernel in trace.kernels if kernel.operator in ("clone", "_reshape_copy", "copy_"))
    assert sum(access.bytes for access in copied.reads) == 2 * 36 * NUMBER


def test_an_activation_in_place_reads_and_writes_its_map():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True))
    bars = line(model).levels
    assert bars["layers"][1].bytes == 2 * (2 * 4 * 36) * NUMBER
    fused = bars["epilogues"][0]
    assert len(bars["epilogues"]) == 1
    assert fused.bytes == (2 * 3 * 36 + 3 * 4 + 4 + 2 * 4 * 36) * NUMBER


def test_a_tensor_used_later_is_written_by_the_kernel_that_makes_it():
    class Skip(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)

        def forward(self, x):
            early = self.first(x)
            return self.second(early.relu()) + early

    trace = trace_kernels(Skip(), (torch.zeros(5, 8),))
    both = next(members for members in group(trace, "epilogues") if len(members) == 2 and members[0] == 0)
    assert moved_bytes(trace, both) == (5 * 8 + 64 + 2 * 5 * 8) * NUMBER


def test_counting_by_kernels_agrees_with_the_authors_count():
    channels, size, width = 16, 10, 8
    convolution = nn.Conv2d(channels, channels, 3, padding=1, groups=channels // width, bias=False)
    bar = waterline(convolution, (channels, size, size), batch_size=4, roof=ROOF).levels["layers"][0]
    told = conv_statistics((4, channels, size, size), group_width=width, bytes_per_number=NUMBER).output
    assert (bar.macs, bar.bytes, bar.intensity) == (told.macs, told.bytes, told.intensity)


# The paper's formulas


def test_time_of_a_kernel_is_the_longer_of_computing_and_moving():
    for bar in line().levels["layers"]:
        computing, moving = 1e3 * 2 * bar.macs / ROOF.peak, 1e3 * bar.bytes / ROOF.bandwidth
        assert bar.ideal_ms == pytest.approx(computing)
        assert bar.attainable_ms == pytest.approx(max(computing, moving))
        assert bar.drowned == (bar.intensity < ROOF.balance)


def test_latency_operations_peak_and_efficiency_are_joined():
    found = line()
    for level in found.levels:
        seconds = 2 * found.macs / (ROOF.peak * found.attainable_efficiency(level))
        assert 1e3 * seconds == pytest.approx(found.attainable_ms(level))


def test_every_level_of_fusion_computes_the_same_and_moves_no_more():
    levels = line().levels
    assert list(levels) == ["layers", "pointwise", "epilogues", "blocks"]
    assert len({sum(bar.macs for bar in bars) for bars in levels.values()}) == 1
    moved = [sum(bar.bytes for bar in bars) for bars in levels.values()]
    assert moved == sorted(moved, reverse=True)
    assert moved[-1] < moved[0]


def test_unlimited_bandwidth_leaves_no_gap_and_none_at_all_drowns_everything():
    shape = (3, 6, 6)
    dry = waterline(Network(), shape, roof=stated_roof(1e9, 1e18))
    assert dry.attainable_efficiency() == pytest.approx(1, abs=1e-6)
    wet = waterline(Network(), shape, roof=stated_roof(1e18, 1e6))
    assert all(bar.drowned for bar in wet.levels["layers"])
    assert wet.attainable_ms() == pytest.approx(1e3 * sum(bar.bytes for bar in wet.levels["layers"]) / 1e6)


def test_fused_conv_first_blocks_stand_above_layers():
    found = waterline(StackedBlocks(64, expansion_ratio=6), (64, 64, 64), roof=stated_roof(111e12, 768e9))
    assert found.attainable_efficiency("blocks") > 1.5 * found.attainable_efficiency("epilogues")


# Blocks


def test_residual_blocks_are_found():
    inputs = (torch.zeros(1, 3, 6, 6),)
    assert residual_blocks(trace_kernels(Network(), inputs)) == ("blocks.0", "blocks.1")
    plain = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1))
    assert residual_blocks(trace_kernels(plain, inputs)) == ()
    assert "blocks" not in line(plain).levels


@pytest.mark.parametrize(
    ("name", "count"), [("timm:test_resnet", 4), ("timm:test_vit", 6), ("torchvision:mobilenet_v2", 17)]
)
def test_blocks_of_other_libraries_are_found(name, count):
    found = waterline(name, (3, 64, 64), batch_size=1, roof=ROOF)
    assert len(found.blocks) == count
    assert found.attainable_efficiency("blocks") > found.attainable_efficiency("layers")


def test_modules_may_be_named_as_blocks():
    found = line(blocks=["blocks"])
    assert found.blocks == ("blocks",)
    assert [bar.name for bar in found.levels["blocks"]] == ["stem: convolution", "blocks"]
    with pytest.raises(CallError, match=r"no module is called 'block\.\*'; did you mean"):
        line(blocks=["block.*"])


# Measuring


def test_measured_times_belong_to_the_kernels():
    model, inputs = Network().eval(), (torch.randn(2, 3, 6, 6),)
    trace = trace_kernels(model, inputs)
    seconds = time_kernels(model, inputs, trace, seconds=0.01)
    assert len(seconds) == len(trace.kernels)
    assert min(seconds) > 0


def test_efficiency_is_measured_here():
    found = waterline("convfirst_mini32", batch_size=2, threads=1, seconds=0.05)
    assert found.efficiency == pytest.approx(2 * found.macs / (found.roof.peak * found.latency.median_ms / 1e3))
    assert 0 < found.efficiency < 1.5
    assert all(bar.measured_ms > 0 for bar in found.levels["layers"])
    assert all(bar.measured_ms is None for bar in found.levels["blocks"])


def test_a_stated_roof_predicts_and_measures_nothing():
    found = line()
    assert found.latency is None
    assert found.efficiency is None
    assert "Measured" not in dict(found.summary())


def test_the_model_stays_as_it_is():
    model = StackedBlocks(8, depth=1, extra_depth=0).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    waterline(model, (8, 5, 5), roof=ROOF)
    assert model.training
    assert isinstance(model.blocks[0], ConvFirst)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"model": "convfirst_mini23"}, "did you mean 'convfirst_mini32'"),
        ({"model": Network()}, "a module needs example_inputs"),
        ({"model": Network(), "example_inputs": (4, 6, 6)}, "cannot follow Network with inputs 8x4x6x6"),
        ({"model": Network(), "example_inputs": (3, -6, 6)}, "shape of one sample"),
        ({"model": Network(), "example_inputs": (3, 6, 6), "batch_size": 0}, "batch_size must be positive"),
        ({"model": nn.ReLU(), "example_inputs": (3, 6, 6)}, "no multiply-accumulates"),
        ({"model": Network(), "example_inputs": (3, 6, 6), "device": "cuda:9"}, "no device 'cuda:9'"),
    ],
)
def test_what_cannot_be_analysed_is_refused(call, message):
    with pytest.raises(CallError, match=message):
        waterline(call.pop("model"), call.pop("example_inputs", None), roof=ROOF, **call)


def test_a_network_that_decides_by_values_is_refused():
    class Deciding(nn.Module):
        def forward(self, x):
            return x @ x.mT if x.sum() > 0 else x

    with pytest.raises(CallError, match="cannot follow Deciding"):
        line(Deciding())


def test_an_unknown_level_names_the_levels():
    with pytest.raises(UnknownName, match="did you mean 'blocks'"):
        line().attainable_efficiency("block")
    with pytest.raises(UnknownName, match="did you mean 'layers'"):
        line().plot("layer")


# Pictures


def test_bars_are_as_wide_as_their_share_and_as_high_as_their_intensity():
    found = line()
    bars = found.levels["layers"]
    figure = found.plot()
    shown = [trace for trace in figure.data[:8] if trace.visible]
    assert len(shown) == 2
    assert sum(sum(trace.width) for trace in shown) == pytest.approx(100)
    heights = sorted(height for trace in shown for height in trace.y)
    assert heights == pytest.approx(sorted(max(bar.intensity, 0.25) for bar in bars if bar.macs))


def test_a_page_needs_no_network_and_follows_light_and_dark():
    text = page(line().plot())
    assert "prefers-color-scheme" in text
    assert "beforeprint" in text
    assert '<script src="http' not in text


# Gaps


def test_gap_is_actual_over_ideal_latency():
    found = efficiency_gap({"a": 1e9, "b": 4e9}, {"a": 100.0, "b": 100.0}, 1e11, accuracy={"a": 0.7, "b": 0.8})
    a, b = found.points
    assert (a.ideal_ms, b.ideal_ms) == (20, 80)
    assert (a.gap, b.gap) == (5, 1.25)
    assert (a.efficiency, b.efficiency) == (0.2, 0.8)


def test_fronts_are_judged_by_either_latency():
    macs, latency = {"few": 1e9, "fused": 4e9, "poor": 5e9}, {"few": 100.0, "fused": 90.0, "poor": 200.0}
    found = efficiency_gap(macs, latency, 1e11, accuracy={"few": 0.7, "fused": 0.8, "poor": 0.75})
    assert found.front() == ("fused",)
    assert found.front(ideal=True) == ("few", "fused")
    assert json.loads(json.dumps(found.to_dict()))["ideal_front"] == ["few", "fused"]
    assert "front, ideal" in {trace.name for trace in found.plot().data}


def test_without_accuracies_there_is_no_front_but_a_picture():
    found = efficiency_gap({"a": 1e9}, {"a": 50.0}, 1e11)
    with pytest.raises(CallError, match="needs the accuracy"):
        found.front()
    assert "front" not in found.to_dict()
    assert found.plot().layout.yaxis.type == "log"


def test_a_comparison_is_read(tmp_path):
    row = {
        "name": "a",
        "status": "trained",
        "score": 0.9,
        "cost": {"macs": 1e6, "latency_ms_1": 1.0, "latency_ms_32": 8},
    }
    failed = {"name": "b", "status": "failed", "score": None, "cost": {}}
    (tmp_path / "results.json").write_text(
        json.dumps({"candidates": [row, failed], "environment": {"device": "cpu", "threads": 1}})
    )
    found = gap_of_comparison(tmp_path, peak=1e11)
    assert [(point.name, point.macs, point.accuracy) for point in found.points] == [("a", 32e6, 0.9)]
    assert gap_of_comparison(tmp_path, batch_size=1, peak=1e11).points[0].latency_ms == 1
    with pytest.raises(CallError, match="no latency for batches of 8; there are 1, 32"):
        gap_of_comparison(tmp_path, batch_size=8)


@pytest.mark.parametrize("text", ["{}", "[]", "not json"])
def test_a_file_that_is_no_comparison_is_refused(tmp_path, text):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(CallError, match=r"results\.json"):
        gap_of_comparison(tmp_path)
    with pytest.raises(CallError, match="cannot read the comparison"):
        gap_of_comparison(tmp_path / "missing")


def test_wrong_tables_are_refused():
    for macs, latency, message in (
        ({}, {}, "no network"),
        ({"a": 1.0}, {"b": 1.0}, "not in both: a, b"),
        ({"a": 1.0}, {"a": 0.0}, "positive"),
    ):
        with pytest.raises(CallError, match=message):
            efficiency_gap(macs, latency, 1e9)
    with pytest.raises(CallError, match="at least one model"):
        measure_efficiency_gap([])


# One convolution


@pytest.mark.parametrize(("width", "expected"), [(1, 4.5), (8, 36)])
def test_narrow_groups_have_few_operations_per_byte(width, expected):
    found = conv_statistics((32, 64, 56, 56), group_width=width)
    assert found.output.intensity == pytest.approx(expected, rel=0.01)


def test_both_gradients_cost_a_forward_pass_each():
    found = conv_statistics((2, 16, 9, 9))
    assert found.grad_input.macs == found.grad_weight.macs == found.output.macs


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"group_width": 5}, "groups of 5 do not divide 16"),
        ({"kernel": 12, "padding": 0}, "does not fit a 9x9 map"),
        ({"kernel": 0}, "must be positive"),
    ],
)
def test_impossible_convolutions_are_refused(call, message):
    with pytest.raises(CallError, match=message):
        conv_statistics((2, 16, 9, 9), **call)
