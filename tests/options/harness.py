"""What an option must do, said in one line per argument, and how that is checked.

``of(callable, see, argument=expectation, ...)`` enters cases in the table. ``see`` gets the
options as keyword arguments, calls the callable and returns what is observed: tensors, samples,
weights, a history, text, bytes, or any nest of them. An expectation calls ``see`` without the
option, calls it again with other values, and compares.

Three things keep a case honest. Every observation is made twice from the same seed and must be
the same, so that chance cannot pass for an effect; the value must arrive at the callable under
the argument's name; and ``differs`` asks for more than rounding.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .compare import ROUNDING, amount, same_thing

TABLE: dict[tuple[str, str], list[Case]] = {}
LEFT_OUT: dict[tuple[str, str], str] = {}


class NoEffect(AssertionError):
    """An option does not do what it should."""


def function_of(target: Any) -> Any:
    """The function that receives the arguments: a constructor's is ``__init__``."""
    if inspect.isclass(target):
        named_tuple = issubclass(target, tuple)
        target = target.__new__ if named_tuple else target.__init__
    return inspect.unwrap(getattr(target, "__func__", target))


def name_of(target: Any) -> str:
    """``flowkit.training.fit.fit``, ``flowkit.flow.Flow.sample``: module and qualified name."""
    if inspect.isclass(target):
        return f"{target.__module__}.{target.__qualname__}"
    function = function_of(target)
    qualified = function.__qualname__.removesuffix(".__init__")
    return f"{function.__module__}.{qualified}"


# Calling ------------------------------------------------------------------------------------


class _Default:
    def __repr__(self) -> str:
        return "the default"


DEFAULT: Any = _Default()


class Fresh:
    """A value that is made anew for every call: a generator, a callback, a logger."""

    def __init__(self, make: Callable[[], Any], text: str = "") -> None:
        self.make, self.text = make, text

    def __repr__(self) -> str:
        return self.text or "a fresh value"


def _is(a: Any, b: Any) -> bool:
    if a is b:
        return True
    try:
        return type(a) is type(b) and bool(a == b)
    except (RuntimeError, ValueError, TypeError):
        return False


class Arrival:
    """Watches whether a function is entered with a value under an argument's name."""

    def __init__(self, function: Any, argument: str, value: Any) -> None:
        self.code, self.argument, self.value, self.seen = function.__code__, argument, value, False
        parameter = inspect.signature(function).parameters.get(argument)
        self.many = parameter is not None and parameter.kind is parameter.VAR_KEYWORD

    def _watch(self, frame: Any, event: str, _: Any) -> None:
        if event != "call" or frame.f_code is not self.code:
            return
        got = frame.f_locals.get(self.argument)
        if self.many:
            self.seen = all(k in got and _is(got[k], v) for k, v in self.value.items())
        else:
            self.seen = _is(got, self.value)
        if self.seen:
            sys.setprofile(None)

    def __enter__(self) -> Arrival:
        sys.setprofile(self._watch)
        return self

    def __exit__(self, *_: Any) -> None:
        sys.setprofile(None)


@dataclasses.dataclass
class Case:
    """One argument of one callable: how to observe, and what is expected."""

    name: str
    argument: str
    target: Any
    see: Callable[..., Any]
    expectation: Expectation

    def run(self) -> None:
        """Fail with a sentence if the option does not do what it should."""
        try:
            self.expectation.run(self)
        except NoEffect as error:
            raise NoEffect(f"{self.name}({self.argument}=...): {error}") from None

    def at(self, value: Any, seed: int = 0) -> Any:
        """What is observed with this value; ``DEFAULT`` leaves the option out."""
        torch.manual_seed(seed)
        np.random.seed(seed)
        expectation = self.expectation
        see, using = self.see, dict(expectation.using)
        if value is DEFAULT:
            return see(**using)
        value = value.make() if isinstance(value, Fresh) else value
        watch = Arrival(function_of(self.target), self.argument, value)
        with watch:
            result = see(**using, **(value if watch.many else {self.argument: value}))
        if not watch.seen:
            raise NoEffect(f"the value {value!r} never arrived at the callable under this name")
        return result

    def twice(self, value: Any) -> Any:
        """What is observed, made sure that chance has no part in it."""
        first, second = self.at(value), self.at(value)
        if not same_thing(first, second):
            raise NoEffect(f"two observations with {value!r} and one seed differ: chance")
        return first


# Expectations -------------------------------------------------------------------------------


@dataclasses.dataclass
class Expectation:
    """Values to try beside the first one, and how the observation must answer."""

    values: tuple[Any, ...]
    base: Any = DEFAULT
    using: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    see: Callable[..., Any] | None = None
    rounding: float = ROUNDING

    def run(self, case: Case) -> None:
        """Observe and compare."""
        raise NotImplementedError


class _Differs(Expectation):
    def run(self, case: Case) -> None:
        seen = [(self.base, case.twice(self.base))]
        for value in self.values:
            result = case.at(value)
            for other, before in seen:
                if same_thing(before, result, self.rounding):
                    raise NoEffect(f"{value!r} gives the same as {other!r}")
            seen.append((value, result))


class _Same(Expectation):
    def run(self, case: Case) -> None:
        first = case.twice(self.base)
        for value in self.values:
            if not same_thing(first, case.at(value), self.rounding):
                raise NoEffect(f"{value!r} does not give the same as {self.base!r}")


class _Ordered(Expectation):
    sign = 1

    def run(self, case: Case) -> None:
        last, before = self.base, amount(case.twice(self.base))
        for value in self.values:
            now = amount(case.at(value))
            scale = max(abs(now), abs(before), 1e-30)
            if not self.sign * (now - before) > min(self.rounding, ROUNDING) * scale:
                word = "more" if self.sign > 0 else "less"
                raise NoEffect(f"{value!r} gives {now:g}, not {word} than {before:g} of {last!r}")
            last, before = value, now


class _Rises(_Ordered):
    sign = 1


class _Falls(_Ordered):
    sign = -1


@dataclasses.dataclass
class _Shows(Expectation):
    test: Callable[[Any], bool] = bool

    def run(self, case: Case) -> None:
        if self.test(case.twice(self.base)):
            raise NoEffect(f"what was to be seen with the option is seen with {self.base!r} too")
        for value in self.values:
            if not self.test(case.at(value)):
                raise NoEffect(f"{value!r} does not show what it should")


class _Draws(Expectation):
    def run(self, case: Case) -> None:
        def generator(seed: int) -> Fresh:
            return Fresh(lambda: torch.Generator().manual_seed(seed), f"a generator from {seed}")

        first = case.at(generator(1), seed=0)
        state = torch.get_rng_state()
        again = case.at(generator(1), seed=5)
        if not same_thing(first, again):
            raise NoEffect("the global random state has a part in what a generator draws")
        torch.manual_seed(5)
        if not torch.equal(state, case_state(0)):
            raise NoEffect("the global random state is another one afterwards")
        if same_thing(first, case.at(generator(2)), self.rounding):
            raise NoEffect("generators of two seeds draw the same")


def case_state(seed: int) -> Tensor:
    """The global random state right after seeding."""
    torch.manual_seed(seed)
    return torch.get_rng_state()


class _Seeds(Expectation):
    def run(self, case: Case) -> None:
        one, two = self.values
        first = case.at(one, seed=0)
        left = torch.get_rng_state()
        if not torch.equal(left, case_state(0)):
            raise NoEffect("the global random state is another one afterwards")
        if not same_thing(first, case.at(one, seed=5)):
            raise NoEffect("the global random state has a part in what a seed decides")
        if same_thing(first, case.at(two), self.rounding):
            raise NoEffect(f"{one!r} and {two!r} give the same")


def differs(*values: Any, **how: Any) -> Expectation:
    """Every value gives another result than without the option, and than every other value."""
    return _Differs(values, **how)


def same(why: str, *values: Any, **how: Any) -> Expectation:
    """No value changes the result by a bit, for a reason."""
    if not values or " " not in why:
        raise ValueError(f"expected the reason why an option shows nothing, and values: {why!r}")
    return _Same(values, **{"rounding": 0.0, **how})


def rises(*values: Any, **how: Any) -> Expectation:
    """The observed number grows from the default through the values, in this order."""
    return _Rises(values, **how)


def falls(*values: Any, **how: Any) -> Expectation:
    """The observed number shrinks from the default through the values, in this order."""
    return _Falls(values, **how)


def shows(test: Callable[[Any], bool], *values: Any, **how: Any) -> Expectation:
    """The test holds of what is observed with the values, and not without the option."""
    return _Shows(values, test=test, **how)


def draws(**how: Any) -> Expectation:
    """A generator decides what is drawn, alone, and the global random state stays as it was."""
    return _Draws((), **how)


def seeds(one: Any = 1, two: Any = 2, **how: Any) -> Expectation:
    """A seed decides everything random, alone, and the global random state stays as it was."""
    return _Seeds((one, two), **how)


def of(
    target: Any,
    see: Callable[..., Any] | None,
    /,
    **options: Expectation | tuple[Expectation, ...] | str,
) -> None:
    """Enter the cases of one callable; a string is the reason why an argument is left out."""
    _enter(name_of(target), target, see, options, Case)


def also(
    target: Any,
    see: Callable[..., Any] | None,
    /,
    **options: Expectation | tuple[Expectation, ...] | str,
) -> None:
    """Enter further cases of a callable, such as a method that several classes inherit."""
    _enter(name_of(target), target, see, options, Case, further=True)


def _enter(
    name: str,
    target: Any,
    see: Any,
    options: Mapping[str, Any],
    kind: type[Case],
    further: bool = False,
) -> None:
    for argument, expectation in options.items():
        key = (name, argument)
        if (key in TABLE and not further) or key in LEFT_OUT:
            raise ValueError(f"{name}({argument}=...) has a case already")
        if isinstance(expectation, str):
            LEFT_OUT[key] = expectation
            continue
        parts = expectation if isinstance(expectation, tuple) else (expectation,)
        if see is None and any(part.see is None for part in parts):
            raise ValueError(f"{name}({argument}=...): nothing says what to observe")
        cases = [kind(name, argument, target, part.see or see, part) for part in parts]
        TABLE.setdefault(key, []).extend(cases)


@dataclasses.dataclass
class CommandCase(Case):
    """One option of a command: ``see`` gets its words."""

    def at(self, value: Any, seed: int = 0) -> Any:
        """What is observed with these words; ``DEFAULT`` leaves the option out."""
        torch.manual_seed(seed)
        words = list(self.expectation.using.get("words", ()))
        if value is not DEFAULT:
            given = value if isinstance(value, tuple) else (value,)
            words += [self.argument, *(str(word) for word in given if word is not True)]
        return self.see(*words)


def of_command(
    command: str,
    see: Callable[..., Any] | None,
    /,
    options: Mapping[str, Expectation | tuple[Expectation, ...] | str],
) -> None:
    """Enter the cases of a command; a flag without a value gets ``True``."""
    _enter(f"flowkit {command}", None, see, options, CommandCase)


def number_of_parameters(module: Any) -> float:
    """How many trainable numbers a module holds."""
    return float(sum(p.numel() for p in module.parameters() if p.requires_grad))
