"""Any flow of registered parts is described, built again and saved, however it was composed."""

import json
import math
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest
import torch
from registry import BASES, CASES, OBJECTIVES
from torch import nn

import flowkit
from flowkit import Flow
from flowkit.bases import (
    DiagonalNormal,
    Logistic,
    NormalMixture,
    StandardNormal,
    StudentT,
    Uniform,
)
from flowkit.conditioners import (
    MLP,
    CircularEncoding,
    FourierEncoding,
    GroupedConditioner,
    KernelConditioner,
    MaskedMLP,
    ResidualMLP,
    StandardizeContext,
)
from flowkit.config import build, describe
from flowkit.content import write_content
from flowkit.energies import Interpolation, NegativeLogProb
from flowkit.errors import DescriptionError, FlowFileError, FlowkitError
from flowkit.kernels import Matern, SquaredExponential
from flowkit.scalar import (
    Affine,
    CircularSmoothMixture,
    IntervalSpline,
    LogisticMixture,
    PerFeature,
    RationalQuadraticSpline,
    RealSmoothMixture,
)
from flowkit.stochastic import HMC, Metropolis, OverdampedLangevin
from flowkit.toys import DoubleWell
from flowkit.transforms import (
    ActNorm,
    CircularShift,
    Compose,
    Conv1x1,
    Coupling,
    DenseLinear,
    Elementwise,
    Logit,
    LULinear,
    MaskedAutoregressive,
    OrthogonalLinear,
    Permutation,
    Reshape,
    Squeeze,
    Standardize,
    Transform,
    Unconstrain,
)
from flowkit.transforms.base import Inverse

MASK = [False, True]
small = partial(MLP, hidden=(5,))


@flowkit.register
class Doubled(Transform):
    """A layer of a user."""

    def __init__(self, features, factor=2.0):
        super().__init__((features,))
        self.factor = factor
        self.shift = nn.Parameter(torch.randn(features))

    def forward(self, x, context=None, generator=None):
        log_det = x.new_full(x.shape[:-1], x.shape[-1] * math.log(self.factor))
        return self.factor * x + self.shift, log_det

    def inverse(self, z, context=None, generator=None):
        log_det = z.new_full(z.shape[:-1], -z.shape[-1] * math.log(self.factor))
        return (z - self.shift) / self.factor, log_det


@flowkit.register
class Net(nn.Module):
    """A conditioner of a user, with a network of torch inside."""

    def __init__(self, in_features, out_features, *, context=0, width=4):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(in_features + context, width), nn.Tanh(), nn.Linear(width, out_features)
        )

    def forward(self, x, context=None):
        return self.net(x if context is None else torch.cat([x, context], -1))


@flowkit.register
def narrow_net(in_features, out_features, *, context=0):
    """A function that makes a conditioner."""
    return Net(in_features, out_features, context=context, width=2)


@flowkit.register
class Embedding(nn.Module):
    """An embedding of a user."""

    def __init__(self, size, *, scale):
        super().__init__()
        self.linear = nn.Linear(1, size)
        self.scale = scale

    def forward(self, context):
        return self.scale * self.linear(context)


class Unregistered(Doubled):
    """Nobody knows it."""


def shared_layers():
    layer = Coupling(MASK, Affine(), conditioner=small)
    return Flow(
        Compose(layer, Permutation([1, 0]), layer, Permutation([1, 0]), layer.inv),
        StandardNormal(2),
    )


def frozen():
    flow = Flow(Compose(LULinear(2), Coupling(MASK, conditioner=small)), DiagonalNormal(2))
    flow.base.requires_grad_(False)
    flow.transform[0].bias.requires_grad_(False)
    return flow


def annealed():
    start = NegativeLogProb(StandardNormal(2))
    layers = [Metropolis(Interpolation(start, DoubleWell(), f), steps=2) for f in (0.7, 0.3)]
    return Flow(
        Compose(layers[0], Coupling(MASK, Affine(), conditioner=small), layers[1]),
        StandardNormal(2),
    )


def inserted():
    inner = flowkit.coupling_flow(2, layers=2, hidden=(4,)).transform
    energy = Interpolation(NegativeLogProb(StandardNormal(2)), DoubleWell(), 0.5, learn=True)
    return Flow(Compose(*inner, HMC(energy, steps=1), OverdampedLangevin(DoubleWell(), steps=2)),
                StandardNormal(2))  # fmt: skip


def torus():
    maps = PerFeature(
        (
            CircularSmoothMixture(3, lower=-1.0, upper=1.0),
            CircularSmoothMixture(2, lower=-1.0, upper=1.0),
            IntervalSpline(3, lower=-1.0, upper=1.0),
        )
    )
    net = partial(MLP, hidden=(4,), encoding=CircularEncoding([True]))
    return Flow(
        Compose(
            CircularShift(3, lower=-1.0, upper=1.0, circular=[True, True, False]),
            Coupling([False, True, True], maps, conditioner=net),
        ),
        Uniform(3, lower=-1.0, upper=1.0),
    )


# Ways to compose a flow that no recipe makes; each with its number of context features.
FLOWS = {
    "one layer": lambda: (Flow(DenseLinear(2), StandardNormal(2)), 0),
    "shared layers": lambda: (shared_layers(), 0),
    "nested": lambda: (
        Flow(Compose(Compose(LULinear(2), Compose(ActNorm(2))), Inverse(Compose(
            Permutation([1, 0]), Coupling(MASK, conditioner=small)))), Logistic(2)), 0),
    "class of a user": lambda: (Flow(Compose(Doubled(2), LULinear(2)), StandardNormal(2)), 0),
    "option of a user": lambda: (
        Flow(Compose(Doubled(2, factor=3.0), Doubled(2).inv), StandardNormal(2)), 0),
    "conditioner of a user": lambda: (
        Flow(Coupling(MASK, Affine(), conditioner=Net, context=2), StandardNormal(2)), 2),
    "partial of a user": lambda: (
        Flow(Coupling(MASK, Affine(), conditioner=partial(Net, width=3)), StandardNormal(2)), 0),
    "function of a user": lambda: (
        Flow(Coupling(MASK, Affine(), conditioner=narrow_net, context=1), StandardNormal(2)), 1),
    "embedding of a user": lambda: (
        Flow(Coupling(MASK, conditioner=small, context=3), DiagonalNormal(2, context=3),
             embedding=Embedding(3, scale=0.5)), 1),
    "embedding of torch": lambda: (
        Flow(Elementwise(2, Affine(), conditioner=small, context=3), StandardNormal(2),
             embedding=nn.Sequential(nn.Linear(2, 4), nn.SiLU(), nn.Linear(4, 3, bias=False))), 2),
    "standardised context": lambda: (
        Flow(Elementwise(2, Affine(), conditioner=small, context=2), StandardNormal(2),
             embedding=StandardizeContext(2)), 2),
    "kernels": lambda: (
        Flow(Compose(
            Coupling(MASK, Affine(), conditioner=partial(
                KernelConditioner, points=3, kernel=Matern(nu=1.5))),
            Coupling([True, False], Affine(), conditioner=partial(
                KernelConditioner, points=4, kernel=SquaredExponential(), linear_term=True)),
        ), StandardNormal(2)), 0),
    "map per feature": lambda: (
        Flow(Elementwise(3, PerFeature((Affine(), LogisticMixture(2), RealSmoothMixture(2)))),
             StandardNormal(3)), 0),
    "frozen parameters": lambda: (frozen(), 0),
    "double precision": lambda: (
        Flow(Compose(LULinear(2), MaskedAutoregressive(
            2, conditioner=partial(MaskedMLP, hidden=(4,)))), NormalMixture(2)).double(), 0),
    "arguments that are tensors": lambda: (
        Flow(Compose(
            Unconstrain(torch.tensor([-9.0, -8.0]), np.array([9.0, np.inf])),
            Permutation(torch.tensor([1, 0])),
            Coupling(torch.tensor([True, False]), conditioner=small),
        ), StudentT(2, df=[2.0, 5.0])), 0),
    "stochastic layers": lambda: (annealed(), 0),
    "stochastic layers inserted": lambda: (inserted(), 0),
    "circle and encodings": lambda: (torus(), 0),
    "causal with encodings": lambda: (
        Flow(MaskedAutoregressive(3, RationalQuadraticSpline(3), order=[2, 0, 1], context=1,
                                  conditioner=partial(MaskedMLP, hidden=(6,),
                                                      encoding=FourierEncoding(2))),
             StandardNormal(3)), 1),
    "groups": lambda: (
        Flow(Coupling([0, 1, 0, 1], Affine(), conditioner=partial(
            GroupedConditioner, conditioning=(1, 1), transformed=(1, 1),
            conditioner=partial(ResidualMLP, hidden=(4,)))), StandardNormal(4)), 0),
    "image": lambda: (
        Flow(Compose(Reshape(4, (1, 2, 2)), Squeeze((1, 2, 2)),
                     Conv1x1(4, linear=OrthogonalLinear), Reshape((4, 1, 1), 4)),
             StandardNormal(4)), 0),
    "bounded": lambda: (
        Flow(Compose(Logit(2, lower=-9.0, upper=9.0), Standardize(2), LULinear(2)),
             StandardNormal(2)), 0),
    "flow as an energy": lambda: (
        Flow(Compose(Metropolis(NegativeLogProb(StudentT(2)), steps=1), LULinear(2).inv.inv.inv),
             StandardNormal(2)), 0),
}  # fmt: skip


def made(name):
    torch.manual_seed(0)
    flow, context = FLOWS[name]()
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return flow.eval(), context


def outputs(flow, context):
    """Everything that two equal flows share to the bit."""
    generator = torch.Generator().manual_seed(3)
    dtype = flow.dtype or torch.float32
    c = torch.randn(4, context, generator=generator, dtype=dtype) if context else None
    with torch.no_grad():
        x = flow.sample(4 if c is None else (), c, torch.Generator().manual_seed(1))
        if flow.stochastic:
            bound = flow.log_prob_bound(x, c, generator=torch.Generator().manual_seed(2))
            return x, bound
        return x, flow.log_prob(x, c), flow.to_noise(x, c)


def expect_equal(one, other, context):
    for a, b in zip(outputs(one, context), outputs(other, context), strict=True):
        assert bool(a.isfinite().all())
        assert torch.equal(a, b)
    state, again = one.state_dict(), other.state_dict()
    assert list(state) == list(again)
    assert all(torch.equal(state[key], again[key]) for key in state)
    frozen_one = [name for name, p in one.named_parameters() if not p.requires_grad]
    assert frozen_one == [name for name, p in other.named_parameters() if not p.requires_grad]


@pytest.mark.parametrize("name", FLOWS)
def test_a_composed_flow_is_built_from_its_description(name):
    flow, context = made(name)
    again = build(json.loads(json.dumps(describe(flow)))).to(flow.dtype).eval()
    again.load_state_dict(flow.state_dict())
    expect_equal(flow, again, context)
    assert describe(again) == describe(flow)


@pytest.mark.parametrize("name", FLOWS)
def test_a_composed_flow_is_saved_and_loaded(name, tmp_path):
    flow, context = made(name)
    flowkit.save(flow, tmp_path / "f")
    expect_equal(flow, flowkit.load(tmp_path / "f"), context)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_every_layer_of_the_registry_is_built_from_its_description(case):
    # That the outputs are equal to the bit is R16 of the contract.
    layer = case.build()
    again = build(json.loads(json.dumps(describe(layer))))
    again.load_state_dict(layer.state_dict())
    assert repr(again) == repr(layer)
    assert describe(again) == describe(layer)


@pytest.mark.parametrize("name", BASES)
def test_every_base_of_the_registry_is_built_from_its_description(name):
    torch.manual_seed(0)
    base = BASES[name]()
    again = build(json.loads(json.dumps(describe(base))))
    again.load_state_dict(base.state_dict())
    context = torch.ones(base.context_size) if base.context_size else None
    draws = [b.sample((4,), context, torch.Generator().manual_seed(1)) for b in (base, again)]
    assert torch.equal(*draws)
    assert torch.equal(base.log_prob(draws[0], context), again.log_prob(draws[0], context))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_of_the_registry_is_built_from_its_description(name):
    torch.manual_seed(0)
    make, flow, batch, _ = OBJECTIVES[name]
    objective, present, samples = make(), flow(), batch()
    again = build(json.loads(json.dumps(describe(objective))))
    again.load_state_dict(objective.state_dict())
    generators = (torch.Generator().manual_seed(1) for _ in range(2))
    losses = [
        part(present, dict(samples), generator=generator, progress=0.5).value
        for part, generator in zip((objective, again), generators, strict=True)
    ]
    assert torch.equal(*losses)


def test_there_are_twenty_compositions_of_every_kind():
    assert len(FLOWS) >= 20
    flows = [made(name)[0] for name in FLOWS]
    assert sum(flow.stochastic for flow in flows) >= 3
    own = [{type(m) for m in flow.modules()} & {Doubled, Net, Embedding} for flow in flows]
    assert sum(map(bool, own)) >= 4
    encodings = {type(m.encoding) for f in flows for m in f.modules() if hasattr(m, "encoding")}
    assert {CircularEncoding, FourierEncoding} < encodings


def test_shared_modules_stay_shared():
    flow = shared_layers()
    again = build(describe(flow))
    layers = again.transform.transforms
    assert layers[0] is layers[2]
    assert layers[4].transform is layers[0]


# Faults -------------------------------------------------------------------------------------


def test_a_changed_attribute_is_refused(tmp_path):
    flow = Flow(Doubled(2), StandardNormal(2))
    flow.transform.factor = 3.0
    with pytest.raises(DescriptionError, match="changed after it was made: factor is 3.0"):
        describe(flow)
    with pytest.raises(FlowFileError, match="cannot be saved"):
        flowkit.save(flow, tmp_path / "f")


def test_a_replaced_child_is_refused():
    flow = Flow(Compose(LULinear(2), Doubled(2)), StandardNormal(2))
    flow.base = Logistic(2)
    with pytest.raises(DescriptionError, match="base is .*Logistic"):
        describe(flow)
    flow = Flow(LULinear(2), DiagonalNormal(2))
    flow.base = DiagonalNormal(2)
    with pytest.raises(DescriptionError, match="no longer holds the DiagonalNormal"):
        describe(flow)


def test_what_is_not_registered_is_refused_with_the_remedy():
    with pytest.raises(DescriptionError, match=r"Unregistered .*remedy: put @flowkit.register"):
        describe(Flow(Unregistered(2), StandardNormal(2)))
    with pytest.raises(DescriptionError, match="not registered.*remedy: .*functools.partial"):
        describe(Coupling(MASK, Affine(), conditioner=lambda i, o, context=0: Net(i, o)))

    with pytest.raises(DescriptionError, match="Dropout .*remedy: a registered class of your own"):
        describe(Flow(Elementwise(1, context=2), StandardNormal(1), embedding=nn.Dropout()))

    def local():
        return None

    with pytest.raises(DescriptionError, match="define it at the top of a module"):
        flowkit.register(local)
    for part in ("abc", StandardNormal(2)):
        with pytest.raises(FlowkitError, match="register expected part as a class or a function"):
            flowkit.register(part)
    with pytest.raises(DescriptionError, match="remedy: define the class here"):
        build({"class": "__main__.Bend", "arguments": {}})


def test_a_file_of_an_unknown_class_says_which_import_is_missing(tmp_path):
    flowkit.save(Flow(Doubled(2), StandardNormal(2)), tmp_path / "f")
    program = f"import flowkit; flowkit.load({str(tmp_path / 'f')!r})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "FlowFileError" in done.stderr
    assert f"remedy: import {__name__} first" in done.stderr


# Hostile files ------------------------------------------------------------------------------


def layer(name, **arguments):
    return {"class": f"flowkit.transforms.{name}", "arguments": arguments}


def flow_of(*layers):
    transform = {"class": "flowkit.transforms.Compose", "arguments": {"transforms": list(layers)}}
    base = {"class": "flowkit.bases.StandardNormal", "arguments": {"event_shape": [2]}}
    return {"class": "flowkit.flow.Flow", "arguments": {"transform": transform, "base": base}}


def deep(n):
    inner = layer("LULinear", features=2)
    for _ in range(n):
        inner = layer("Inverse", transform=inner)
    return inner


HOSTILE = {
    "huge": flow_of(layer("LULinear", features=10**9)),
    "huge mask": flow_of(layer("Coupling", mask=[True] * 10**6)),
    "many": flow_of(*[layer("LULinear", features=100)] * 5000),
    "negative": flow_of(layer("LULinear", features=-1)),
    "text": flow_of(layer("LULinear", features="2")),
    "none": flow_of(layer("LULinear", features=None)),
    "unknown argument": flow_of(layer("LULinear", features=2, colour=1)),
    "no argument": flow_of(layer("LULinear")),
    "os": flow_of({"class": "os.system", "arguments": {"command": "true"}}),
    "os as a factory": flow_of(
        layer("Coupling", mask=MASK, conditioner={"partial": "os.system", "arguments": {}})
    ),
    "eval": flow_of({"class": "builtins.eval", "arguments": {"source": "1"}}),
    "dotted": flow_of({"class": "flowkit.config.importlib.import_module", "arguments": {}}),
    "not exported": flow_of({"class": "flowkit.io.load", "arguments": {"path": "f"}}),
    "number as a class": flow_of({"class": 3, "arguments": {}}),
    "list of arguments": flow_of({"class": "flowkit.transforms.LULinear", "arguments": [2]}),
    "deep": flow_of(deep(300)),
    "very deep": flow_of(deep(2000)),
    "shared out of range": flow_of({"shared": 7}),
    "shared negative": flow_of({"shared": -1}),
    "shared text": flow_of({"shared": "a"}),
    "shared with itself": {"shared": 0},
    "damaged array": flow_of(
        layer("Permutation", order={"array": "AAA", "dtype": "<i8", "shape": [2]})
    ),
    "array of objects": flow_of(
        layer("Permutation", order={"array": "", "dtype": "O", "shape": [0]})
    ),
    "array of another shape": flow_of(
        layer("Permutation", order={"array": "AAAAAAAAAAA=", "dtype": "<i8", "shape": [10**9]})
    ),
    "no flow": {"class": "flowkit.transforms.LULinear", "arguments": {"features": 2}},
    "nothing": {},
    "frozen numbers": {**flow_of(layer("LULinear", features=2)), "frozen": 3},
}


# What a file may not ask for with so few weights, but a description may.
SIZES = {"huge", "huge mask", "many", "negative", "deep", "no flow"}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_description_is_refused_quickly(name, tmp_path):
    state = {"a": torch.zeros(2)}
    try:
        content = write_content(HOSTILE[name], None, state)
    except (FlowFileError, RecursionError):
        return
    (tmp_path / "f").write_bytes(content)
    begun = time.process_time()
    with pytest.raises(FlowFileError):
        flowkit.load(tmp_path / "f")
    assert time.process_time() - begun < 10


@pytest.mark.parametrize("name", sorted(set(HOSTILE) - SIZES))
def test_a_hostile_description_builds_nothing(name):
    with pytest.raises(FlowkitError):
        build(HOSTILE[name])
