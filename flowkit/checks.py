"""Every check of an argument, in one wording: *owner expected name as ..., got ...; remedy: ...*.

A check returns the argument in plain Python (an ``int``, a ``float``, a tuple), so that numbers of
NumPy, tensors with one element, lists and ranges are accepted wherever a number or a sequence is.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from flowkit.errors import ArgumentError

T = TypeVar("T")

#: The most elements that one tensor of a layer may have: 4 GiB in single precision.
MAX_ELEMENTS = 2**30
#: The most features that one network or kernel reads.
MAX_FEATURES = 2**24


def fail(owner: str, name: str, expected: str, value: Any, remedy: str = "") -> ArgumentError:
    """Return the error of an argument, to be raised.

    Example:
        >>> fail("MLP", "hidden", "integers >= 1", [0], "hidden=(64, 64)")
        ArgumentError('MLP expected hidden as integers >= 1, got [0]; remedy: hidden=(64, 64)')
    """
    text = f"{owner} expected {name} as {expected}, got {shown(value)}"
    return ArgumentError(f"{text}; remedy: {remedy}" if remedy else text)


def shown(value: Any) -> str:
    """A value in a message: short, and with the shape of what is long.

    Example:
        >>> shown(2.5), shown(np.zeros((3, 2)))
        ('2.5', 'an array of shape (3, 2)')
    """
    if isinstance(value, Tensor) and value.ndim:
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, np.ndarray) and value.ndim:
        return f"an array of shape {value.shape}"
    if isinstance(value, (Tensor, np.generic)):
        value = value.item()
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:90]}... ({type(value).__name__})"


# Limits of numbers by the names of arguments: the sign in messages, and what must hold.
_LIMITS: dict[str, tuple[str, Callable[[float, float], bool]]] = {
    "least": (">=", operator.ge),
    "above": (">", operator.gt),
    "most": ("<=", operator.le),
    "below": ("<", operator.lt),
}


def _within(limits: Mapping[str, float | None]) -> str:
    known = {name: limit for name, limit in limits.items() if limit is not None}
    return " and ".join(f"{_LIMITS[name][0]} {limit:g}" for name, limit in known.items())


def _fits(number: float, limits: Mapping[str, float | None], *, finite: bool = False) -> bool:
    return (math.isfinite(number) or not (finite or math.isnan(number))) and all(
        limit is None or _LIMITS[name][1](number, limit) for name, limit in limits.items()
    )


def is_integer(value: Any) -> bool:
    """Whether a value is an integer of Python, NumPy or torch; booleans are not."""
    if isinstance(value, Tensor) and (value.ndim or value.dtype == torch.bool):
        return False
    try:
        operator.index(value)
    except (TypeError, ValueError):
        return False
    return not isinstance(value, (bool, np.bool_))


def integer(
    owner: str,
    name: str,
    value: Any,
    *,
    least: int | None = None,
    most: int | None = MAX_ELEMENTS,
    remedy: str = "",
) -> int:
    """Check an integer, by default one that may be the size of something.

    Example:
        >>> integer("coupling_flow", "layers", np.int64(3), least=1)
        3
        >>> integer("coupling_flow", "layers", 2.5, least=1)
        Traceback (most recent call last):
        ...
        flowkit.errors.ArgumentError: coupling_flow expected layers as an integer >= 1, got 2.5
    """
    known = is_integer(value)
    number = operator.index(value) if known else 0
    too_large = known and not _fits(number, {"most": most})
    if not known or too_large or not _fits(number, {"least": least}):
        limits = {"least": least, "most": most if too_large else None}
        raise fail(owner, name, f"an integer {_within(limits)}".strip(), value, remedy)
    return number


def number(
    owner: str,
    name: str,
    value: Any,
    *,
    finite: bool = True,
    remedy: str = "",
    **limits: float | None,
) -> float:
    """Check a real number, finite unless ``finite=False``; NaN and booleans are none.

    The limits are ``least``, ``above``, ``most`` and ``below``.

    Example:
        >>> number("Affine", "max_log_scale", 5, above=0)
        5.0
        >>> number("Affine", "scale", -1.0, above=0)
        Traceback (most recent call last):
        ...
        flowkit.errors.ArgumentError: Affine expected scale as a finite number > 0, got -1.0
    """
    real = as_float(value)
    if not _fits(real, limits, finite=finite):
        kind = "a finite number" if finite else "a number"
        raise fail(owner, name, f"{kind} {_within(limits)}".strip(), value, remedy)
    return real


def as_float(value: Any) -> float:
    """A real number of Python, NumPy or torch as a float; NaN for everything else."""
    if isinstance(value, Tensor) and value.ndim == 0 and not value.is_complex():
        value = value.item()
    if isinstance(value, (bool, np.bool_)) or not isinstance(
        value, (int, float, np.integer, np.floating)
    ):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def is_plain(value: Any) -> bool:
    """Whether a value is a number, a text, a flag, ``None``, or a sequence of these."""
    if isinstance(value, (list, tuple)):
        return all(map(is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


def flag(owner: str, name: str, value: Any) -> bool:
    """Check a boolean."""
    if not isinstance(value, (bool, np.bool_)):
        raise fail(owner, name, "True or False", value)
    return bool(value)


def flags(owner: str, name: str, values: Any, length: int | None = None) -> tuple[bool, ...]:
    """Check a sequence of booleans, or of 0 and 1: one per feature, say."""
    given = as_list(values, length)
    if given is None or not all(
        isinstance(v, (bool, np.bool_)) or (is_integer(v) and v in (0, 1)) for v in given
    ):
        count = "booleans" if length is None else f"{length} boolean(s)"
        raise fail(owner, name, f"a sequence of {count}", values)
    return tuple(bool(v) for v in given)


def choice(owner: str, name: str, value: Any, known: Collection[str]) -> Any:
    """Check a name; of a mapping the entry is returned, of another collection the name.

    Example:
        >>> choice("coupling_flow", "base", "norml", {"normal": 1, "logistic": 2})
        Traceback (most recent call last):
        ...
        flowkit.errors.ArgumentError: coupling_flow expected base as one of 'logistic', 'normal', \
got 'norml'; remedy: did you mean 'normal'?
    """
    if not isinstance(value, str) or value not in known:
        close = difflib.get_close_matches(str(value).lower(), known, n=1)
        remedy = f"did you mean {close[0]!r}?" if close else ""
        names = ", ".join(repr(known_name) for known_name in sorted(known))
        raise fail(owner, name, f"one of {names}", value, remedy)
    return known[value] if isinstance(known, Mapping) else value


def instance(owner: str, name: str, value: Any, kind: type[T], remedy: str = "") -> T:
    """Check the class of an object."""
    if not isinstance(value, kind):
        article = "an" if kind.__name__[0] in "AEIOU" else "a"
        raise fail(owner, name, f"{article} {kind.__name__}", value, remedy)
    return value


def function(owner: str, name: str, value: Any, remedy: str = "") -> Any:
    """Check that something can be called."""
    if not callable(value):
        raise fail(owner, name, "a function", value, remedy)
    return value


def as_list(values: Any, length: int | None = None) -> list[Any] | None:
    """A sequence, array or one-dimensional tensor as a list; ``None`` if it is none so long."""
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    if isinstance(values, np.ndarray):
        values = values.tolist() if values.ndim == 1 else None
    if isinstance(values, (str, bytes)) or not isinstance(values, Sequence):
        return None
    return list(values) if length in (None, len(values)) else None


def integers(
    owner: str,
    name: str,
    values: Any,
    *,
    least: int | None = None,
    length: int | None = None,
    remedy: str = "",
) -> tuple[int, ...]:
    """Check a sequence of integers: widths of layers, or places of features.

    Example:
        >>> integers("MLP", "hidden", [64, 64], least=1)
        (64, 64)
    """
    given = as_list(values, length)
    if (
        given is None
        or not all(is_integer(v) and -MAX_ELEMENTS <= v <= MAX_ELEMENTS for v in given)
        or not all(_fits(v, {"least": least}) for v in given)
    ):
        count = "integers" if length is None else f"{length} integer(s)"
        words = f"a sequence of {count} {_within({'least': least})}".strip()
        raise fail(owner, name, words, values, remedy)
    return tuple(operator.index(v) for v in given)


def widths(owner: str, name: str, values: Any) -> tuple[int, ...]:
    """Check the widths of hidden layers: at least one, each an integer >= 1."""
    found = integers(owner, name, values, least=1, remedy=f"for example {name}=(64, 64)")
    if not found:
        raise fail(owner, name, "one width or more", values, f"for example {name}=(64, 64)")
    return found


def numbers(
    owner: str,
    name: str,
    values: Any,
    length: int | None = None,
    *,
    finite: bool = True,
    remedy: str = "",
    **limits: float | None,
) -> tuple[float, ...]:
    """Check one number for all features, or a sequence with one per feature.

    Without a ``length`` the sequence may be of any length. The limits are those of :func:`number`.
    """
    given = as_list(values)
    listed = [values] * (length or 1) if given is None else given
    reals = [as_float(v) for v in listed]
    wrong = length is not None and len(reals) != length
    if wrong or not all(_fits(v, limits, finite=finite) for v in reals):
        kind = f"a {'finite number' if finite else 'number'} {_within(limits)}".strip()
        count = "a sequence of them" if length is None else f"one for each of {length} feature(s)"
        raise fail(owner, name, f"{kind}, or {count}", values, remedy)
    return tuple(reals)


def positive(owner: str, name: str, value: Any, last: tuple[int, ...]) -> Any:
    """Check one number > 0 for all, or a sequence with one for each of the last dimension."""
    if not last or as_list(value) is None:
        return number(owner, name, value, above=0)
    return numbers(owner, name, value, last[0], above=0)


def bounds(
    owner: str, lower: Any, upper: Any, features: int | None = None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Check the lower and upper ends of features, infinite where there is none.

    Example:
        >>> bounds("coupling_flow", 0, [1, None])
        ((0.0, 0.0), (1.0, inf))
    """
    if features is None:
        listed = [ends for ends in map(as_list, (lower, upper)) if ends is not None]
        if not listed:
            words = "a sequence with one number per feature"
            raise fail(owner, "lower or upper", words, lower, "features=...")
        features = len(listed[0])
    pairs = []
    for name, given, none in (("lower", lower, -math.inf), ("upper", upper, math.inf)):
        ends = as_list(given)
        filled = none if given is None else given
        if ends is not None:
            filled = [none if end is None else end for end in ends]
        remedy = "None or infinity for an open side"
        pairs.append(numbers(owner, name, filled, features, finite=False, remedy=remedy))
    for i, (low, high) in enumerate(zip(*pairs, strict=True)):
        if not low < high or low == math.inf or high == -math.inf:
            raise ArgumentError(
                f"{owner} expected lower < upper, got {low} and {high} for feature {i}"
            )
    return pairs[0], pairs[1]


def permutation(owner: str, name: str, values: Any, length: int | None = None) -> list[int]:
    """Check a permutation of ``range(length)``."""
    given = as_list(values)
    count = len(given or []) if length is None else length
    if not given or not all(map(is_integer, given)) or sorted(given) != list(range(count)):
        raise fail(owner, name, f"a permutation of the integers from 0 to {count - 1}", values)
    return [operator.index(v) for v in given]


def elements(owner: str, *sizes: int) -> int:
    """Refuse a tensor that would have more than :data:`MAX_ELEMENTS` elements, before it is made.

    Example:
        >>> elements("LULinear", 10**6, 10**6)
        Traceback (most recent call last):
        ...
        flowkit.errors.ArgumentError: LULinear would hold a tensor of 1000000 x 1000000 numbers, \
expected at most 1073741824; remedy: smaller sizes
    """
    count = math.prod(sizes)
    if count > MAX_ELEMENTS:
        raise ArgumentError(
            f"{owner} would hold a tensor of {' x '.join(map(str, sizes))} numbers, expected at "
            f"most {MAX_ELEMENTS}; remedy: smaller sizes"
        )
    return count


def event_shape(owner: str, value: Any, name: str = "event_shape") -> tuple[int, ...]:
    """Check the shape of an event: an integer, or a sequence of them, all >= 1.

    Example:
        >>> event_shape("smooth_flow", 3), event_shape("glow_flow", [1, 8, 8])
        ((3,), (1, 8, 8))
    """
    given = [value] if is_integer(value) else as_list(value)
    if not given or not all(is_integer(n) and 1 <= n <= MAX_ELEMENTS for n in given):
        raise fail(owner, name, "an integer or a sequence of integers, all >= 1", value)
    shape = tuple(operator.index(n) for n in given)
    elements(owner, *shape)
    return shape


def option(
    default: Any, check: Callable[..., Any], *, optional: bool = False, **limits: Any
) -> Any:
    """Make a field of a dataclass that :func:`check_options` checks; ``None`` if ``optional``.

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Clip:
        ...     bound: float | None = option(1.0, number, optional=True, above=0)
        ...     def __post_init__(self):
        ...         check_options(self)
        >>> Clip(2).bound
        2.0
    """

    def checked(owner: str, name: str, value: Any) -> Any:
        return None if optional and value is None else check(owner, name, value, **limits)

    return dataclasses.field(default=default, metadata={"check": checked})


def check_options(part: Any) -> None:
    """Check the fields of a dataclass that :func:`option` made, and store them in plain Python."""
    for field in dataclasses.fields(part):
        if "check" in field.metadata:
            value = field.metadata["check"](
                type(part).__name__, field.name, getattr(part, field.name)
            )
            object.__setattr__(part, field.name, value)
