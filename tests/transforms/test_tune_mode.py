"""Tune mode computes what eval mode computes, learns what it learns, and keeps less for the backward pass."""

import copy
import pickle

import pytest
import torch
from timm.layers import BatchNormAct2d, Conv2dSame
from timm.models.byobnet import RepVggBlock
from torch import nn
from torch.nn import functional as F

from torchstone.errors import CallError, UnknownName
from torchstone.instruments import deploy_form
from torchstone.models.registry import build_model
from torchstone.transforms import replay, tune_mode
from torchstone.transforms.tune_mode.modules import TuneLayer, TuneNorm

BLOCKS = {
    "conv1d": (nn.Conv1d(6, 8, 5, padding=2), nn.BatchNorm1d(8, eps=1e-3), (3, 6, 11)),
    "conv2d, groups": (nn.Conv2d(8, 12, 3, groups=4, dilation=2, bias=False), nn.BatchNorm2d(12), (2, 8, 9, 7)),
    "conv2d, no affine": (nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6, affine=False), (2, 4, 5, 5)),
    "conv2d, circular": (nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), nn.BatchNorm2d(6), (2, 4, 5, 6)),
    "conv3d": (nn.Conv3d(2, 4, (3, 1, 3), stride=(1, 2, 1)), nn.BatchNorm3d(4), (2, 2, 4, 5, 6)),
    "transposed 1d": (nn.ConvTranspose1d(6, 4, 3, stride=2), nn.BatchNorm1d(4), (2, 6, 5)),
    "transposed 2d, groups": (
        nn.ConvTranspose2d(6, 9, 3, stride=2, padding=1, output_padding=1, groups=3),
        nn.BatchNorm2d(9),
        (2, 6, 5, 4),
    ),
    "transposed 3d": (nn.ConvTranspose3d(2, 3, 2, bias=False), nn.BatchNorm3d(3), (2, 2, 3, 3, 3)),
    "linear": (nn.Linear(9, 7, bias=False), nn.BatchNorm1d(7), (8, 9)),
    "synchronised": (nn.Conv2d(3, 4, 3), nn.SyncBatchNorm(4), (2, 3, 6, 6)),
}


def lively(model: nn.Module, seed: int = 0) -> nn.Module:
    """The network in eval mode, with statistics and affine parameters as after training."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
                module.running_mean.normal_(0, 0.2, generator=generator)
                module.running_var.uniform_(0.3, 3, generator=generator)
                if module.affine:
                    module.weight.uniform_(0.5, 1.5, generator=generator)
                    module.bias.normal_(0, 0.2, generator=generator)
    return model.eval()


def draw(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return lively(nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True)))


def step(model: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The output, and the gradients of all parameters and of the input."""
    x = x.clone().requires_grad_()
    model.zero_grad(set_to_none=True)
    y = model(x)
    y.square().sum().backward()
    return y.detach(), {"x": x.grad, **{name: p.grad for name, p in model.named_parameters()}}


def tuned_parts(model: nn.Module) -> int:
    return sum(isinstance(module, TuneLayer) for module in model.modules())


# --- the same function, the same gradients


@pytest.mark.parametrize("block", BLOCKS)
def test_outputs_and_gradients_are_those_of_eval_mode(block):
    layer, norm, shape = BLOCKS[block]
    plain = lively(nn.Sequential(copy.deepcopy(layer), copy.deepcopy(norm)))
    result = tune_mode.transform(plain, draw(*shape))
    assert result.report.measured["pairs"] == tuned_parts(result.model) == 1
    expected, gradients = step(plain, draw(*shape))
    y, ours = step(result.model, draw(*shape))
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    assert ours.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-3, atol=1e-3 * gradient.abs().max().item())
    deployed = tune_mode.deploy(plain, draw(*shape)).model
    torch.testing.assert_close(deployed(draw(*shape)), expected, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="session")
def warm_pass():
    """PyTorch's own formulation, which comes with its compiler."""
    from torch._inductor.fx_passes.efficient_conv_bn_eval import efficient_conv_bn_eval

    return efficient_conv_bn_eval


@pytest.mark.parametrize("block", ["conv1d", "conv2d, groups", "conv3d", "transposed 1d", "linear"])
def test_the_fold_is_that_of_pytorchs_own_pass(block, warm_pass):
    layer, norm, shape = BLOCKS[block]
    plain = lively(nn.Sequential(copy.deepcopy(layer), copy.deepcopy(norm)))
    tuned = tune_mode.transform(plain, draw(*shape)).model
    torch.testing.assert_close(tuned(draw(*shape)), warm_pass(plain[1], plain[0], draw(*shape)))


def test_names_in_the_state_dict_are_unchanged_and_load_both_ways():
    plain, x = small(), draw(2, 3, 8, 8)
    tuned = tune_mode.transform(plain, x).model
    assert list(tuned.state_dict()) == list(plain.state_dict())
    assert [name for name, _ in tuned.named_modules()] == [name for name, _ in plain.named_modules()]
    other = lively(small(), seed=5)
    tuned.load_state_dict(other.state_dict())
    torch.testing.assert_close(tuned(x), other(x))


def test_a_norm_in_train_mode_does_what_it_always_did():
    plain, x = small(), draw(4, 3, 8, 8)
    tuned = tune_mode.transform(plain, x).model
    torch.testing.assert_close(tuned.train()(x), plain.train()(x), rtol=0, atol=0)
    assert torch.equal(tuned[1].running_mean, plain[1].running_mean)
    assert tuned[1].num_batches_tracked == 1


def test_each_norm_is_asked_at_each_call():
    plain, x = small(), draw(4, 3, 8, 8)
    tuned = tune_mode.transform(plain, x).model.train()
    plain.train()
    for model in (tuned, plain):
        model[1].eval()
    torch.testing.assert_close(tuned(x), plain(x))
    assert tuned[1].num_batches_tracked == 0


def test_a_step_of_gradient_descent_moves_the_folded_weights_by_c_squared_of_deploy_modes():
    """W' moves by h c^2 dL/dW' in tune mode and by h dL/dW' in deploy mode; gamma is held to see W alone."""
    plain, x, rate = small(), draw(2, 3, 8, 8), 1e-3
    moves = {}
    for mode in ("tune", "deploy"):
        model = tune_mode.transform(plain, x, mode=mode).model
        before = tune_mode.fold(plain[0], plain[1])[0].detach()
        step(model, x)
        with torch.no_grad():
            model[0].weight -= rate * model[0].weight.grad
        after = tune_mode.fold(model[0], plain[1])[0] if mode == "tune" else model[0].weight
        moves[mode] = (after - before).detach()
    c = (plain[1].weight / (plain[1].running_var + plain[1].eps).sqrt()).detach()
    expected = c.square().view(-1, 1, 1, 1) * moves["deploy"]
    torch.testing.assert_close(moves["tune"], expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())


# --- frozen statistics, the other modes


@pytest.mark.parametrize("options", [{"freeze": True}, {"mode": "eval"}])
def test_frozen_norms_use_running_statistics_in_train_mode(options):
    plain, x = small(), draw(4, 3, 8, 8)
    model = tune_mode.transform(plain.train(), x, **options).model.train()
    torch.testing.assert_close(model(x), plain.eval()(x))
    assert model.training
    assert model[1].num_batches_tracked == 0
    assert tuned_parts(model) == (0 if options.get("mode") == "eval" else 1)
    assert list(model.state_dict()) == list(plain.state_dict())


def test_frozen_norms_that_have_seen_no_data_are_pointed_out():
    report = tune_mode.transform(small(), draw(2, 3, 8, 8), freeze=True).report
    assert any("seen no data" in line for line in report.kept)
    trained = small().train()
    trained(draw(4, 3, 8, 8))
    report = tune_mode.transform(trained, draw(2, 3, 8, 8), freeze=True).report
    assert not any("seen no data" in line for line in report.kept)


def test_deploy_leaves_one_layer_per_block_for_good():
    plain, x = small(), draw(2, 3, 8, 8)
    for model in (plain, tune_mode.transform(plain, x).model, tune_mode.transform(plain, x, freeze=True).model):
        result = tune_mode.deploy(model, x)
        assert list(result.model.state_dict()) == ["0.weight", "0.bias"]
        assert type(result.model[0]) is nn.Conv2d
        torch.testing.assert_close(result.model(x), plain(x))
        assert list(replay(plain, result.plan).state_dict()) == ["0.weight", "0.bias"]


def test_deploy_keeps_the_activation_that_timm_has_in_its_norm():
    model, x = lively(build_model("timm:test_efficientnet", num_classes=4)), draw(2, 3, 32, 32)
    result = tune_mode.deploy(model, x)
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in result.model.modules())
    torch.testing.assert_close(result.model(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["ecanet_mini32", "inceptionnext_mini32"])
def test_the_deploy_form_of_a_tuned_network_gives_the_same_answer(name):
    plain, x = lively(build_model(name, num_classes=4)), draw(2, 3, 32, 32)
    tuned = tune_mode.transform(plain, x).model
    with torch.no_grad():
        expected = plain(x)
        deployed = deploy_form(tuned)
        scale = expected.abs().max().item()
        torch.testing.assert_close(deployed(x), expected, rtol=0, atol=1e-4 * scale)
        torch.testing.assert_close(tuned(x), expected, rtol=0, atol=1e-4 * scale)
    assert not tuned_parts(deployed)


def test_parts_that_have_a_deploy_form_of_their_own_get_it_and_the_others_are_folded():
    torch.manual_seed(0)
    plain = lively(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), RepVggBlock(8, 8), RepVggBlock(8, 8)))
    x = draw(2, 3, 8, 8)
    tuned = tune_mode.transform(plain, x).model
    assert tuned_parts(tuned) == 5
    with torch.no_grad():
        deployed = deploy_form(tuned)
        torch.testing.assert_close(deployed(x), plain(x), rtol=1e-4, atol=1e-4)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in deployed.modules())
    assert sum(isinstance(module, nn.Conv2d) for module in deployed.modules()) == 3


def test_a_networks_own_fuse_finds_plain_layers():
    """fuse() copies a layer and gives it folded weights; the copy must not fold the norm once more."""
    plain, x = lively(build_model("ecanet_mini32", num_classes=4)), draw(2, 3, 32, 32)
    tuned = tune_mode.transform(plain, x).model
    with torch.no_grad():
        torch.testing.assert_close(tuned.fuse()(x), plain(x), rtol=1e-4, atol=1e-5)
    assert type(copy.deepcopy(tune_mode.transform(small(), draw(2, 3, 8, 8)).model[0])) is nn.Conv2d


# --- which blocks


class Branched(nn.Module):
    """A layer used twice, one whose output is returned, one in a block; ``checks`` cannot be traced."""

    def __init__(self, checks: bool) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.twice, self.bn2 = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.shown, self.bn3 = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.bn4 = nn.BatchNorm2d(4)
        self.shared, self.bn5, self.bn6 = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.checks = checks

    def forward(self, x):
        if self.checks and x.sum() > 1e9:
            raise ValueError("too bright")
        x = F.relu(self.bn1(self.conv1(x)))
        r = self.twice(x)
        x = F.relu(self.bn2(r) + r)
        shown = self.shown(x)
        x = self.bn4(F.relu(self.bn3(shown)))
        x = self.bn5(self.shared(x)) + self.bn6(self.shared(F.relu(x)))
        return x, shown


@pytest.mark.parametrize("checks", [False, True], ids=["traced", "watched"])
def test_only_layers_whose_output_goes_to_one_norm_alone_are_paired(checks):
    model, x = lively(Branched(checks)), draw(2, 3, 8, 8)
    result = tune_mode.transform(model, x)
    assert result.plan["pairs"] == [["conv1", "bn1"]]
    assert ("watched" if checks else "traced") in result.report.changed[0]
    left = dict(line.split(": ", 1) for line in result.report.kept)
    assert left == {
        "bn2": "the output of twice is also used elsewhere",
        "bn3": "the output of shown is also used elsewhere",
        "bn4": "no convolution or linear layer comes right before it",
        "bn5": "the output of shared is also used elsewhere",
        "bn6": "the output of shared is also used elsewhere",
    }
    for ours, expected in zip(result.model(x), model(x), strict=True):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("checks", [False, True], ids=["traced", "watched"])
def test_an_operation_in_place_between_layer_and_norm_is_seen(checks):
    class Between(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x):
            if checks and x.sum() > 1e9:
                raise ValueError
            y = self.conv(x)
            y.relu_()
            return self.bn(y)

    with pytest.raises(CallError, match="no block for tune mode: bn: "):
        tune_mode.transform(Between().eval(), draw(2, 3, 4, 4))


def test_a_linear_layer_on_sequences_is_not_folded():
    """The norm would take the second of three dimensions for the channels, the layer has them last."""
    plain = lively(nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6)))
    tuned = tune_mode.transform(plain, draw(3, 5)).model
    torch.testing.assert_close(tuned(draw(2, 6, 5)), plain(draw(2, 6, 5)), rtol=0, atol=0)


def test_what_cannot_be_a_block_is_said():
    class Scaled(nn.BatchNorm2d):
        def forward(self, x):
            return 2 * super().forward(x)

    x = draw(2, 3, 4, 4)
    for norm, reason in (
        (Scaled(4), "a Scaled may do more"),
        (nn.BatchNorm2d(4, track_running_stats=False), "no running statistics"),
    ):
        with pytest.raises(CallError, match=reason):
            tune_mode.transform(nn.Sequential(nn.Conv2d(3, 4, 1), norm), x)
    hooked = small()
    hooked[0].register_forward_hook(lambda *_: None)
    with pytest.raises(CallError, match="a hook is to see what 0 hands to the norm"):
        tune_mode.transform(hooked, x)
    with pytest.raises(CallError, match="it has no batch norm"):
        tune_mode.transform(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()), x)


def test_wrong_options_and_plans_are_refused():
    model, x = small(), draw(2, 3, 8, 8)
    with pytest.raises(UnknownName, match="unknown mode of tune_mode 'tun': did you mean 'tune'"):
        tune_mode.transform(model, x, mode="tun")
    with pytest.raises(CallError, match="freeze belongs to mode tune; mode eval always uses"):
        tune_mode.transform(model, x, mode="eval", freeze=True)
    with pytest.raises(CallError, match="mode deploy has no statistics left"):
        tune_mode.transform(model, x, mode="deploy", freeze=True)
    with pytest.raises(CallError, match="example_inputs must be a batch"):
        tune_mode.transform(model, [1, 2])
    plan = tune_mode.transform(model, x).plan
    with pytest.raises(CallError, match="has no module '7'"):
        replay(model, {**plan, "pairs": [["7", "1"]]})
    with pytest.raises(CallError, match="2 is a ReLU, no part of a block"):
        replay(model, {**plan, "pairs": [["0", "2"]]})
    narrow = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(8), nn.ReLU())
    with pytest.raises(CallError, match="0 has 4 channels, 1 8"):
        replay(narrow, plan)


# --- what it saves


def test_a_quarter_less_is_kept_for_the_backward_pass_of_a_resnet():
    model, x = lively(build_model("timm:test_resnet", num_classes=4)), draw(24, 3, 64, 64)
    report = tune_mode.transform(model, x).report
    before = report.measured["bytes kept for the backward pass before"]
    now = report.measured["bytes kept for the backward pass now"]
    assert now < 0.75 * before
    fewer = report.predicted["bytes of activations fewer for the backward pass"]
    more = report.predicted["bytes of folded weights kept instead, whatever the batch"]
    assert before - now == pytest.approx(fewer - more, rel=0.1), "the prediction"


# --- leaving Python


@pytest.fixture(scope="module")
def tuned():
    """A network with every kind of part for images."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.SiLU(),
        Conv2dSame(8, 8, 3, stride=2, groups=8),
        BatchNormAct2d(8),
        nn.ConvTranspose2d(8, 8, 3, stride=2, padding=1, output_padding=1, groups=2),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 6),
        nn.BatchNorm1d(6),
    )
    result = tune_mode.transform(lively(model), draw(2, 3, 32, 32))
    assert len(result.plan["pairs"]) == 4
    return result.model


def test_a_tuned_network_is_captured_whole(tuned, warm_compiler):
    model, x = copy.deepcopy(tuned), draw(2, 3, 32, 32)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    expected, gradients = step(copy.deepcopy(tuned), x)
    y, ours = step(compiled, x)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    for name, gradient in gradients.items():
        same = ours[name if name == "x" else f"_orig_mod.{name}"]
        torch.testing.assert_close(same, gradient, rtol=1e-3, atol=1e-3 * gradient.abs().max().item())
    torch.compiler.reset()


def test_a_tuned_network_is_exported_with_a_dynamic_batch(tuned, warm_onnx, tmp_path):
    with torch.no_grad():
        batch = torch.export.Dim("batch", min=1, max=64)
        program = torch.export.export(copy.deepcopy(tuned), (draw(2, 3, 32, 32),), dynamic_shapes=({0: batch},))
        torch.onnx.export(program, (draw(2, 3, 32, 32),), tmp_path / "m.onnx", dynamo=True, verbose=False)
        session = warm_onnx.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
        for size in (1, 5):
            x = draw(size, 3, 32, 32)
            torch.testing.assert_close(program.module()(x), tuned(x), rtol=1e-4, atol=1e-5)
            (answer,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
            torch.testing.assert_close(torch.from_numpy(answer), tuned(x), rtol=1e-3, atol=1e-4)


def test_bfloat16_autocast_runs_forward_and_backward(tuned):
    model, x = copy.deepcopy(tuned), draw(2, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        y = model(x)
    y.float().square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())
    torch.testing.assert_close(y.float(), tuned(x), rtol=0.1, atol=0.1 * tuned(x).abs().max().item())


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "pickle"]
)
def test_a_copy_has_blocks_of_its_own(tuned, copied):
    model, x = copied(tuned), draw(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(x), tuned(x), rtol=0, atol=0)
        for module in model.modules():
            if isinstance(module, TuneNorm):
                module.bias += 1
        assert not torch.allclose(model(x), tuned(x)), "the copy's layers fold the copy's norms"
