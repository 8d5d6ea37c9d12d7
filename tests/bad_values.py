"""Bad values for every numeric argument of everything public: ``python tests/bad_values.py``.

Each numeric argument of each public constructor and function gets every value of :data:`BAD`. The
call either works or raises a ``FlowkitError`` that names the argument. Base calls come from
:data:`GIVEN`, by the names of required arguments, and from the cases of ``tests/options``. Prints
one line of JSON: how many values were tried, what escaped, and which arguments have no base call.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import math
import pkgutil
import re
import resource
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

import flowkit
from flowkit.bases import StandardNormal
from flowkit.errors import FlowkitError
from flowkit.scalar import Affine
from flowkit.toys import DoubleWell
from flowkit.transforms import ActNorm, LULinear

BAD = (0, -1, 2.5, math.nan, math.inf, -math.inf, 10**12, True, "text", None)
# Seconds for one call, and bytes above what the program holds at its start.
SECONDS, MEMORY = 5, 2 * 2**30

#: Required arguments by their names.
GIVEN: dict[str, Any] = {
    "base": StandardNormal(2),
    "bins": 4,
    "channels": 2,
    "components": 3,
    "conditioning": (1, 1),
    "degree": 2,
    "dim": 2,
    "dimensions": 2,
    "end": DoubleWell(),
    "energy": DoubleWell(),
    "event_shape": (2,),
    "features": 2,
    "flow": flowkit.elementwise_flow(2),
    "fraction": 0.5,
    "in_channels": 2,
    "in_features": 2,
    "lower": -1.0,
    "mask": [False, True],
    "n": 10,
    "order": [1, 0],
    "out_channels": 2,
    "out_features": 2,
    "param_size": 2,
    "rows": 5,
    "scalar": Affine(),
    "seed": 0,
    "size": 2,
    "start": DoubleWell(),
    "tails": [2.0, math.inf],
    "transform": LULinear(2),
    "transformed": (1, 1),
    "upper": 1.0,
    "x": torch.randn(50, 2, generator=torch.Generator().manual_seed(0)),
}
#: What one callable needs in other values.
OWN: dict[str, dict[str, Any]] = {
    "Compose": {"transforms": (ActNorm(2),), "starts": {"one": [0]}},
    "CallableEnergy": {"function": torch.sum},
    "FactorOut": {"event_shape": (2, 2, 2), "transform": ActNorm(1, event_ndim=3)},
    "GaussianMixture": {"means": [[0.0, 1.0]]},
    "Permutation": {"order": [1, 0]},
    "ProductBase": {"parts": ((StandardNormal(1), [0]), (StandardNormal(1), [1]))},
    "PathKL": {"energy": DoubleWell()},
    "ReverseKL": {"energy": DoubleWell()},
    "Squeeze": {"event_shape": (1, 2, 2)},
    "WeightedSum": {"terms": ((1.0, flowkit.MaximumLikelihood()),)},
    "box_flow": {"features": 2, "lower": [-1.0, -1.0], "upper": [1.0, 1.0]},
    "check_transform": {"skip": {f"R{n}": "takes long" for n in range(1, 17)}},
    "conv_flow": {"event_shape": (1, 4, 4)},
    "density_2d": {
        "log_prob": StandardNormal(2).log_prob,
        "limits": ((-1.0, 1.0), (-1.0, 1.0)),
        "resolution": 10,
    },
    "glow_flow": {"event_shape": (1, 4, 4)},
    "independence_chain": {"energy": DoubleWell(), "steps": 4},
    "neutra_chain": {"energy": DoubleWell(), "steps": 4, "chains": 1},
    "tail_estimate": {"x": torch.rand(500)},
    "tail_indices": {"x": torch.rand(500, 2)},
    "tail_verdict": {"x": torch.rand(500)},
}
#: Repetitions, which cost time alone: a large number is no mistake.
ENDLESS = {
    ("fit", "epochs"),
    ("fit", "steps"),
    ("adapt_step_sizes", "rounds"),
}
# All 3.4 million patches, which take longer than a call has.
LONG = {("photograph_patches", "limit")}
# Their values are not numbers, or any number will do.
NO_NUMBERS = {"progress", "generator", "dtype", "device", "extra"}


def public() -> Iterator[Any]:
    """Public classes and functions, by the ``__all__`` of the package and its parts."""
    seen: set[int] = set()
    names = [m.name for m in pkgutil.iter_modules(flowkit.__path__) if not m.name.startswith("_")]
    for module in [flowkit, *(importlib.import_module(f"flowkit.{name}") for name in names)]:
        for name in getattr(module, "__all__", ()):
            thing = getattr(module, name)
            if callable(thing) and module is not flowkit.cli and id(thing) not in seen:
                seen.add(id(thing))
                yield thing


def is_numeric(parameter: inspect.Parameter) -> bool:
    """Whether an argument takes a number, or one per feature."""
    if parameter.name in NO_NUMBERS or parameter.kind is parameter.VAR_KEYWORD:
        return False
    text = str(parameter.annotation)
    named = bool(re.search(r"\b(int|float)\b", text)) and "Callable" not in text
    default = parameter.default
    return named or (isinstance(default, (int, float)) and not isinstance(default, bool))


Call = Callable[[Any], Any]


def made(thing: Any, given: dict[str, Any]) -> Any:
    """The result of a call with arguments by their names, those of a ``*args`` too."""
    args: list[Any] = []
    for parameter in inspect.signature(thing).parameters.values():
        if parameter.kind is parameter.VAR_POSITIONAL and parameter.name in given:
            given = dict(given)
            many = given.pop(parameter.name)
            args += many if isinstance(many, tuple) else [many]
    return thing(*args, **given)


def constructor_calls() -> Iterator[tuple[str, str, Call]]:
    """Calls with required arguments by their names; what these do not make is left out."""
    for thing in public():
        try:
            parameters = inspect.signature(thing).parameters
        except (TypeError, ValueError):
            continue
        required = [
            p.name
            for p in parameters.values()
            if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        ]
        own = {k: v for k, v in OWN.get(thing.__name__, {}).items() if k in parameters}
        if not set(required) <= GIVEN.keys() | own.keys():
            continue
        given = {name: GIVEN.get(name) for name in required} | own
        works = functools.partial(made, thing, given)
        if thing.__name__ in ("fit", "repeated_splits") or not attempt(lambda _: works()):  # noqa: B023
            continue
        for parameter in filter(is_numeric, parameters.values()):
            call = lambda v, t=thing, g=given, n=parameter.name: made(t, {**g, n: v})  # noqa: E731
            yield f"{thing.__module__}.{thing.__name__}", parameter.name, call


def option_calls() -> Iterator[tuple[str, str, Call]]:
    """Calls of the cases of ``tests/options`` that take no long time."""
    from options import TABLE, arguments
    from options.harness import Fresh, function_of

    known = arguments()
    for (name, argument), cases in TABLE.items():
        if (name, argument) not in known:
            continue
        case = cases[0]
        if case.target is None or case.see is None or name.startswith("flowkit "):
            continue
        parameters = inspect.signature(function_of(case.target)).parameters
        if argument not in parameters or not is_numeric(parameters[argument]):
            continue
        see, using = case.see, dict(case.expectation.using)
        values = (case.expectation.base, *case.expectation.values)
        usual = next((v for v in values if isinstance(v, (int, float, tuple, list))), None)
        if usual is None or any(isinstance(v, Fresh) for v in using.values()):
            continue
        call = lambda v, s=see, u=using, a=argument: s(**{**u, a: v})  # noqa: E731
        begun = time.perf_counter()
        if attempt(call, usual) and time.perf_counter() - begun < 0.5:
            yield name, argument, call


class TooLong(BaseException):
    """A call has not ended in time."""


def attempt(call: Call, value: Any = None) -> bool:
    """Whether a call works."""
    signal.alarm(SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            call(value)
    except (Exception, SystemExit, TooLong):
        return False
    finally:
        signal.alarm(0)
    return True


def outcome(call: Call, value: Any, argument: str) -> str | None:
    """What is wrong with the answer to a value; ``None`` if nothing is."""
    signal.alarm(SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            call(value)
    except FlowkitError as error:
        text = str(error)
        named = argument in text or any(word in text for word in argument.split("_"))
        return None if named else f"{type(error).__name__} that does not name it: {text[:100]}"
    except TooLong:
        return f"no answer in {SECONDS} s"
    except BaseException as error:  # also MemoryError and what C code raises
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"{type(error).__name__}: {str(error)[:100]}"
    finally:
        signal.alarm(0)
    return None


def main() -> None:
    sys.path.insert(0, str(Path(__file__).parent))

    def late(*_: Any) -> None:
        raise TooLong

    signal.signal(signal.SIGALRM, late)
    calls: dict[tuple[str, str], Call] = {}
    for name, argument, call in [*constructor_calls(), *option_calls()]:
        calls.setdefault((name, argument), call)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    tried, escaped = 0, []
    for (name, argument), call in calls.items():
        for value in BAD:
            if value == 10**12 and (name.rpartition(".")[2], argument) in ENDLESS:
                continue
            if value is None and (name.rpartition(".")[2], argument) in LONG:
                continue
            tried += 1
            fault = outcome(call, value, argument)
            if fault is not None:
                escaped.append([name, argument, repr(value), fault])
    called = {(name.rpartition(".")[2], argument) for name, argument in calls}
    missed = [
        f"{thing.__name__}({parameter.name})"
        for thing in public()
        for parameter in inspect.signature(thing).parameters.values()
        if is_numeric(parameter) and (thing.__name__, parameter.name) not in called
    ]
    print(json.dumps({"tried": tried, "escaped": escaped, "missed": missed}))


if __name__ == "__main__":
    main()
