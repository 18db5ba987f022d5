"""Peak memory of inference and of training, each measured in a process of its own.

On a CPU the peak resident memory also holds the pages of torch's code that happen to have been read from disk; they are
not counted: the figure is the peak of the anonymous memory (weights, activations, workspaces), less that of the same
process before the model was built. On CUDA it is the peak of the allocator, without the context; on MPS, what the
driver holds at the end.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchstone.errors import CallError, WorkError
from torchstone.instruments.description import ModelDescription
from torchstone.instruments.processes import ProcessDied, TimeOut, in_process
from torchstone.instruments.running import Conditions, OutOfMemory, deploy_form, forward, is_out_of_memory, one_line


class PeakMemory:
    """Peak memory above what is in use when it is created.

    Args:
        device: where the model is going to run.

    Raises:
        CallError: a CPU under Windows.
    """

    def __init__(self, device: str = "cpu") -> None:
        if not memory_is_measurable(device):
            raise CallError(f"memory cannot be measured on {device} under {sys.platform}")
        self.device = torch.device(device)
        _return_free_memory()
        self._start = self._in_use()

    def restart(self) -> None:
        """Forget the peak so far; what was in use at creation stays the zero."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        elif sys.platform == "linux":
            _return_free_memory()
            with contextlib.suppress(OSError):  # a sandbox may forbid it; the peak then includes building the model
                Path("/proc/self/clear_refs").write_text("5")

    def read(self) -> int:
        """The peak, in bytes."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) - self._start
        if self.device.type == "cpu" and sys.platform == "linux":
            now = _process_memory()
            return now["VmHWM"] - now["RssFile"] - now["RssShmem"] - self._start
        return self._in_use() - self._start

    def _in_use(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.memory_allocated(self.device)
        if self.device.type == "mps":
            return torch.mps.driver_allocated_memory()
        if sys.platform == "linux":
            return _process_memory()["RssAnon"]
        return _highest_resident()


def memory_is_measurable(device: str) -> bool:
    """Whether :class:`PeakMemory` works here: everywhere but on a CPU under Windows."""
    return sys.platform != "win32" or torch.device(device).type != "cpu"


def _process_memory() -> dict[str, int]:
    """Fields of ``/proc/self/status`` that are amounts of memory, in bytes."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {words[0].rstrip(":"): 1024 * int(words[1]) for words in lines if words[-1] == "kB"}


def _return_free_memory() -> None:
    """Give what was freed back to the system, where glibc's allocator can: it would hide or inflate what follows."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def _highest_resident() -> int:
    """Peak resident memory of this process so far, where there is no /proc."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def measure_memory(
    description: ModelDescription,
    *,
    batch_sizes: Sequence[int] = (1,),
    conditions: Conditions | None = None,
    timeout: float | None = None,
) -> dict[int, int]:
    """Peak memory of inference, in bytes: weights, activations and workspaces.

    Args:
        description: the model and its inputs.
        batch_sizes: samples in the batch.
        conditions: device, precision, threads, ...; by default a CPU in float32.
        timeout: seconds that it may take.

    Returns:
        The peak of each batch size.

    Raises:
        CallError: the model cannot be built or rejects its inputs, or memory cannot be measured here.
        WorkError: it ran out of memory, was killed (``ProcessDied``), or took too long (``TimeOut``).
    """
    return in_process(_inference, description, tuple(batch_sizes), conditions or Conditions(), timeout=timeout)


def _inference(description: ModelDescription, batch_sizes: Sequence[int], conditions: Conditions) -> dict[int, int]:
    conditions.prepare()
    memory = PeakMemory(conditions.device)
    model = description.build()
    if conditions.deploy:
        model = deploy_form(model, inplace=True) or model
    return inference_peaks(conditions.place(model), description.example_inputs, batch_sizes, conditions, memory)


def inference_peaks(
    model: nn.Module,
    example_inputs: Callable[[int], Sequence[Tensor]],
    batch_sizes: Sequence[int],
    conditions: Conditions,
    memory: PeakMemory,
) -> dict[int, int]:
    """Peak memory of a model in this process, for each batch size.

    On a CPU the model runs eagerly, or the compiler's own memory would be part of it.
    """
    run = model if memory.device.type == "cpu" else conditions.compiled(model)
    peaks = {}
    for size in sorted(batch_sizes):
        memory.restart()
        inputs = conditions.place_inputs(example_inputs(size))
        with torch.inference_mode():
            for _ in range(2):  # the first pass also reads code from disk
                forward(run, inputs)
        conditions.synchronize()
        peaks[size] = memory.read()
        del inputs
    return peaks


@dataclass(frozen=True)
class TrainingProbe:
    """What one training step takes, or why there can be none.

    Attributes:
        memory_bytes: peak memory: weights, gradients, optimizer state, activations; None after a failure.
        seconds: the second step, the first one being slower; None after a failure.
        failure: one line; empty when the step was done.
    """

    memory_bytes: int | None
    seconds: float | None
    failure: str = ""


def probe_training_step(
    description: ModelDescription,
    *,
    batch_size: int,
    num_classes: int,
    optimizer: str = "adamw",
    conditions: Conditions | None = None,
    timeout: float | None = None,
) -> TrainingProbe:
    """Train for two steps in a process of its own, so that running out of memory is a finding and no disaster.

    Cross-entropy with random labels, in train mode, with the optimizer of that name in timm.

    Args:
        description: the model, built with ``num_classes`` outputs, and its inputs.
        batch_size: samples in a step.
        num_classes: classes of the labels.
        optimizer: ``adamw``, ``sgd``, ...
        conditions: device, precision (below float32 by autocast), threads; by default a CPU in float32.
        timeout: seconds that it may take.

    Returns:
        Memory and time, or the reason of the failure: killed, out of memory, too slow, an unsupported size, ...
    """
    arguments = (description, batch_size, num_classes, optimizer, conditions or Conditions())
    try:
        return in_process(_training, *arguments, timeout=timeout)
    except (CallError, WorkError) as error:
        shape = "x".join(map(str, (batch_size, *description.input_shape)))
        where = f"training on {shape}: " if isinstance(error, (ProcessDied, TimeOut)) else ""
        return TrainingProbe(None, None, where + one_line(error))


def _training(
    description: ModelDescription, batch_size: int, num_classes: int, optimizer: str, conditions: Conditions
) -> TrainingProbe:
    from timm.optim import create_optimizer_v2

    conditions.prepare()
    memory = PeakMemory(conditions.device)
    model = description.build().to(conditions.device).train()
    steps = create_optimizer_v2(model, opt=optimizer, lr=1e-3, weight_decay=0.05)
    inputs = tuple(x.to(conditions.device) for x in description.example_inputs(batch_size))
    memory.restart()
    started = time.perf_counter()
    for _ in range(2):
        started = time.perf_counter()
        _step(model, inputs, num_classes, steps, conditions)
        conditions.synchronize()
    return TrainingProbe(memory.read(), time.perf_counter() - started)


def _step(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    num_classes: int,
    steps: torch.optim.Optimizer,
    conditions: Conditions,
) -> None:
    with conditions.autocast():
        outputs = forward(model, inputs)
    if not isinstance(outputs, Tensor):
        raise CallError(f"{type(model).__name__} gives {type(outputs).__name__} in train mode, not a tensor of scores")
    labels = torch.arange(len(outputs), device=outputs.device) % num_classes
    try:
        steps.zero_grad()
        F.cross_entropy(outputs.float(), labels).backward()
        steps.step()
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise OutOfMemory(f"ran out of memory in the backward pass of {len(labels)} samples") from error
        raise
