"""What frozen features are worth: a linear classifier and nearest neighbours on top of a network that is not trained.

    probe(["runs/spark", "ecanet_mini32"], "cifar10")

Both are fitted to the features of the training split, their one setting is chosen on the validation split, and the test
split is read once. Features are those before the classifier, pooled, without augmentation.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn import functional as F

from torchstone.data.images import SPLITS, ImageData, open_images
from torchstone.errors import CallError
from torchstone.models.registry import build_model
from torchstone.seeding import seed_everything_at
from torchstone.training.devices import resolve_device
from torchstone.training.recipe import ModelSpec
from torchstone.training.runs import load_run, read_info

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
NEIGHBOURS = (1, 5, 10, 20, 50, 100, 200)
TEMPERATURE = 0.07
CHUNK = 1024

Features = dict[str, tuple[Tensor, Tensor]]
"""Of each split: features (N, D) float32 and labels (N,)."""


@dataclass(frozen=True)
class Score:
    """What one classifier of frozen features reached.

    Attributes:
        setting: its one setting, chosen on the validation split.
        val_accuracy: there.
        test_accuracy: on the test split, read once.
        low, high: the 95 % Wilson interval of that, for the choice of test samples.
    """

    setting: float
    val_accuracy: float
    test_accuracy: float
    low: float
    high: float


@dataclass(frozen=True)
class Probe:
    """A network's probing.

    Attributes:
        name: the run or model, as given.
        start: where the weights come from: the run's method, ``trained`` by a run without one, the named weights, or
            ``untrained``.
        features: how many a sample has.
        linear: logistic regression; its setting is the weight of the L2 penalty.
        knn: weighted nearest neighbours; its setting is their number.
    """

    name: str
    start: str
    features: int
    linear: Score
    knn: Score

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Probing:
    """Several networks probed on the same splits.

    Attributes:
        data: what the data are and how they were split.
        probes: one for each network, in the order given.
    """

    data: Mapping[str, Any]
    probes: list[Probe]

    def to_dict(self) -> dict[str, Any]:
        return {"data": dict(self.data), "probes": [one.to_dict() for one in self.probes]}


def probe(
    models: Sequence[str | Path],
    data: str | None = None,
    *,
    size: int | None = None,
    limit: int | None = None,
    batch_size: int = 128,
    workers: int = 0,
    split_seed: int = 0,
    val_fraction: float = 0.1,
    test_fraction: float = 0.2,
    device: str = "auto",
    progress: Callable[[str, int, int], None] | None = None,
) -> Probing:
    """Probe networks on labelled images.

    Args:
        models: run directories (of plain training or of a method), ``MODEL@WEIGHTS``, or ``MODEL``, which is left
            untrained (drawn with seed 0), to compare with.
        data: a built-in set's name or a path; None is what the first run was trained on, split and sized as there.
        size: side of the images, pixels; by default that of the first run if there is one, else what suits the data.
        limit: use only so many training images.
        batch_size: images at a time; changes no result but by rounding.
        workers: loader processes.
        split_seed, val_fraction, test_fraction: of splits that the data do not bring.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        progress: called with what is at work, batches done and batches in all.

    Raises:
        CallError: no such run, model, weights or data; no data given and no run that has some; a run of a graph; a
            network without pooled features.
    """
    if not models:
        raise CallError("name at least one run or model to probe")
    where = resolve_device(device)
    networks = [_network(str(model)) for model in models]
    runs = [network.run for network in networks if network.run is not None]
    settings: dict[str, Any] = {
        "split_seed": split_seed, "val_fraction": val_fraction, "test_fraction": test_fraction, "limit": limit
    }  # fmt: skip
    if runs:
        size = runs[0].preprocessing["size"] if size is None else size
    if data is None:
        if not runs:
            raise CallError("name the data to probe on (--data): only a run knows some, and none was given")
        known = runs[0].recipe.data
        data = known.source
        settings |= {name: getattr(known, name) for name in ("split_seed", "val_fraction", "test_fraction")}
        settings["limit"] = known.limit if limit is None else limit
    opened = open_images(data, batch_size=batch_size, size=size, workers=workers, augment="none", **settings)
    tell = progress or (lambda what, done, total: None)
    probes = []
    for network in networks:
        model, start = network.build()
        features = extract(model, opened, where, partial(tell, network.name))
        tell(f"{network.name}: fitting", 0, 0)
        count = features["train"][0].shape[1]
        linear, knn = linear_probe(features), nearest_neighbours(features)
        probes.append(Probe(network.name, start, count, linear, knn))
    return Probing({"source": data, **opened.describe()}, probes)


# --- networks


@dataclass(frozen=True)
class _Network:
    """What a word on the command line stands for."""

    name: str
    run: Any

    def build(self) -> tuple[nn.Module, str]:
        """The network in eval mode, and where its weights come from."""
        if self.run is not None:
            method = self.run.recipe.method
            return load_run(self.name)[0], method.name if method is not None else "trained"
        name, at, weights = self.name.partition("@")
        if at and not weights:
            raise CallError(f"{self.name}: weights are expected after @: pretrained, a file or a URL")
        seed_everything_at("weights", 0)
        spec = ModelSpec(name, weights=weights or None)
        return build_model(name, pretrained=spec.pretrained).eval(), weights or "untrained"


def _network(text: str) -> _Network:
    if not Path(text).is_dir():
        return _Network(text, None)
    info = read_info(text)
    if info.recipe.task != "image-classification":
        raise CallError(f"{text} is a run for {info.recipe.task}; what can be probed are networks of images")
    return _Network(text, info)


def pooled_features(model: nn.Module, images: Tensor) -> Tensor:
    """The features that the classifier of a network sees, (B, D).

    Those of timm's interface, ``forward_head(forward_features(x), pre_logits=True)``; of other networks, the input of
    their last linear layer.

    Args:
        model: any image classifier, or a network built without a classifier.
        images: (B, 3, H, W), normalised.

    Raises:
        CallError: the network has no such features.
    """
    network: Any = model
    if hasattr(network, "forward_head") and hasattr(network, "forward_features"):
        features = network.forward_head(network.forward_features(images), pre_logits=True)
    else:
        features = _before_last_linear(model, images)
    if not isinstance(features, Tensor) or features.ndim != 2 or not features.shape[1]:
        shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise CallError(f"{type(model).__name__} has no pooled features (B, D) to probe; they are {shape}")
    return features.float()


def _before_last_linear(model: nn.Module, images: Tensor) -> Tensor | None:
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise CallError(f"{type(model).__name__} has no linear classifier whose input could be probed")
    seen: list[Tensor] = []
    handle = layers[-1].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    try:
        model(images)
    finally:
        handle.remove()
    return seen[-1] if seen else None


@torch.inference_mode()
def extract(
    model: nn.Module,
    data: ImageData,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> Features:
    """The pooled features of every image of every split, in the order of the data, without augmentation.

    Args:
        model: a network, see :func:`pooled_features`.
        data: opened with ``augment="none"``.
        device: to work on.
        progress: called with batches done and batches in all.
    """
    model = model.to(device).eval()
    loaders = {split: data.evaluation_dataloader(split) for split in SPLITS}
    total = sum(map(len, loaders.values()))
    found: Features = {}
    done = 0
    for split, loader in loaders.items():
        pairs = []
        for images, labels in loader:
            pairs.append((pooled_features(model, images.to(device)).cpu(), labels))
            done += 1
            if progress is not None:
                progress(done, total)
        features, targets = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        if not features.isfinite().all():
            raise CallError(f"{type(model).__name__} has features that are not finite on the {split} split")
        found[split] = features, targets
    return found


# --- classifiers


def linear_probe(features: Features, penalties: Sequence[float] = PENALTIES) -> Score:
    """Logistic regression on standardised features, with the L2 penalty chosen on the validation split.

    Minimises, over W and b and with z = (f - mean) / std of the training features,

        mean_i cross_entropy(W z_i + b, y_i) + penalty / 2 |W|^2

    by L-BFGS. Of penalties with equal validation accuracy the largest is taken.

    Args:
        features: of all three splits.
        penalties: to choose from.
    """
    train, mean, std = _standardised(features["train"][0])
    labels = features["train"][1].numpy()
    others = {split: ((features[split][0] - mean) / std).numpy() for split in ("val", "test")}
    best: tuple[float, float, LogisticRegression] | None = None
    model = LogisticRegression(max_iter=2000, warm_start=True)
    for penalty in sorted(penalties, reverse=True):  # each begins at the solution of the one before
        fitted = model.set_params(C=1 / (penalty * len(labels))).fit(train, labels)
        accuracy = _accuracy(fitted.predict(others["val"]), features["val"][1])
        if best is None or accuracy > best[1]:
            best = penalty, accuracy, copy.deepcopy(fitted)
    assert best is not None
    penalty, accuracy, chosen = best
    return _score(penalty, accuracy, chosen.predict(others["test"]), features["test"][1])


def _standardised(features: Tensor) -> tuple[NDArray[np.float32], Tensor, Tensor]:
    mean, std = features.mean(0), features.std(0, correction=0)
    std = torch.where(std > 1e-6 * std.max(), std, torch.ones_like(std))  # a constant feature says nothing
    return ((features - mean) / std).numpy(), mean, std


def nearest_neighbours(
    features: Features, counts: Sequence[int] = NEIGHBOURS, temperature: float = TEMPERATURE
) -> Score:
    """Weighted nearest neighbours by cosine similarity, with their number chosen on the validation split.

    With the k training samples i of largest similarity s_i = cos(f, f_i), class c gets sum_i exp(s_i / t) [y_i = c].
    Of numbers with equal validation accuracy the smallest is taken.

    Args:
        features: of all three splits.
        counts: numbers of neighbours to choose from; those above the number of training samples are left out.
        temperature: t.

    Source:
        Wu et al., Unsupervised Feature Learning via Non-Parametric Instance Discrimination, 2018, section 3.4.
    """
    known = F.normalize(features["train"][0])
    labels = features["train"][1]
    counts = sorted(count for count in counts if count <= len(known)) or [len(known)]

    def predict(split: str, counts: Sequence[int]) -> dict[int, Tensor]:
        votes = [_votes(part, known, labels, counts, temperature) for part in features[split][0].split(CHUNK)]
        return {count: torch.cat([vote[count] for vote in votes]) for count in counts}

    accuracies = {
        count: _accuracy(predicted, features["val"][1]) for count, predicted in predict("val", counts).items()
    }
    best = max(accuracies, key=lambda count: (accuracies[count], -count))
    return _score(best, accuracies[best], predict("test", [best])[best], features["test"][1])


def _votes(
    queries: Tensor, known: Tensor, labels: Tensor, counts: Sequence[int], temperature: float
) -> dict[int, Tensor]:
    """The predicted class of every query for each number of neighbours."""
    similarity, index = (F.normalize(queries) @ known.T).topk(max(counts), dim=1)  # (Q, K)
    weights, voters = ((similarity - 1) / temperature).exp(), labels[index]
    found = {}
    for count in counts:
        votes = torch.zeros(len(queries), int(labels.max()) + 1)
        votes.scatter_add_(1, voters[:, :count], weights[:, :count])
        found[count] = votes.argmax(1)
    return found


def _accuracy(predicted: Any, labels: Tensor) -> float:
    return (torch.as_tensor(predicted) == labels).double().mean().item()


def _score(setting: float, val_accuracy: float, predicted: Any, labels: Tensor) -> Score:
    accuracy = _accuracy(predicted, labels)
    low, high = wilson(accuracy, len(labels))
    return Score(setting, val_accuracy, accuracy, low, high)


def wilson(share: float, count: int, z: float = 1.959964) -> tuple[float, float]:
    """The Wilson interval of a share that was found in ``count`` samples; 95 % by default."""
    centre = share + z**2 / (2 * count)
    half = z * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    scale = 1 + z**2 / count
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)  # rounding may leave [0, 1]
