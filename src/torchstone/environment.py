"""Where a number was measured: hardware, versions, and the JSON files that carry results."""

from __future__ import annotations

import datetime
import os
import platform
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from torchstone.files import write_json

_PACKAGES = ("torchstone", "torch", "torchvision", "timm", "lightning", "torch_geometric", "triton", "numpy")


def describe() -> dict[str, Any]:
    """Hardware and versions of this process, as JSON-ready facts."""
    import torch

    facts: dict[str, Any] = {
        "platform": platform.platform(),
        "python": platform.python_version(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
        facts["cuda"] = torch.version.cuda
    return facts


def versions() -> dict[str, str]:
    """Installed versions of the packages that numbers depend on."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def write_result(path: str | Path, *, command: str, seeds: Sequence[int], results: dict[str, Any]) -> None:
    """Write a measured result with all that is needed to judge and repeat it.

    Args:
        path: the JSON file, usually below ``benchmarks/results``.
        command: the command line that measures it again.
        seeds: every seed that entered (empty when nothing is random).
        results: the numbers, JSON-ready.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = describe()
    write_json(
        path,
        {
            "command": command,
            "date": datetime.date.today().isoformat(),
            "hardware": {key: value for key, value in facts.items() if key != "versions"},
            "versions": facts["versions"],
            "seeds": list(seeds),
            "results": results,
        },
    )
