"""Descriptions of parts: the call that makes an object as JSON, and the object from the JSON.

A class or function takes part by the decorator :func:`register`. Registered classes remember the
arguments of their constructor; :func:`describe` writes them down, for an object and everything
that it was made of, and :func:`build` makes the same object again, with new weights. A description
names nothing but what is registered, so that reading one runs no other code.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
from torch import Tensor, nn

from flowkit.arrays import read_array, write_array
from flowkit.checks import fail, is_plain
from flowkit.errors import DescriptionError, FlowkitError

T = TypeVar("T", bound=Callable[..., Any])

_PACKAGE = __name__.partition(".")[0]
_KNOWN: dict[str, Callable[..., Any]] = {}
# Modules of torch that a network may be made of, with their arguments.
_OF_TORCH: dict[str, Callable[[Any], dict[str, Any]]] = {
    "Embedding": lambda m: {"num_embeddings": m.num_embeddings, "embedding_dim": m.embedding_dim},
    "Flatten": lambda m: {"start_dim": m.start_dim, "end_dim": m.end_dim},
    "Linear": lambda m: {
        "in_features": m.in_features, "out_features": m.out_features, "bias": m.bias is not None
    },
    "Sequential": lambda m: {"args": list(m)},
    **dict.fromkeys(("Identity", "ReLU", "SiLU", "Tanh"), lambda m: {}),
}  # fmt: skip


def register(part: T) -> T:
    """Register a class or function, so that flows that use it can be saved: a decorator.

    The name is the place where the class is defined, so that a file that uses it can be read
    wherever this place can be imported.

    Args:
        part: A class whose constructor takes what :func:`describe` can write down, or a function,
            such as one that makes a network or computes an energy. It is returned as it is.

    Raises:
        ArgumentError: If it is neither a class nor a function.
        DescriptionError: If it is defined within a function, where no name leads to it.

    Example:
        >>> import flowkit
        >>> from flowkit.config import build, describe
        >>> from flowkit.transforms import Transform
        >>> @flowkit.register
        ... class Double(Transform):
        ...     def __init__(self, features):
        ...         super().__init__((features,))
        ...     def forward(self, x, context=None, generator=None):
        ...         return 2 * x, x.new_full(x.shape[:-1], x.shape[-1] * 0.6931)
        >>> build(describe(Double(3))).event_shape
        (3,)
    """
    if not callable(part) or not hasattr(part, "__qualname__"):
        raise fail("register", "part", "a class or a function", part, "the class of the object")
    name = name_of(part)
    if "<locals>" in name:
        raise DescriptionError(
            f"register expected a class or function of a module, got {name}, which no name leads "
            "to; remedy: define it at the top of a module"
        )
    if isinstance(part, type) and not dataclasses.is_dataclass(part):
        _record(part)
    _KNOWN[name] = part
    return part


def name_of(part: Callable[..., Any]) -> str:
    """The name in descriptions: of flowkit's own parts without the module inside the package."""
    module = part.__module__
    if module.startswith(f"{_PACKAGE}."):
        module = ".".join(module.split(".")[:2])
    return f"{module}.{part.__qualname__}"


def _record(cls: type) -> None:
    """Make the constructor remember its arguments, and what it left behind."""
    original = cls.__init__  # type: ignore[misc]

    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        if "_arguments" in vars(self):  # the constructor of a subclass is running
            original(self, *args, **kwargs)
            return
        vars(self)["_arguments"] = _kept(args), {k: _kept(v) for k, v in kwargs.items()}
        original(self, *args, **kwargs)
        vars(self)["_settings"] = _settings(self)

    cls.__init__ = __init__  # type: ignore[misc]


@dataclasses.dataclass(frozen=True)
class _Unnamed:
    """In place of a function that no name leads to, which a pickle could not hold."""

    __qualname__: str
    __module__: str


def _kept(value: Any) -> Any:
    """A list as it is now, since its owner may change it; a function only if it has a name."""
    if type(value) in (list, tuple):
        return tuple(map(_kept, value))
    if isinstance(value, functools.partial):
        keywords = {name: _kept(item) for name, item in value.keywords.items()}
        function = _kept(value.func)
        if isinstance(function, _Unnamed):
            return function
        return functools.partial(function, *map(_kept, value.args), **keywords)
    name = getattr(value, "__qualname__", "")
    return _Unnamed(name, value.__module__) if "<" in name else value


def _settings(part: Any) -> dict[str, Any]:
    """Public attributes that are plain values, and the classes of child modules."""
    settings = {
        name: value
        for name, value in vars(part).items()
        if not name.startswith("_") and name != "training" and is_plain(value)
    }
    children = part.named_children() if isinstance(part, nn.Module) else ()
    return settings | {name: type(child) for name, child in children}


def describe(part: Any) -> dict[str, Any]:
    """Write down how a part is made, as JSON: its class, its arguments, and those of its parts.

    Weights are not in it; they are in ``part.state_dict()``. Parameters that are frozen
    (``requires_grad`` is false) are listed.

    Args:
        part: An object of a registered class: a flow, a layer, a base, a scalar map, an energy.

    Returns:
        A dictionary of JSON values, for :func:`build`.

    Raises:
        DescriptionError: If its class, or what it was made of, is not registered, or it was
            changed after it was made.

    Example:
        >>> from flowkit.config import describe
        >>> from flowkit.transforms import Permutation
        >>> describe(Permutation([1, 0]))
        {'class': 'flowkit.transforms.Permutation', 'arguments': {'order': [1, 0]}}
    """
    description: dict[str, Any] = _Writer().write(part)
    if isinstance(part, nn.Module):
        frozen = [name for name, p in part.named_parameters() if not p.requires_grad]
        if frozen:
            description["frozen"] = frozen
    return description


class _Writer:
    """Values as JSON; a module that is met again is written as the number of its first place."""

    def __init__(self) -> None:
        self.seen: dict[int, int] = {}

    def write(self, value: Any, where: str = "") -> Any:
        if isinstance(value, (np.generic, Tensor)) and value.ndim == 0:
            value = value.item() if not isinstance(value, Tensor) or not value.is_meta else value
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, (list, tuple, range)):
            return [self.write(item, where) for item in value]
        if isinstance(value, dict) and all(isinstance(key, str) for key in value):
            return {"dict": {key: self.write(item, where) for key, item in value.items()}}
        if isinstance(value, (np.ndarray, Tensor)):
            return write_array(value)
        if isinstance(value, functools.partial):
            arguments = _bound(value.func, value.args, value.keywords)
            return self._call("partial", self._name(value.func, where), arguments, where)
        if isinstance(value, (type, _Unnamed)) or inspect.isroutine(value):
            return self._call("partial", self._name(value, where), {}, where)
        return self._part(value, where)

    def _call(self, kind: str, part: str, arguments: dict[str, Any], where: str) -> dict[str, Any]:
        written = {
            name: self.write(item, f"{where}.{name}" if where else name)
            for name, item in arguments.items()
        }
        return {kind: part, "arguments": written}

    def _part(self, part: Any, where: str) -> dict[str, Any]:
        if isinstance(part, nn.Module):
            if id(part) in self.seen:
                return {"shared": self.seen[id(part)]}
            self.seen[id(part)] = len(self.seen)
        kind = type(part)
        if kind.__module__.startswith("torch.nn.modules.") and kind.__name__ in _OF_TORCH:
            arguments = _OF_TORCH[kind.__name__](part)
            return self._call("class", f"torch.nn.{kind.__name__}", arguments, where)
        name = self._name(kind, where)
        if dataclasses.is_dataclass(part):
            arguments = {f.name: getattr(part, f.name) for f in dataclasses.fields(part) if f.init}
        elif "_arguments" not in vars(part):
            raise DescriptionError(f"{name} was made without its constructor: {where or 'part'}")
        else:
            args, kwargs = part._arguments
            _require_unchanged(part, (*args, *kwargs.values()), where)
            arguments = _bound(kind, args, kwargs)
        return self._call("class", name, arguments, where)

    def _name(self, part: Any, where: str) -> str:
        name = name_of(part) if hasattr(part, "__qualname__") else type(part).__qualname__
        if _KNOWN.get(name) is not part:
            place = f" (argument {where})" if where else ""
            remedy = "put @flowkit.register above its definition, at the top of a module"
            if "<lambda>" in name:
                remedy = "a registered function, or functools.partial for the options of one"
            elif name.startswith("torch."):
                remedy = "a registered class of your own that makes it"
            raise DescriptionError(
                f"{name}{place} is not registered, so no description can name it; remedy: {remedy}"
            )
        return name


def _bound(part: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> dict[str, Any]:
    """Arguments by their names, the values of a ``*args`` under its name."""
    bound = inspect.signature(part).bind_partial(*args, **kwargs)
    for name, parameter in bound.signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            bound.arguments.update(bound.arguments.pop(name, {}))
    return bound.arguments


def _modules_in(value: Any) -> Iterator[nn.Module]:
    if isinstance(value, nn.Module):
        yield from value.modules()
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _modules_in(item)


def _require_unchanged(part: Any, arguments: tuple[Any, ...], where: str) -> None:
    """Refuse a part that is no longer what its constructor made."""
    now, then = _settings(part), part._settings
    for name in now | then:
        new, old = now.get(name), then.get(name)
        # Only NaN is unlike itself.
        if new != old and (new == new or old == old):
            raise DescriptionError(
                f"{where or type(part).__name__} was changed after it was made: {name} is "
                f"{new}, expected {old}; remedy: make it with this argument"
            )
    if isinstance(part, nn.Module):
        members = set(map(id, part.modules()))
        for module in _modules_in(arguments):
            owns = module._parameters or module._buffers
            if owns and id(module) not in members:
                raise DescriptionError(
                    f"{where or type(part).__name__} was changed after it was made: it no longer "
                    f"holds the {type(module).__name__} of its arguments; remedy: make it anew"
                )


def build(description: dict[str, Any]) -> Any:
    """Make a part from its description, with weights as its constructor draws them.

    Args:
        description: What :func:`describe` returned, or its JSON read again.

    Raises:
        DescriptionError: If it names what is not registered, or is no description.
        FlowkitError: From a constructor, for arguments out of their range.

    Example:
        >>> from flowkit.config import build
        >>> build({"class": "flowkit.bases.StandardNormal", "arguments": {"event_shape": [2]}})
        StandardNormal()
    """
    frozen = description.get("frozen", []) if isinstance(description, dict) else None
    if not isinstance(frozen, list):
        raise DescriptionError(f"expected a description with a list 'frozen', got {description}")
    try:
        part = _Reader().read(description)
    except RecursionError:
        raise DescriptionError("the description is nested too deeply") from None
    if isinstance(part, nn.Module):
        for name, parameter in part.named_parameters():
            parameter.requires_grad_(name not in frozen)
    return part


class _Reader:
    """Undo :class:`_Writer`."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def read(self, value: Any) -> Any:
        if isinstance(value, list):
            return tuple(self.read(item) for item in value)
        if not isinstance(value, dict):
            return value
        if "dict" in value:
            return {key: self.read(item) for key, item in _items(value, "dict")}
        if "tensor" in value or "array" in value:
            return read_array(value)
        if "shared" in value:
            return self._shared(value["shared"])
        place = len(self.seen)
        is_part = "class" in value
        part = _find(value["class"] if is_part else value.get("partial"))
        is_module = isinstance(part, type) and issubclass(part, nn.Module)
        if is_part and is_module:
            self.seen.append(None)
        arguments = {key: self.read(item) for key, item in _items(value, "arguments")}
        if not is_part:
            return functools.partial(part, **arguments) if arguments else part
        made = _call(part, arguments)
        if is_module:
            self.seen[place] = made
        return made

    def _shared(self, place: Any) -> Any:
        """The part that was read as this one; ``None`` marks one that is not finished."""
        known = type(place) is int and 0 <= place < len(self.seen)
        if not known or self.seen[place] is None:
            raise DescriptionError(f"no part before this one has the number {place!r}")
        return self.seen[place]


def _items(value: dict[str, Any], name: str) -> list[tuple[str, Any]]:
    found = value.get(name, {})
    if not isinstance(found, dict):
        raise DescriptionError(f"expected {name} as an object, got {found!r}"[:200])
    return list(found.items())


def _call(part: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    """Call with arguments by name, those of a ``*args`` by their places."""
    args: list[Any] = []
    kinds = inspect.signature(part).parameters
    rest = next((n for n, p in kinds.items() if p.kind is inspect.Parameter.VAR_POSITIONAL), None)
    if rest in arguments:
        before = list(kinds)[: list(kinds).index(rest)]
        args = [arguments[name] for name in before] + list(arguments[rest])
        arguments = {k: v for k, v in arguments.items() if k != rest and k not in before}
    try:
        return part(*args, **arguments)
    except FlowkitError:
        raise
    except (TypeError, ValueError) as error:
        raise DescriptionError(f"{name_of(part)} cannot be built: {error}") from error


def _find(name: Any) -> Callable[..., Any]:
    """The registered class or function of this name."""
    if not isinstance(name, str):
        raise DescriptionError(f"expected the name of a registered class, got {name!r}")
    module, _, short = name.rpartition(".")
    if module == "torch.nn" and short in _OF_TORCH:
        return getattr(nn, short)
    package, _, inner = module.partition(".")
    if name not in _KNOWN and package == _PACKAGE and inner.isidentifier():
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name != module:
                raise
    if name not in _KNOWN:
        remedy = f"import {module or name} first, or define the class"
        if module == "__main__":  # of another script or notebook
            remedy = "define the class here, under the same name"
        raise DescriptionError(
            f"{name} is not registered; remedy: {remedy}, with @flowkit.register above it"
        )
    return _KNOWN[name]
