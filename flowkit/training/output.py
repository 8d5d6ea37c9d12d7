"""Show a fit: by a bar in terminals and notebooks, by some lines in logs."""

from __future__ import annotations

import importlib.util
import sys
import time
from typing import Any

from flowkit.objectives import Loss
from flowkit.training.history import Progress

_SECONDS_BETWEEN_LINES = 30.0
_LINES_PER_FIT = 10


class Output:
    """Show nothing; the interface of what shows a fit.

    Args:
        stream: Where messages go; ``None`` for nowhere.
    """

    def __init__(self, stream: Any = None) -> None:
        self.stream = stream

    def say(self, text: str) -> None:
        """Write a line, above the bar if there is one."""
        if self.stream is not None:
            self.stream.write(f"fit: {text}\n")
            self.stream.flush()

    def begin(self, progress: Progress) -> None:
        """Show that steps begin."""

    def step(self, progress: Progress, loss: Loss) -> None:
        """Show a step; the loss is only read where it is shown, for that waits for the device."""

    def record(self, progress: Progress) -> None:
        """Show a record."""

    def end(self, progress: Progress | None = None) -> None:
        """Show why the fit stopped and which weights it leaves; without a fit only tidy up."""
        if progress is not None:
            self.say(outcome(progress))


class Lines(Output):
    """Write lines: at every tenth of the fit, and if that takes long, every half minute."""

    def begin(self, progress: Progress) -> None:
        """Start the clock."""
        self.last, self.tenth = time.monotonic(), self._tenth(progress)

    def _tenth(self, progress: Progress) -> int:
        return _LINES_PER_FIT * progress.done // progress.total

    def _due(self) -> bool:
        return time.monotonic() - self.last >= _SECONDS_BETWEEN_LINES

    def _write(self, progress: Progress, text: str) -> None:
        self.begin(progress)
        self.say(f"step {progress.done} of {progress.total}, {text}")

    def step(self, progress: Progress, loss: Loss) -> None:
        """Write a line where the last one is long ago."""
        if self._due():
            self._write(progress, f"loss {_number(loss.value.detach())}")

    def record(self, progress: Progress) -> None:
        """Write a line where a tenth is done."""
        if self._tenth(progress) > self.tenth or self._due():
            history = progress.history
            text = f"loss {_number(history.train[-1])}"
            if history.validation:
                text += f", validation {_number(history.validation[-1])}"
            self._write(progress, text)


class Bar(Output):
    """Show a progress bar over all steps.

    Args:
        kind: The class of bars, of a terminal or of a notebook.
        stream: Where messages go; ``None`` for a notebook, whose bar shows them itself.
    """

    def __init__(self, kind: Any, stream: Any) -> None:
        super().__init__(stream)
        self.kind = kind
        self.bar: Any = None

    def begin(self, progress: Progress) -> None:
        """Show the bar."""
        self.bar = self.kind(
            total=progress.total,
            initial=min(progress.done, progress.total),
            unit="step",
            file=self.stream,
        )

    def step(self, progress: Progress, loss: Loss) -> None:
        """Move the bar."""
        if self.bar.total != progress.total:
            self.bar.total = progress.total
        if self.bar.update(1):
            shown = {"loss": _number(loss.value.detach())}
            if progress.history.validation:
                shown["validation"] = _number(progress.history.validation[-1])
            self.bar.set_postfix(shown, refresh=False)

    def end(self, progress: Progress | None = None) -> None:
        """Take the bar away from the fit, and say how it ended."""
        if self.bar is not None:
            if progress is not None and self.stream is None:
                self.bar.set_postfix_str(outcome(progress))
            self.bar.close()
        super().end(progress)


def output(*, shows: bool) -> Output:
    """Choose what shows a fit: nothing, a bar, or lines where standard error is no terminal."""
    stream = sys.stderr
    if not shows or stream is None:
        return Output()
    if _in_notebook():
        # Without these a bar of tqdm is a warning and a heap of carriage returns.
        if importlib.util.find_spec("ipywidgets") is None:
            return Lines(stream)
        from tqdm.notebook import tqdm as notebook_bar

        return Bar(notebook_bar, None)
    if stream.isatty():
        from tqdm import tqdm

        return Bar(tqdm, stream)
    return Lines(stream)


def _in_notebook() -> bool:
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell is not None and "IPKernelApp" in getattr(shell, "config", {})


def outcome(progress: Progress) -> str:
    """Why a fit stopped and which weights it leaves, in one line."""
    history = progress.history
    why = {
        "epochs": f"all {_number(progress.done and history.epochs[-1])} epochs are done",
        "steps": f"all {progress.total} steps are done",
        "patience": f"no better validation loss for {progress.waited} validations",
        "callback": "a callback returned true",
    }[history.stopped]
    if history.annealed is not None and history.stopped == "patience":
        since = history.annealed
        why = f"validation stopped improving, and the rate fell to zero from step {since} on"
    if progress.done > progress.total:
        why = f"the checkpoint has done more than the {progress.total} steps of this fit"
    if history.best_step is not None:
        left = f"step {history.best_step}, with validation {_number(history.best)}"
        if history.start is not None:
            left += f" ({_number(history.start)} at the start)"
            if history.best_step == 0 and any(loss < history.start for loss in history.validation):
                left += "; losses below it are within two standard errors"
    else:
        left = "the last step" + (", averaged" if progress.averaged else "")
        if history.train:
            left += f", with loss {_number(history.train[-1])}"
    return f"stopped after step {progress.done}: {why}; weights of {left}"


def _number(value: Any) -> str:
    return f"{float(value):.4g}"
