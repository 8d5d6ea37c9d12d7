"""A function that runs in a second process and never outlives the first, however that one ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

from flowkit.errors import ProcessError


@contextmanager
def beside(function: Callable[..., Any], *arguments: Any) -> Iterator[Callable[[], Any]]:
    """Run a function of a module in a second process while the block runs.

    The process is ended at the end of the block, and also if this process is killed. It takes no
    notice of Ctrl-C, which is for the first one.

    Args:
        function: The function; it and its result are sent between the processes.
        arguments: Its arguments.

    Yields:
        A function that waits for the result.

    Raises:
        ProcessError: From the function, if the second process failed; the message says why.
    """
    context = multiprocessing.get_context("spawn")
    result, send = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(send, function, arguments), daemon=True)
    with _ctrl_c_blocked():
        process.start()
    send.close()

    def wait() -> Any:
        try:
            done, value = result.recv()
        except EOFError:
            process.join()
            raise ProcessError(
                f"the process beside this one ended with code {process.exitcode} before its work "
                "was done; remedy: more memory, or a smaller problem"
            ) from None
        if not done:
            raise ProcessError(f"the process beside this one failed: {value}")
        return value

    try:
        yield wait
    finally:
        process.kill()
        process.join()
        result.close()


@contextmanager
def _ctrl_c_blocked() -> Iterator[None]:
    """Start processes that inherit a blocked Ctrl-C; one that comes meanwhile is not lost."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _run(send: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    try:
        answer = (True, function(*arguments))
    except Exception as error:
        answer = (False, f"{type(error).__name__}: {error}")
    send.send(answer)


def _end_with_the_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
