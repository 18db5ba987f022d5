"""Where a run works: one device, or several processes that torchrun, SLURM or Lightning start."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch

from torchstone.errors import CallError, unknown_name


def resolve_device(device: str = "auto") -> torch.device:
    """The device of that name; ``auto`` takes CUDA, then Apple's MPS, then the CPU.

    Raises:
        UnknownName: no such kind of device.
        CallError: a device that this machine does not have.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    kind, _, index = device.partition(":")
    counts = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if kind not in counts or (index and not index.isdigit()):
        raise unknown_name("device", device, ["auto", *counts])
    if not counts[kind] or (index and int(index) >= counts[kind]):
        present = ", ".join(f"{kind} ({count})" for kind, count in counts.items() if count)
        raise CallError(f"this machine has no device {device}; it has {present}")
    return torch.device(device)


@dataclass(frozen=True)
class Processes:
    """The processes that share a run.

    Args:
        world: how many there are.
        local: how many of them are on this machine.
        rank: this one's number.
        environment: who started them: ``torchrun``, ``slurm`` or ``lightning``.
    """

    world: int
    local: int
    rank: int
    environment: str

    @classmethod
    def detect(cls, devices: int | None = None) -> Processes:
        """Read the launcher's environment variables.

        Args:
            devices: processes wanted on this machine. None takes what the launcher started, or one. Without a launcher
                Lightning starts the others by running this program again.

        Raises:
            CallError: another number than the launcher started.
        """
        if devices is not None and devices < 1:
            raise CallError(f"devices must be a positive integer, got {devices}")
        values = os.environ
        if torch.distributed.is_available() and torch.distributed.is_torchelastic_launched():
            found = cls(int(values["WORLD_SIZE"]), int(values["LOCAL_WORLD_SIZE"]), int(values["RANK"]), "torchrun")
        elif int(values.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
            world = int(values["SLURM_STEP_NUM_TASKS"])
            nodes = int(values.get("SLURM_STEP_NUM_NODES", 1))
            found = cls(world, world // nodes, int(values["SLURM_PROCID"]), "slurm")
        else:
            count = devices or 1
            return cls(count, count, int(values.get("LOCAL_RANK", 0)) if count > 1 else 0, "lightning")
        if devices not in (None, found.local):
            raise CallError(f"devices is {devices}, but {found.environment} started {found.local} processes here")
        return found

    @property
    def first(self) -> bool:
        """Whether this process writes the run's files."""
        return self.rank == 0


STRATEGIES = ("auto", "ddp", "fsdp")


def check_strategy(device: torch.device, processes: Processes, strategy: str) -> None:
    """Refuse a way to share the work that does not exist or that the device cannot take.

    Raises:
        UnknownName: no such strategy.
        CallError: the device cannot take it.
    """
    if strategy not in STRATEGIES:
        raise unknown_name("strategy", strategy, STRATEGIES)
    if strategy == "fsdp" and device.type != "cuda":
        raise CallError(f"strategy fsdp needs CUDA devices, got {device.type}")
    if processes.world > 1 and (device.type == "mps" or device.index is not None):
        raise CallError(f"{processes.world} processes cannot share the one device {device}; give cpu or cuda")


def trainer_options(
    device: torch.device, processes: Processes, strategy: str, unused_parameters: bool
) -> dict[str, Any]:
    """Lightning's options for a device, its processes and how they share the work.

    Args:
        device: of this process.
        processes: that share the run.
        strategy: one of :data:`STRATEGIES`, checked.
        unused_parameters: the model has parameters that get no gradient, which DDP has to look for in every step.
    """
    from lightning.pytorch.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment
    from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy

    environments = {
        "torchrun": TorchElasticEnvironment,
        "slurm": lambda: SLURMEnvironment(auto_requeue=False),
        "lightning": LightningEnvironment,
    }
    shared: Any = "auto"
    if strategy == "fsdp":
        shared = FSDPStrategy(state_dict_type="full")
    elif strategy == "ddp" or processes.world > 1:
        shared = DDPStrategy(find_unused_parameters=unused_parameters, gradient_as_bucket_view=True)
    return {
        "accelerator": device.type,
        "devices": [device.index] if device.index is not None and device.type == "cuda" else processes.local,
        "num_nodes": processes.world // processes.local,
        "strategy": shared,
        "cluster_environment": environments[processes.environment](),
    }
