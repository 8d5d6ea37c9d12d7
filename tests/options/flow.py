"""Flow, its view as a distribution, files, paths and potentials."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn

import flowkit
from flowkit import Flow, coupling_flow, stochastic_flow
from flowkit.bases import StandardNormal
from flowkit.distribution import FlowDistribution, estimate_kl, flow_distribution
from flowkit.energies import CallableEnergy
from flowkit.io import load, save
from flowkit.molecules import FlowPotential
from flowkit.numerics.layout import features_first, features_last
from flowkit.numerics.noise import may_draw
from flowkit.stochastic import Dequantize
from flowkit.stochastic.paths import (
    AdaptStepSizes,
    LayerReport,
    Paths,
    adapt_step_sizes,
    sample_paths,
)
from flowkit.toys import DoubleWell
from flowkit.transforms import Compose, Log, Standardize, Whiten
from flowkit.transforms.compose import layers_in_order

from .harness import also, differs, draws, falls, of, rises, same, shows
from .parts import (
    UNIT,
    C,
    D,
    X,
    conditional,
    message,
    plain,
    reads_context,
    rows,
    state,
    targets,
)

FLOW, SCALAR, PLAIN = conditional(), conditional(1), plain()
ONE, Q = X[:, :1], UNIT[:, :1]
COUNTS = torch.arange(8.0).reshape(4, 2)

# Flow ---------------------------------------------------------------------------------------

reads_context(FLOW, X, "forward", "log_prob", "to_noise", "to_data", "energy", "score")
reads_context(SCALAR, ONE, "log_survival", "log_cdf", "cdf", "survival")
reads_context(SCALAR, Q, "quantile")


class Fitted(nn.Module):
    """An embedding that starts from data."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(1))

    def initialize(self, context: Any) -> None:
        self.mean.copy_(context.mean(0))

    def forward(self, context: Any) -> Any:
        return context - self.mean


def started(flow: Flow, **options: Any) -> Any:
    """The numbers of a flow after its start from data."""
    flow = copy.deepcopy(flow)
    flow.initialize(X, **options)
    return state(flow)


of(Flow.log_normalizer, FLOW.log_normalizer, context=differs(C, base=C[:2]))  # its batch
of(
    Flow.initialize,
    lambda **o: started(Flow(FLOW.transform, FLOW.base, embedding=Fitted()), **o),
    context=differs(C, D, base=5 * C),
)
EITHER = Compose(Standardize(2), Whiten(2), starts={"standardized": [0], "whitened": [1]})
also(
    Flow.initialize,
    lambda **o: started(Flow(EITHER, StandardNormal(2)), **o),
    start=differs("whitened"),
)


of(
    Flow,
    lambda **o: Flow(FLOW.transform, FLOW.base, **o).log_prob(X, C),
    embedding=differs(nn.Tanh(), nn.Softplus()),
)
drawn = {"context": C}
for method in (Flow.sample, Flow.rsample, Flow.sample_and_log_prob, Flow.rsample_and_log_prob):
    of(
        method,
        lambda method=method, **o: method(FLOW, **{**drawn, **o}),
        shape=shows(lambda out: len(out) == 7 or len(out[0]) == 7, 7, (7,)),
        context=differs(D, base=C, see=lambda method=method, **o: method(FLOW, **o)),
        generator=draws(),
    )
spring = CallableEnergy(lambda x, c: (x - c).square().sum(-1), 2, context=1)
noisy = Flow(Compose(Dequantize(2), *FLOW.transform.transforms), FLOW.base)
MANY = COUNTS.repeat(500, 1)
of(
    Flow.log_prob_bound,
    lambda **o: noisy.log_prob_bound(COUNTS, **{"context": C[:4], **o}),
    context=differs(D[:4], base=C[:4], see=lambda **o: noisy.log_prob_bound(COUNTS, **o)),
    n=rises(4, 16, see=lambda **o: noisy.log_prob_bound(MANY, C[:1], **o).mean()),
    generator=draws(),
)
of(
    Flow.sample_with_log_weight,
    lambda **o: FLOW.sample_with_log_weight(5, spring, **{"context": C, **o}),
    context=differs(D, base=C, see=lambda **o: FLOW.sample_with_log_weight(5, spring, **o)),
    generator=draws(),
    **targets(lambda **o: PLAIN.sample_with_log_weight(5, **o)[1]),
)
walking = stochastic_flow(2, energy=DoubleWell(), blocks=2, steps=2, hidden=(8,))
pulled = stochastic_flow(2, energy=spring, context=1, blocks=1, steps=2, hidden=(8,))
of(
    Flow.reverse_log_weight,
    lambda **o: walking.reverse_log_weight(X, DoubleWell(), **o),
    context=differs(D, base=C, see=lambda **o: pulled.reverse_log_weight(X, spring, **o)),
    generator=draws(),
    **targets(lambda **o: PLAIN.reverse_log_weight(X, **o)),
)
for name, value in (("to_noise", X), ("to_data", X)):
    of(
        getattr(Flow, name),
        lambda name=name, value=value, **o: getattr(walking, name)(value, **o),
        generator=draws(),
    )


def compiled(**options: Any) -> Any:
    """What the compiler is given; the compiler itself is left out."""
    with (
        mock.patch("flowkit.flow.can_compile", return_value=True),
        mock.patch("torch.compile", side_effect=lambda module, *_, **__: module) as compiler,
    ):
        copy.deepcopy(PLAIN).compile(**options)
    return [call.kwargs for call in compiler.call_args_list]


of(Flow.compile, compiled, kwargs=differs({"dynamic": True}, {"mode": "reduce-overhead"}))

# Distributions ------------------------------------------------------------------------------

of(Flow.distribution, lambda **o: FLOW.distribution(**o).log_prob(X), context=differs(D, base=C))
for make in (FlowDistribution, flow_distribution):
    of(
        make,
        lambda make=make, **o: make(PLAIN, **o).batch_shape,
        context=differs(D, base=C, see=lambda make=make, **o: make(FLOW, **o).log_prob(X)),
        batch_shape=differs((3,), (2, 3)),
    )
view = PLAIN.distribution()
of(
    Flow.entropy,
    lambda **o: FLOW.entropy(**{"context": C, **o}),
    n=falls(64, 1024, base=16, see=lambda **o: FLOW.entropy(context=C, **o).error.mean()),
    context=differs(D, base=C, see=FLOW.entropy),
    generator=draws(),
)
of(
    view.entropy,
    view.entropy,
    n=differs(16, 64),
    generator=draws(),
)
of(
    view.enumerate_support,
    lambda **o: message(lambda: view.enumerate_support(**o)),
    expand=same("torch's signature; refused either way", False),
)
of(
    estimate_kl,
    lambda **o: estimate_kl(view, conditional(seed=1).distribution(C[0]), **o),
    n=falls(
        64,
        1024,
        base=16,
        see=lambda **o: estimate_kl(view, plain(seed=1).distribution(), **o).error,
    ),
    generator=draws(),
)
for method in (view.sample, view.rsample):
    of(
        method,
        lambda method=method, **o: method(**o).shape,
        sample_shape=differs((3,), torch.Size([2])),
    )

# Files --------------------------------------------------------------------------------------


def written(**options: Any) -> Any:
    """A flow written and read, with what stood beside it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "flow.safetensors"
        save(coupling_flow(2, layers=1, hidden=(8,)), path, **options)
        return path.read_bytes()


def read(**options: Any) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "flow.safetensors"
        save(coupling_flow(2, layers=1, hidden=(8,)), path)
        return str(load(path, **options).initialized.device)


of(save, written, extra=differs({"unit": "nm"}, {"unit": "m"}))
of(load, read, device=differs("meta"))
for swap in (features_first, features_last):
    of(swap, lambda swap=swap, **o: swap(rows(2, 12).reshape(2, 3, 4), **o), event_ndim=differs(2))

# Paths --------------------------------------------------------------------------------------

annealing = stochastic_flow(2, energy=DoubleWell(), blocks=3, scalar=None, steps=2)
of(
    sample_paths,
    lambda **o: sample_paths(annealing, 20, DoubleWell(), **o).log_weight,
    context=differs(D, base=C, see=lambda **o: sample_paths(pulled, 5, spring, **o).log_weight),
    generator=draws(),
    **targets(lambda **o: sample_paths(PLAIN, 5, **o).log_weight),
    resample=differs(1.0),
    choices=shows(
        lambda out: out is not None,
        True,
        see=lambda **o: sample_paths(annealing, 20, DoubleWell(), **o).log_choice,
    ),
)


def adapted(**options: Any) -> Any:
    """Step sizes after some rounds, and the acceptance."""
    flow = copy.deepcopy(annealing)
    reports = adapt_step_sizes(flow, **{"samples": 64, "rounds": 3, **options})
    return [t.step_size for t in flow.transform.transforms], [r.acceptance for r in reports]


def acceptance(**options: Any) -> Any:
    return torch.stack(adapted(**{"rounds": 20, **options})[1])


def adapted_to(**options: Any) -> Any:
    """Step sizes of a flow whose energy reads a context."""
    flow = copy.deepcopy(pulled)
    adapt_step_sizes(flow, samples=16, rounds=3, **options)
    return [t.step_size for t in flow.transform.transforms if hasattr(t, "step_size")]


of(
    adapt_step_sizes,
    adapted,
    samples=differs(32, 128),
    context=differs(9 * D, base=C, see=adapted_to),
    generator=draws(),
    target=rises(0.5, 0.7, see=acceptance),
    rounds=differs(0, 5),
)


def called(record: int, **options: Any) -> Any:
    """Step sizes after a callback at one record."""
    flow = copy.deepcopy(annealing)
    AdaptStepSizes(**{"samples": 32, **options} if "rounds" not in options else options)(
        flow, flowkit.History(steps=list(range(25, 25 * record + 1, 25)))
    )
    return [t.step_size for t in flow.transform.transforms]


of(
    AdaptStepSizes,
    lambda **o: called(3, **o),
    every=differs(2),
    options=differs({"samples": 32, "rounds": 3}, {"samples": 32, "rounds": 4}),
)
of(
    layers_in_order,
    lambda **o: [t.label for t, _ in layers_in_order(Compose(Log(2), Standardize(2)), **o)],
    inverse=differs(True),
)
number = torch.tensor(0.5)
of(
    LayerReport,
    lambda **o: str(LayerReport("layer", **o)),
    acceptance=differs(number),
    nonfinite=differs(number),
    effective=differs(number),
    resampled=differs(True),
)


class Known(nn.Module):
    """A module that names its generator, as its class promises."""


of(
    may_draw,
    lambda **o: may_draw(Known(), **o),
    contracts=shows(lambda may: not may, (Known,)),
)
of(Paths, lambda **o: Paths(X, X[:, 0], (), **o).log_choice, log_choice=differs(X[:, 1]))

# Molecules ----------------------------------------------------------------------------------


def moved(**options: Any) -> Any:
    """A trajectory in the potential of a flow."""
    at = {"context": C} if "context" not in options else {}
    potential = FlowPotential(FLOW, **{**at, **options})
    return potential.velocity_verlet(X, X, dt=0.1, steps=4)


potential = FlowPotential(PLAIN)
of(
    FlowPotential,
    moved,
    kT=differs(2.0, 3.0),
    mass=differs(2.0, (1.0, 2.0)),
    context=differs(D, base=C),
)
of(
    FlowPotential.draw_velocities,
    lambda **o: potential.draw_velocities(X, **o),
    generator=draws(),
)
LENGTH = {"dt": 0.1, "steps": 4, "friction": 1.0}


def verlet(**options: Any) -> Any:
    """A trajectory without friction."""
    return potential.velocity_verlet(X, X, **{"dt": 0.1, "steps": 4, **options})


def langevin(**options: Any) -> Any:
    """A trajectory with friction."""
    return potential.langevin(X, X, **{**LENGTH, **options})


for run in (verlet, langevin):
    of(
        getattr(FlowPotential, "velocity_verlet" if run is verlet else "langevin"),
        run,
        dt=differs(0.2, 0.05, base=0.1),
        steps=rises(6, 8, base=4, see=lambda run=run, **o: float(len(run(**o).time))),
        every=falls(2, 4, base=1, see=lambda run=run, **o: float(len(run(**o).time))),
    )
also(FlowPotential.langevin, langevin, friction=differs(2.0, 0.5, base=1.0), generator=draws())
