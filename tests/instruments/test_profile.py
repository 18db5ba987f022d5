import json

import _described
import pytest
import timm
import torch
from torch import nn

import torchstone
from torchstone.errors import CallError, UnknownName, WorkError
from torchstone.instruments import Conditions, ModelDescription, Profile, count_macs, count_parameters, profile_all
from torchstone.instruments.module_walk import module_walk
from torchstone.instruments.profile import usual_input_shape


def of_module(model: nn.Module, inputs, **options) -> Profile:
    return torchstone.profile(model, inputs, **{"seconds": 0.02, "batch_sizes": (1, 4), **options})


@pytest.fixture(scope="module")
def branched():
    model = nn.Sequential(nn.Linear(6, 8), nn.GELU(), _described.Branched())
    return model, of_module(model, torch.zeros(3, 6))


def test_a_module_is_profiled_for_one_sample_whatever_the_batch(branched):
    model, profile = branched
    assert profile.name == "Sequential"
    assert profile.input_shape == (6,)
    assert profile.params == count_parameters(model) == 6 * 8 + 8 + 2 * (64 + 8)
    assert profile.macs == count_macs(model, torch.zeros(1, 6)).total == 6 * 8 + 2 * 64
    assert profile.activations == 8 + 2 * 8


def test_the_deploy_form_has_its_own_size(branched):
    model, profile = branched
    assert (profile.deployed.params, profile.deployed.macs) == (6 * 8 + 8 + 64 + 8, 6 * 8 + 64)
    assert hasattr(model[2], "right")
    assert of_module(model, torch.zeros(1, 6), deploy=False).deployed is None


def test_layers_add_up_to_what_runs(branched):
    _, profile = branched
    assert [layer.path for layer in profile.layers] == ["", "0", "1", "2", "2.left"]
    for quantity in ("params", "macs", "activations"):
        assert sum(getattr(layer, quantity) for layer in profile.layers) == getattr(profile.deployed, quantity)
    assert sum(layer.latency_share for layer in profile.layers) == pytest.approx(1)
    assert profile.layers[1].output == (1, 8)
    assert profile.layers[3].type == "Branched"


def test_latency_is_given_for_each_batch_size(branched):
    _, profile = branched
    assert list(profile.latency_ms) == list(profile.latency_quartiles_ms) == [1, 4]
    for size, (low, high) in profile.latency_quartiles_ms.items():
        assert 0 < low <= profile.latency_ms[size] <= high
    assert profile.throughput == max(1000 * size / value for size, value in profile.latency_ms.items())


def test_a_profile_is_plain_values(branched):
    _, profile = branched
    read = json.loads(json.dumps(profile.to_dict()))
    assert read["macs"] == profile.macs
    assert read["latency_ms"]["4"] == profile.latency_ms[4]
    assert read["conditions"] == {"device": "cpu", "dtype": "float32", "compile": "", "threads": 1, "deploy": True}
    assert read["environment"]["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert read["layers"][1]["output"] == [1, 8]


def test_the_summary_reads_well(branched):
    _, profile = branched
    rows = dict(profile.summary())
    assert rows["Parameters"] == "200 (128 deployed)"
    assert rows["MACs"] == "176 (112 deployed)"
    assert rows["Latency, batch 4"].startswith(f"{profile.latency_ms[4]:.3g} ms (quartiles ")


def test_costs_have_the_names_of_the_comparison(branched):
    _, profile = branched
    cost = profile.cost()
    assert list(cost) == ["params", "macs", "latency_ms_1", "latency_ms_4", "throughput", "memory_mb"]
    assert cost["memory_mb"] is None


def test_parameters_of_modules_that_do_not_run_are_in_the_table():
    profile = of_module(nn.MultiheadAttention(8, 2, batch_first=True), [torch.zeros(2, 5, 8)] * 3, batch_sizes=(2,))
    assert profile.input_shape == ((5, 8),) * 3
    rows = {layer.path: layer for layer in profile.layers}
    assert (rows["out_proj"].params, rows["out_proj"].calls) == (72, 0)
    assert sum(layer.params for layer in profile.layers) == profile.params


def test_operators_without_a_formula_are_named_in_the_summary():
    profile = of_module(nn.ReLU(), torch.zeros(1, 3), per_layer=False)
    assert "Not counted in MACs" not in dict(profile.summary())
    missing = Profile(**{**vars(profile), "uncounted": {"lib.op": 2}})
    assert dict(missing.summary())["Not counted in MACs"] == "lib.op x2"


def test_the_treemap_shows_every_layer_with_all_measures():
    model = timm.create_model("test_resnet", num_classes=5)
    profile = of_module(model, torch.zeros(1, 3, 32, 32), name="small", batch_sizes=(1,))
    figure = profile.plot()
    tiles = figure.data[0]
    assert {layer.path or "/" for layer in profile.layers} <= set(tiles.ids)
    assert set(tiles.parents) - {""} <= set(tiles.ids)
    assert sum(tiles.values) == profile.macs
    assert [button.label for button in figure.layout.updatemenus[0].buttons] == [
        "area: MACs",
        "area: parameters",
        "area: latency",
        "area: activations",
    ]
    whole = tiles.customdata[0]
    assert list(whole[3:6]) == [profile.macs, profile.params, profile.activations]
    assert whole[6] == "100.0%"


def test_a_treemap_needs_layers():
    profile = of_module(nn.Linear(2, 2), torch.zeros(1, 2), per_layer=False)
    with pytest.raises(CallError, match="per_layer=True"):
        profile.plot()


def test_own_shares_leave_out_what_inner_modules_take():
    model = nn.Sequential(nn.Sequential(nn.Identity()), nn.Identity())
    readings = iter([0.0, 1.0, 3.0, 7.0, 8.0, 20.0, 21.0, 50.0])
    with module_walk(model, lambda: (next(readings),)) as visits:
        model(torch.zeros(1))
    assert {path: visit.own for path, visit in visits.items()} == {
        "0.0": [7.0 - 3.0],
        "0": [(8.0 - 1.0) - 4.0],
        "1": [21.0 - 20.0],
        "": [50.0 - 7.0 - 1.0],
    }


@pytest.mark.usefixtures("warm_processes")
def test_a_named_model_is_profiled_in_processes_of_its_own():
    profile = torchstone.profile(
        "timm:test_efficientnet", (3, 32, 32), model_args={"num_classes": 7}, batch_sizes=(1, 8), seconds=0.1
    )
    model = timm.create_model("test_efficientnet", num_classes=7)
    assert profile.name == "timm:test_efficientnet"
    assert profile.params == count_parameters(model)
    assert profile.macs == count_macs(model, torch.zeros(1, 3, 32, 32)).total
    assert profile.layers[-1].output == (1, 7)
    assert 4 * profile.params / 1e6 < profile.memory_mb[1] < profile.memory_mb[8]
    assert profile.cost()["memory_mb"] == profile.memory_mb[1]


@pytest.mark.usefixtures("warm_processes")
def test_models_are_profiled_side_by_side_and_failures_are_values():
    found = profile_all(
        {
            "branched": _described.BranchedDescription("branched", (8,)),
            "killed": _described.DeadlyDescription("deadly", (8,)),
            "misfit": _described.BranchedDescription("branched", (3,)),
            "unknown": ModelDescription("torchvision:resnet19", (3, 32, 32)),
        },
        batch_sizes=(1,),
        seconds=0.02,
    )
    assert list(found) == ["branched", "killed", "misfit", "unknown"]
    assert found["branched"].deployed.macs == 64
    assert isinstance(found["killed"], WorkError)
    assert isinstance(found["misfit"], CallError)
    assert "resnet18" in str(found["unknown"])


def test_a_named_model_has_a_usual_size():
    assert usual_input_shape("timm:test_resnet") == (3, 160, 160)
    assert usual_input_shape("timm:test_resnet", in_chans=1) == (1, 160, 160)


def test_an_unknown_model_is_named_with_the_nearest():
    with pytest.raises(UnknownName, match="resnet18"):
        torchstone.profile("timm:resnet19")


def test_a_module_needs_a_batch():
    with pytest.raises(CallError, match="a module needs example_inputs"):
        torchstone.profile(nn.Linear(2, 2))
    with pytest.raises(CallError, match="a module needs example_inputs"):
        torchstone.profile(nn.Linear(2, 2), (3, 224, 224))
    with pytest.raises(CallError, match=r"one size along the first dimension, got \(2, 3\), \(4, 3\)"):
        torchstone.profile(nn.Bilinear(3, 3, 1), [torch.zeros(2, 3), torch.zeros(4, 3)])


def test_a_wrong_size_is_named_with_the_reason():
    with pytest.raises(CallError, match=r"Linear does not take inputs of shape 1x3: RuntimeError: "):
        of_module(nn.Linear(2, 2), torch.zeros(1, 3))


def test_wrong_arguments_are_refused():
    with pytest.raises(CallError, match="model_args are for models given by name"):
        torchstone.profile(nn.Linear(2, 2), torch.zeros(1, 2), model_args={"num_classes": 2})
    with pytest.raises(CallError, match="shape of one sample"):
        torchstone.profile("timm:test_resnet", (3, 0, 32))
    with pytest.raises(CallError, match="no device 'cuda:99'"):
        torchstone.profile("timm:test_resnet", (3, 32, 32), device="cuda:99")
    with pytest.raises(CallError, match="batch_sizes"):
        of_module(nn.Linear(2, 2), torch.zeros(1, 2), batch_sizes=(0,))


def test_the_threads_of_the_process_stay_as_they_were():
    before = torch.get_num_threads()
    profile = of_module(nn.Linear(2, 2), torch.zeros(1, 2), threads=before + 1)
    assert profile.conditions == Conditions(threads=before + 1)
    assert torch.get_num_threads() == before
