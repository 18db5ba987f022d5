"""Starting from what an earlier run trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor, nn

from torchstone.errors import CallError
from torchstone.models.pretrained import check_layout, read_checkpoint
from torchstone.training.runs import RunDirectory, read_info


def start_from_run(
    model: nn.Module,
    run: str | Path,
    name: str,
    with_classifier: Callable[[], nn.Module],
    without: Callable[[], nn.Module],
) -> None:
    """Give a network the weights of a finished run of the same network.

    All of them where the layouts are equal. Where one of the two has another classifier, or none, those of the network
    without it; a classifier of ``model`` then keeps the values that it was built with.

    Args:
        model: the network, newly built.
        run: a run directory, of plain training or of a method.
        name: what the network was built by.
        with_classifier: builds the same network with a classifier.
        without: builds it without one.

    Raises:
        CallError: not a finished run, another network, or weights that do not fit; says what differs.
    """
    info = read_info(run)
    trained = RunDirectory(run).network()["name"]
    if trained != name:
        raise CallError(f"model.weights: the run {run} trained {trained}, not {name}")
    state = read_checkpoint(info.path / "model.safetensors")
    own = model.state_dict()
    if _shapes(own) == _shapes(state):
        model.load_state_dict(state)
        return
    body = without()
    layout = body.state_dict()
    shared = {key for key, value in layout.items() if value.numel()}  # torchvision leaves a classifier for no classes
    classifier = with_classifier().state_dict().keys() - shared
    rest = {key: value for key, value in state.items() if key not in classifier}
    check_layout(body, {**rest, **{key: layout[key] for key in layout.keys() - shared}})
    model.load_state_dict({**own, **rest})


def _shapes(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in state.items()}
