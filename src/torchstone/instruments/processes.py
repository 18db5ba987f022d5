"""Work in a process of its own: fresh, bounded in time, and reported when it dies.

On Linux a server process imports torch and timm once and forks the others, so that each costs some ten milliseconds and
starts from the same state; elsewhere every process starts from nothing. What goes in and out is pickled.
"""

from __future__ import annotations

import logging
import multiprocessing
import multiprocessing.connection
import os
import pickle
import signal
import sys
import threading
import time
import traceback
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from typing import Any

from torchstone.errors import CallError, WorkError

_PRELOADED = [
    "timm",
    "torchvision",
    "torchstone.models.registry",
    "torchstone.instruments.latency",
    "torchstone.instruments.memory",
]

_SECONDS_TO_END = 5.0
"""What a process may take to clean up after its result."""


class ProcessDied(WorkError):
    """The process ended before it had a result, most likely killed for want of memory."""


class TimeOut(WorkError):
    """The process took longer than it was given."""


def warm_server() -> None:
    """Start the server ahead of the first process, beside whatever else is done; nothing when it runs already."""
    if sys.platform == "linux":
        with _without_main():
            multiprocessing.get_context("forkserver").set_forkserver_preload(_PRELOADED)
            forkserver.ensure_running()


def in_process(
    function: Callable[..., Any],
    *args: Any,
    timeout: float | None = None,
    on_message: Callable[[Any], None] | None = None,
) -> Any:
    """Run ``function(*args)`` in a process of its own, which dies with this one.

    Args:
        function: a function of a module; it and its arguments are pickled.
        timeout: seconds that it may take.
        on_message: called with each thing that the function tells; the function is then given ``tell=`` as well.

    Returns:
        What the function returns.

    Raises:
        CallError, WorkError: what the function raised; an unforeseen error is a WorkError with its type and message.
        ProcessDied: it was killed, or crashed.
        TimeOut: it took longer than ``timeout``; it has been killed.
    """
    warm_server()
    context: Any = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
    receiver, sender = context.Pipe(duplex=False)
    with _without_main():
        try:
            work = pickle.dumps((function, args))  # by value: multiprocessing would share the memory of tensors
        except (pickle.PicklingError, AttributeError) as error:
            raise CallError(f"what runs in a process of its own must be importable there: {error}") from error
        process = context.Process(target=_work, args=(sender, work, on_message is not None))
        process.start()
    sender.close()
    try:
        result = _listen(process, receiver, timeout, on_message)
        process.join(_SECONDS_TO_END)
        return result
    finally:
        process.kill()
        process.join()
        receiver.close()


def _listen(
    process: Any,
    receiver: multiprocessing.connection.Connection,
    timeout: float | None,
    on_message: Callable[[Any], None] | None,
) -> Any:
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        if not receiver.poll(None if deadline is None else max(0.0, deadline - time.monotonic())):
            raise TimeOut(f"took longer than {timeout:g} s")
        try:
            message = receiver.recv_bytes()
        except EOFError:
            process.join()
            raise ProcessDied(_cause_of_death(process.exitcode)) from None
        kind, content = pickle.loads(message)
        if kind == "result":
            return content
        if kind == "error":
            wrong_call, line, told = content
            error = (CallError if wrong_call else WorkError)(line)
            error.add_note(told)
            raise error
        if on_message is not None:
            on_message(content)


def _cause_of_death(exitcode: int) -> str:
    if exitcode == -9:
        return "the process was killed, most likely because memory ran out"
    if exitcode < 0:
        return f"the process crashed with {signal.Signals(-exitcode).name}"
    return f"the process ended with exit code {exitcode}"


def _work(sender: multiprocessing.connection.Connection, work: bytes, tells: bool) -> None:
    from torchstone.instruments.running import one_line

    def send(kind: str, content: Any) -> None:
        sender.send_bytes(pickle.dumps((kind, content)))

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends this process
    threading.Thread(target=_die_with_parent, daemon=True).start()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    try:
        function, args = pickle.loads(work)
        if tells:
            result = function(*args, tell=lambda content: send("message", content))
        else:
            result = function(*args)
    except Exception as error:
        send("error", (isinstance(error, CallError), one_line(error), traceback.format_exc()))
    else:
        send("result", result)


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextmanager
def _without_main() -> Iterator[None]:
    """Let a new process start without importing the caller's script again, which may lack the guard that this needs."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
