import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import flop_registry, register_flop_formula

from torchstone.errors import CallError
from torchstone.instruments import count_macs, count_parameters
from torchstone.instruments.macs import own_parameters


def build_on_meta(build):
    with torch.device("meta"):
        return build()


PUBLISHED = ["resnet50", "shufflenet_v2_x0_5", "vit_b_32", "swin_t"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_torchvision_publishes_the_same_counts(name):
    published = torchvision.models.get_model_weights(name).IMAGENET1K_V1.meta
    model = build_on_meta(lambda: torchvision.models.get_model(name, weights=None))
    count = count_macs(model, torch.zeros(1, 3, 224, 224, device="meta"))
    assert round(count.total / 1e9, 3) == published["_ops"]
    assert count_parameters(model) == published["num_params"]
    assert not count.uncounted


WALKED = {  # convolution, attention of many kinds, gates, relative positions, weights that are computed
    "test_byobnet": 64,
    "test_convnext3": 64,
    "test_mambaout": 64,
    "test_nfnet": 64,
    "test_vit3": 160,
    "coatnet_pico_rw_224": 224,
    "halonet26t": 256,
    "lambda_resnet26t": 256,
    "mobilevit_xxs": 64,
}


@pytest.mark.parametrize("name", WALKED)
def test_no_computing_operator_of_a_network_counts_as_zero(name):
    model = build_on_meta(lambda: timm.create_model(name))
    count = count_macs(model, torch.zeros(1, 3, WALKED[name], WALKED[name], device="meta"))
    assert count.uncounted == {}
    assert count.total > 0
    assert sum(count.by_module.values()) == count.total
    assert sum(module.activations for module in count.modules.values()) == count.activations > 0
    assert sum(own_parameters(model).values()) == count_parameters(model)


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 5)
    )


def test_every_module_has_its_own_part():
    count = count_macs(network(), torch.zeros(2, 3, 4, 4))
    assert count.by_module == {"": 0, "0": 2 * 16 * 8 * 27, "1": 0, "2": 0, "3": 0, "4": 2 * 128 * 5}
    assert count.total == 2 * (16 * 8 * 27 + 128 * 5)
    assert count.modules["0"].output == (2, 8, 4, 4)


def test_activations_are_what_convolutions_and_linear_maps_write():
    count = count_macs(network(), torch.zeros(2, 3, 4, 4))
    assert count.activations == 2 * (8 * 16 + 5)
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    x = torch.zeros(3, 5, 8)
    assert count_macs(attention, (x, x, x)).activations == 3 * 5 * (24 + 8)


def test_activations_are_those_that_pycls_reports():
    model = build_on_meta(lambda: timm.create_model("resnet50"))
    count = count_macs(model, torch.zeros(1, 3, 224, 224, device="meta"))
    assert round(count.activations / 1e6, 1) == 11.1  # pycls's model zoo: 11.1 M


def test_a_module_that_runs_twice_counts_twice_under_its_first_name():
    shared = nn.Linear(4, 4)
    count = count_macs(nn.Sequential(shared, nn.ReLU(), shared), torch.zeros(1, 4))
    assert count.by_module["0"] == count.total == 32
    assert count.modules["0"].calls == 2
    assert count_parameters(nn.Sequential(shared, shared)) == 20


def test_weights_used_without_their_module_count_for_the_caller():
    class Borrower(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 4, bias=False)

        def forward(self, x):
            return x @ self.inner.weight.mT

    count = count_macs(Borrower(), torch.zeros(1, 4))
    assert count.by_module == {"": 16}


def test_outputs_may_be_packed():
    class Packed(nn.Module):
        def forward(self, x):
            return {"mask": None, "features": (x, x[:1])}

    assert count_macs(Packed(), torch.zeros(2, 3)).modules[""].output == (2, 3)


def test_the_count_is_the_same_each_time_and_grows_with_the_batch():
    model = network()
    first, again = count_macs(model, torch.zeros(2, 3, 4, 4)), count_macs(model, torch.randn(2, 3, 4, 4))
    assert first == again
    assert count_macs(model, torch.zeros(6, 3, 4, 4)).total == 3 * first.total


def test_the_model_is_left_as_it_was():
    model = network().train()
    model[1].eval()
    model[0].bias.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    count_macs(model, torch.randn(2, 3, 4, 4))
    assert [module.training for module in model] == [True, False, True, True, True]
    assert [name for name, parameter in model.named_parameters() if not parameter.requires_grad] == ["0.bias"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@torch.library.custom_op("torchstone_tests::triple", mutates_args=())
def triple(x: torch.Tensor) -> torch.Tensor:
    return x @ x.new_full((x.shape[-1], x.shape[-1]), 3.0)


class Triple(nn.Module):
    def forward(self, x):
        return triple(x)


def test_an_unknown_operator_is_reported():
    assert count_macs(Triple(), torch.zeros(2, 4)).uncounted == {"torchstone_tests.triple": 1}


def test_an_operator_that_brings_its_formula_is_counted():
    packet = torch.ops.torchstone_tests.triple

    @register_flop_formula(packet)
    def formula(x_shape, *args, out_shape=None, **kwargs):
        return 2 * x_shape[0] * x_shape[1] ** 2

    try:
        count = count_macs(Triple(), torch.zeros(2, 4))
    finally:
        del flop_registry[packet]
    assert (count.total, count.uncounted) == (32, {})


def test_rejected_inputs_are_named_with_the_reason():
    with pytest.raises(CallError, match=r"Sequential does not take inputs of shape 1x4x4x4: RuntimeError: .*channels"):
        count_macs(network(), torch.zeros(1, 4, 4, 4))


def test_hooks_are_gone_after_a_rejected_input():
    model = network().train()
    with pytest.raises(CallError):
        count_macs(model, torch.zeros(1))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert model.training


def test_parameters_can_be_counted_where_they_are_trained():
    model = network()
    model[4].requires_grad_(False)
    assert count_parameters(model) - count_parameters(model, trainable=True) == 128 * 5 + 5
