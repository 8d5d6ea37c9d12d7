"""The registry of recipes: building a flow by name, and a call of a recipe as JSON and back."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
from torch import Tensor

import flowkit.energies
import flowkit.scalar
from flowkit.energies import Energy
from flowkit.errors import RecipeError
from flowkit.flow import Flow
from flowkit.scalar import ScalarMap

RECIPES: dict[str, Callable[..., Flow]] = {}

# What a recipe's arguments may be besides plain values: where it is found, and what it is.
_ROOMS: dict[str, tuple[Any, type]] = {
    "scalar": (flowkit.scalar, ScalarMap),
    "energy": (flowkit.energies, Energy),
}
_WORDS = {"scalar": "scalar map", "energy": "energy"}


def recipe(function: Callable[..., Flow]) -> Callable[..., Flow]:
    """Register a function that builds a flow, and let its flows remember how they were built.

    The function gets plain Python values: numbers of NumPy and tensors of one number become
    numbers, and arrays, lists and ranges become tuples. A flow built with anything that is neither
    JSON nor a scalar map or an energy of flowkit (a module, a callable) works, but cannot be
    saved as a flow file.

    Raises:
        RecipeError: From the registered function, if an argument is unknown or missing, or
            building fails with a ``ValueError`` or ``TypeError``.

    Example:
        >>> from flowkit import Flow
        >>> from flowkit.bases import StandardNormal
        >>> from flowkit.recipes import RECIPES, recipe
        >>> from flowkit.transforms import LULinear
        >>> @recipe
        ... def linear_flow(features: int) -> Flow:
        ...     return Flow(LULinear(features), StandardNormal(features))
        >>> linear_flow(2).recipe
        {'name': 'linear_flow', 'arguments': {'features': 2}}
        >>> del RECIPES["linear_flow"]
    """
    signature = inspect.signature(function)
    name = function.__name__

    @functools.wraps(function)
    def build_flow(*args: Any, **kwargs: Any) -> Flow:
        bound = _bind(name, signature, args, kwargs)
        try:
            bound.arguments = {key: as_python(value) for key, value in bound.arguments.items()}
            flow = function(*bound.args, **bound.kwargs)
        except RecipeError:
            raise
        except (TypeError, ValueError) as error:
            raise RecipeError(f"{name} cannot be built: {error}") from error
        flow.recipe = _describe(name, bound.arguments)
        return flow

    RECIPES[name] = build_flow
    return build_flow


def build(name: str, **arguments: Any) -> Flow:
    """Build a flow by the name of its recipe, with arguments as JSON gives them.

    Raises:
        RecipeError: If the name or an argument is unknown, or an argument is out of its range.

    Example:
        >>> from flowkit.recipes import build
        >>> build("coupling_flow", features=2, layers=2).event_shape
        (2,)
        >>> build("coupling_fow", features=2)
        Traceback (most recent call last):
        ...
        flowkit.errors.RecipeError: unknown recipe 'coupling_fow'; did you mean 'coupling_flow'?
    """
    builder = choose("recipe", name, RECIPES)
    return builder(**{key: _decode(value) for key, value in arguments.items()})


def build_for_columns(name: str, columns: int, **arguments: Any) -> Flow:
    """Build a flow of rows with so many columns, whatever the recipe calls their number.

    A recipe that counts its tail indices takes one number here, for all columns.

    Raises:
        RecipeError: As :func:`build`, and if the flow is not one of such rows.

    Example:
        >>> from flowkit.recipes.registry import build_for_columns
        >>> build_for_columns("tail_adaptive_flow", 2, tails=[2.0, None]).event_shape
        (2,)
        >>> build_for_columns("tail_adaptive_flow", 3, tails=2.0).event_shape
        (3,)
    """
    known = inspect.signature(choose("recipe", name, RECIPES)).parameters
    for size in ("features", "event_shape"):
        if size in known:
            arguments = {size: columns, **arguments}
    if isinstance(arguments.get("tails"), (int, float)):
        arguments["tails"] = (arguments["tails"],) * columns
    flow = build(name, **arguments)
    if flow.event_shape != (columns,):
        raise RecipeError(
            f"{name} with {arguments} makes a flow of events {flow.event_shape}, but there are "
            f"{columns} columns"
        )
    return flow


def choose(kind: str, name: Any, table: dict[str, Any]) -> Any:
    """The entry of ``table`` called ``name``.

    Raises:
        RecipeError: If there is none; says which name may have been meant.
    """
    if not isinstance(name, str) or name not in table:
        raise RecipeError(f"unknown {kind} {name!r}; {_suggest(name, table)}")
    return table[name]


def _suggest(name: Any, known: Collection[str]) -> str:
    close = difflib.get_close_matches(str(name), list(known), n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"choose from {', '.join(sorted(known))}"


def _bind(
    name: str, signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> inspect.BoundArguments:
    try:
        return signature.bind(*args, **kwargs)
    except TypeError as error:
        known = signature.parameters
        for argument in kwargs:
            if argument not in known:
                raise RecipeError(
                    f"{name} has no argument {argument!r}; {_suggest(argument, known)}"
                ) from None
        missing = [
            key
            for key in list(known)[len(args) :]
            if known[key].default is inspect.Parameter.empty and key not in kwargs
        ]
        if missing:
            raise RecipeError(f"{name} needs the argument(s) {', '.join(missing)}") from None
        raise RecipeError(f"{name}: {error}") from None


def as_python(value: Any) -> Any:
    """Numbers of NumPy and torch as Python's, sequences as tuples, all else as it is."""
    if isinstance(value, (np.generic, np.ndarray, Tensor)):
        value = value.tolist()
    if isinstance(value, (list, tuple, range)):
        return tuple(as_python(item) for item in value)
    if _is_ours(value):
        return type(value)(**{key: as_python(v) for key, v in _options(value).items()})
    return value


def _is_ours(value: Any) -> bool:
    """Whether this is a scalar map of flowkit, by identity: a user's class may share the name."""
    kind = type(value)
    return isinstance(value, ScalarMap) and getattr(flowkit.scalar, kind.__name__, None) is kind


def _options(scalar: Any) -> dict[str, Any]:
    return {name: getattr(scalar, name) for name in _option_names(scalar)}


def _option_names(scalar: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(scalar) if field.init]


def _describe(name: str, arguments: dict[str, Any]) -> dict[str, Any] | None:
    """The call as JSON; ``None`` where an argument has no JSON."""
    try:
        return {"name": name, "arguments": {k: _encode(v) for k, v in arguments.items()}}
    except TypeError:
        return None


def _encode(value: Any) -> Any:
    """A value from ``as_python`` as JSON, or a TypeError."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, tuple):
        return [_encode(item) for item in value]
    kind = type(value)
    if isinstance(value, Energy):
        ours = getattr(flowkit.energies, kind.__name__, None) is kind
        room, options = "energy", value.options if ours else None
    else:
        room, options = "scalar", _options(value) if _is_ours(value) else None
    if options is None:
        raise TypeError(f"no JSON for {kind.__name__}")
    encoded = {key: _encode(option) for key, option in options.items()}
    return {room: kind.__name__, "options": encoded}


def _decode(value: Any) -> Any:
    """Undo ``_encode``."""
    if isinstance(value, list):
        return tuple(_decode(item) for item in value)
    if not isinstance(value, dict):
        return value
    room = "energy" if "energy" in value else "scalar"
    name, options = str(value.get(room)), value.get("options")
    module, parent = _ROOMS[room]
    cls = getattr(module, name, None) if name in module.__all__ else None
    if not (isinstance(cls, type) and issubclass(cls, parent) and isinstance(options, dict)):
        raise RecipeError(f"unknown {_WORDS[room]} {name!r} in a recipe")
    fields = list(inspect.signature(cls).parameters)
    for option in options:
        if option not in fields:
            raise RecipeError(f"{name} has no option {option!r}; {_suggest(option, fields)}")
    try:
        return cls(**{key: _decode(option) for key, option in options.items()})
    except (TypeError, ValueError) as error:
        raise RecipeError(f"{name} cannot be built with {options}: {error}") from error
