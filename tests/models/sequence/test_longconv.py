"""Long convolutions: regularisers, directions, what wraps around and what does not, butterflies, the language model."""

import itertools

import pytest
import torch
from torch.nn import functional as F

from torchstone import create_model
from torchstone.errors import CallError, ShapeError, UnknownName
from torchstone.instruments.macs import count_macs
from torchstone.models.sequence.longconv import (
    BlockFFT,
    ButterflyLongConv,
    H3LongConv,
    LongConv,
    LongConvKernel,
    LongConvLanguageModel,
    SequenceModel,
    StandaloneLongConv,
    WrappedH3LongConv,
    WrappedLongConv,
    convert_official,
    smooth_in_frequency,
    smooth_in_time,
    squash,
)
from torchstone.training.optimizers import create_optimizer, undecayed_parameters
from torchstone.training.recipe import TrainSpec

H = 3


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def lively(layer):
    """A layer whose kernels are large enough to matter."""
    with torch.no_grad():
        for module in layer.modules():
            if isinstance(module, LongConvKernel):
                module.kernel.copy_(torch.randn_like(module.kernel))
    return layer.eval()


def toeplitz(layer, length):
    """The layer's convolution of one map as matrices (H, L, L), written down from its definition."""
    kernel = layer.kernel().detach()
    forward, backward = layer.taps(kernel)
    matrix = torch.zeros(layer.width, length, length)
    for t in range(length):
        for s in range(length):
            if t >= s and t - s < forward.shape[-1]:
                matrix[:, t, s] = forward[0, :, t - s]
            if s > t and backward is not None and s - t - 1 < backward.shape[-1]:
                matrix[:, t, s] = backward[0, :, s - t - 1]
    return matrix


# Kernels --------------------------------------------------------------------------------------------------------------


def test_squash_is_the_soft_threshold_and_makes_small_taps_zero():
    kernel = torch.tensor([-0.5, -0.1, 0.0, 0.05, 0.1, 0.3])
    torch.testing.assert_close(squash(kernel, 0.1), torch.tensor([-0.4, 0, 0, 0, 0, 0.2]))
    torch.testing.assert_close(squash(kernel, 0.0), kernel)


def test_smoothing_in_time_is_the_mean_of_a_window_with_zeros_outside():
    kernel = torch.randn(2, H, 11)
    padded = F.pad(kernel, (2, 2))
    expected = torch.stack([padded[..., j : j + 5].mean(-1) for j in range(11)], -1)
    torch.testing.assert_close(smooth_in_time(kernel, 5), expected)


@pytest.mark.parametrize("taps", [12, 13])
def test_smoothing_in_frequency_weighs_the_spectrum_and_damps_late_taps(taps):
    kernel = torch.ones(1, 1, taps)
    spectrum = F.pad(torch.fft.rfft(torch.randn(2, H, taps)), (3, 3))
    bins = spectrum.shape[-1] - 6
    weights = torch.exp(-0.5 * torch.arange(-3.0, 4) ** 2)
    expected = sum(weight * spectrum[..., n : n + bins] for n, weight in enumerate(weights))
    found = smooth_in_frequency(torch.fft.irfft(spectrum[..., 3:-3], n=taps), 7)
    torch.testing.assert_close(found, torch.fft.irfft(expected, n=taps), rtol=1e-4, atol=1e-4)
    smoothed = smooth_in_frequency(torch.randn(1, 500, taps), 7).abs().mean((0, 1))
    assert smoothed[taps // 2] < 0.3 * smoothed[0], "the middle of the circle is farthest from tap 0"
    assert smooth_in_frequency(kernel, 7).shape == kernel.shape


def test_taps_are_dropped_while_training_and_the_others_scaled():
    kernel = LongConvKernel(1, H, 400, squash=0.0, dropout=0.25)
    ratio = kernel.train()() / kernel.kernel
    assert sorted(ratio.unique().tolist()) == pytest.approx([0.0] + [4 / 3] * (len(ratio.unique()) - 1))
    assert 0.15 < (ratio == 0).float().mean() < 0.35
    assert torch.equal(kernel.eval()(), kernel.kernel)


def test_a_larger_threshold_leaves_fewer_taps():
    shares = [LongConvKernel(1, 8, 500, squash=threshold).sparsity() for threshold in (0.0, 0.001, 0.003, 0.1)]
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert shares[-1] == 1


def test_decaying_noise_is_smaller_at_late_taps_and_decays_faster_in_later_channels():
    kernel = LongConvKernel(200, 8, 64, init="double_exp").kernel.detach().std(0)  # (H, K)
    assert (kernel[:, -8:].mean(1) < kernel[:, :8].mean(1)).all()
    ends = kernel[:, -8:].mean(1) / kernel[:, :8].mean(1)
    assert ends[-1] < ends[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"squash": -1.0}, "threshold"),
        ({"dropout": 1.0}, "below 1"),
        ({"smooth": "time", "window": 4}, "odd"),
        ({"smooth": "frequenzy"}, "did you mean 'frequency'"),
        ({"init": "zeros"}, "initialisation"),
        ({"lr": -0.1}, "negative"),
    ],
)
def test_kernels_out_of_range_are_refused(options, message):
    with pytest.raises(CallError, match=message):
        LongConvKernel(1, H, 8, **options)


# The learning rate of kernels -----------------------------------------------------------------------------------------


def test_kernels_have_their_own_learning_rate_and_never_decay():
    model = create_model("longconv_mini", kernel_lr=1e-3, butterfly={"lr": 5e-4})
    train = TrainSpec(lr=1e-2, weight_decay=0.05)
    optimizer = create_optimizer(model, train, undecayed_parameters(model))
    rates = {
        id(parameter): (group.get("lr_scale", 1.0) * train.lr, group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    found = {name: rates[id(parameter)] for name, parameter in model.named_parameters()}
    assert found["backbone.layers.0.layer.kernel.kernel"] == pytest.approx((1e-3, 0.0))
    assert found["backbone.layers.0.layer.block_fft_u.mat_16"] == pytest.approx((5e-4, 0.0))
    assert found["backbone.layers.0.layer.output_linear.weight"] == pytest.approx((1e-2, 0.05))
    assert found["backbone.layers.0.layer.D"] == pytest.approx((1e-2, 0.05))
    assert found["encoder.bias"] == pytest.approx((1e-2, 0.0))


def test_a_learning_rate_of_zero_keeps_the_kernels():
    model = create_model("longconv_mini", kernel_lr=0.0)
    assert not [name for name, _ in model.named_parameters() if name.endswith("kernel.kernel")]
    assert "backbone.layers.0.layer.kernel.kernel" in model.state_dict()


# Layers ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["causal", "bidirectional", "two-sided"])
@pytest.mark.parametrize("length", [1, 5, 16, 23])
def test_a_layer_is_its_equation_at_any_length(direction, length):
    layer = lively(LongConv(H, 16, direction=direction, activation="tanh", mixing=None, kernel={"squash": 0.1}))
    x = torch.randn(2, length, H)
    u = x.transpose(1, 2)
    expected = torch.einsum("hts,bhs->bht", toeplitz(layer, length), u) + layer.D.detach()[0, :, None] * u
    torch.testing.assert_close(layer(x).detach(), expected.tanh().transpose(1, 2), rtol=1e-4, atol=1e-4)


def test_only_the_causal_layer_hides_the_future():
    x = torch.randn(1, 12, H)
    later = x.clone()
    later[:, 8:] += 1
    for direction, hidden in (("causal", True), ("bidirectional", False), ("two-sided", False)):
        layer = lively(LongConv(H, 12, direction=direction))
        same = torch.allclose(layer(x)[:, :8], layer(later)[:, :8], atol=1e-5)
        assert same == hidden, direction


@pytest.mark.parametrize("direction", ["causal", "bidirectional", "two-sided"])
def test_the_released_layer_is_the_same_where_sequence_and_kernel_are_equally_long(direction):
    ours = lively(LongConv(H, 16, maps=2, direction=direction))
    theirs = WrappedLongConv(H, 16, maps=2, direction=direction).eval()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 16, H)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)


def test_the_released_layer_wraps_around_in_short_sequences_and_ours_does_not():
    layers = lively(LongConv(H, 16, mixing=None)), WrappedLongConv(H, 16, mixing=None).eval()
    layers[1].load_state_dict(layers[0].state_dict())
    x = torch.randn(1, 10, H)
    later = x.clone()
    later[:, 9] += 1
    ours, theirs = ((layer(x) - layer(later))[0, :4].abs().max().item() for layer in layers)
    assert ours < 1e-5, "the past does not depend on the last step"
    assert theirs > 1e-3, "the released layer lets taps behind the end in again at the start"


def test_the_standalone_layer_takes_two_sided_kernels_by_default():
    assert StandaloneLongConv(H, 16).kernel.kernel.shape == (1, H, 32)
    assert WrappedLongConv(H, 16, direction="bidirectional").eval().kernel.kernel.shape == (2, H, 16)
    with pytest.raises(ShapeError, match="16 steps, got 9"):
        WrappedLongConv(H, 16, direction="bidirectional")(torch.randn(1, 9, H))


def test_wrong_arguments_and_inputs_are_refused():
    with pytest.raises(UnknownName, match="bidirectional"):
        LongConv(H, 16, direction="bidirektional")
    with pytest.raises(UnknownName, match="gelu"):
        LongConv(H, 16, activation="gelo")
    with pytest.raises(ShapeError, match=r"\(B, L, 3\), got \(2, 16, 4\)"):
        LongConv(H, 16)(torch.randn(2, 16, 4))
    with pytest.raises(UnknownName, match="batch"):
        SequenceModel(lambda: LongConv(H, 16), H, 1, norm="bach")


def test_channels_are_dropped_whole_where_dropout_is_tied():
    layer = LongConv(64, 16, mixing=None, dropout=0.5, tie_dropout=True).train()
    dropped = layer(torch.randn(1, 16, 64)).eq(0).float().mean(1)
    assert set(dropped.unique().tolist()) <= {0.0, 1.0}
    assert 0 < dropped.mean() < 1


# Butterflies ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("points", [2, 16, 32, 128, 500])
def test_a_butterfly_starts_as_the_fourier_transform(points):
    x = torch.randn(2, H, points)
    size = 1 << (points - 1).bit_length()
    for module in (BlockFFT(), BlockFFT(channels=H), BlockFFT(learned=False)):
        found = module(x, points)
        torch.testing.assert_close(found, torch.fft.fft(x, n=size).to(torch.complex64), rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(module.inverse(found, size).real[..., :points], x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("direction", ["causal", "bidirectional"])
def test_a_butterfly_layer_starts_as_the_exact_one_and_learns_another(direction):
    exact = lively(LongConv(H, 20, direction=direction))
    layer = ButterflyLongConv(H, 20, direction=direction).eval()
    layer.load_state_dict(exact.state_dict(), strict=False)
    x = torch.randn(2, 20, H)
    torch.testing.assert_close(layer(x), exact(x), rtol=1e-4, atol=1e-4)
    layer(x).square().sum().backward()
    used = [layer.block_fft_u.mat_16, layer.block_fft_k.mat_16, layer.block_fft_u.mat_4]
    assert all(matrix.grad.abs().sum() > 0 for matrix in used)
    with torch.no_grad():
        layer.block_fft_u.mat_16 += 0.1 * torch.randn_like(layer.block_fft_u.mat_16)
    assert not torch.allclose(layer(x), exact(x), atol=1e-3)


def test_additive_matrices_start_near_the_exact_ones_and_are_dropped_while_training():
    module = BlockFFT(additive=True, dropout=0.5)
    exact = BlockFFT(learned=False)(torch.eye(16), 16)
    away = (module.eval().matrices()[16] - exact).abs()
    assert 0 < away.mean() < 0.1
    assert not torch.equal(module.train().matrices()[16], module.matrices()[16])
    with pytest.raises(CallError, match="learned"):
        BlockFFT(learned=False, additive=True)


# Networks -------------------------------------------------------------------------------------------------------------


def test_cost_grows_a_little_faster_than_length():
    macs = [
        count_macs(create_model("longconv_mini", max_length=length).eval(), (torch.randn(1, length, 1),)).total
        for length in (256, 1024, 4096)
    ]
    growth = [later / earlier for earlier, later in itertools.pairwise(macs)]
    assert all(4 <= ratio < 4.5 for ratio in growth), growth


def test_stacks_without_ends_map_features_to_features():
    model = create_model("longconv_listops", width=8, depth=2, max_length=16)
    assert model(torch.randn(2, 16, 8)).shape == (2, 16, 8)
    tokens = create_model("longconv_listops", width=8, depth=2, max_length=16, vocabulary=20, num_classes=10).eval()
    ids = torch.randint(20, (2, 16))
    assert tokens(ids).shape == (2, 10)
    torch.testing.assert_close(tokens(ids[:, :9]), tokens(ids, torch.tensor([9, 9])))
    with pytest.raises(ShapeError, match="tokens"):
        tokens(torch.randn(2, 16, 8))


def test_pathfinder_is_read_off_the_last_step():
    model = create_model("longconv_pathfinder", width=8, depth=1, max_length=16, in_channels=1, num_classes=2).eval()
    features = model.forward_features(torch.randn(2, 16, 1))
    torch.testing.assert_close(model.forward_head(features), model.decoder(features[:, -1]))
    early = torch.tensor([3, 16])
    torch.testing.assert_close(model.pool(features, early), torch.stack([features[0, 2], features[1, -1]]))


def test_documents_are_matched_by_one_encoder():
    model = create_model("longconv_aan", vocabulary=30, width=8, depth=1, max_length=16).eval()
    a, b = torch.randint(30, (2, 16)), torch.randint(30, (2, 12))
    assert model(a, b).shape == (2, 2)
    assert not torch.allclose(model(a, b), model(b, a))
    torch.testing.assert_close(model(a, F.pad(b, (0, 4)), None, torch.tensor([12, 12])), model(a, b))


def test_every_norm_normalises():
    x = 3 + 5 * torch.randn(4, 50, 16)
    for norm in ("layer", "batch", "scalar"):
        stack = SequenceModel(lambda: LongConv(16, 50), 16, 1, norm=norm).train()
        y = stack(x)
        assert abs(y.mean().item()) < 0.1, norm
        assert abs(y.std().item() - 1) < 0.1, norm


# H3 and the language model --------------------------------------------------------------------------------------------


def test_h3_is_its_equations_and_causal():
    mixer = lively(H3LongConv(H, 16, kernel={"squash": 0.0}))
    x = torch.randn(1, 11, H)
    q, k, v = (proj(x).transpose(1, 2) for proj in (mixer.q_proj, mixer.k_proj, mixer.v_proj))

    def conv(u, kernel, D):
        past = [sum(kernel[:, j] * u[:, :, t - j] for j in range(t + 1)) for t in range(11)]
        return torch.stack(past, -1) + D[:, None] * u

    kv = conv(k, mixer.k_kernel()[0], mixer.k_D) * v
    expected = mixer.output_linear((q * conv(kv, mixer.kernel()[0], mixer.D)).transpose(1, 2))
    torch.testing.assert_close(mixer(x), expected, rtol=1e-3, atol=1e-3)
    wrapped = WrappedH3LongConv(H, 16, kernel={"squash": 0.0}).eval()
    wrapped.load_state_dict(mixer.state_dict())
    assert not torch.allclose(wrapped(x), mixer(x), atol=1e-3), "five taps reach beyond eleven steps and wrap around"


def language_model(**kwargs):
    sizes = {"vocabulary": 11, "width": 16, "depth": 3, "heads": 2, "max_length": 32, "attention": (1,)}
    return LongConvLanguageModel(**{**sizes, **kwargs})


def test_the_language_model_sees_the_past_only():
    model = lively(language_model())
    tokens = torch.randint(11, (2, 20))
    other = tokens.clone()
    other[:, 12:] = (other[:, 12:] + 1) % 11
    torch.testing.assert_close(model(tokens)[:, :12], model(other)[:, :12], rtol=1e-4, atol=1e-4)
    assert model(tokens).shape == (2, 20, 16), "the vocabulary is padded to a multiple of eight"
    assert [type(block.mixer).__name__ for block in model.layers] == ["H3LongConv", "CausalAttention", "H3LongConv"]


def test_the_language_model_learns_to_count_and_continues():
    model = language_model(embed_dropout=0.0, attention_dropout=0.0).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

    def counting(steps):
        return (torch.randint(11, (16, 1)) + torch.arange(steps)) % 11

    assert abs(model.loss(counting(8)).item() - torch.tensor(11.0).log().item()) < 0.6, "guessing"
    for _ in range(40):
        loss = model.loss(counting(8))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.5
    told = counting(9)
    assert (model.eval().generate(told[:, :6], 3) == told).float().mean() > 0.95
    drawn = model.generate(told, 2, torch.Generator().manual_seed(0))
    assert torch.equal(drawn, model.generate(told, 2, torch.Generator().manual_seed(0)))


def test_the_language_model_of_the_pile_has_the_papers_size():
    with torch.device("meta"):
        model = create_model("longconv_h3_pile")
    assert model.embedding.weight.shape == (50264, 768)
    assert [index for index, block in enumerate(model.layers) if hasattr(block.mixer, "Wqkv")] == [1, 8]


# Official layouts -----------------------------------------------------------------------------------------------------


def test_our_own_state_passes_the_converter_unchanged():
    model = create_model("longconv_mini", butterfly={})
    state = model.state_dict()
    assert convert_official(dict(state), model).keys() == state.keys()
