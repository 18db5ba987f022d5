import _described
import pytest
import timm
import torch
from torch import nn

from torchstone.errors import CallError, UnknownName
from torchstone.instruments import Conditions, count_parameters, deploy_form
from torchstone.instruments.running import OutOfMemory, check_device, forward


def test_parts_that_reparameterize_are_found_and_the_model_stays():
    model = nn.Sequential(nn.Linear(4, 8), _described.Branched()).eval()
    x = torch.randn(3, 4)
    deployed = deploy_form(model)
    torch.testing.assert_close(deployed(x), model(x))
    assert hasattr(model[1], "right")
    assert not hasattr(deployed[1], "right")


def test_what_fuse_returns_takes_the_place_of_its_module():
    model = timm.create_model("repvit_m0_9", num_classes=3).eval()
    x = torch.randn(1, 3, 32, 32)
    deployed = deploy_form(model)
    torch.testing.assert_close(deployed(x), model(x), atol=1e-4, rtol=1e-4)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in deployed.modules())
    assert count_parameters(deployed) < count_parameters(model)


def test_a_network_that_fuses_itself_speaks_for_its_parts():
    calls = []

    class Part(nn.Module):
        def fuse(self):
            calls.append("part")

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.part = Part()

        def fuse(self):
            calls.append("network")
            return self

    deployed = deploy_form(nn.Sequential(Network()))
    assert isinstance(deployed[0], Network)
    assert calls == ["network"]


def test_a_layer_that_is_called_fuse_is_no_method():
    model = nn.Sequential(nn.Identity())
    model[0].fuse = nn.Conv2d(3, 3, 1)
    assert deploy_form(model) is None


def test_a_model_without_a_deploy_form_has_none():
    assert deploy_form(nn.Linear(3, 3)) is None


def test_an_absent_device_is_refused_with_those_that_are_there():
    with pytest.raises(CallError, match=r"no device 'cuda:99' here; this machine has cpu"):
        check_device("cuda:99")
    with pytest.raises(CallError, match="this machine has cpu"):
        Conditions(device="gpu")


def test_wrong_conditions_are_refused():
    with pytest.raises(UnknownName, match="'bfloat16'"):
        Conditions(dtype="bfloat")
    with pytest.raises(UnknownName, match="'max-autotune'"):
        Conditions(compile="max-autotun")
    with pytest.raises(CallError, match="threads must be positive"):
        Conditions(threads=0)


def test_conditions_take_the_threads_of_the_process():
    assert Conditions().threads == torch.get_num_threads()


def test_models_and_inputs_are_placed_in_the_precision():
    conditions = Conditions(dtype="bfloat16")
    model = conditions.place(nn.Linear(3, 3))
    images, indices = conditions.place_inputs((torch.zeros(1, 3), torch.tensor([1])))
    assert model.weight.dtype == images.dtype == torch.bfloat16
    assert indices.dtype == torch.int64
    assert not model.training


def test_running_out_of_memory_is_not_a_wrong_call():
    def greedy(x):
        return torch.empty(1 << 60, dtype=torch.uint8)

    with pytest.raises(OutOfMemory, match="inputs of shape 2x3"):
        forward(greedy, torch.zeros(2, 3))
