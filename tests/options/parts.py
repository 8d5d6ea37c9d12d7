"""What the tables share: fixed numbers, small parts, and cases that occur everywhere."""

from __future__ import annotations

import atexit
import functools
import inspect
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flowkit import Flow
from flowkit.bases import StandardNormal
from flowkit.conditioners import (
    MLP,
    AsinhEncoding,
    CircularEncoding,
    ClipEncoding,
    FourierEncoding,
)
from flowkit.errors import FlowkitError
from flowkit.scalar import Affine
from flowkit.transforms import Compose, Coupling, Elementwise, Standardize

from .harness import Expectation, also, differs, number_of_parameters, rises, same


def rows(n: int, features: int, seed: int = 0) -> Tensor:
    """Standard normal numbers, always the same."""
    return torch.randn(n, features, generator=torch.Generator().manual_seed(seed))


X, OTHER = rows(6, 2), rows(6, 2, 1)
UNIT = torch.rand(6, 2, generator=torch.Generator().manual_seed(2)) * 0.8 + 0.1
C, D = rows(6, 1, 3), rows(6, 1, 4)


def stirred(module: Any, size: float = 0.5, seed: int = 7) -> Any:
    """A module whose parameters are moved away from their start, always to the same place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += size * torch.randn(parameter.shape, generator=generator)
    return module


def state(module: nn.Module) -> dict[str, Tensor]:
    """A copy of all numbers that a module keeps."""
    return {k: v.detach().clone() for k, v in module.state_dict().items()}


def small(in_features: int, out_features: int, context: int = 0) -> nn.Module:
    """A conditioner of eight units."""
    return MLP(in_features, out_features, context=context, hidden=(8,))


def conditional(features: int = 2, seed: int = 0) -> Flow:
    """A flow that reads one number of context."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [
            Standardize(features),
            Elementwise(features, Affine(), context=1, conditioner=small),
        ]
        if features == 2:
            layers.append(Coupling([0, 1], Affine(), conditioner=small, context=1))
    return stirred(Flow(Compose(*layers), StandardNormal(features)))


def plain(features: int = 2, seed: int = 0) -> Flow:
    """A flow without context."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        two = features == 2
        layer = (
            Coupling([0, 1], Affine(), conditioner=small)
            if two
            else Elementwise(features, Affine())
        )
    return stirred(Flow(Compose(Standardize(features), layer), StandardNormal(features)))


def folder() -> Path:
    """A folder that goes with the process."""
    made = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return Path(made)


def message(call: Callable[[], Any]) -> str:
    """What a refused call says; empty if it is not refused."""
    try:
        call()
    except (FlowkitError, ValueError) as error:
        return str(error)
    return ""


def quietly(see: Callable[..., Any]) -> Callable[..., Any]:
    """An observation whose warnings are of no interest."""

    def without(*args: Any, **options: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return see(*args, **options)

    return without


# Cases that occur everywhere ----------------------------------------------------------------


def reads_context(part: Any, x: Any, *names: str, context: Any = (C, D), **how: Any) -> None:
    """Methods whose result must follow the context."""
    first, second = context
    for name in names:
        see = _calls(part, name, x)
        also(getattr(type(part), name), see, context=differs(second, base=first, **how))
        given = {"context": first} if name in DIRECTIONS else {}
        _ignores_generator(part, name, lambda see=see, given=given, **o: see(**given, **o))


def ignores_context(part: Any, x: Any, *names: str, context: Tensor = C, **how: Any) -> None:
    """Methods of parts without context: what is handed on to other layers does not change them."""
    for name in names:
        also(
            getattr(type(part), name),
            _calls(part, name, x),
            context=same("the part reads none", context, **how),
        )
        _ignores_generator(part, name, _calls(part, name, x))


DIRECTIONS = ("forward", "inverse", "unnormalized")


def _ignores_generator(part: Any, name: str, see: Callable[..., Any]) -> None:
    """Layers that draw nothing take a generator, which the contract hands on, and ignore it."""
    parameters = inspect.signature(getattr(type(part), name)).parameters
    if name in DIRECTIONS and "generator" in parameters and not part.stochastic:
        generator = torch.Generator().manual_seed(1)
        also(getattr(type(part), name), see, generator=same("the layer draws nothing", generator))


def _calls(part: Any, name: str, x: Any) -> Callable[..., Any]:
    def see(**options: Any) -> Any:
        return getattr(part, name)(x, **options)

    def starts(**options: Any) -> Any:
        import copy

        fresh = copy.deepcopy(part)
        fresh.initialize(x, **options)
        return state(fresh)

    return starts if name == "initialize" else see


ENCODINGS = (
    ClipEncoding(bound=0.5),
    AsinhEncoding(),
    CircularEncoding(period=3.0),
    FourierEncoding(2, seed=0),
)


def network(build: Callable[..., nn.Module], x: Tensor) -> dict[str, Expectation]:
    """Cases of the arguments that all networks share: widths, activation, encoding, context."""

    def out(**options: Any) -> Any:
        net = stirred(build(**options), 0.3)
        return net(x, torch.ones(len(x), 1)) if options.get("context") else net(x)

    def count(**options: Any) -> float:
        return number_of_parameters(build(**options))

    return {
        "context": rises(1, 3, see=count),
        "hidden": rises((8, 8), (16, 16), base=(4, 4), see=count),
        "activation": differs("relu", "tanh", "elu", "gelu", "softplus", see=out),
        "encoding": differs(*ENCODINGS, see=out),
    }


def spring(x: Tensor) -> Tensor:
    """The energy of a spring, in units of kT."""
    return 1.5 * x.square().sum(-1)


def wall(x: Tensor) -> Tensor:
    """The energy of softer walls."""
    return x.pow(4).sum(-1)


def against(x: Tensor) -> Tensor:
    """The log-density of the spring."""
    return -spring(x)


def softly(x: Tensor) -> Tensor:
    """The log-density of the walls."""
    return -wall(x)


def targets(see: Callable[..., Any]) -> dict[str, Any]:
    """Cases of ``energy=`` and of the log-density in its place, which give the same numbers."""
    as_energy = functools.partial(see, energy=spring)
    return {
        "energy": differs(wall, base=spring, see=see),
        "log_prob": (
            same(
                "the log-density of the energy",
                against,
                see=lambda **o: see(**o) if o else as_energy(),
            ),
            differs(softly, base=against, see=see),
        ),
    }
