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

import flowkit.scalar
from flowkit.errors import ArgumentError
from flowkit.flow import Flow
from flowkit.scalar import ScalarMap

RECIPES: dict[str, Callable[..., Flow]] = {}


def recipe(function: Callable[..., Flow]) -> Callable[..., Flow]:
    """Register a function that builds a flow.

    The function gets plain Python values: numbers of NumPy and tensors of one number become
    numbers, and arrays, lists and ranges become tuples.

    Raises:
        ArgumentError: From the registered function, if an argument is unknown or missing, or
            building fails with a ``ValueError`` or ``TypeError``.

    Example:
        >>> from flowkit import Flow
        >>> from flowkit.bases import StandardNormal
        >>> from flowkit.recipes import RECIPES, recipe
        >>> from flowkit.transforms import LULinear
        >>> @recipe
        ... def linear_flow(features: int) -> Flow:
        ...     return Flow(LULinear(features), StandardNormal(features))
        >>> linear_flow(2).event_shape
        (2,)
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
        except ArgumentError:
            raise
        except (TypeError, ValueError) as error:
            raise ArgumentError(f"{name} cannot be built: {error}") from error
        return flow

    RECIPES[name] = build_flow
    return build_flow


def build(name: str, **arguments: Any) -> Flow:
    """Build a flow by the name of its recipe, with arguments as JSON gives them.

    Raises:
        ArgumentError: If the name or an argument is unknown, or an argument is out of its range.

    Example:
        >>> from flowkit.recipes import build
        >>> build("coupling_flow", features=2, layers=2).event_shape
        (2,)
        >>> build("coupling_fow", features=2)
        Traceback (most recent call last):
        ...
        flowkit.errors.ArgumentError: unknown recipe 'coupling_fow'; did you mean 'coupling_flow'?
    """
    builder = choose("recipe", name, RECIPES)
    return builder(**arguments)


def build_for_columns(name: str, columns: int, **arguments: Any) -> Flow:
    """Build a flow of rows with so many columns, whatever the recipe calls their number.

    A recipe that counts its tail indices takes one number here, for all columns.

    Raises:
        ArgumentError: As :func:`build`, and if the flow is not one of such rows.

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
        raise ArgumentError(
            f"{name} with {arguments} makes a flow of events {flow.event_shape}, but there are "
            f"{columns} columns"
        )
    return flow


def choose(kind: str, name: Any, table: dict[str, Any]) -> Any:
    """The entry of ``table`` called ``name``.

    Raises:
        ArgumentError: If there is none; says which name may have been meant.
    """
    if not isinstance(name, str) or name not in table:
        raise ArgumentError(f"unknown {kind} {name!r}; {_suggest(name, table)}")
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
                raise ArgumentError(
                    f"{name} has no argument {argument!r}; {_suggest(argument, known)}"
                ) from None
        missing = [
            key
            for key in list(known)[len(args) :]
            if known[key].default is inspect.Parameter.empty and key not in kwargs
        ]
        if missing:
            raise ArgumentError(f"{name} needs the argument(s) {', '.join(missing)}") from None
        raise ArgumentError(f"{name}: {error}") from None


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
