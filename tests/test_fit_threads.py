"""Random numbers of a fit are its own: the global state is untouched, and threads agree."""

import copy
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from flowkit import (
    DenoisingScoreMatching,
    FiniteDifferenceScoreMatching,
    Flow,
    MaximumLikelihood,
    PathKL,
    ReverseKL,
    SlicedScoreMatching,
    StochasticMaximumLikelihood,
    WeightedSum,
    coupling_flow,
    fit,
)
from flowkit.bases import StandardNormal
from flowkit.dependence import EquicorrelatedBlocks, StructuredKinship
from flowkit.estimators import FlowDensity
from flowkit.numerics.noise import drawing_from, lending_global, may_draw
from flowkit.objectives import AfterPreprocessing, DependentLikelihood, Loss, Objective
from flowkit.scalar import Affine
from flowkit.stochastic import Dequantize, Metropolis
from flowkit.toys import DoubleWell
from flowkit.training import repeated_splits
from flowkit.transforms import Compose, LULinear, MaskedAutoregressive, Standardize

EPOCHS = {"epochs": 2, "batch_size": 40, "progress": False}


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def state():
    """The global random state of torch, numpy and Python, as something that compares."""
    kind, keys, *rest = np.random.get_state()
    return torch.get_rng_state().tolist(), (kind, keys.tolist(), *rest), random.getstate()


def weights(flow):
    return torch.cat([p.detach().flatten() for p in flow.parameters()])


def dequantised():
    return Flow(Compose(Dequantize(2), Standardize(2), LULinear(2)), StandardNormal(2))


def small():
    return coupling_flow(2, layers=2, hidden=(8,), start="standardize")


def embedded(net):
    transform = Compose(Standardize(2), MaskedAutoregressive(2, Affine(), context=3))
    return Flow(transform, StandardNormal(2), embedding=net)


class Own(nn.Module):
    """An embedding of the user's own, which draws from torch's global state."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 3)

    def forward(self, context):
        return self.linear(context + 0.1 * torch.randn_like(context))


class Old(Objective):
    """An objective of the older form, which names no generator."""

    def forward(self, flow, batch):
        x = batch["x"]
        return Loss(-flow.log_prob(x + 0.1 * torch.randn_like(x)).mean(), {})


class New(Objective):
    def forward(self, flow, batch, *, generator=None, progress=1.0):
        x = batch["x"]
        noise = torch.randn(x.shape, generator=generator)
        return Loss(-flow.log_prob(x + 0.1 * noise).mean(), {})


class Augmented(Dataset):
    def __len__(self):
        return 120

    def __getitem__(self, i):
        return normal(2, seed=i) + 0.1 * torch.randn(2)


class NoisySGD(torch.optim.SGD):
    def step(self, closure=None):
        super().step(closure)
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    p.add_(torch.randn_like(p), alpha=1e-4)


def noisy_energy(x):
    return 0.5 * (x + 0.1 * torch.randn_like(x)).square().sum(-1)


def stochastic():
    return Flow(Compose(LULinear(2), Metropolis(DoubleWell(), steps=2)), StandardNormal(2))


def kinship():
    from linear_operator.operators import DenseLinearOperator

    block = EquicorrelatedBlocks(torch.arange(120) // 3, rho=0.5).matrix().detach()
    return StructuredKinship(DenseLinearOperator(block.double()), exact=10, probes=4)


CASES = {
    "dequantize": (dequantised, lambda: normal(120, 2).mul(3).round(), None),
    "dropout": (
        lambda: embedded(nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.5))),
        lambda: {"x": normal(120, 2), "context": normal(120, 2, seed=1)},
        None,
    ),
    "own embedding": (
        lambda: embedded(Own()),
        lambda: {"x": normal(120, 2), "context": normal(120, 2, seed=1)},
        None,
    ),
    "older objective": (small, lambda: normal(120, 2), Old),
    "objective": (small, lambda: normal(120, 2), New),
    "dataset": (small, Augmented, None),
    "reverse kl": (small, lambda: None, lambda: ReverseKL(noisy_energy, samples=16)),
    "reparam": (
        small,
        lambda: None,
        lambda: ReverseKL(DoubleWell(), estimator="reparam", samples=16),
    ),
    "path kl": (stochastic, lambda: None, lambda: PathKL(noisy_energy, samples=16)),
    "reinforce": (
        stochastic,
        lambda: None,
        lambda: PathKL(DoubleWell(), samples=16, gradient="reinforce"),
    ),
    "contrast": (small, lambda: normal(120, 2), StochasticMaximumLikelihood),
    "sum": (
        small,
        lambda: normal(120, 2),
        lambda: WeightedSum((1.0, Old()), (1.0, ReverseKL(DoubleWell(), samples=16))),
    ),
    "preprocessing": (
        lambda: Flow(
            Compose(Dequantize(2), Standardize(2), *small().transform.transforms),
            StandardNormal(2),
        ),
        lambda: normal(120, 2).mul(3).round(),
        lambda: AfterPreprocessing(SlicedScoreMatching(), layers=2),
    ),
    "lanczos": (
        small,
        lambda: {"x": normal(120, 2), "row": torch.arange(120)},
        lambda: DependentLikelihood(kinship(), chunk=50),
    ),
}
CASES |= {
    f"score, {method}": (
        small,
        lambda: normal(120, 2).exp(),
        objective,
    )
    for method, objective in {
        "sliced": SlicedScoreMatching,
        "denoising": DenoisingScoreMatching,
        "finite-difference": FiniteDifferenceScoreMatching,
        "multiplicative": partial(DenoisingScoreMatching, multiplicative=True),
        "non-negative": partial(SlicedScoreMatching, non_negative=True),
    }.items()
}


@pytest.mark.parametrize("case", CASES)
def test_fits_with_one_seed_agree_and_leave_the_global_state_alone(case):
    build, data, objective = CASES[case]
    flows = [build()]
    flows += [copy.deepcopy(flows[0]) for _ in range(2)]
    options = {**EPOCHS, "validation": None} if case == "lanczos" else dict(EPOCHS)
    if case == "lanczos":
        options["batch_size"] = 120
    if data() is None:
        options = {"steps": 3, "progress": False}
    histories = []
    for seed, flow in zip((5, 5, 6), flows, strict=True):
        torch.rand(3)
        before = state()
        own = None if objective is None else objective()
        histories.append(fit(flow, data(), own, seed=seed, **options))
        assert state() == before
    first, second, third = histories
    assert first.train == second.train
    assert first.validation == second.validation
    assert torch.equal(weights(flows[0]), weights(flows[1]))
    assert first.train != third.train


@pytest.mark.parametrize("case", ["dequantize", "dropout", "older objective", "dataset"])
def test_four_threads_give_the_numbers_of_one(case):
    build, data, objective = CASES[case]
    flow = build()
    flows = [copy.deepcopy(flow) for _ in range(4)]
    meet = threading.Barrier(4)

    def train(one):
        # Waiting in every epoch, so that the fits do run at the same time.
        own = None if objective is None else objective()
        return fit(one, data(), own, callbacks=[lambda f, h: meet.wait(60) and None], **EPOCHS)

    before = state()
    with ThreadPoolExecutor(4) as pool:
        histories = list(pool.map(train, flows))
    assert state() == before
    expected = fit(flow, data(), None if objective is None else objective(), **EPOCHS)
    assert all(history.train == expected.train for history in histories)
    assert all(history.validation == expected.validation for history in histories)
    assert all(torch.equal(weights(one), weights(flow)) for one in flows)


def test_draws_of_another_thread_go_on_undisturbed_during_a_fit():
    torch.manual_seed(3)
    expected = torch.rand(200)
    torch.manual_seed(3)
    build, data, _ = CASES["dropout"]
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(fit, build(), data(), **EPOCHS)
        # The flow was built from the global state, before the draws that are compared.
        torch.manual_seed(3)
        drawn = torch.cat([torch.rand(1) for _ in range(200)])
        running.result()
    assert torch.equal(drawn, expected)


def test_callbacks_and_optimizers_draw_from_the_fit():
    seen = []
    before = state()
    for _ in range(2):
        torch.manual_seed(0)
        flow = small()
        torch.rand(len(seen) + 1)
        during = state()
        sgd = {"optimizer": lambda p: NoisySGD(p, lr=1e-3)}
        fit(
            flow,
            normal(120, 2),
            callbacks=[lambda f, h: seen.append(f.sample(3)) and None],
            **sgd,
            **EPOCHS,
        )
        assert state() == during
        seen.append(weights(flow))
    assert all(torch.equal(a, b) for a, b in zip(seen[:3], seen[3:], strict=True))
    assert before[1:] == state()[1:]


@pytest.mark.parametrize("case", ["dequantize", "dropout", "older objective", "dataset"])
def test_noise_resumes_to_the_same_bits(case, tmp_path):
    build, data, objective = CASES[case]
    flow = build()
    again, options = copy.deepcopy(flow), {**EPOCHS, "epochs": 3}

    def own():
        return None if objective is None else objective()

    expected = fit(flow, data(), own(), **options)
    stop = [lambda f, h: True]
    fit(copy.deepcopy(again), data(), own(), checkpoint=tmp_path / "c", callbacks=stop, **options)
    torch.rand(5)
    history = fit(again, data(), own(), checkpoint=tmp_path / "c", **options)
    assert history.train == expected.train
    assert torch.equal(weights(again), weights(flow))


def test_progress_rises_from_nought_to_one_and_is_one_in_validation():
    seen = {True: [], False: []}

    class Watch(Objective):
        def forward(self, flow, batch, *, progress):
            seen[self.training].append(progress)
            return MaximumLikelihood()(flow, batch)

    fit(small(), normal(100, 2), Watch(), epochs=2, batch_size=45, progress=False)
    # Validated is before the first step, and after each of two epochs.
    assert seen == {True: [0.0, 0.25, 0.5, 0.75], False: [1.0, 1.0, 1.0]}


def test_an_objective_may_take_whatever_it_is_given():
    class Any(Objective):
        def forward(self, flow, batch, **options):
            assert set(options) == {"generator", "progress"}
            return MaximumLikelihood()(flow, batch, **options)

    fit(small(), normal(100, 2), Any(), epochs=1, progress=False)


@pytest.mark.slow
def test_compiled_fits_with_noise_agree_too():
    flows = [dequantised() for _ in range(2)]
    flows[1].load_state_dict(flows[0].state_dict())
    data = normal(120, 2).mul(3).round()
    histories = []
    for flow in flows:
        torch.rand(3)
        before = state()
        histories.append(fit(flow, data, compile=True, **EPOCHS))
        assert state() == before
    assert histories[0].train == histories[1].train
    assert torch.equal(weights(flows[0]), weights(flows[1]))


def test_flows_of_splits_and_of_estimators_are_built_from_their_seed_alone():
    x, before = normal(60, 2), state()
    found = [repeated_splits(small, x, splits=2, epochs=1, progress=False) for _ in range(2)]
    assert found[0].scores == found[1].scores
    models = [FlowDensity(steps=10, random_state=0).fit(x.numpy()) for _ in range(2)]
    assert torch.equal(weights(models[0].flow_), weights(models[1].flow_))
    assert state() == before


class TestRedirectedDraws:
    x = torch.full((5, 4), 0.5)
    DRAWS = {
        "rand": lambda x: torch.rand(3),
        "randn": lambda x: torch.randn(3, dtype=torch.float64),
        "randint": lambda x: torch.randint(5, (3,)),
        "randint from": lambda x: torch.randint(2, 5, (3,)),
        "randperm": lambda x: torch.randperm(9),
        "rand_like": torch.rand_like,
        "randn_like": lambda x: torch.randn_like(x, dtype=torch.float64),
        "randint_like": lambda x: torch.randint_like(x, 7),
        "randint_like from": lambda x: torch.randint_like(x, 2, 7),
        "normal": lambda x: torch.normal(x, x),
        "multinomial": lambda x: torch.multinomial(x, 2),
        "bernoulli": torch.bernoulli,
        "poisson": torch.poisson,
        "in place": lambda x: x.clone().exponential_(),
        "dropout": lambda x: nn.functional.dropout(x, 0.5),
        "alpha dropout": lambda x: nn.functional.alpha_dropout(x, 0.5),
        "rrelu": lambda x: nn.functional.rrelu(-x, training=True),
        "gumbel": nn.functional.gumbel_softmax,
        "attention": lambda x: nn.functional.scaled_dot_product_attention(
            x[None], x[None], x[None], dropout_p=0.5
        ),
        "lstm": lambda x: nn.LSTM(4, 4, 2, dropout=0.5)(x)[0].detach(),
        "gamma": lambda x: torch.distributions.Gamma(x, x).sample(),
        "dirichlet": lambda x: torch.distributions.Dirichlet(x).sample(),
        "binomial": lambda x: torch.distributions.Binomial(9, x).sample(),
        "student": lambda x: torch.distributions.StudentT(x).sample(),
        "weights": lambda x: nn.Linear(3, 3).weight.detach(),
        "vmap": lambda x: torch.func.vmap(lambda r: r + torch.rand(()), randomness="different")(x),
    }

    @pytest.mark.parametrize("name", DRAWS)
    def test_every_draw_is_that_of_torch_with_this_seed(self, name):
        draw, before = self.DRAWS[name], torch.get_rng_state()
        with drawing_from(torch.Generator().manual_seed(7)):
            value = draw(self.x)
        assert torch.equal(torch.get_rng_state(), before)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            assert torch.equal(value, draw(self.x))

    def test_a_named_generator_is_left_to_itself(self):
        with drawing_from(torch.Generator().manual_seed(7)):
            value = torch.rand(3, generator=torch.Generator().manual_seed(1))
        assert torch.equal(value, torch.rand(3, generator=torch.Generator().manual_seed(1)))

    def test_what_has_no_generator_borrows_the_global_state(self):
        before = torch.get_rng_state()
        values = []
        for _ in range(2):
            with drawing_from(torch.Generator().manual_seed(7)):
                values.append(torch.rand(3, out=torch.empty(3)))
        assert torch.equal(*values)
        with lending_global(torch.Generator().manual_seed(7)):
            assert not torch.equal(torch.get_rng_state(), before)
        assert torch.equal(torch.get_rng_state(), before)

    def test_gradients_go_through_a_redirected_dropout(self):
        x = self.x.clone().requires_grad_()
        with drawing_from(torch.Generator().manual_seed(7)):
            y = nn.functional.dropout(x, 0.5)
        (gradient,) = torch.autograd.grad(y.sum(), x)
        assert torch.equal(gradient * self.x, y.detach())

    def test_rows_that_are_computed_again_draw_the_same(self):
        """Chunks that forget their states must meet the same dropout on the way back."""
        from flowkit.dependence.joint import noise_and_log_det

        net = nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.5))
        flow, x, context = embedded(net).train(), normal(40, 2), normal(40, 2, seed=1)
        gradients = []
        for chunk in (10, 40):
            parts = range(0, 40, 10) if chunk == 40 else [0]
            flow.zero_grad()
            with drawing_from(torch.Generator().manual_seed(7)):
                for i in parts:
                    here = slice(i, i + (10 if chunk == 40 else 40))
                    z, log_det = noise_and_log_det(
                        flow, x[here], context=context[here], chunk=chunk
                    )
                    value = z.square().sum() - log_det
                    value.backward() if chunk == 40 else None
            if chunk == 10:
                value.backward()
            gradients.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
        torch.testing.assert_close(*gradients)


def test_what_may_draw_is_found():
    assert not may_draw(small())
    assert not may_draw(nn.Sequential(nn.Linear(2, 2), nn.SiLU(), nn.Dropout(0.0)))
    pool = nn.FractionalMaxPool2d(2, output_ratio=0.5)
    for net in (nn.Dropout(0.1), nn.RReLU(), nn.LSTM(2, 2, 2, dropout=0.1), pool, Own()):
        assert may_draw(nn.Sequential(net))
    assert not may_draw(nn.LSTM(2, 2))
    assert not may_draw(Old(), (Objective,))
