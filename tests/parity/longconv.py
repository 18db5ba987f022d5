"""Long convolutions: our released forms for each recorded call of the authors' code, channels last throughout."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from torchstone.models.sequence.longconv import (
    BlockFFT,
    LongConvClassifier,
    SequenceModel,
    StandaloneLongConv,
    WrappedButterflyLongConv,
    WrappedH3LongConv,
    WrappedLongConv,
    convert_official,
)
from torchstone.verification import Case, load_state, record


def run(case: Case) -> dict[str, Tensor]:
    return _ENTRIES[case.entry](case, **case.kwargs)


def _kernel(told: Mapping[str, Any]) -> dict[str, Any]:
    smoothing = "frequency" if told.get("smooth_freq") else "time"
    return {
        "squash": told["lam"],
        "dropout": told.get("kernel_dropout", 0.0),
        "smooth": smoothing if told.get("use_ma_smoothing") else None,
        "window": told.get("ma_window_len", 7),
        "lr": told.get("learning_rate"),
    }


def _butterfly(told: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "learned": told["learn_dft_matrices"],
        "additive": told.get("learn_additive", False),
        "channels": told["H"],
        "activation": told.get("activation"),
    }


def _direction(told: Mapping[str, Any]) -> str:
    return "bidirectional" if told.get("bidirectional") else "causal" if told.get("causal", True) else "two-sided"


def _make_layer(width: int, told: Mapping[str, Any]) -> WrappedLongConv | WrappedButterflyLongConv:
    options: dict[str, Any] = {
        "maps": told.get("channels", 1),
        "direction": _direction(told),
        "activation": told.get("activation", "gelu"),
        "mixing": told.get("postact", "glu"),
        "kernel": _kernel(told),
    }
    if told.get("block_fft_conv"):
        return WrappedButterflyLongConv(
            width, told["l_max"], butterfly=_butterfly(told["block_fft_conv_args"]), **options
        )
    return WrappedLongConv(width, told["l_max"], **options)


def _layer(case: Case, d_model: int, transposed: bool, **told: Any) -> dict[str, Tensor]:
    model = load_state(_make_layer(d_model, told), case, convert_official)
    u = case.inputs["u"]
    found = record(model, {"kernel": model.kernel}, u.mT if transposed else u)
    y = found.pop("return")
    return {**found, "y": y.mT if transposed else y}


def _stack(case: Case, d_model: int, n_layers: int, prenorm: bool, norm: str, **told: Any) -> dict[str, Tensor]:
    model = SequenceModel(
        partial(_make_layer, d_model, told["layer"]),
        d_model,
        n_layers,
        norm=norm,
        prenorm=prenorm,
        dropout=told["dropout"],
        tie_dropout=told["tie_dropout"],
    )
    blocks = {f"block{index}": block for index, block in enumerate(model.layers, 1)}
    found = record(load_state(model, case, convert_official), blocks, case.inputs["x"])
    return {"y": found.pop("return"), **found}


def _h3(case: Case, d_model: int, l_max: int, lam: float, kernel_dropout: float) -> dict[str, Tensor]:
    model = WrappedH3LongConv(d_model, l_max, kernel={"squash": lam, "dropout": kernel_dropout})
    return {"y": load_state(model, case, convert_official)(case.inputs["u"])}


def _standalone_layer(
    case: Case, H: int, L: int, channels: int, dropout: float, kernel_lam: float, kernel_dropout: float
) -> dict[str, Tensor]:
    kernel = {"squash": kernel_lam, "dropout": kernel_dropout}
    model = StandaloneLongConv(H, L, maps=channels, dropout=dropout, kernel=kernel)
    found = record(load_state(model, case, convert_official), {"squashed_kernel": model.kernel}, case.inputs["u"].mT)
    found["y"] = found.pop("return").mT
    return {name: found[name] for name in case.outputs}


def _standalone_model(
    case: Case,
    d_input: int,
    d_output: int,
    d_model: int,
    n_layers: int,
    dropout: float,
    prenorm: bool,
    channels: int,
    kernel_lam: float,
    kernel_dropout: float,
) -> dict[str, Tensor]:
    model = LongConvClassifier(
        d_model,
        n_layers,
        1024,
        in_channels=d_input,
        num_classes=d_output,
        prenorm=prenorm,
        final_norm=False,
        dropout=dropout,
        tie_dropout=True,
        maps=channels,
        direction="two-sided",
        squash=kernel_lam,
        kernel_dropout=kernel_dropout,
        layer=StandaloneLongConv,
    )
    layers = {f"layer{index}_conv": block.layer for index, block in enumerate(model.backbone.layers)}
    recorded = {name: layer for name, layer in layers.items() if name in case.outputs}
    found = record(load_state(model, case, convert_official), recorded, case.inputs["x"])
    logits = found.pop("return")
    return {"logits": logits, **{name: answer.mT for name, answer in found.items()}}


def _block_fft_module(case: Case, **told: Any) -> dict[str, Tensor]:
    model = load_state(BlockFFT(**_butterfly(told)), case, convert_official)
    x, points = torch.view_as_complex(case.inputs["x"]), case.outputs["fft"].shape[-2]
    found = {"fft": model(x, points), "ifft": model.inverse(x, points)}
    return {name: torch.view_as_real(found[name].resolve_conj()) for name in case.outputs}


def _block_fft_function(case: Case, N: int) -> dict[str, Tensor]:
    spectrum = BlockFFT(learned=False)(torch.view_as_complex(case.inputs["k"]), N)
    return {"k_f": torch.view_as_real(spectrum)}


_ENTRIES = {
    "src.models.sequence.long_conv.LongConv": _layer,
    "src.models.sequence.SequenceModel": _stack,
    "src.models.sequence.h3_conv.H3Conv": _h3,
    "standalone_long_convs.LongConv": _standalone_layer,
    "standalone_long_convs.LongConvModel": _standalone_model,
    "src.models.sequence.block_fft.BlockFFT": _block_fft_module,
    "src.models.sequence.block_fft.block_fft": _block_fft_function,
}
