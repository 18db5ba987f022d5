"""Packages that come with an extra of this one, and an error that says which."""

from __future__ import annotations

import importlib
from types import ModuleType

from torchstone.errors import CallError


def extra(module: str, name: str) -> ModuleType:
    """Import a module that only the extra ``name`` brings.

    Raises:
        CallError: it is not installed; says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != module.partition(".")[0]:
            raise
        raise CallError(f"this needs {error.name}: pip install torchstone[{name}]") from error
