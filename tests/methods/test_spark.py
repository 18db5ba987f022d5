"""SparK: masks are kept by every layer, nothing of the network is changed, and the authors' files are taken."""

import copy
import pickle

import pytest
import timm
import torch
import torchvision
from torch import nn

from torchstone import create_model
from torchstone.errors import CallError, ShapeError, UnknownName
from torchstone.methods.registry import build_method
from torchstone.methods.spark import (
    SparK,
    Visible,
    convert_official,
    load_encoder,
    official_names,
    patch_statistics,
    reconstruction_error,
    to_official,
    visible_count,
    visible_patches,
)
from torchstone.methods.spark.decoder import LightDecoder
from torchstone.methods.spark.sparse import PerSample, Pointwise, PointwiseLast, SparseLayers, visible_share

pytestmark = pytest.mark.system("spark")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def tiny_convnext(**kwargs):
    options = {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16), "num_classes": 5, "ls_init_value": 1.0, **kwargs}
    return timm.models.convnext.ConvNeXt(**options)


def tiny_resnet(**kwargs):
    options = {"layers": (1, 1, 1, 1), "channels": (8, 8, 16, 16), "num_classes": 5, **kwargs}
    return timm.models.resnet.ResNet(timm.models.resnet.BasicBlock, **options)


class Plain(nn.Sequential):
    """A network without any interface: two stages of stride 2 around a layer of choice."""

    def __init__(self, layer=None):
        stages = [nn.Conv2d(3, 8, 3, stride=2, padding=1), layer or nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2, padding=1)]
        super().__init__(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))


NETWORKS = {
    "timm ConvNeXt": (tiny_convnext, 64),
    "timm ConvNeXt, 1x1 convolutions and GRN": (lambda: tiny_convnext(conv_mlp=True, use_grn=True), 64),
    "timm ResNet": (tiny_resnet, 64),
    "timm ResNet with squeeze-and-excitation": (lambda: tiny_resnet(block_args={"attn_layer": "se"}), 64),
    "inceptionnext": (lambda: create_model("inceptionnext_mini32", num_classes=5), 32),
    "convnext": (lambda: create_model("convnext_mini32", num_classes=5), 32),
    "ecanet": (lambda: create_model("ecanet_mini32", num_classes=5), 32),
    "torchvision MobileNetV3": (lambda: torchvision.models.mobilenet_v3_small(width_mult=0.25, num_classes=5), 64),
    "plain": (Plain, 16),
    "group norm": (lambda: Plain(nn.GroupNorm(2, 8)), 16),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_any_network_keeps_the_mask_and_is_given_back_unchanged(name):
    build, size = NETWORKS[name]
    network, images = build().eval(), torch.randn(2, 3, size, size)
    attributes = {place: dict(module.__dict__) for place, module in network.named_modules()}
    state = {key: value.clone() for key, value in network.state_dict().items()}
    answer = network(images)

    spark = SparK(network)
    assert network.state_dict().keys() == state.keys()
    assert torch.equal(network(images), answer), "without a mask the converted network computes what it always did"
    visible = spark.draw_mask(images)
    maps = spark.encode(images, visible)
    for x in maps:
        mask = visible.mask(*x.shape[2:], x.dtype)
        assert not (x * (1 - mask)).any()
        assert ((x != 0).any(1, keepdim=True).float() * mask).mean() > 0.9 * mask.mean()
    others = torch.where(visible.mask(size, size, torch.bool), images, torch.randn_like(images))
    assert all(torch.equal(x, y) for x, y in zip(maps, spark.encode(others, visible), strict=True))

    assert spark.restore() is network
    assert torch.equal(network(images), answer)
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    for place, module in network.named_modules():
        assert module.__dict__.keys() == attributes[place].keys(), place
        assert type(module).forward is getattr(module.forward, "__func__", None), place


def test_without_remasking_the_mask_pattern_vanishes():
    spark, images = SparK(tiny_resnet()).eval(), torch.randn(1, 3, 128, 128)
    visible = spark.draw_mask(images)
    sparse = visible_share(spark.encode(images, visible))
    masked = images * visible.mask(128, 128, images.dtype)
    dense = visible_share(spark.pyramid.maps(spark.network, masked))
    assert max(sparse) <= visible.share().item()
    assert all(more > less for more, less in zip(dense, sparse, strict=True))


def random_mask(batch=2, side=4, size=16):
    return Visible(visible_patches(torch.rand(batch, side * side), 6, side)), torch.randn(batch, 8, size, size)


def shown(layer, visible, x):
    sparse = SparseLayers(layer)
    with sparse.showing(visible):
        return layer(x)


def test_batch_norm_takes_its_statistics_from_visible_positions():
    visible, x = random_mask()
    layer, reference = nn.BatchNorm2d(8), nn.BatchNorm1d(8)
    mask = visible.mask(16, 16, torch.bool)
    rows = x.permute(0, 2, 3, 1)[mask[:, 0]]
    expected = torch.zeros(2, 16, 16, 8)
    expected[mask[:, 0]] = reference(rows)
    torch.testing.assert_close(shown(layer, visible, x), expected.permute(0, 3, 1, 2))
    torch.testing.assert_close(layer.running_var, reference.running_var)
    assert layer.num_batches_tracked == 1


def test_group_norm_takes_its_statistics_from_visible_positions_of_a_sample():
    visible, x = random_mask()
    y = shown(nn.GroupNorm(2, 8), visible, x)
    for sample, place in zip(y, visible.mask(16, 16, torch.bool)[:, 0], strict=True):
        for group in sample[:, place].unflatten(0, (2, 4)).flatten(1):
            assert group.mean().item() == pytest.approx(0, abs=1e-5)
            assert group.var(correction=0).item() == pytest.approx(1, abs=1e-3)


def test_channel_gates_take_the_mean_of_visible_positions():
    visible, x = random_mask()
    gate, mask = timm.layers.SEModule(8, rd_channels=4), visible.mask(16, 16, x.dtype)
    x = x * mask
    mean = x.sum((2, 3), keepdim=True) / mask.sum((2, 3), keepdim=True)
    expected = x * gate.fc2(gate.act(gate.fc1(mean))).sigmoid()
    torch.testing.assert_close(shown(gate, visible, x), expected)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(8, 6, 1),
        nn.Conv2d(8, 6, 1, stride=2, bias=False),
        nn.Conv2d(8, 8, 1, groups=4),
        nn.Conv2d(8, 6, 3, padding=1),
        nn.MaxPool2d(3, 2, 1),
        timm.layers.LayerNorm2d(8),
        nn.InstanceNorm2d(8).eval(),
    ],
    ids=str,
)
def test_a_sparse_layer_is_the_dense_layer_at_visible_positions(layer):
    visible, x = random_mask()
    x = x * visible.mask(16, 16, x.dtype)
    if isinstance(layer, nn.InstanceNorm2d):  # of one sample at a time, on its visible positions
        rows = [sample[:, place] for sample, place in zip(x, visible.mask(16, 16, torch.bool)[:, 0], strict=True)]
        expected = torch.zeros_like(x)
        for out, place, row in zip(expected, visible.mask(16, 16, torch.bool)[:, 0], rows, strict=True):
            out[:, place] = nn.functional.instance_norm(row[None])[0]
    else:
        expected = layer(x)
        expected = expected * visible.mask(*expected.shape[2:], x.dtype)
    torch.testing.assert_close(shown(layer, visible, x), expected, rtol=1e-5, atol=1e-5)


def test_gradients_reach_visible_pixels_only():
    spark, images = SparK(tiny_resnet()), torch.randn(2, 3, 64, 64, requires_grad=True)
    visible = spark.draw_mask(images)
    sum(x.square().sum() for x in spark.encode(images, visible)).backward()
    mask = visible.mask(64, 64, torch.bool).expand_as(images)
    assert not images.grad[~mask].any()
    assert images.grad[mask].any()


def test_take_and_put_have_the_right_gradients():
    visible = Visible(visible_patches(torch.rand(1, 4), 2, 2))
    x = torch.randn(1, 4, 4, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: visible.put(visible.take(x).square(), 4, 4), x)


# Mask, loss, pictures


def test_as_many_patches_of_every_image_are_visible():
    active = visible_patches(torch.rand(5, 49), visible_count(49, 0.6), 7)
    assert active.shape == (5, 1, 7, 7)
    assert active.sum((1, 2, 3)).tolist() == [20] * 5
    assert visible_count(9, 0.5) == 4, "a tie goes to the even number"


def test_a_known_count_gives_the_positions_that_counting_gives():
    active = visible_patches(torch.rand(3, 12), 5, 4)
    assert torch.equal(Visible(active, 5).positions(6, 8), Visible(active).positions(6, 8))
    mask = Visible(active).mask(6, 8, torch.bool).flatten()
    assert torch.equal(Visible(active).positions(6, 8).sort().values, mask.nonzero().squeeze(1))


def test_a_perfect_prediction_has_no_loss_and_completes_to_the_image():
    spark, images = SparK(create_model("convnext_mini32", num_classes=0)), torch.randn(2, 3, 32, 32)
    visible = spark.draw_mask(images)
    mean, deviation = (value.expand(2, 3, 4, 8, 4, 8).reshape(2, 3, 32, 32) for value in patch_statistics(images, 8))
    perfect = (images - mean) / deviation
    assert spark.hidden_loss(perfect, images, visible).item() < 1e-10
    torch.testing.assert_close(spark.complete(perfect, images, visible), images)
    assert spark.hidden_loss(torch.zeros_like(images), images, visible).item() == pytest.approx(1 - 1 / 192, rel=1e-3)


def test_visible_patches_are_not_in_the_loss():
    images, prediction = torch.randn(2, 3, 32, 32), torch.randn(2, 3, 32, 32)
    spark = SparK(create_model("convnext_mini32", num_classes=0))
    visible = spark.draw_mask(images)
    changed = torch.where(visible.mask(32, 32, torch.bool), prediction + 9, prediction)
    loss = spark.hidden_loss(prediction, images, visible)
    assert torch.equal(loss, spark.hidden_loss(changed, images, visible))
    error = reconstruction_error(prediction, images, 8)
    torch.testing.assert_close(loss, error[~visible.active[:, 0]].mean())


def test_loss_is_the_mean_over_samples_and_pictures_show_visible_pixels():
    spark = SparK(create_model("ecanet_mini32", num_classes=0)).eval()
    images = torch.randn(3, 3, 32, 32)
    torch.manual_seed(1)
    losses = spark.evaluation_loss((images, torch.zeros(3)))
    torch.manual_seed(1)
    torch.testing.assert_close(spark.loss((images, torch.zeros(3))), losses.mean())
    pictures = spark.pictures((images, torch.zeros(3)))
    assert list(pictures) == ["image", "visible", "reconstruction"]
    seen = (pictures["visible"] != 0).any(1, keepdim=True)
    assert torch.equal(torch.where(seen, pictures["reconstruction"], 0), torch.where(seen, images, 0))


def test_it_learns_to_paint():
    spark = SparK(create_model("convnext_mini32", num_classes=0), width=32)
    ramps = torch.linspace(-1, 1, 32)
    slope = torch.randn(16, 3, 2)
    images = slope[:, :, :1, None] * ramps[:, None] + slope[:, :, 1:, None] * ramps
    optimizer = torch.optim.AdamW(spark.parameters(), 3e-3)
    losses = []
    for _ in range(12):
        losses.append(spark.loss(images))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1].item() < 0.9 * losses[0].item()


# Method


def test_copies_and_pickles_are_independent():
    spark, images = SparK(create_model("ecanet_mini32", num_classes=0)).eval(), torch.randn(2, 3, 32, 32)
    visible = spark.draw_mask(images)
    before = [x.clone() for x in spark.encode(images, visible)]
    for other in (copy.deepcopy(spark), pickle.loads(pickle.dumps(spark))):
        assert all(torch.equal(x, y) for x, y in zip(before, other.encode(images, visible), strict=True))
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.zero_()
        assert all(torch.equal(x, y) for x, y in zip(before, spark.encode(images, visible), strict=True))


def test_batch_norms_that_a_strategy_replaces_are_sparse_again():
    spark = SparK(create_model("ecanet_mini32", num_classes=0))
    nn.SyncBatchNorm.convert_sync_batchnorm(spark.network)
    replaced = [module for module in spark.network.modules() if isinstance(module, nn.SyncBatchNorm)]
    assert replaced
    assert not any("forward" in module.__dict__ for module in replaced)
    spark.at_step(0.5)
    assert all(isinstance(module.forward, Pointwise) for module in replaced)


def test_tokens_and_layer_scales_do_not_decay():
    undecayed = SparK(tiny_convnext(num_classes=0)).no_weight_decay()
    assert "densify.0.mask_token" in undecayed
    assert "network.stages.0.blocks.0.gamma" in undecayed
    assert "network.stem.0.weight" not in undecayed


def test_bf16_forward_and_backward():
    spark = SparK(create_model("inceptionnext_mini32", num_classes=0))
    with torch.autocast("cpu", torch.bfloat16):
        loss = spark.loss(torch.randn(2, 3, 32, 32))
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    used = [p for name, p in spark.named_parameters() if not name.startswith("network.head")]
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in used)


def test_it_compiles_whole(warm_compiler):
    ours = SparK(create_model("convnext_mini32", num_classes=0, depths=(1, 1, 1)), width=16).eval()
    images = torch.randn(2, 3, 32, 32)
    visible = ours.draw_mask(images)

    def painted(images, active):
        shown = Visible(active, 6)
        return ours.decode(ours.encode(images, shown), shown)

    compiled = torch.compile(painted, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(images, visible.active), painted(images, visible.active))


def test_a_network_of_further_layers_says_so_and_takes_rules():
    class Shift(nn.Module):
        def forward(self, x):
            return x + 1

    with pytest.raises(CallError, match=r"does not keep hidden positions at zero.*rules"):
        SparK(Plain(Shift()), stages=["1", "2"])
    spark = SparK(Plain(Shift()), stages=["1", "2"], rules={Shift: Pointwise})
    images = torch.randn(2, 3, 16, 16)
    assert visible_share(spark.encode(images, spark.draw_mask(images))) == [0.375, 0.375]


# Released files


@pytest.mark.parametrize("build", [tiny_convnext, tiny_resnet], ids=["ConvNeXt", "ResNet"])
def test_official_layouts_go_both_ways(build, tmp_path):
    spark = SparK(build(), width=32)
    official = to_official(spark, size=64)
    assert {"imn_m", "imn_s", "norm_black"} < official.keys()
    assert len(official) == len(official_names(spark)) + 3
    assert not any("head" in name or ".fc." in name for name in official)
    back = convert_official(official, spark)
    assert back.keys() == official_names(spark).keys()
    assert all(torch.equal(value, spark.state_dict()[name]) for name, value in back.items())

    whole, alone = tmp_path / "withdecoder.pth", tmp_path / "timm_style.pth"
    torch.save({"module": {**official, "config": {"mask_ratio": 0.6}}, "epoch": 3}, whole)
    torch.save(to_official(spark.restore()), alone)
    for file in (whole, alone):
        other = build()
        classifier = copy.deepcopy(other.get_classifier().state_dict())
        load_encoder(other, file)
        for name in official_names(other):
            assert torch.equal(other.state_dict()[name], spark.network.state_dict()[name]), name
        assert all(torch.equal(value, classifier[key]) for key, value in other.get_classifier().state_dict().items())


def test_a_file_of_another_network_is_refused(tmp_path):
    torch.save(to_official(tiny_resnet()), tmp_path / "resnet.pth")
    with pytest.raises(CallError, match=r"missing.*stem"):
        load_encoder(tiny_convnext(), tmp_path / "resnet.pth")


def test_meta_convnext_loads_into_our_convnext():
    theirs, ours = tiny_convnext(), create_model("convnext_mini32", num_classes=5)
    assert set(official_names(ours).values()) & set(official_names(theirs).values())
    state = to_official(ours)
    assert state["stages.0.0.pwconv1.weight"].ndim == 2
    back = convert_official(state, ours)
    assert all(torch.equal(value, ours.state_dict()[name]) for name, value in back.items())


# Wrong calls


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mask_ratio": 1.0}, "mask_ratio must be between 0 and 1"),
        ({"width": 20}, "multiple of the network's total stride 8, got 20; 16 fits|24 fits"),
        ({"densify_norm": "gn"}, "densify_norm must be bn, ln"),
        ({"levels": 0}, "levels must be at least 1"),
        ({"stages": ["stage"]}, "stages"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(CallError, match=message):
        build_method("spark", create_model("convnext_mini32", num_classes=0), **arguments)


def test_what_spark_cannot_train_is_refused():
    with pytest.raises(CallError, match="maps of strides"):
        SparK(timm.create_model("test_vit", num_classes=0))
    with pytest.raises(CallError, match="no convolution"):
        SparK(nn.Linear(3, 3))
    with pytest.raises(CallError, match="power of two"):
        LightDecoder(12, 24)
    checkpointed = create_model("ecanet_mini32", num_classes=0)
    checkpointed.set_grad_checkpointing()
    with pytest.raises(CallError, match="set_grad_checkpointing"):
        SparK(checkpointed)


def test_images_and_masks_that_do_not_fit_are_refused():
    spark = SparK(create_model("convnext_mini32", num_classes=0))
    with pytest.raises(ShapeError, match="multiples of 8, got 36x36; the nearest fitting size is 32x32"):
        spark.loss(torch.randn(2, 3, 36, 36))
    with pytest.raises(ShapeError, match="3 channels, got 1"):
        spark.loss(torch.randn(2, 1, 32, 32))
    with pytest.raises(CallError, match=r"mask_ratio=0.6 leaves 0 of 1 patches"):
        spark.loss(torch.randn(2, 3, 8, 8))
    with pytest.raises(ShapeError, match="4x4 patches, the mask 2x2"):
        spark.encode(torch.randn(1, 3, 32, 32), Visible(torch.ones(1, 1, 2, 2)))
    with pytest.raises(ShapeError, match=r"\(B, 1, h, w\)"):
        Visible(torch.ones(2, 4, 4))
    uneven = Visible(torch.tensor([[[[1, 0], [0, 0]]], [[[1, 1], [0, 0]]]]))
    with pytest.raises(ShapeError, match=r"as many visible patches.*\[1, 2\]"):
        shown(nn.GroupNorm(2, 8), uneven, torch.randn(2, 8, 4, 4))
    with pytest.raises(ShapeError, match="the mask is of 2 samples, the map of 3"):
        shown(nn.BatchNorm2d(8), uneven, torch.randn(3, 8, 4, 4))
    with pytest.raises(UnknownName, match="submodule"):
        SparK(Plain(), stages=["9"])


def test_rules_are_by_what_a_layer_does():
    from torchstone.methods.spark.sparse import Masked, PointwiseConvolution, rule_for

    assert rule_for(nn.Conv2d(3, 3, 1)) is PointwiseConvolution
    assert rule_for(nn.Conv2d(3, 3, 3)) is Masked
    assert rule_for(nn.Linear(3, 3)) is PointwiseLast
    assert rule_for(nn.GroupNorm(1, 3)) is PerSample
    assert rule_for(nn.ReLU()) is None
