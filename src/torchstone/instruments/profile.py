"""What a network costs: parameters, multiply-accumulates, activations, latency, throughput, memory, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from torchstone import environment
from torchstone.errors import CallError, WorkError
from torchstone.instruments.description import ModelDescription
from torchstone.instruments.latency import (
    LatencyProgress,
    Timing,
    check_batch_sizes,
    interleave,
    measure_latencies,
    timed_calls,
    timing,
)
from torchstone.instruments.layers import Layer, latency_shares, layer_table
from torchstone.instruments.macs import count_macs, count_parameters
from torchstone.instruments.memory import PeakMemory, inference_peaks, memory_is_measurable
from torchstone.instruments.processes import in_process
from torchstone.instruments.running import Conditions, as_inputs, deploy_form
from torchstone.models.registry import build_model

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@dataclass(frozen=True)
class Size:
    """What does not depend on the machine, for one sample.

    Attributes:
        params: parameters, shared ones once.
        macs: multiply-accumulates of a forward pass.
        activations: elements that convolutions and linear maps write.
    """

    params: int
    macs: int
    activations: int


@dataclass(frozen=True)
class Profile:
    """The cost of a network.

    Attributes:
        name: the model's.
        input_shape: shape of one sample, without the batch; one shape per input where there are several.
        params, macs, activations: of the model as it is built, for one sample (see :func:`count_macs`).
        deployed: the same of its deploy form, None for a model that has none.
        uncounted: operators without a formula and the number of their calls; empty when ``macs`` is complete.
        latency_ms: batch size -> median time of a call, in milliseconds.
        latency_quartiles_ms: batch size -> lower and upper quartile.
        throughput: samples per second, at the best of the batch sizes.
        memory_mb: batch size -> peak memory of inference in MB (10^6 bytes); empty where it cannot be measured: for a
            module of this process that is not on CUDA, and on a CPU under Windows.
        layers: what each module costs by itself, in the deploy form if there is one; empty if it was not asked for.
        conditions: device, precision, threads, ... of the measurement.
        environment: hardware and versions.
    """

    name: str
    input_shape: tuple[Any, ...]
    params: int
    macs: int
    activations: int
    deployed: Size | None
    uncounted: dict[str, int]
    latency_ms: dict[int, float]
    latency_quartiles_ms: dict[int, tuple[float, float]]
    throughput: float
    memory_mb: dict[int, float]
    layers: list[Layer] = field(repr=False)
    conditions: Conditions
    environment: dict[str, Any] = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, JSON-ready but for the integer keys, which JSON turns to text."""
        return asdict(self)

    def cost(self) -> dict[str, float | None]:
        """One number per axis of a comparison; memory is that of the smallest batch size."""
        latencies = {f"latency_ms_{size}": value for size, value in self.latency_ms.items()}
        memory = self.memory_mb[min(self.memory_mb)] if self.memory_mb else None
        return {
            "params": self.params,
            "macs": self.macs,
            **latencies,
            "throughput": self.throughput,
            "memory_mb": memory,
        }

    def summary(self) -> list[tuple[str, str]]:
        """What a person wants to read first: (quantity, value with unit)."""
        rows = [
            ("Parameters", f"{_si(self.params)}{self._after('params')}"),
            ("MACs", f"{_si(self.macs)}{self._after('macs')}"),
            ("Activations", f"{_si(self.activations)}{self._after('activations')}"),
        ]
        for size, value in self.latency_ms.items():
            low, high = self.latency_quartiles_ms[size]
            rows.append((f"Latency, batch {size}", f"{value:.3g} ms (quartiles {low:.3g} to {high:.3g})"))
        rows.append(("Throughput", f"{_si(self.throughput)}/s"))
        rows += [(f"Peak memory, batch {size}", f"{value:.3g} MB") for size, value in self.memory_mb.items()]
        if self.uncounted:
            names = ", ".join(f"{name} x{calls}" for name, calls in self.uncounted.items())
            rows.append(("Not counted in MACs", names))
        return rows

    def _after(self, quantity: str) -> str:
        built = getattr(self, quantity)
        deployed = getattr(self.deployed, quantity, built)
        return f" ({_si(deployed)} deployed)" if deployed != built else ""

    def plot(self) -> Figure:
        """A treemap of the layers: areas by MACs, parameters, latency or activations, colours by share of latency.

        Raises:
            CallError: the profile has no layers.
        """
        from torchstone.instruments.plots import layer_treemap

        if not self.layers:
            raise CallError(f"the profile of {self.name} has no layers to plot; measure it with per_layer=True")
        return layer_treemap(self.name, self.layers)


def _si(value: float) -> str:
    for factor, prefix in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= factor:
            return f"{value / factor:.3g}{prefix}"
    return f"{value:.3g}"


def profile(
    model: str | nn.Module,
    example_inputs: Tensor | Sequence[Tensor] | Sequence[int] | None = None,
    *,
    name: str | None = None,
    model_args: Mapping[str, Any] | None = None,
    device: str | None = None,
    dtype: str = "float32",
    compile: str = "",
    threads: int | None = None,
    deploy: bool = True,
    batch_sizes: Sequence[int] = (1, 32),
    per_layer: bool = True,
    seconds: float = 2.0,
) -> Profile:
    """Measure what a model costs.

    A model given by name is measured in fresh processes. A module is copied and measured in this process, so that its
    latency feels what else the process does, and its memory is known on CUDA only. Parameters, MACs and activations are
    the same each time; latency is noisy.

    Args:
        model: a name that :func:`torchstone.models.registry.build_model` takes (``NAME``, ``timm:NAME``,
            ``torchvision:NAME``), or a module, which stays as it is.
        example_inputs: a batch of any size, or for a named model the shape of one sample, (3, 224, 224). A module of
            several inputs takes them as a sequence of tensors with one batch size. A named model has a usual size.
        name: what to call it; by default its name or class.
        model_args: arguments of a named model: ``num_classes``, ``in_chans``, ...
        device: ``cpu``, ``cuda``, ``cuda:1`` or ``mps``; by default where a module is, for a named model the CPU.
        dtype, compile, threads, deploy: see :class:`Conditions`.
        batch_sizes: samples per call.
        per_layer: also measure each layer.
        seconds: about how long latency is measured.

    Raises:
        UnknownName: no such model.
        CallError: a device that is not there, or inputs that the model rejects.
        WorkError: not enough memory.
    """
    if isinstance(model, nn.Module):
        if model_args:
            raise CallError("model_args are for models given by name; this one is built already")
        device = device or str(next((tensor.device for tensor in _tensors(model)), "cpu"))
        conditions = Conditions(device, dtype, compile, threads, deploy)
        inputs = _tensors_given(example_inputs)
        return _profile_module(name or type(model).__name__, model, inputs, batch_sizes, conditions, per_layer, seconds)
    kwargs = dict(model_args or {})
    shape = _sample_shape(example_inputs) if example_inputs is not None else usual_input_shape(model, **kwargs)
    found = profile_all(
        {name or model: ModelDescription(model, shape, kwargs)},
        batch_sizes=batch_sizes,
        conditions=Conditions(device or "cpu", dtype, compile, threads, deploy),
        per_layer=per_layer,
        seconds=seconds,
    )[name or model]
    if isinstance(found, Exception):
        raise found
    return found


def profile_all(
    descriptions: Mapping[str, ModelDescription],
    *,
    batch_sizes: Sequence[int] = (1, 32),
    conditions: Conditions | None = None,
    per_layer: bool = False,
    seconds: float = 1.5,
    progress: Callable[[LatencyProgress], None] | None = None,
) -> dict[str, Profile | CallError | WorkError]:
    """Measure several models side by side, their latencies interleaved.

    Args:
        descriptions: name -> model.
        batch_sizes, conditions, per_layer: as in :func:`profile`.
        seconds: about how long the latency of each is measured.
        progress: called as the work goes on.

    Returns:
        name -> its profile, or the error that says why there is none: a size that the model does not take, memory that
        ran out, a process that was killed.
    """
    check_batch_sizes(batch_sizes)
    conditions = conditions or Conditions()
    tell = progress or (lambda state: None)
    facts = environment.describe()
    found: dict[str, Profile | CallError | WorkError] = {}
    for index, (name, description) in enumerate(descriptions.items()):
        tell(LatencyProgress(index, len(descriptions), f"measuring {name}", name))
        try:
            found[name] = in_process(_examine, name, description, tuple(batch_sizes), conditions, per_layer)
        except (CallError, WorkError) as error:
            found[name] = error
    fitting = {name: descriptions[name] for name, result in found.items() if isinstance(result, Profile)}
    measured = measure_latencies(
        fitting, batch_sizes=batch_sizes, conditions=conditions, seconds=seconds, progress=progress
    )
    for name, reason in measured.failures.items():
        found[name] = WorkError(reason)
    for name, timings in measured.timings.items():
        result = found[name]
        assert isinstance(result, Profile)
        found[name] = replace(_timed(result, timings), environment=facts)
    return found


def usual_input_shape(spec: str, **kwargs: Any) -> tuple[int, int, int]:
    """The size of images that a named model is usually given: (channels, height, width)."""
    configuration = getattr(build_model(spec, **kwargs), "pretrained_cfg", None) or {}
    channels, height, width = configuration.get("input_size", (3, 224, 224))
    return kwargs.get("in_chans", channels), height, width


def _examine(
    name: str, description: ModelDescription, batch_sizes: Sequence[int], conditions: Conditions, per_layer: bool
) -> Profile:
    """Runs in a process of its own: memory first, while nothing else has been there."""
    conditions.prepare()
    memory = PeakMemory(conditions.device) if memory_is_measurable(conditions.device) else None
    model = description.build()
    deployed = deploy_form(model, inplace=True) if conditions.deploy else None
    model = conditions.place(deployed or model)
    peaks = inference_peaks(model, description.example_inputs, batch_sizes, conditions, memory) if memory else {}
    sample = conditions.place_inputs(description.example_inputs(1))
    built = conditions.place(description.build()) if deployed is not None else model
    result = _sized(name, built, model, sample, conditions, per_layer)
    return replace(result, memory_mb={size: peak / 1e6 for size, peak in peaks.items()})


def _profile_module(
    name: str,
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    batch_sizes: Sequence[int],
    conditions: Conditions,
    per_layer: bool,
    seconds: float,
) -> Profile:
    check_batch_sizes(batch_sizes)

    def example_inputs(size: int) -> tuple[Tensor, ...]:
        return tuple(x[torch.arange(size, device=x.device) % len(x)] for x in inputs)

    threads = torch.get_num_threads()
    torch.set_num_threads(conditions.threads or threads)
    try:
        built = conditions.place(deepcopy(model))
        deployed = conditions.place((deploy_form(built) if conditions.deploy else None) or built)
        result = _sized(name, built, deployed, conditions.place_inputs(example_inputs(1)), conditions, per_layer)
        if torch.device(conditions.device).type == "cuda":
            memory = PeakMemory(conditions.device)
            peaks = inference_peaks(deployed, example_inputs, batch_sizes, conditions, memory)
            weights = sum(tensor.nbytes for tensor in _tensors(deployed))
            result = replace(result, memory_mb={size: (peak + weights) / 1e6 for size, peak in peaks.items()})
        calls = timed_calls(deployed, example_inputs, batch_sizes, conditions)
        times, _ = interleave(calls, seconds / len(calls))
        timings = {size: timing(measured) for size, measured in times.items()}
        return replace(_timed(result, timings), environment=environment.describe())
    finally:
        torch.set_num_threads(threads)


def _sized(
    name: str,
    built: nn.Module,
    deployed: nn.Module,
    sample: tuple[Tensor, ...],
    conditions: Conditions,
    per_layer: bool,
) -> Profile:
    """The profile without what is measured in time and memory."""
    count = count_macs(built, sample)
    size = Size(count_parameters(built), count.total, count.activations)
    uncounted = count.uncounted
    deployed_size = None
    if deployed is not built:
        count = count_macs(deployed, sample)
        deployed_size = Size(count_parameters(deployed), count.total, count.activations)
    layers = layer_table(deployed, count, latency_shares(deployed, sample)) if per_layer else []
    shapes = tuple(tuple(x.shape[1:]) for x in sample)
    return Profile(
        name=name,
        input_shape=shapes[0] if len(shapes) == 1 else shapes,
        params=size.params,
        macs=size.macs,
        activations=size.activations,
        deployed=deployed_size,
        uncounted=uncounted,
        latency_ms={},
        latency_quartiles_ms={},
        throughput=0.0,
        memory_mb={},
        layers=layers,
        conditions=conditions,
        environment={},
    )


def _timed(result: Profile, timings: Mapping[int, Timing]) -> Profile:
    return replace(
        result,
        latency_ms={size: time.median_ms for size, time in timings.items()},
        latency_quartiles_ms={size: (time.low_ms, time.high_ms) for size, time in timings.items()},
        throughput=max(1000 * size / time.median_ms for size, time in timings.items()),
    )


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def _tensors_given(example_inputs: Any) -> tuple[Tensor, ...]:
    if isinstance(example_inputs, Tensor):
        example_inputs = (example_inputs,)
    if not isinstance(example_inputs, Sequence) or not all(isinstance(x, Tensor) for x in example_inputs):
        raise CallError("a module needs example_inputs: a batch, torch.zeros(1, 3, 224, 224), or one tensor per input")
    inputs = as_inputs(example_inputs)
    if not inputs or any(x.ndim == 0 for x in inputs) or len({len(x) for x in inputs}) > 1:
        shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
        raise CallError(f"example_inputs must be batches of one size along the first dimension, got {shapes or 'none'}")
    return inputs


def _sample_shape(example_inputs: Any) -> tuple[int, ...]:
    """The shape of one sample, given as such or as a batch."""
    if isinstance(example_inputs, Tensor):
        return tuple(example_inputs.shape[1:])
    shape = tuple(example_inputs)
    if not shape or not all(isinstance(side, int) and side > 0 for side in shape):
        raise CallError(
            f"a named model takes a batch or the shape of one sample, (3, 224, 224); got {example_inputs!r}"
        )
    return shape
