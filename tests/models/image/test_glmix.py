"""GLMix: slots, blocks, token labelling and assignment maps against the paper's equations."""

import copy

import pytest
import torch
import torch.nn.functional as F
from timm.layers import DropPath, LayerNorm2d
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from torchstone import create_model
from torchstone.errors import CallError, ShapeError, UnknownName
from torchstone.models.image.glmix import (
    AttentionBlock,
    GLMixBlock,
    GLNet,
    TokenAttentionBlock,
    TokenLabelCrossEntropy,
    TokenLabelGLNet,
    TokenLabelGTCrossEntropy,
    TokenLabelOutputs,
    draw_box,
    exchange_box,
    slot_assignments,
)
from torchstone.models.image.glmix.blocks import MultiHeadAttention, ResidualDepthwiseConv
from torchstone.training.recipe import TrainSpec
from torchstone.training.supervised import Classification

SMALL = {
    "dims": (8, 16),
    "depths": (2, 2),
    "head_dim": 4,
    "num_slots": 4,
    "mixing_modes": ("glmix", "glmix.mha_nchw"),
    "cpe_ks": 3,
    "mlp_dw": True,
    "mlp_ratios": 3.0,
    "downsample_style": "ovlp",
    "transition_layout": "proj.norm",
    "num_classes": 5,
}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def lively(model):
    """With weights and statistics as after training."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 1.5)
    return model.eval()


def assert_equal(ours, expected):
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


# Blocks


def test_attention_is_pytorchs():
    ours, theirs = MultiHeadAttention(8, 2), nn.MultiheadAttention(8, 2, batch_first=True)
    theirs.load_state_dict(lively(ours).state_dict())
    x = torch.randn(2, 5, 8)
    assert_equal(ours(x), theirs(x, x, x, need_weights=False)[0])


@pytest.mark.parametrize("slot_init", ["ada_avgpool", "param"])
def test_block_is_the_equations(slot_init):
    block = lively(GLMixBlock(8, 2, 4, slot_init, cpe_ks=3, mlp_dw=True, mlp_ratio=2, layerscale=0.5))
    x = torch.randn(2, 8, 6, 7)

    quarters = [x[:, :, rows, columns] for rows in (slice(3), slice(3, 6)) for columns in (slice(4), slice(3, 7))]
    pooled = torch.stack([quarter.mean((2, 3)) for quarter in quarters], 1)  # (B, M, C)
    start = block.init_slots.expand(2, -1, -1) if slot_init == "param" else pooled
    p = block.pos_conv
    y = x + F.conv2d(x, p.weight, p.bias, padding=1, groups=8)
    pixels = F.layer_norm(y.permute(0, 2, 3, 1), (8,), block.norm1.weight, block.norm1.bias, 1e-6).flatten(1, 2)
    a = block.slot_scale * F.cosine_similarity(start[:, :, None], pixels[:, None], dim=-1)  # (B, M, L)
    clustered = torch.einsum("bml,blc->bmc", a.exp() / a.exp().sum(2, keepdim=True), pixels)
    updated = block.relation_mha(clustered)
    back = torch.einsum("bml,bmc->blc", a.exp() / a.exp().sum(1, keepdim=True), updated)
    normed = pixels.mT.reshape(2, 8, 6, 7)
    y = y + block.ls1.gamma * (back.mT.reshape(2, 8, 6, 7) + block.feature_conv(normed))
    z = block.mlp[0](block.norm2(y))
    z = z + F.conv2d(z, block.mlp[1].weight, block.mlp[1].bias, padding=1, groups=16)
    y = y + block.ls2.gamma * block.mlp[3](F.gelu(z))

    slots = block.slots(x)
    for ours, expected in zip(slots, (a, clustered, updated), strict=True):
        assert_equal(ours, expected)
    assert_equal(block(x), y)


def test_every_pixel_is_shared_out_among_the_slots():
    assignment = lively(GLMixBlock(8, 2, 9)).slots(3 * torch.randn(2, 8, 7, 5)).assignment
    assert assignment.shape == (2, 9, 35)
    assert_equal(assignment.sum(1), torch.ones(2, 35))


def test_slots_have_no_order():
    block = lively(GLMixBlock(8, 2, 6, slot_init="param"))
    order = torch.randperm(6)
    other = copy.deepcopy(block)
    with torch.no_grad():
        other.init_slots.copy_(block.init_slots[:, order])
    x = torch.randn(2, 8, 5, 5)
    assert_equal(other.slots(x).updated, block.slots(x).updated[:, order])
    assert_equal(other(x), block(x))


def test_a_pixel_that_is_zero_after_its_norm_is_no_failure():
    block = GLMixBlock(8, 2, 4).eval()
    assert block(torch.zeros(1, 8, 4, 4)).isfinite().all()


def seen_by_the_middle(block):
    """Which input pixels the output at (8, 8) depends on."""
    x = torch.randn(1, 8, 16, 16, requires_grad=True)
    block(x)[0, :, 8, 8].sum().backward()
    return x.grad[0].abs().amax(0) > 0


def test_slots_see_the_whole_map_and_the_convolution_its_neighbours():
    neighbours = torch.zeros(16, 16, dtype=torch.bool)
    neighbours[6:11, 6:11] = True
    assert torch.equal(seen_by_the_middle(lively(GLMixBlock(8, 2, num_slots=0))), neighbours)
    assert seen_by_the_middle(lively(GLMixBlock(8, 2, 16))).all()
    assert seen_by_the_middle(lively(GLMixBlock(8, 2, 16, local_dw_ks=0))).all()


def test_ablations_leave_a_branch_out():
    whole, bare, slots = (
        {name.split(".")[0] for name, _ in block.named_parameters()}
        for block in (GLMixBlock(8, 2, 4), GLMixBlock(8, 2, 0), GLMixBlock(8, 2, 4, local_dw_ks=0))
    )
    assert whole - bare == {"slot_scale", "relation_mha"}
    assert whole - slots == {"feature_conv"}


def flops(block, side):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        block.to("meta")(torch.empty(1, 64, side, side, device="meta"))
    return counter.get_total_flops()


def test_cost_grows_linearly_with_the_pixels():
    block = GLMixBlock(64, 2, 16)
    first, second, third = (flops(block, side) for side in (16, 32, 64))
    assert third - second == 4 * (second - first)
    attention = AttentionBlock(64, 2)
    first, second, third = (flops(attention, side) for side in (16, 32, 64))
    assert third - second > 9 * (second - first)


def test_attention_blocks_differ_in_their_layout_only():
    maps, tokens = lively(AttentionBlock(8, 2, layerscale=0.5)), TokenAttentionBlock(8, 2, layerscale=0.5).eval()
    state = {name.replace("mlp.3", "mlp.2"): value.squeeze() for name, value in maps.state_dict().items()}
    tokens.load_state_dict(state)
    x = torch.randn(2, 8, 3, 5)
    assert_equal(tokens(x), maps(x))


# Network


@pytest.mark.parametrize(
    ("name", "millions"), [("glnet_9g", "60.011"), ("glnet_4g_tklb", "27.515"), ("glnet_9g_tklb", "60.780")]
)
def test_variant_has_the_authors_number_of_parameters(name, millions):
    with torch.device("meta"):
        model = create_model(name)
    assert f"{sum(parameter.numel() for parameter in model.parameters()) / 1e6:.3f}" == millions


def test_blocks_take_turns():
    model = GLNet(**{**SMALL, "mixing_modes": "glmix.mha_nchw.mha", "depths": (3, 2)})
    assert [[type(block) for block in stage.blocks] for stage in model.stages] == [
        [GLMixBlock, AttentionBlock, TokenAttentionBlock],
        [GLMixBlock, AttentionBlock],
    ]


def test_stochastic_depth_grows_to_the_last_block():
    model = GLNet(**SMALL, drop_path_rate=0.3)
    rates = [block.drop_path for stage in model.stages for block in stage.blocks]
    assert [rate.drop_prob if isinstance(rate, DropPath) else 0 for rate in rates] == pytest.approx([0, 0.1, 0.2, 0.3])


def test_deploy_form_has_no_batch_norm_but_the_head_and_no_residual_convolution():
    model = lively(GLNet(**SMALL))
    fused = copy.deepcopy(model).fuse()
    assert [name for name, module in fused.named_modules() if isinstance(module, nn.BatchNorm2d)] == ["norm"]
    assert not [module for module in fused.modules() if isinstance(module, ResidualDepthwiseConv)]
    x = torch.randn(2, 3, 21, 34)
    with torch.no_grad():
        assert_equal(fused(x), model(x))


def test_layer_scales_and_norms_are_not_decayed():
    model = GLNet(**SMALL, layerscale=0.1)
    named = model.no_weight_decay()
    assert named == {name for name, _ in model.named_parameters() if ".ls" in name}
    assert named


def test_patches_that_are_cut_off_and_images_without_any_patch():
    model = GLNet(**{**SMALL, "downsample_style": "non_ovlp", "transition_layout": "norm.proj"}).eval()
    x = torch.randn(1, 3, 17, 26)
    with torch.no_grad():
        assert_equal(model(x), model(x[:, :, :16, :24]))
    with pytest.raises(ShapeError, match="at least 8 pixels"):
        model(torch.zeros(1, 3, 7, 30))


def test_a_norm_before_the_patches_takes_out_the_images_mean():
    model = lively(GLNet(**SMALL, dual_patch_norm=True))
    assert isinstance(model.downsample_layers[0][0], LayerNorm2d)
    x = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        assert_equal(model(x + 2), model(x))


# Slot assignment maps


def test_assignment_maps_are_those_of_the_blocks():
    model = lively(GLNet(**SMALL))
    x = torch.randn(2, 3, 32, 44)
    maps = slot_assignments(model, x)
    assert {name: value.shape for name, value in maps.items()} == {
        "stages.0.blocks.0": (2, 4, 8, 11),
        "stages.0.blocks.1": (2, 4, 8, 11),
        "stages.1.blocks.0": (2, 4, 4, 6),
    }
    stem = model.downsample_layers[0](x)
    assert_equal(maps["stages.0.blocks.0"].flatten(2), model.stages[0].blocks[0].slots(stem).assignment)
    assert not [module for module in model.modules() if module._forward_pre_hooks]


def test_without_slots_there_are_no_maps():
    with pytest.raises(CallError, match="GLNet has no GLMix block with slots"):
        slot_assignments(GLNet(**{**SMALL, "num_slots": 0}), torch.zeros(1, 3, 16, 16))
    with pytest.raises(CallError, match="has no slots"):
        GLMixBlock(8, 2, 0).slots(torch.zeros(1, 8, 4, 4))


# Token labelling


def test_exchanged_box_comes_from_the_mirrored_batch_and_goes_back():
    x, box = torch.randn(3, 2, 9, 8), torch.tensor([1, 0, 3, 2])
    mixed = exchange_box(x, box, scale=3)
    expected = x.clone()
    expected[:, :, 3:9, 0:6] = x.flip(0)[:, :, 3:9, 0:6]
    assert torch.equal(mixed, expected)
    assert torch.equal(exchange_box(mixed, box, scale=3), x)


def test_boxes_lie_in_the_map_and_have_its_proportions():
    generator = torch.Generator().manual_seed(0)
    boxes = torch.stack([draw_box(400, 200, generator) for _ in range(500)])
    top, left, bottom, right = boxes.T
    assert (boxes >= 0).all()
    assert (bottom <= 400).all()
    assert (right <= 200).all()
    whole = (top > 0) & (left > 0) & (bottom < 400) & (right < 200)  # not cut off at the border
    sides = (bottom - top)[whole] / 400, (right - left)[whole] / 200
    torch.testing.assert_close(sides[0], sides[1], rtol=0, atol=0.02)
    assert torch.equal(draw_box(7, 7, generator.manual_seed(1)), draw_box(7, 7, generator.manual_seed(1)))


def test_a_box_covers_so_much_of_the_map_as_its_share_says(monkeypatch):
    for drawn, side in ((0.0, 10), (0.75, 5), (1 - 1e-7, 0)):  # lam, sqrt(1 - lam) of 10 tokens
        values = iter([torch.tensor(drawn), torch.tensor([0.5, 0.5])])
        monkeypatch.setattr(torch, "rand", lambda *_, values=values, **__: next(values))
        top, left, bottom, right = draw_box(10, 10).tolist()
        assert bottom - top == right - left == side // 2 * 2


def test_mixing_images_with_themselves_changes_nothing():
    model = lively(TokenLabelGLNet(**SMALL))
    x = torch.randn(1, 3, 32, 48).expand(3, -1, -1, -1)
    with torch.no_grad():
        cls, aux, box = model.forward_mixed(x, torch.tensor([1, 1, 3, 5]))
        assert_equal(cls + 0.5 * aux.amax(1), model(x))
        assert_equal(model.tklb_aux_head(model.forward_features(x).flatten(2).mT), aux)
    assert box.tolist() == [1, 1, 3, 5]


def test_labels_of_exchanged_tokens_go_back_to_their_image():
    model = lively(TokenLabelGLNet(**{**SMALL, "depths": (0, 0)}))  # stem and transition see a few pixels only
    x, everything = torch.randn(2, 3, 32, 32), torch.tensor([0, 0, 4, 4])
    with torch.no_grad():
        cls, aux, _ = model.forward_mixed(x, everything)
        plain = model.forward_mixed(x, torch.zeros(4, dtype=torch.long))
    assert_equal(cls, plain.cls.flip(0))
    assert_equal(aux, plain.aux)


def outputs_and_targets(batch=3, tokens=6, classes=5):
    outputs = TokenLabelOutputs(
        torch.randn(batch, classes), torch.randn(batch, tokens, classes), torch.tensor([0, 1, 2, 2])
    )
    return outputs, torch.rand(batch, classes, 2 + tokens).softmax(1)


def cross_entropy(logits, target):
    return -(target * logits.log_softmax(-1)).sum(-1).mean()


def test_loss_is_the_equation():
    (cls, aux, box), target = outputs_and_targets()
    image = target[..., 1] * 4 / 6 + target[..., 1].flip(0) * 2 / 6  # two of six tokens were exchanged
    dense = sum(cross_entropy(aux[:, i], target[..., 2 + i]) for i in range(6)) / 6
    loss = TokenLabelCrossEntropy(0.5, 2.0)(TokenLabelOutputs(cls, aux, box), target)
    assert_equal(loss, 2 * cross_entropy(cls, image) + 0.5 * dense)


def test_a_label_of_the_image_is_every_tokens():
    outputs, target = outputs_and_targets()
    image = target[..., 1]
    repeated = image[..., None].expand(-1, -1, 8)
    assert_equal(TokenLabelCrossEntropy()(outputs, image), TokenLabelCrossEntropy()(outputs, repeated))


def test_true_labels_weigh_half_where_the_annotator_agrees_and_a_tenth_where_not():
    outputs, target = outputs_and_targets(batch=2)
    outputs = outputs._replace(box=torch.zeros(4, dtype=torch.long))
    true = F.one_hot(torch.tensor([0, 1]), 5).float()
    annotated = torch.tensor([[0.6, 0.1, 0.1, 0.1, 0.1], [0.6, 0.1, 0.1, 0.1, 0.1]])
    target[..., 0], target[..., 1] = true, annotated
    image = torch.stack([0.5 * annotated[0] + 0.5 * true[0], 0.9 * annotated[1] + 0.1 * true[1]])
    assert_equal(TokenLabelGTCrossEntropy(0.0)(outputs, target), cross_entropy(outputs.cls, image))


def test_a_network_of_two_heads_is_trained_by_its_own_loss():
    train = TrainSpec(label_smoothing=0.2)
    module = Classification(TokenLabelGLNet(**SMALL), train, seed=0, steps_per_epoch=1, num_classes=5)
    images, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])
    torch.manual_seed(1)
    loss = module.training_loss((images, labels))
    loss.backward()
    assert all(parameter.grad is not None for parameter in module.model.parameters())
    torch.manual_seed(1)
    mixed = module.model.forward_mixed(images)
    assert_equal(loss, TokenLabelCrossEntropy(dense_weight=0.5)(mixed, 0.8 * F.one_hot(labels, 5) + 0.04))
    spec = TrainSpec(loss="binary_cross_entropy")
    with pytest.raises(CallError, match="no effect on TokenLabelGLNet"):
        Classification(TokenLabelGLNet(**SMALL), spec, seed=0, steps_per_epoch=1, num_classes=5)


def test_mixed_targets_are_smoothed_once(monkeypatch):
    train = TrainSpec(label_smoothing=0.2, mixup=0.8)
    module = Classification(TokenLabelGLNet(**SMALL), train, seed=0, steps_per_epoch=1, num_classes=5)
    targets = []
    monkeypatch.setattr(module, "own_loss", lambda images, shares: targets.append(shares))
    module.training_loss((torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])))
    assert_equal(targets[0].sum(1), torch.ones(4))
    assert_equal(targets[0][:, 4], torch.full((4,), 0.04))  # the class of none of the images


def test_the_loss_of_bfloat16_answers_is_computed_in_float32():
    outputs, target = outputs_and_targets()
    half = outputs._replace(cls=outputs.cls.bfloat16(), aux=outputs.aux.bfloat16())
    expected = TokenLabelCrossEntropy()(half._replace(cls=half.cls.float(), aux=half.aux.float()), target)
    with torch.autocast("cpu", torch.bfloat16):
        loss = TokenLabelCrossEntropy()(half, target)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)


def test_recomputed_blocks_give_the_same_loss_and_gradients():
    model = TokenLabelGLNet(**SMALL).train()
    x, target = torch.randn(4, 3, 32, 32), torch.rand(4, 5).softmax(1)

    def step():
        torch.manual_seed(1)
        model.zero_grad()
        loss = model.training_loss(x, target)
        loss.backward()
        return loss.detach(), [parameter.grad.clone() for parameter in model.parameters()]

    kept = step()
    model.set_grad_checkpointing()
    assert_equal(step(), kept)


def test_both_heads_are_replaced_for_other_classes(tmp_path):
    small = {name: value for name, value in SMALL.items() if name != "num_classes"}
    model = lively(TokenLabelGLNet(**SMALL))
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    same = create_model("glnet_4g_tklb", pretrained=tmp_path / "weights.pth", **SMALL).eval()
    other = create_model("glnet_4g_tklb", pretrained=tmp_path / "weights.pth", num_classes=3, **small).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(same(x), model(x))
        assert torch.equal(other.forward_features(x), model.forward_features(x))
        assert other(x).shape == (2, 3)
        other.reset_classifier(0)
        assert other(x).shape == (2, 16)
    with pytest.raises(CallError, match="num_classes"):
        other.forward_mixed(x)


# Errors


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: GLMixBlock(8, 2, 10), CallError, "num_slots must be 9 or 16, got 10"),
        (lambda: GLMixBlock(8, 2, -1), CallError, "must not be negative, got -1"),
        (lambda: GLMixBlock(8, 3, 4), CallError, "8 channels cannot be divided among 3 heads"),
        (lambda: GLMixBlock(8, 2, 4, local_dw_ks=4), CallError, "nearest are 3 and 5"),
        (lambda: GLMixBlock(8, 2, 4, slot_init="pool"), UnknownName, "did you mean 'ada_avgpool'"),
        (lambda: GLMixBlock(8, 2, 4, scale_mode="constant"), UnknownName, "did you mean 'const'"),
        (lambda: GLNet(**{**SMALL, "mixing_modes": "glmix.mha_ncwh"}), UnknownName, "did you mean 'mha_nchw'"),
        (lambda: GLNet(**{**SMALL, "downsample_style": "overlap"}), UnknownName, "did you mean 'ovlp'"),
        (lambda: GLNet(**{**SMALL, "transition_layout": "proj"}), UnknownName, "proj.norm"),
        (lambda: GLNet(**{**SMALL, "dims": (8, 18)}), CallError, r"multiples of head_dim, got 18 for head_dim=4"),
        (lambda: GLNet(**{**SMALL, "dims": (8,)}), CallError, "dims has 1 values for 2 stages"),
        (lambda: GLNet(**SMALL, stem_stride=3), CallError, "stem_stride must be 2 or 4, got 3"),
        (lambda: GLNet(dual_patch_norm=True), CallError, "is for downsample_style='ovlp'"),
        (lambda: GLNet(**{**SMALL, "head_dim": 0}), CallError, "multiples of head_dim, got 8 for head_dim=0"),
        (
            lambda: TokenLabelCrossEntropy()(outputs_and_targets()[0], torch.zeros(3, 5, dtype=torch.long)),
            CallError,
            "floating-point numbers, got torch.int64",
        ),
        (lambda: exchange_box(torch.zeros(2, 1, 4, 4), torch.tensor([0, 2])), ShapeError, r"\(4,\).*got \(2,\)"),
        (lambda: TokenLabelCrossEntropy(-1.0), CallError, "must not be negative"),
        (lambda: TokenLabelCrossEntropy(0.0, 0.0), CallError, "one must be above 0"),
        (
            lambda: TokenLabelCrossEntropy()(outputs_and_targets()[0], torch.zeros(3, 5, 6)),
            ShapeError,
            r"\(3, 5\) or \(3, 5, 8\), got \(3, 5, 6\)",
        ),
    ],
)
def test_wrong_calls_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
