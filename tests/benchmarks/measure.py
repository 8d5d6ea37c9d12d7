"""Times and memory of one cell: every library in turn with the limit, in one process.

Absolute times on shared machines mean little. A round therefore runs the limit and then each
library once, all in CPU time, and a library's number is the median over the rounds of its time
divided by the limit's of the same round.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch.profiler import ProfilerActivity, profile

Call = Callable[[], object]


@dataclass
class Effort:
    """How much time a cell may take.

    Args:
        rounds: Rounds at most.
        budget: CPU seconds a library in one cell, beyond which it takes part in fewer rounds, but
            in three at least.
        once: CPU seconds of a first call beyond which it is the only one.
        patience: CPU seconds after which a first call is broken off.
        block: CPU seconds that a measurement should last; fast calls are repeated up to it.
    """

    rounds: int = 15
    budget: float = 0.6
    once: float = 2.0
    patience: float = 20.0
    block: float = 0.005


@dataclass
class Timing:
    """One library in one cell."""

    ratios: list[float] = field(default_factory=list)
    milliseconds: list[float] = field(default_factory=list)
    at_least: float | None = None  # the ratio at which an endless call was broken off
    peak_bytes: int | None = None

    @property
    def ratio(self) -> float | None:
        return statistics.median(self.ratios) if self.ratios else None

    def summary(self) -> dict[str, Any]:
        """Medians, spread and rounds as plain numbers."""
        out: dict[str, Any] = {"rounds": len(self.ratios), "peak_bytes": self.peak_bytes}
        if self.ratios:
            ordered = sorted(self.ratios)
            out["ratio"] = round(statistics.median(ordered), 4)
            out["ratio_lowest"], out["ratio_highest"] = round(ordered[0], 4), round(ordered[-1], 4)
            out["milliseconds"] = round(statistics.median(self.milliseconds), 5)
        elif self.at_least is not None:
            out["ratio_at_least"] = round(self.at_least, 1)
        return out


class TooSlow(Exception):
    """A call took longer than the patience."""


@contextlib.contextmanager
def _patience(seconds: float) -> Iterator[None]:
    """Break off what takes more CPU time than this, where the system has such a timer."""
    if not hasattr(signal, "setitimer"):
        yield
        return

    def stop(*_: object) -> None:
        raise TooSlow

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def seconds(call: Call, repeats: int = 1) -> float:
    """CPU seconds of one call."""
    begun = time.process_time()
    for _ in range(repeats):
        call()
    return max(time.process_time() - begun, 1e-9) / repeats


@contextlib.contextmanager
def _no_standard_error() -> Iterator[None]:
    """The profiler announces each start and stop on standard error, from below Python."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def peak_bytes(call: Call) -> int:
    """The most bytes of tensors that live at once during a call, beyond those before it.

    Every allocation and release of torch's CPU allocator is counted, as its profiler reports them;
    parameters and the optimizer's state are there before and do not count, gradients do.
    """
    with (
        _no_standard_error(),
        profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record,
    ):
        call()
    live = peak = 0
    events = record.profiler.kineto_results.events()  # type: ignore[union-attr]
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def measure(
    calls: dict[str, Call],
    effort: Effort,
    unhurried: Collection[str] = (),
    unseen: Collection[str] = (),
) -> dict[str, Timing]:
    """Time the calls in interleaved rounds; the one named ``limit`` is the measure of all.

    Args:
        calls: A function of no arguments a library, and ``limit``.
        effort: How long this may take.
        unhurried: Those whose first call may take any time, for they compile in it.
        unseen: Those whose memory torch does not see.

    Returns:
        A timing for each call; a call that raises is not among them, and the reason is printed.
    """
    timings, repeats, rounds = {}, {}, {}
    limit = calls["limit"]
    for _ in range(2):
        once = seconds(limit)
    for name, call in calls.items():
        timing = Timing()
        try:
            if name in unhurried:
                call()
            with _patience(effort.patience):
                before, first = seconds(limit), seconds(call)
                slow = first > effort.once
                again = first if slow else seconds(call)
        except TooSlow:
            timing.at_least = effort.patience / once
            timings[name], rounds[name] = timing, 0
            continue
        except Exception as error:  # a library's fault ends its own cell only
            print(f"  {name} fails: {type(error).__name__}: {str(error)[:300]}", flush=True)
            continue
        if slow:
            timing.ratios, timing.milliseconds = [first / before], [1e3 * first]
        repeats[name] = max(1, min(50, int(effort.block / again)))
        affordable = int(effort.budget / (repeats[name] * again))
        rounds[name] = 0 if slow else min(effort.rounds, max(3, affordable))
        timings[name] = timing
    # The limit itself is there in every round.
    rounds["limit"] = max(rounds.values())
    gc.collect()
    gc.disable()
    try:
        for i in range(rounds["limit"]):
            for name in [n for n in timings if rounds[n] > i]:
                took = seconds(calls[name], repeats[name])
                once = took if name == "limit" else once
                timings[name].ratios.append(took / once)
                timings[name].milliseconds.append(1e3 * took)
    finally:
        gc.enable()
    for name, timing in timings.items():
        if rounds[name] and name not in unseen:
            timing.peak_bytes = peak_bytes(calls[name])
    return timings
