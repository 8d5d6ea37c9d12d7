"""Every keyword argument of every public callable of flowkit, found by a walk over signatures.

A public name is one in the ``__all__`` of the package or one of its direct parts. A public
callable is a public function, the constructor of a public class, or one of its public methods
(``__call__`` too); a function counts once, under the first public class that has it, so that
methods inherited from private classes count as well. A keyword argument is a parameter with a
default, a keyword-only one, or a collection of further options (``**options``). The options of
the command line count as well.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import flowkit
from flowkit.cli.commands import COMMANDS
from flowkit.cli.options import make_parser

from .harness import function_of, name_of


def modules() -> Iterator[ModuleType]:
    """Every module of flowkit whose path has no leading underscore."""
    yield flowkit
    for found in pkgutil.walk_packages(flowkit.__path__, "flowkit."):
        if not any(part.startswith("_") for part in found.name.split(".")):
            yield importlib.import_module(found.name)


def packages() -> Iterator[ModuleType]:
    """The package and its direct parts, whose ``__all__`` says what is public."""
    yield flowkit
    for found in pkgutil.iter_modules(flowkit.__path__, "flowkit."):
        module = importlib.import_module(found.name)
        if hasattr(module, "__all__"):
            yield module


def public_objects(everything: bool = False) -> Iterator[Any]:
    """Every public class and function, once, or those of all modules; no protocols."""
    seen = set()
    for module in modules() if everything else packages():
        names = getattr(module, "__all__", None)
        for name in names if names is not None else sorted(vars(module)):
            thing = getattr(module, name)
            home = getattr(thing, "__module__", None) or ""
            if names is None and (name.startswith("_") or home != module.__name__):
                continue
            if not callable(thing) or not home.startswith("flowkit") or id(thing) in seen:
                continue
            if getattr(thing, "_is_protocol", False):
                continue
            if inspect.isclass(thing) or inspect.isfunction(inspect.unwrap(thing)):
                seen.add(id(thing))
                yield thing


def methods(cls: type) -> Iterator[Any]:
    """The constructor and the public methods of a class, as far as flowkit defines them."""
    own = "__init__" in vars(cls) or issubclass(cls, tuple)
    if own or (getattr(cls.__init__, "__module__", "") or "").startswith("flowkit"):
        yield cls
    for name in dir(cls):
        if name.startswith("_") and name != "__call__":
            continue
        raw = inspect.getattr_static(cls, name)
        method = getattr(cls, name, None)
        if isinstance(raw, (staticmethod, classmethod)) or inspect.isfunction(raw):
            home = getattr(function_of(method), "__module__", "") or ""
            if home.startswith("flowkit"):
                yield method


def keywords(target: Any) -> list[str]:
    """The names of the keyword arguments of a callable."""
    parameters = list(inspect.signature(function_of(target)).parameters.values())
    return [
        p.name
        for p in parameters
        if p.kind in (p.KEYWORD_ONLY, p.VAR_KEYWORD)
        or (p.default is not p.empty and not p.name.startswith("_"))
    ]


def commands() -> dict[tuple[str, str], Any]:
    """(command, option) of the command line."""
    actions = make_parser(COMMANDS)._actions
    (choices,) = (a.choices for a in actions if isinstance(a.choices, dict))
    return {
        (f"flowkit {name}", action.option_strings[-1]): action
        for name, command in choices.items()
        for action in command._actions
        if action.option_strings and action.dest != "help"
    }


def arguments(everything: bool = False) -> dict[tuple[str, str], Any]:
    """(callable, argument) -> the callable, for every keyword argument and command-line option.

    Args:
        everything: Whether to walk all modules, also over what is not public.
    """
    found: dict[tuple[str, str], Any] = commands()
    seen = set()
    # A class before those that inherit from it, so that a method counts where it is defined.
    found_in = public_objects(everything)
    things = sorted(found_in, key=lambda t: len(t.__mro__) if inspect.isclass(t) else 0)
    for thing in things:
        for target in methods(thing) if inspect.isclass(thing) else [thing]:
            function = function_of(target)
            if function in seen and not (everything and inspect.isclass(target)):
                continue
            seen.add(function)
            for argument in keywords(target):
                found[name_of(target), argument] = target
    return found
