"""The efficiency gap: how far networks are from the latency that their operations would allow."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchstone import environment
from torchstone.errors import CallError
from torchstone.instruments.description import ModelDescription
from torchstone.instruments.profile import profile_all, usual_input_shape
from torchstone.instruments.roofline import Roof, measure_roofline
from torchstone.instruments.running import Conditions

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@dataclass(frozen=True)
class Point:
    """One network.

    Attributes:
        name: its name.
        macs: multiply-accumulates of one pass.
        latency_ms: measured time of that pass.
        ideal_ms: ``operations / peak``, the time at an efficiency of 1.
        accuracy: 0 to 1; None where it is not known.
    """

    name: str
    macs: float
    latency_ms: float
    ideal_ms: float
    accuracy: float | None = None

    @property
    def efficiency(self) -> float:
        """``operations / (latency * peak)``."""
        return self.ideal_ms / self.latency_ms

    @property
    def gap(self) -> float:
        """How many times slower than ideal: 1 / efficiency."""
        return self.latency_ms / self.ideal_ms


@dataclass(frozen=True)
class EfficiencyGap:
    """Actual beside ideal latency of several networks on one device.

    ``latency = operations / (peak * efficiency)``: a network can be fast by few operations or by a high efficiency, and
    the plot shows both.

    Attributes:
        points: the networks.
        peak: operations per second that ideal latencies are held against.
        environment: hardware and versions.
    """

    points: tuple[Point, ...]
    peak: float
    environment: dict[str, Any] = field(repr=False, default_factory=dict)

    @property
    def has_accuracy(self) -> bool:
        """Whether the accuracy of every network is known."""
        return all(point.accuracy is not None for point in self.points)

    def front(self, *, ideal: bool = False) -> tuple[str, ...]:
        """The networks that no other one beats in both accuracy and latency, fastest first.

        Args:
            ideal: judge by the ideal latency.

        Raises:
            CallError: the accuracies are not known.
        """
        if not self.has_accuracy:
            raise CallError("a front needs the accuracy of every network")
        key = (lambda point: point.ideal_ms) if ideal else (lambda point: point.latency_ms)
        best, names = -1.0, []
        for point in sorted(self.points, key=lambda point: (key(point), -(point.accuracy or 0.0))):
            if (point.accuracy or 0.0) > best:
                best = point.accuracy or 0.0
                names.append(point.name)
        return tuple(names)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, with efficiencies and, where accuracies are known, both fronts."""
        found = {
            "points": [{**asdict(p), "efficiency": p.efficiency, "gap": p.gap} for p in self.points],
            "peak": self.peak,
            "environment": self.environment,
        }
        if self.has_accuracy:
            found |= {"front": list(self.front()), "ideal_front": list(self.front(ideal=True))}
        return found

    def plot(self) -> Figure:
        """Each network twice: at its actual and its ideal latency; the distance between the two is the gap."""
        from torchstone.instruments.conv_efficiency.plots import gap_figure

        return gap_figure(self)


def efficiency_gap(
    macs: Mapping[str, float],
    latency_ms: Mapping[str, float],
    peak: float,
    *,
    accuracy: Mapping[str, float] | None = None,
) -> EfficiencyGap:
    """Compare networks whose operations and latencies are known.

    Args:
        macs: name -> multiply-accumulates of the pass that was timed.
        latency_ms: name -> its latency.
        peak: operations per second of the device, in the precision of the latencies.
        accuracy: name -> accuracy, 0 to 1, where known.

    Raises:
        CallError: no network, names that differ between the tables, or numbers that are not positive.

    Source:
        Lavin, On the Efficiency of Convolutional Neural Networks, 2024 (efficiency gap plot).

    Example:
        >>> found = efficiency_gap({"a": 1e9, "b": 2e9}, {"a": 100.0, "b": 100.0}, 1e11)
        >>> [round(point.gap, 3) for point in found.points]
        [5.0, 2.5]
    """
    if not macs:
        raise CallError("there is no network to compare")
    if macs.keys() != latency_ms.keys():
        differing = ", ".join(sorted(macs.keys() ^ latency_ms.keys()))
        raise CallError(f"operations and latency must be of the same networks; not in both: {differing}")
    if min(*macs.values(), *latency_ms.values(), peak) <= 0:
        raise CallError("operations, latencies and peak must be positive")
    accuracy = accuracy or {}
    points = [
        Point(name, macs[name], latency_ms[name], 1e3 * 2 * macs[name] / peak, accuracy.get(name)) for name in macs
    ]
    return EfficiencyGap(tuple(points), peak, environment.describe())


def measure_efficiency_gap(
    models: Sequence[str],
    *,
    size: int | None = None,
    batch_size: int = 8,
    device: str = "cpu",
    dtype: str = "float32",
    threads: int | None = None,
    roof: Roof | None = None,
    accuracy: Mapping[str, float] | None = None,
    seconds: float = 2.0,
) -> EfficiencyGap:
    """Measure operations, latency and peak of named networks, their latencies interleaved in a fresh process.

    Args:
        models: names that :func:`torchstone.models.registry.build_model` takes.
        size: side of the images; each model's usual one by default.
        batch_size: images per pass.
        device, dtype, threads: as in :class:`torchstone.instruments.Conditions`.
        roof: the device's peak; measured by default.
        accuracy: name -> accuracy, where known.
        seconds: about how long each network is timed.

    Raises:
        UnknownName: no such model.
        CallError: no model, a size that one does not take, or a device that is not there.
        WorkError: a network that could not be measured.
    """
    if not models:
        raise CallError("name at least one model")
    conditions = Conditions(device, dtype, "", threads)
    descriptions = {}
    for name in models:
        channels, height, width = usual_input_shape(name)
        descriptions[name] = ModelDescription(name, (channels, size or height, size or width))
    found = profile_all(descriptions, batch_sizes=(batch_size,), conditions=conditions, seconds=seconds)
    for name, result in found.items():
        if isinstance(result, Exception):
            result.add_note(f"while {name} was measured")
            raise result
    if roof is None:
        roof = measure_roofline(device, dtypes=(dtype,), threads=conditions.threads, seconds=seconds / 2).roofs[0]
    profiles = {name: result for name, result in found.items() if not isinstance(result, Exception)}
    macs = {
        name: batch_size * (result.deployed.macs if result.deployed else result.macs)
        for name, result in profiles.items()
    }
    latency = {name: result.latency_ms[batch_size] for name, result in profiles.items()}
    return efficiency_gap(macs, latency, roof.peak, accuracy=accuracy)


def gap_of_comparison(
    results: str | Path, *, batch_size: int = 32, peak: float | None = None, seconds: float = 1.0
) -> EfficiencyGap:
    """The efficiency gaps of the candidates of a comparison, with the accuracies that it found.

    Args:
        results: the folder that ``torchstone compare`` wrote, or its ``results.json``.
        batch_size: which of the comparison's latencies.
        peak: operations per second of the device that the comparison ran on; by default this CPU's, measured with as
            many threads.
        seconds: about how long the peak is measured.

    Raises:
        CallError: no such file, one that is no comparison of accuracies, no latency for this batch size, or a
            comparison on another device than a CPU without its peak.
    """
    path = Path(results)
    path = path / "results.json" if path.is_dir() else path
    try:
        told = json.loads(path.read_text())
        rows = [row for row in told["candidates"] if row["status"] == "trained"]
        device, threads = told["environment"].get("device", "cpu"), told["environment"].get("threads")
    except (OSError, ValueError) as error:
        raise CallError(f"cannot read the comparison {path}: {error}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise CallError(f"{path} is no results.json of torchstone compare: it lacks {error}") from error
    if not rows:
        raise CallError(f"{path} holds no trained candidate")
    latency = {row["name"]: row["cost"].get(f"latency_ms_{batch_size}") for row in rows}
    if any(value is None for value in latency.values()):
        measured = sorted({name.rpartition("_")[2] for row in rows for name in row["cost"] if "latency" in name})
        raise CallError(f"{path} holds no latency for batches of {batch_size}; there are {', '.join(measured)}")
    if peak is None:
        if not str(device).startswith("cpu"):
            raise CallError(f"the comparison was measured on {device}: give the peak of that device")
        peak = measure_roofline("cpu", threads=threads, seconds=seconds).roofs[0].peak
    macs = {row["name"]: batch_size * row["cost"]["macs"] for row in rows}
    return efficiency_gap(macs, latency, peak, accuracy={row["name"]: row["score"] for row in rows})
