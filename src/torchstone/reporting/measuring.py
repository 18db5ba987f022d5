"""What candidates cost, measured before any of them is trained and kept in ``costs.json``.

Parameters and multiply-accumulates come first, so that a candidate whose size alone is over budget is not run. The
others are timed together, interleaved; then each one's memory is measured in a process of its own, in inference and in
a training step, which also shows whether it can be trained at all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torchstone import environment
from torchstone.errors import CallError, WorkError
from torchstone.files import read_json, write_json
from torchstone.instruments.description import ModelDescription
from torchstone.instruments.latency import measure_latencies
from torchstone.instruments.macs import count_macs, count_parameters
from torchstone.instruments.memory import measure_memory, probe_training_step
from torchstone.instruments.processes import in_process
from torchstone.instruments.running import Conditions, is_out_of_memory, one_line
from torchstone.reporting.limits import Limit

SMALL_BATCH, LARGE_BATCH = 1, 32

Cost = dict[str, float | None]


@dataclass(frozen=True)
class Measurement:
    """What a candidate costs, and why it is not to be trained.

    Attributes:
        cost: cost axis -> value; None where it could not be measured, absent where that was not tried.
        failed: why it cannot be trained; empty when it can.
        over_budget: which limits it exceeds; empty when it exceeds none.
    """

    cost: Cost = field(default_factory=dict)
    failed: str = ""
    over_budget: str = ""


def measure(
    descriptions: Mapping[str, ModelDescription],
    *,
    num_classes: int,
    batch_size: int,
    batch_sizes: Sequence[int] = (SMALL_BATCH, LARGE_BATCH),
    device: str,
    limits: Sequence[Limit],
    file: Path,
    tell: Callable[[str], None],
) -> dict[str, Measurement]:
    """Measure what has not been measured before.

    Args:
        descriptions: candidate -> its model.
        num_classes: of the labels of a training step.
        batch_size: samples in a training step.
        batch_sizes: of the inputs whose latency is measured, 1 among them.
        device: where the models run.
        limits: what a candidate may cost.
        file: where costs are kept; those measured there under the same conditions are used.
        tell: called with what is being done.

    Returns:
        One measurement per candidate.
    """
    conditions = Conditions(device=device)
    ledger = _Ledger(file, descriptions, {"batch_size": batch_size, **conditions.to_dict(), **environment.describe()})
    failures: dict[str, str] = {}

    def waiting(axis: str) -> dict[str, ModelDescription]:
        """The candidates that this cost is to be measured of; of several with the same model, one."""
        able = {
            name: description
            for name, description in descriptions.items()
            if axis not in ledger.cost(name) and name not in failures and not _over_budget(ledger.cost(name), limits)
        }
        return {name: description for name, description in able.items() if name == ledger.first_alike(name, able)}

    for name, description in waiting("params").items():
        tell(f"counting parameters and multiply-accumulates of {name}")
        try:
            ledger.enter(name, in_process(_count, description))
        except (CallError, WorkError) as error:
            failures[name] = failure_reason(error)
    timed = waiting("latency_ms_1")
    if timed:
        tell(f"measuring the latency of {len(timed)} candidates")
        latencies = measure_latencies(timed, batch_sizes=batch_sizes, conditions=conditions)
        failures |= latencies.failures
        for name, timing in latencies.timings.items():
            costs = {f"latency_ms_{size}": timing[size].median_ms for size in batch_sizes}
            ledger.enter(name, {**costs, "throughput": latencies.throughput(name)})
    for name, description in waiting("train_memory_mb").items():
        tell(f"measuring the memory of {name}")
        try:
            memory = measure_memory(description, batch_sizes=(SMALL_BATCH,), conditions=conditions)[SMALL_BATCH]
        except (CallError, WorkError) as error:
            failures[name] = failure_reason(error)
            continue
        probe = probe_training_step(description, batch_size=batch_size, num_classes=num_classes, conditions=conditions)
        if probe.memory_bytes is None:
            failures[name] = probe.failure
            continue
        ledger.enter(name, {"memory_mb": memory / 1e6, "train_memory_mb": probe.memory_bytes / 1e6})
    return {
        name: Measurement(
            cost=ledger.cost(name),
            failed=failures.get(ledger.first_alike(name, failures), ""),
            over_budget=_over_budget(ledger.cost(name), limits),
        )
        for name in descriptions
    }


def failure_reason(error: BaseException) -> str:
    """Why a candidate failed, in a line."""
    return f"out of memory ({one_line(error)})" if is_out_of_memory(error) else one_line(error)


def _over_budget(cost: Cost, limits: Sequence[Limit]) -> str:
    return "; ".join(filter(None, (limit.exceeded(cost) for limit in limits)))


def _count(description: ModelDescription) -> Cost:
    """Runs in a process of its own. Multiply-accumulates that were not all counted are no number to compare by."""
    model = description.build().eval()
    counted = count_macs(model, description.example_inputs(1))
    return {"params": count_parameters(model), "macs": None if counted.uncounted else counted.total}


class _Ledger:
    """``costs.json``: what each model cost under the conditions it was measured in.

    Args:
        file: read now, and written after every entry.
        descriptions: candidate -> its model.
        conditions: all but the model that the numbers depend on.
    """

    def __init__(self, file: Path, descriptions: Mapping[str, ModelDescription], conditions: Mapping[str, Any]) -> None:
        self.file = file
        self.keys = {name: _hash([description.facts(), conditions]) for name, description in descriptions.items()}
        self.models = {name: description.spec for name, description in descriptions.items()}
        try:
            self.entries: dict[str, dict[str, Any]] = read_json(file) if file.is_file() else {}
        except json.JSONDecodeError as error:
            raise CallError(f"{file} is damaged ({error}); delete it to measure the costs again") from error

    def cost(self, name: str) -> Cost:
        return dict(self.entries.get(self.keys[name], {}).get("cost", {}))

    def enter(self, name: str, cost: Mapping[str, float | None]) -> None:
        self.entries[self.keys[name]] = {"model": self.models[name], "cost": {**self.cost(name), **cost}}
        write_json(self.file, self.entries)

    def first_alike(self, name: str, names: Mapping[str, Any]) -> str:
        """The first of the names whose model is the same, else the name itself."""
        return next((other for other in names if self.keys[other] == self.keys[name]), name)


def _hash(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
