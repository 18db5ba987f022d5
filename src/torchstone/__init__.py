"""torchstone: published neural systems, proved against their authors' code and comparable on your own data.

    >>> import torchstone
    >>> model = torchstone.create_model("inceptionnext_tiny", num_classes=10)

Names are loaded on first use, so that importing the package is quick and has no side effect.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torchstone.catalog import cards as systems
    from torchstone.instruments.profile import profile
    from torchstone.models.registry import create_model, list_models, load_official, register_with_timm
    from torchstone.reporting.compare import compare

__version__ = "0.1.0"

_FACE = {
    "systems": ("torchstone.catalog", "cards"),
    "create_model": ("torchstone.models.registry", "create_model"),
    "list_models": ("torchstone.models.registry", "list_models"),
    "load_official": ("torchstone.models.registry", "load_official"),
    "register_with_timm": ("torchstone.models.registry", "register_with_timm"),
    "profile": ("torchstone.instruments.profile", "profile"),
    "compare": ("torchstone.reporting.compare", "compare"),
}

__all__ = [
    "__version__",
    "compare",
    "create_model",
    "list_models",
    "load_official",
    "profile",
    "register_with_timm",
    "systems",
]


def __getattr__(name: str) -> Any:
    if name in _FACE:
        module, attribute = _FACE[name]
        return getattr(importlib.import_module(module), attribute)
    raise AttributeError(f"module 'torchstone' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
