"""Methods by name: those with a card, and modules of the user's own."""

from __future__ import annotations

import importlib
import inspect
from types import ModuleType
from typing import Any

from torch import nn

from torchstone import catalog
from torchstone.errors import CallError, unknown_name
from torchstone.methods.method import Method


def list_methods() -> list[str]:
    """The keys of the methods that have a card, sorted."""
    return sorted(card.key for card in catalog.cards().values() if card.kind == "method")


def method_module(name: str) -> ModuleType:
    """The module behind a method's name.

    Args:
        name: a key of :func:`list_methods`, or, with a dot in it, a module that Python can import and that has
            ``build(model, **args)``: ``mypackage.denoising``.

    Raises:
        UnknownName: no such method; the nearest are given.
        CallError: no such module, or it has no ``build``.
    """
    if name in list_methods():
        return importlib.import_module(catalog.card(name).module)
    if "." not in name:
        raise unknown_name("method", name, list_methods())
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # the module is there, what it imports is not
        raise CallError(f"there is no module {name} that could be a method; is its folder on PYTHONPATH?") from error
    if not callable(getattr(module, "build", None)):
        raise CallError(f"the module {name} is no method: it has no function build(model, **args)")
    return module


def finishes(name: str) -> bool:
    """Whether a method's network is trained whole, for the task itself.

    Raises:
        UnknownName: no such method.
    """
    return bool(getattr(method_module(name), "FINISHES", False))


def build_method(name: str, model: nn.Module, *, teacher: nn.Module | None = None, **args: Any) -> Method:
    """Put a method around a network.

    Args:
        name: as in :func:`method_module`.
        model: the network, built without a classifier unless the method finishes the task.
        teacher: a trained network, for a method that learns from one.
        **args: the method's own arguments.

    Raises:
        UnknownName: no such method.
        CallError: an argument that the method does not take, a teacher too many or too few, or a network that it cannot
            train.
    """
    build = method_module(name).build
    parameter = inspect.signature(build).parameters.get("teacher")
    if teacher is not None and parameter is None:
        raise CallError(f"{name} learns from no teacher: remove method.teacher")
    if parameter is not None:
        if teacher is None and parameter.default is inspect.Parameter.empty:
            raise CallError(f"{name} learns from a trained network: name its run directory as method.teacher")
        args["teacher"] = teacher
    try:
        method = build(model, **args)
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        raise CallError(f"{name} does not take this argument: {error}") from error
    if not isinstance(method, Method):
        raise CallError(f"{name}.build must return a torchstone.methods.method.Method, got {type(method).__name__}")
    return method
