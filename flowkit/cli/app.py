"""The ``flowkit`` command: fit, sample, score and describe flows of tables, and the demo.

Errors end in one line on stderr and exit code 2, never in a traceback.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from flowkit.cli.commands import COMMANDS
from flowkit.cli.console import abandon_stdout, complain, warnings_as_notes, why
from flowkit.cli.options import make_parser
from flowkit.errors import FlowkitError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the ``flowkit`` command.

    With ``FLOWKIT_TRACEBACK=1`` in the environment an error that is nobody's on purpose shows
    where it happened.

    Args:
        argv: The words after ``flowkit``; those of the process by default.

    Returns:
        The exit code: 0, or 2 after an error, 130 after Ctrl-C, 141 where nobody reads the output.

    Example:
        >>> from flowkit.cli import main
        >>> main(["describe", "nowhere.safetensors"])  # the reason goes to stderr
        2
    """
    program = "flowkit"
    try:
        options = make_parser(COMMANDS).parse_args(argv)
        program = f"flowkit {options.command}"
        with _own_process(options.threads), warnings_as_notes():
            options.run(options)
        return 0
    except BrokenPipeError:
        abandon_stdout()
        return 141
    except KeyboardInterrupt:
        complain(program, "interrupted")
        return 130
    except (FlowkitError, OSError) as error:
        complain(program, why(error))
    except MemoryError:
        complain(program, "not enough memory; remedy: fewer rows, or a smaller flow")
    except Exception as error:
        if os.environ.get("FLOWKIT_TRACEBACK"):
            raise
        complain(program, f"unexpected {type(error).__name__}: {error}")
    return 2


@contextmanager
def _own_process(threads: int) -> Iterator[None]:
    """Set threads for the command, and leave a caller's threads and random state as they were."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_num_threads(before)
