"""Models and functions that the tests send into other processes."""

import multiprocessing
import os
import pickle
import signal
import time
from dataclasses import dataclass

import torch
from torch import nn

from torchstone.errors import CallError
from torchstone.instruments import ModelDescription, processes


class Wide(nn.Module):
    """``width`` weights times one number, then the maximum: as many activations as weights for each sample."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x * self.weight).amax(1, keepdim=True).expand(-1, 4)


@dataclass(frozen=True)
class WideDescription(ModelDescription):
    width: int = 1

    def build(self) -> nn.Module:
        return Wide(self.width)


class Deadly(nn.Module):
    """Its process dies as from the out-of-memory killer, in the forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        os.kill(os.getpid(), signal.SIGKILL)
        return x


@dataclass(frozen=True)
class DeadlyDescription(ModelDescription):
    def build(self) -> nn.Module:
        return Deadly()


class Branched(nn.Module):
    """Two parallel linear maps that become one: a deploy form with half of the work."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(8, 8)
        self.right = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.left(x) + self.right(x) if hasattr(self, "right") else self.left(x)

    def reparameterize(self) -> None:
        self.left.weight += self.right.weight
        self.left.bias += self.right.bias
        del self.right


@dataclass(frozen=True)
class BranchedDescription(ModelDescription):
    def build(self) -> nn.Module:
        return Branched()


def raise_value_error() -> None:
    raise ValueError("first line\nsecond line")


def raise_call_error() -> None:
    raise CallError("this cannot work")


def tell_numbers(count: int, *, tell) -> str:
    for number in range(count):
        tell(number)
    return "done"


def main_module_file() -> str | None:
    import __main__

    return getattr(__main__, "__file__", None)


def start_a_child(*, tell) -> None:
    """Tell its own number, then that of a process that it started, which would live for long."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(
        target=processes._work, args=(sender, pickle.dumps((tell_pid_and_wait, ())), True)
    )
    child.start()
    tell(os.getpid())
    tell(pickle.loads(receiver.recv_bytes())[1])
    child.join()


def tell_pid_and_wait(*, tell) -> None:
    tell(os.getpid())
    time.sleep(600)
