"""Random numbers of one job: draws that name no generator take a given one, in this thread alone.

Torch's global generators are shared by all threads of a process. Code of flowkit hands a generator
on; for code that cannot (dropout, initial weights, an embedding of the user's own) the operations
themselves are redirected, below autograd.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.utils._python_dispatch import TorchDispatchMode

from flowkit.numerics.layout import features_last

_LOCK = threading.RLock()
_THREAD = threading.local()
_FILLS = {"rand_like": "uniform_", "randn_like": "normal_", "randint_like": "random_"}


def drawing_from(generator: torch.Generator | None) -> AbstractContextManager[Any]:
    """Let every draw of this thread that names no generator come from a given one.

    The global random state is neither read nor changed. With ``None`` nothing is redirected.

    Args:
        generator: Source of randomness. Draws on another device come from a generator that is
            seeded by it.

    Example:
        >>> import torch
        >>> from flowkit.numerics.noise import drawing_from
        >>> before = torch.get_rng_state()
        >>> with drawing_from(torch.Generator().manual_seed(0)):
        ...     first = torch.nn.Linear(2, 2).weight
        >>> with drawing_from(torch.Generator().manual_seed(0)):
        ...     torch.equal(torch.nn.Linear(2, 2).weight, first)
        True
        >>> torch.equal(torch.get_rng_state(), before)
        True
    """
    return nullcontext() if generator is None else _Redirect(generator)


@contextmanager
def lending_global(generator: torch.Generator) -> Iterator[None]:
    """Seed the global state by a generator and give it back as it was, one thread at a time.

    For what can draw from nothing else: compiled programs and fused kernels.
    """
    device = generator.device
    devices = [device] if device.type == "cuda" else []
    with _LOCK, torch.random.fork_rng(devices=devices):
        seed = int(torch.randint(2**62, (), generator=generator, device=device))
        torch.random.default_generator.manual_seed(seed)
        if devices:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def may_draw(module: nn.Module, contracts: tuple[type, ...] = ()) -> bool:
    """Whether a part of a module may draw random numbers without naming a generator.

    These are active dropouts and their kin, poolings of random regions, and every module from
    outside flowkit and torch.

    Args:
        module: The module.
        contracts: Classes whose methods take a generator by contract where they draw.
    """
    return any(_may_draw(part, contracts) for part in module.modules())


def _may_draw(part: nn.Module, contracts: tuple[type, ...]) -> bool:
    if isinstance(part, _DropoutNd):
        return part.p > 0
    if isinstance(part, (nn.RNNBase, nn.MultiheadAttention)):
        return part.dropout > 0
    home = type(part).__module__
    known = home.startswith(("flowkit.", "torch.nn.", "nflows.")) or isinstance(part, contracts)
    return (
        isinstance(part, (nn.RReLU, nn.FractionalMaxPool2d, nn.FractionalMaxPool3d)) or not known
    )


def redirected() -> bool:
    """Whether draws of this thread that name no generator come from a given one."""
    return getattr(_THREAD, "generator", None) is not None


def repeatable() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """Contexts for ``torch.utils.checkpoint``: the second pass draws what the first one drew."""
    generator = getattr(_THREAD, "generator", None)
    if generator is None:
        return nullcontext(), nullcontext()
    again = torch.Generator(generator.device)
    again.set_state(generator.get_state())
    return nullcontext(), _Redirect(again)


class _Redirect(TorchDispatchMode):
    """Hands a generator to every random operation that has none."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.generators = {generator.device: generator}
        self.generator = generator
        self.outer: list[torch.Generator | None] = []

    def __enter__(self) -> Any:
        self.outer.append(getattr(_THREAD, "generator", None))
        _THREAD.generator = self.generator
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        _THREAD.generator = self.outer.pop()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        draw = _redirected(func)
        if draw is None:
            return func(*args, **kwargs)
        return draw(self._on(_device(args, kwargs)), args, kwargs)

    def _on(self, device: torch.device) -> torch.Generator:
        """The generator for a device."""
        if device.type == "meta":
            device = torch.device("cpu")
        if device not in self.generators:
            main = self.generator
            seed = int(torch.randint(2**62, (), generator=main, device=main.device))
            self.generators[device] = torch.Generator(device).manual_seed(seed)
        return self.generators[device]


def _device(args: Any, kwargs: dict[str, Any]) -> torch.device:
    """Where an operation draws."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            return value.device
    device = torch.device(kwargs.get("device") or "cpu")
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    return device


@functools.cache
def _redirected(func: Any) -> Callable[[torch.Generator, Any, dict[str, Any]], Any] | None:
    """How to run an operation with a generator; ``None`` for one that does not draw."""
    names = [argument.name for argument in func._schema.arguments]
    if "generator" in names:
        place = names.index("generator")

        def with_generator(generator: torch.Generator, args: Any, kwargs: dict[str, Any]) -> Any:
            given = args[place] if len(args) > place else kwargs.get("generator")
            if given is not None:
                return func(*args, **kwargs)
            return func(*args[:place], **{**kwargs, "generator": generator})

        return with_generator
    if torch.Tag.nondeterministic_seeded not in func.tags:
        return None
    packet, overload = func._overloadpacket, func._overloadname
    name = packet.__name__
    if name in _FILLS and "out" not in overload:
        return functools.partial(_fill_like, _FILLS[name])
    other = {"default": "generator", "low": "low_generator"}.get(overload, "")
    if other in packet.overloads():
        better = getattr(packet, other)
        return lambda generator, args, kwargs: better(*args, **kwargs, generator=generator)
    if name == "native_dropout" and overload == "default":
        return _dropout

    def lent(generator: torch.Generator, args: Any, kwargs: dict[str, Any]) -> Any:
        with lending_global(generator):
            return func(*args, **kwargs)

    return lent


def _fill_like(fill: str, generator: torch.Generator, args: Any, kwargs: dict[str, Any]) -> Tensor:
    like, *bounds = args
    if fill == "random_" and len(bounds) == 1:
        bounds = [0, *bounds]
    return getattr(torch.empty_like(like, **kwargs), fill)(*bounds, generator=generator)


def _dropout(generator: torch.Generator, args: Any, _: dict[str, Any]) -> tuple[Tensor, Tensor]:
    x, p, train = args
    mask = torch.empty_like(x, dtype=torch.bool)
    if not train:
        return x.clone(), mask.fill_(value=True)
    mask.bernoulli_(1 - p, generator=generator)
    return x * mask * (0.0 if p == 1 else 1 / (1 - p)), mask


def normal_like(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normals of the shape, dtype and device of ``x``, in the layout of a step."""
    if x.ndim < 2:
        return torch.empty_like(x).normal_(generator=generator)
    # One run of memory: filling a strided tensor is ten times slower.
    noise = x.new_empty(x.shape[-1], *x.shape[:-1]).normal_(generator=generator)
    return features_last(noise)


def choose(weights: Tensor, at: Tensor) -> Tensor:
    """Indices in proportion to weights ``(n,)``, where their distribution function is ``at``.

    Example:
        >>> import torch
        >>> choose(torch.tensor([1.0, 2.0, 1.0]), torch.tensor([0.2, 0.3, 0.8]))
        tensor([0, 1, 2])
    """
    edges = weights.cumsum(0)
    return torch.searchsorted(edges, at * edges[-1]).clamp(max=len(edges) - 1)


def numpy_generator(seed: int | None) -> np.random.Generator:
    """A generator of NumPy from a seed; without one, from the random state of torch.

    Example:
        >>> import torch
        >>> int(numpy_generator(0).integers(10)) == int(numpy_generator(0).integers(10))
        True
    """
    if seed is None:
        seed = int(torch.randint(2**62, (), device="cpu"))
    return np.random.default_rng(seed)
