"""Cases of parts without a table of their own, from their entries in ``tests/registry.py``.

An argument that an entry sets to another value than its default must change what the part
computes, and the arguments of the contract (context, generator, shape, progress) must do what the
contract says. What stands in one of the tables is left to it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from registry import BASES, CASES, CONDITIONERS, ENERGIES, ESTIMATORS, OBJECTIVES, RECIPES, SCALARS
from torch import Tensor, nn

import flowkit.recipes
from flowkit.bases import Base
from flowkit.conditioners import Conditioner
from flowkit.scalar import ScalarMap

from .harness import LEFT_OUT, TABLE, differs, draws, function_of, of, same, seeds
from .parts import rows, state, stirred
from .walk import arguments

TABLE_X = rows(64, 2).double().numpy()


class Entry(NamedTuple):
    """A call, its arguments by name, and what is observed of the result."""

    target: Callable[..., Any]
    given: dict[str, Any]
    observe: Callable[..., Any]


def _given(make: Any, part: Any) -> dict[str, Any]:
    """The arguments of a part, by name."""
    target = type(part)
    if isinstance(make, functools.partial):
        return dict(make.keywords)
    args, kwargs = getattr(part, "_arguments", ((), {}))
    if isinstance(part, ScalarMap):
        return dict(vars(part))
    bound = inspect.signature(target).bind_partial(*args, **kwargs)
    return dict(bound.arguments)


def _input(part: Any) -> Tensor:
    shape = (part.in_features,) if isinstance(part, Conditioner) else part.event_shape
    return rows(6, int(np.prod(shape))).reshape(6, *shape)


def _observe(part: Any, x: Tensor | None = None, method: str = "", **options: Any) -> Any:
    """What a part computes; its parameters are moved away from their start."""
    if isinstance(part, ScalarMap):
        return part.forward(torch.linspace(0.05, 0.95, 7), 3 * rows(7, 100)[:, : part.param_size])
    part = stirred(part)
    if part.context_size:
        options = {"context": rows(6, part.context_size, 3), **options}
    default = "log_prob" if isinstance(part, Base) else "forward"
    return getattr(part, method or default)(_input(part) if x is None else x, **options)


def _loss(flow: Any, batch: Any, objective: Any, **options: Any) -> Any:
    return objective(stirred(flow()), batch(), **options).value


def _flow(flow: Any) -> Any:
    before = state(flow)
    x = rows(6, int(np.prod(flow.event_shape))).reshape(6, *flow.event_shape).sigmoid()
    context = rows(6, flow.context_size) if flow.context_size else None
    flow = stirred(flow, 0.3)
    return before, str(flow), () if flow.stochastic else flow.log_prob(x, context)


def _fitted(model: Any) -> Any:
    """What an estimator returns after a fit to two classes."""
    model.fit(TABLE_X, (TABLE_X[:, 0] > 0).astype(int))
    names = ("predict_proba", "score_samples", "predict", "transform")
    return [getattr(model, name)(TABLE_X[:5]) for name in names if hasattr(model, name)]


def entries() -> Iterator[Entry]:
    """The entries of the registry, with the parts inside of transforms."""
    for scalar in SCALARS.values():
        yield Entry(type(scalar), _given(None, scalar), _observe)
    for table in (CONDITIONERS, ENERGIES, BASES):
        for entry in table.values():
            make, options = entry if isinstance(entry, tuple) else (entry, {})
            part = make()
            observe = functools.partial(_observe, x=options.get("x"))
            yield Entry(type(part), _given(make, part), observe)
    for make, flow, batch, _ in OBJECTIVES.values():
        objective = make()
        yield Entry(
            type(objective), _given(make, objective), functools.partial(_loss, flow, batch)
        )
    for name, (shape, options) in RECIPES.items():
        recipe = flowkit.recipes.RECIPES[name]
        first = next(iter(inspect.signature(recipe).parameters))
        yield Entry(recipe, {first: shape, **options}, _flow)
    for model in ESTIMATORS:
        fixed = {"random_state": 0} if "random_state" in model.get_params() else {}
        yield Entry(type(model), model.get_params() | fixed, _fitted)
    for case in CASES:
        for part in case.build().modules():
            if "_arguments" in vars(part) and hasattr(part, "event_shape"):
                yield Entry(type(part), _given(None, part), _observe)


def _made(entry: Entry, **options: Any) -> Any:
    """The result of the call; options come after the arguments by position."""
    fixed = {k: v for k, v in entry.given.items() if k not in options}
    many = [
        p.name
        for p in inspect.signature(entry.target).parameters.values()
        if p.kind is p.VAR_POSITIONAL
    ]
    args = [item for name in many for item in fixed.pop(name, ())]
    return entry.target(*args, **fixed, **options)


def option_case(entry: Entry, argument: str) -> Any:
    """The expectation for an argument of a constructor or recipe; ``None`` if nothing is known."""

    def see(**options: Any) -> Any:
        return entry.observe(_made(rest, **options))

    rest = entry._replace(given={k: v for k, v in entry.given.items() if k != argument})
    if argument == "seed":
        return seeds(see=see)
    if argument == "random_state":
        return differs(1, 2, base=0, see=see)
    default = inspect.signature(entry.target).parameters[argument].default
    value = entry.given.get(argument, default)
    if value is default or type(value) is type(default) and value == default:
        return None
    return differs(value, see=see)


def contract_case(entry: Entry, method: str, argument: str) -> Any:
    """The expectation for an argument of the contract of a kind of part."""

    def see(**options: Any) -> Any:
        part = _made(entry)
        if isinstance(part, nn.Module) and method == "sample":
            return stirred(part).sample(**options)
        name = {} if method == "forward" else {"method": method}
        return entry.observe(part, **name, **options)

    size = getattr(_made(entry), "context_size", 0)
    generator = torch.Generator().manual_seed(1)
    return {
        "context": differs(rows(6, size, 4), see=see)
        if size
        else same("it reads none", rows(6, 1), see=see),
        "generator": draws(see=see)
        if method == "sample"
        else same("it draws nothing", generator, see=see),
        "progress": same("there is no schedule", 0.3, see=see),
        "shape": differs(7, (7, 2), see=see),
    }.get(argument)


def enter() -> None:
    """Enter what the tables leave open and the registry answers."""
    known = arguments()
    missing = {k: known[k] for k in known.keys() - TABLE.keys() - LEFT_OUT.keys()}
    if not missing:
        return
    for entry in entries():
        for (name, argument), target in list(missing.items()):
            method = function_of(target).__name__
            if target is entry.target:
                case = option_case(entry, argument)
            elif not inspect.isclass(target) and method in vars(entry.target):
                own = function_of(vars(entry.target)[method]) is function_of(target)
                case = contract_case(entry, method, argument) if own else None
            else:
                case = None
            if case is not None:
                of(target, None, **{argument: case})
                del missing[name, argument]
