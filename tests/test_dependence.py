"""Covariances of rows against scipy's normal and dense algebra."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats
import torch
from linear_operator.operators import BlockDiagLinearOperator, DenseLinearOperator

from flowkit import DependentLikelihood, Flow, coupling_flow, fit
from flowkit.bases import StandardNormal
from flowkit.dependence import (
    AutoregressiveTime,
    EquicorrelatedBlocks,
    GivenCovariance,
    Kinship,
    KroneckerCovariance,
    Spatial,
    StructuredKinship,
    SumOfCovariances,
    UpdateCovariance,
    joint_log_prob,
    sample_jointly,
)
from flowkit.errors import ArgumentError, DataError, ShapeError
from flowkit.kernels import Matern
from flowkit.transforms import Permutation

N = 6


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def relationship(n=N, k=8):
    z = normal(n, k, seed=1)
    z = z / z.norm(dim=1, keepdim=True)
    return z @ z.mT


STRUCTURES = {
    "blocks": lambda: EquicorrelatedBlocks([0, 0, 1, 2, 2, 2], rho=0.4),
    "negative blocks": lambda: EquicorrelatedBlocks(list("aabbbb"), rho=-0.2),
    "a rho per block": lambda: EquicorrelatedBlocks([0, 0, 1, 2, 2, 2], rho=0.4, per_block=True),
    "kinship": lambda: Kinship(relationship(), residual_proportion=0.3),
    "low rank": lambda: Kinship(factor=normal(N, 2, seed=2), residual_proportion=0.3),
    "operator": lambda: StructuredKinship(
        DenseLinearOperator(relationship()), residual_proportion=0.3
    ),
    "given": lambda: GivenCovariance(0.3 * torch.eye(N).double() + 0.7 * relationship()),
    "time": lambda: AutoregressiveTime(
        [3.0, 1.0, 0.5, 2.0, 7.0, 1.5], series=list("ababab"), tau=2.0
    ),
    "space": lambda: Spatial(
        normal(N, 2, seed=3), Matern(2, nu=1.5, length_scale=1.0), residual_proportion=0.2
    ),
    "sum": lambda: SumOfCovariances(
        EquicorrelatedBlocks([0, 0, 1, 2, 2, 2], rho=0.4),
        Kinship(relationship(), residual_proportion=0.3),
        weights=[0.25, 0.75],
    ),
    "product": lambda: KroneckerCovariance(
        EquicorrelatedBlocks([0, 0], rho=0.4), AutoregressiveTime([0.0, 1.0, 3.0])
    ),
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_structures_are_normal_laws_of_their_matrix(name):
    structure = STRUCTURES[name]().double()
    matrix = structure.matrix().detach()
    assert matrix.shape == (N, N)
    assert torch.allclose(matrix.diagonal(), torch.ones(N).double(), atol=1e-12)
    assert torch.allclose(matrix, matrix.mT, atol=1e-12)
    u = normal(N, 3, seed=4)
    law = scipy.stats.multivariate_normal(np.zeros(N), matrix.numpy())
    exact = sum(law.logpdf(column) for column in u.T.numpy())
    assert abs(structure.log_prob(u).item() - exact) < 1e-8
    assert torch.allclose(structure.solve(u), torch.linalg.solve(matrix, u), atol=1e-10)
    assert structure.log_det().item() == pytest.approx(
        torch.linalg.slogdet(matrix)[1].item(), abs=1e-10
    )
    # The correlated unit matrix is a root of the covariance.
    root = structure.correlate(torch.eye(N).double())
    assert torch.allclose(root @ root.mT, matrix, atol=1e-10)
    raw = [p for p in structure.parameters() if p.requires_grad]
    if raw:
        gradients = torch.autograd.grad(structure.log_prob(u), raw, allow_unused=True)
        step = 1e-6
        for parameter, gradient in zip(raw, gradients, strict=True):
            if gradient is None or parameter.numel() != 1:
                continue
            values = []
            for sign in (1, -1):
                with torch.no_grad():
                    parameter += sign * step
                    values.append(structure.log_prob(u).item())
                    parameter -= sign * step
            assert gradient.item() == pytest.approx(
                (values[0] - values[1]) / (2 * step), rel=1e-5, abs=1e-6
            )


@pytest.mark.parametrize("rho", [-0.01, 0.0, 0.5, 0.99])
@pytest.mark.parametrize("size", [1, 2, 50])
def test_equicorrelation_in_closed_form(rho, size):
    blocks = EquicorrelatedBlocks([0] * size + [1] * 2, rho=rho).double()
    assert blocks.rho.item() == pytest.approx(rho, abs=1e-6)
    rho = blocks.rho.item()
    inverse = np.linalg.inv(blocks.matrix().detach().numpy())
    ours = blocks.solve(torch.eye(size + 2).double()).detach().numpy()
    assert np.abs(ours - inverse).max() < 1e-10
    m = size
    if m > 1:
        delta = (1 - rho) * (1 + (m - 1) * rho)
        assert ours[0, 0] == pytest.approx((1 + (m - 2) * rho) / delta, rel=1e-10)
        assert ours[0, 1] == pytest.approx(-rho / delta, rel=1e-9, abs=1e-12)


def test_no_dependence_is_independence():
    u = normal(N, 2)
    exact = scipy.stats.norm.logpdf(u.numpy()).sum()
    blocks = EquicorrelatedBlocks([0, 0, 0, 1, 1, 1], rho=0.0).double()
    assert blocks.log_prob(u).item() == pytest.approx(exact, abs=1e-6)
    single = EquicorrelatedBlocks(range(N), rho=0.7).double()
    assert single.log_prob(u).item() == pytest.approx(exact, abs=1e-12)
    kinship = Kinship(torch.eye(N), residual_proportion=0.3)
    assert kinship.log_prob(u).item() == pytest.approx(exact, abs=1e-12)


def test_parameters_are_recovered_and_never_stale():
    matrix = relationship(300, 40)
    truth = Kinship(matrix, residual_proportion=0.4)
    u = truth.sample(4, torch.Generator().manual_seed(5)).detach()
    model = Kinship(matrix, residual_proportion=0.8)
    before = model.log_prob(u).item()
    model.fit_parameters(u)
    proportion = model.residual_proportion.item()
    assert model.log_prob(u).item() > before
    # Information of the proportion: p / 2 sum of squares of the slope of the log-spectrum.
    spectrum = 0.4 + 0.6 * truth.relationship.values
    information = 2 * (((1 - truth.relationship.values) / spectrum) ** 2).sum().item()
    # Below full rank the rest of the spectrum is zero, and in values as well.
    assert abs(proportion - 0.4) < 3 / math.sqrt(information)
    (slope,) = torch.autograd.grad(model.log_prob(u), model.raw)
    assert abs(slope.item()) < 1e-2

    blocks = np.repeat(np.arange(200), 5)
    u = EquicorrelatedBlocks(blocks, rho=0.3).double().sample(2, torch.Generator().manual_seed(6))
    u = u.detach()
    grid = np.linspace(0.05, 0.6, 551)
    values = [EquicorrelatedBlocks(blocks, rho=r).double().log_prob(u).item() for r in grid]
    best = grid[int(np.argmax(values))]
    model = EquicorrelatedBlocks(blocks, rho=0.1).double()
    optimizer = torch.optim.LBFGS(model.parameters(), line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        value = -model.log_prob(u)
        value.backward()
        return value

    for _ in range(3):
        optimizer.step(loss)
    assert model.rho.item() == pytest.approx(best, abs=2e-3)
    # The standard error of rho for blocks of m rows and p columns, from the information.
    m, p = 5, 2
    terms = (m - 1) / (1 - 0.3) ** 2 + ((m - 1) / (1 + (m - 1) * 0.3)) ** 2
    assert abs(model.rho.item() - 0.3) < 3 / math.sqrt(200 * p / 2 * terms)


@pytest.mark.parametrize("name", ["blocks", "low rank", "time", "product"])
def test_draws_have_the_covariance(name):
    structure = STRUCTURES[name]().double()
    draws = 20_000
    u = structure.sample(draws, torch.Generator().manual_seed(7)).detach()
    matrix = structure.matrix().detach()
    # The variance of a product of normals is 1 + C_ij^2.
    error = (1 + matrix.square()).sqrt() / math.sqrt(draws)
    assert ((u @ u.mT / draws - matrix).abs() < 4.5 * error).all()


def test_relatives_are_drawn_given_those_observed():
    structure = STRUCTURES["kinship"]().double()
    matrix = structure.matrix().detach()
    observed, u = torch.tensor([4, 1]), normal(2, 1, seed=8)
    draws = 20_000
    drawn = structure.sample_given(
        u.expand(2, draws), observed, torch.Generator().manual_seed(9)
    ).detach()
    assert torch.allclose(drawn[observed], u.expand(2, draws))
    rest = torch.tensor([0, 2, 3, 5])
    known = matrix[observed][:, observed]
    across = matrix[rest][:, observed]
    mean = across @ torch.linalg.solve(known, u)
    left = matrix[rest][:, rest] - across @ torch.linalg.solve(known, across.mT)
    error = left.diagonal().sqrt() / math.sqrt(draws)
    assert ((drawn[rest].mean(1) - mean[:, 0]).abs() < 4.5 * error).all()
    covariance = drawn[rest].cov()
    scale = left.diagonal().sqrt()
    assert ((covariance - left).abs() < 6 * scale[:, None] * scale / math.sqrt(draws)).all()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: EquicorrelatedBlocks([]), DataError, "one name per row"),
        (
            lambda: EquicorrelatedBlocks([0, 0, 0], rho=-0.6),
            ArgumentError,
            "rho as a finite number > -0.4999",
        ),
        (lambda: EquicorrelatedBlocks([0.0, float("nan")]), DataError, "a name for every row"),
        (lambda: Kinship(), ArgumentError, "a matrix or a factor"),
        (lambda: Kinship(torch.ones(2, 3)), ShapeError, "a square matrix"),
        (lambda: Kinship(2 * torch.eye(2)), DataError, "a unit diagonal"),
        (lambda: Kinship(torch.tensor([[1.0, 2], [2, 1]])), DataError, "semi-definite"),
        (lambda: Kinship(factor=torch.zeros(3, 2)), DataError, "rows other than zero"),
        (
            lambda: Kinship(torch.eye(2), residual_proportion=1.0),
            ArgumentError,
            "residual_proportion as",
        ),
        (lambda: GivenCovariance(torch.ones(2, 2)), DataError, "positive definite"),
        (lambda: GivenCovariance(2 * torch.eye(2)), DataError, "unit diagonal"),
        (lambda: AutoregressiveTime([0.0, 0.0]), DataError, "different times"),
        (
            lambda: AutoregressiveTime([0.0, 1.0], tau=0.0),
            ArgumentError,
            "tau as a finite number > 0",
        ),
        (lambda: AutoregressiveTime([0.0], series=[0, 1]), DataError, "a series per observation"),
        (lambda: Spatial(torch.zeros(3, 2), Matern(3)), ArgumentError, "a kernel of d features"),
        (lambda: StructuredKinship(torch.eye(2)), ArgumentError, "a LinearOperator"),
        (
            lambda: StructuredKinship(DenseLinearOperator(2 * torch.eye(2))),
            DataError,
            "a unit diagonal",
        ),
        (lambda: SumOfCovariances(), ArgumentError, "of the same observations"),
        (
            lambda: EquicorrelatedBlocks([0, 1]).log_prob(torch.zeros(3, 2)),
            ShapeError,
            "expected a matrix \\(2, p\\)",
        ),
        (
            lambda: EquicorrelatedBlocks([0, 1]).sample_given(torch.zeros(3, 2), [0]),
            ShapeError,
            "m indices",
        ),
    ],
)
def test_what_is_no_covariance_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def flow_of(features=2, seed=3, **options):
    torch.manual_seed(seed)
    flow = coupling_flow(features, layers=2, hidden=(8,), start=None, **options).double()
    for parameter in flow.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return flow


def gradients_of(value, *modules):
    parameters = [p for m in modules for p in m.parameters() if p.requires_grad]
    return torch.autograd.grad(value, parameters, allow_unused=True)


@pytest.mark.parametrize("name", ["blocks", "kinship", "time", "sum"])
def test_the_joint_density_is_the_law_of_the_noise_and_the_volume(name):
    flow, x = flow_of(), normal(N, 2)
    structure = STRUCTURES[name]().double()
    noise, log_det = flow.transform(x)
    law = scipy.stats.multivariate_normal(np.zeros(N), structure.matrix().detach().numpy())
    exact = sum(law.logpdf(c) for c in noise.detach().T.numpy()) + log_det.sum().item()
    assert joint_log_prob(flow, x, structure).item() == pytest.approx(exact, abs=1e-8)
    loss = DependentLikelihood(structure)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    value = loss(flow, {"x": x[order], "row": order.double()}).value
    assert value.item() == pytest.approx(-exact / N, abs=1e-9)
    single = loss.eval()(flow, {"x": x}).value
    assert single.item() == pytest.approx(-flow.log_prob(x).mean().item())


@pytest.mark.parametrize("chunk", [1, 4, 5])
def test_gradients_by_chunks_are_those_of_all_at_once(chunk):
    flow, x, context = flow_of(context=1), normal(N, 2), normal(N, 1, seed=2)
    structure = STRUCTURES["blocks"]().double()
    batch = {"x": x, "row": torch.arange(N), "context": context}
    values, gradients = [], []
    for size in (None, chunk):
        value = DependentLikelihood(structure, chunk=size)(flow, batch).value
        values.append(value.item())
        gradients.append(gradients_of(value, flow, structure))
    assert values[0] == pytest.approx(values[1], abs=1e-12)
    for a, b in zip(*gradients, strict=True):
        assert (a is None and b is None) or torch.allclose(a, b, atol=1e-10)


@pytest.mark.parametrize("name", ["blocks", "kinship"])
def test_pairs_average_to_the_exact_value_and_gradient(name):
    flow, x = flow_of(), normal(N, 2)
    structure = STRUCTURES[name]().double()
    every = torch.arange(N)
    exact = DependentLikelihood(structure)(flow, {"x": x, "row": every}).value
    pairs = DependentLikelihood(structure, mode="pairs")
    subsets = [torch.tensor(s) for s in itertools.combinations(range(N), 3)]
    mean = torch.stack([pairs(flow, {"x": x[s], "row": s}).value for s in subsets]).mean()
    assert mean.item() == pytest.approx(exact.item(), abs=1e-10)
    for a, b in zip(
        gradients_of(mean, flow, structure), gradients_of(exact, flow, structure), strict=True
    ):
        assert (a is None and b is None) or torch.allclose(a, b, atol=1e-10)


@pytest.mark.parametrize("name", ["blocks", "a rho per block", "time"])
def test_whole_blocks_average_to_the_exact_value_and_gradient(name):
    flow, x = flow_of(), normal(N, 2)
    structure = STRUCTURES[name]().double()
    exact = DependentLikelihood(structure)(flow, {"x": x, "row": torch.arange(N)}).value
    slopes = gradients_of(exact, flow, structure)
    blocks = DependentLikelihood(structure, mode="blocks")
    count = int(structure.block.max()) + 1
    for size in range(1, count + 1):
        subsets = [
            torch.cat([(structure.block == b).nonzero()[:, 0] for b in chosen])
            for chosen in itertools.combinations(range(count), size)
        ]
        mean = torch.stack([blocks(flow, {"x": x[s], "row": s}).value for s in subsets]).mean()
        assert mean.item() == pytest.approx(exact.item(), abs=1e-10)
        for a, b in zip(gradients_of(mean, flow, structure), slopes, strict=True):
            assert (a is None and b is None) or torch.allclose(a, b, atol=1e-10)


def test_whole_families_spread_less_than_pairs():
    families = np.repeat(np.arange(500), 4)
    structure = EquicorrelatedBlocks(families, rho=0.9, learn=False)
    flow = Flow(Permutation([0, 1]), StandardNormal(2))
    x = structure.sample(2, torch.Generator().manual_seed(0)).detach()
    rng = np.random.default_rng(0)
    values = {"pairs": [], "blocks": []}
    for _ in range(100):
        rows = {
            "pairs": rng.choice(2000, 256, replace=False),
            "blocks": np.flatnonzero(np.isin(families, rng.choice(500, 64, replace=False))),
        }
        for mode, chosen in rows.items():
            here = torch.from_numpy(chosen)
            loss = DependentLikelihood(structure, mode=mode)
            values[mode].append(loss(flow, {"x": x[here], "row": here}).value.item())
    # A standard deviation of 100 draws has a relative error of 0.07.
    assert np.std(values["blocks"]) < np.std(values["pairs"]) / 4
    exact = DependentLikelihood(structure)(flow, {"x": x, "row": torch.arange(2000)}).value
    for drawn in values.values():
        assert abs(np.mean(drawn) - exact.item()) < 4 * np.std(drawn) / 10


@pytest.mark.parametrize("name", STRUCTURES)
def test_some_rows_have_the_marginal_density(name):
    structure = STRUCTURES[name]().double()
    some, u = torch.tensor([5, 0, 3]), normal(3, 2, seed=6)
    matrix = structure.matrix().detach()[some][:, some]
    law = scipy.stats.multivariate_normal(np.zeros(3), matrix.numpy())
    exact = sum(law.logpdf(column) for column in u.T.numpy())
    assert structure.log_prob(u, some).item() == pytest.approx(exact, abs=1e-8)
    flow = flow_of()
    x = normal(3, 2, seed=7)
    noise, log_det = flow.transform(x)
    held_out = DependentLikelihood(structure).eval()(flow, {"x": x, "row": some}).value
    exact = sum(law.logpdf(c) for c in noise.detach().T.numpy()) + log_det.sum().item()
    assert held_out.item() == pytest.approx(-exact / 3, abs=1e-8)


def test_operators_beyond_the_exact_size_are_solved_iteratively():
    pair = torch.tensor([[1.0, 0.6], [0.6, 1.0]]).double()
    pairs = BlockDiagLinearOperator(DenseLinearOperator(pair.expand(400, 2, 2)))
    near = StructuredKinship(pairs, residual_proportion=0.5, exact=0, probes=64)
    exact = EquicorrelatedBlocks(np.repeat(np.arange(400), 2), rho=0.3).double()
    u = normal(800, 2)
    assert torch.allclose(near.solve(u), exact.solve(u), atol=1e-6)
    # The quadrature is exact for each probe z, whose term is z^T log(C) z: log C has the same
    # two by two blocks, with an off-diagonal of log(1.3 / 0.7) / 2.
    error = math.sqrt(4 * 400 / 64) * math.log(1.3 / 0.7) / 2
    assert abs(near.log_det().item() - exact.log_det().item()) < 4 * error


@pytest.mark.parametrize("name", ["blocks", "kinship", "time", "operator", "sum"])
def test_fitted_parameters_maximise_the_likelihood(name):
    structure = STRUCTURES[name]().double()
    u = structure.sample(200, torch.Generator().manual_seed(2)).detach()
    structure.fit_parameters(u)
    learned = [p for p in structure.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(structure.log_prob(u) / u.numel(), learned)
    assert all(g.abs().max() < 1e-4 for g in gradients)
    assert all(p.grad is None for p in structure.parameters())


def test_fits_by_whole_blocks_hold_out_whole_blocks():
    blocks = np.repeat(np.arange(60), np.arange(60) % 4 + 1)
    truth = EquicorrelatedBlocks(blocks, rho=0.7)
    x = truth.sample(2, torch.Generator().manual_seed(1)).detach()
    structure = EquicorrelatedBlocks(blocks, rho=0.05)
    seen = []

    class Watched(DependentLikelihood):
        def forward(self, flow, batch):
            seen.append((self.training, frozenset(batch["row"].long().tolist())))
            return super().forward(flow, batch)

    data = {"x": x, "row": torch.arange(len(x)), "group": torch.from_numpy(blocks)}
    torch.manual_seed(0)
    history = fit(
        coupling_flow(2, layers=1, scalar="affine", hidden=(4,)),
        data,
        Watched(structure, mode="blocks"),
        validation=0.2,
        batch_size=30,
        epochs=40,
        lr=3e-2,
        patience=None,
        compile=False,
        progress=False,
    )
    assert len(history.validation) == 40
    wholes = [frozenset(np.flatnonzero(blocks == b).tolist()) for b in range(60)]
    for _, rows in seen:
        assert sum(len(w) for w in wholes if w & rows) == len(rows)
    held = frozenset().union(*(rows for training, rows in seen if not training))
    assert sum(bool(w & held) for w in wholes) == 12
    assert not any(rows & held for training, rows in seen if training)
    assert structure.rho.item() > 0.4


@pytest.mark.parametrize(("length", "at"), [("steps", [50, 100]), ("epochs", [2, 4])])
def test_a_covariance_is_updated_at_every_so_many_records(length, at):
    """Records are 25 steps apart, and with ``epochs`` an epoch, here of one step."""
    blocks = np.repeat(np.arange(30), 3)
    truth = EquicorrelatedBlocks(blocks, rho=0.7)
    x = truth.sample(2, torch.Generator().manual_seed(1)).detach()
    structure = EquicorrelatedBlocks(blocks, rho=0.05, learn=False)
    changed, values = [], [structure.rho.item()]

    def watch(flow, history):
        if structure.rho.item() != values[-1]:
            changed.append(history.steps[-1])
            values.append(structure.rho.item())

    torch.manual_seed(0)
    fit(
        coupling_flow(2, layers=1, scalar="affine", hidden=(4,)),
        {"x": x, "row": torch.arange(len(x))},
        DependentLikelihood(structure),
        validation=None,
        batch_size=len(x),
        progress=False,
        callbacks=[UpdateCovariance(structure, x, every=2), watch],
        **{length: 100 if length == "steps" else 5},
    )
    assert changed == at


def test_flows_start_from_blocks_not_from_the_largest():
    blocks = np.repeat(np.arange(201), [1000] + [1] * 200)
    structure = EquicorrelatedBlocks(blocks, rho=0.99)
    x = 5 + torch.cat([2 + torch.zeros(1000, 1), torch.linspace(-1, 1, 200)[:, None]])
    loss = DependentLikelihood(structure)
    started = loss.start({"x": x, "row": torch.arange(1200)})["x"]
    # The large block has the weight of 1000 / (1 + 999 * 0.99) rows, about one.
    assert started.shape == x.shape
    assert started.mean().item() == pytest.approx(5, abs=0.03)
    assert started.std().item() == pytest.approx(3**-0.5, rel=0.05)
    assert torch.equal(loss.start({"x": x})["x"], x)


def test_correlation_times_do_not_depend_on_the_unit():
    found = []
    for unit in (1.0, 86_400.0):
        times = unit * torch.arange(600).double()
        truth = AutoregressiveTime(times, tau=30 * unit)
        u = truth.sample(4, torch.Generator().manual_seed(0)).detach()
        model = AutoregressiveTime(times, tau=unit)
        model.fit_parameters(u)
        found.append(model.tau.item() / unit)
    assert found[0] == pytest.approx(found[1], rel=1e-6)
    # The variance of an autoregressive coefficient a is (1 - a^2) / N, that of log tau 2 tau / N.
    assert abs(found[0] / 30 - 1) < 4 * math.sqrt(2 * 30 / (600 * 4))


def test_searches_beyond_the_exact_size_use_the_same_probes():
    block = torch.full((4, 4), 0.6).double().fill_diagonal_(1.0)
    blocks = BlockDiagLinearOperator(DenseLinearOperator(block.expand(60, 4, 4)))
    u = StructuredKinship(blocks, residual_proportion=0.4).sample(6).detach()
    near = StructuredKinship(blocks, residual_proportion=0.8, exact=0)
    exact = StructuredKinship(blocks, residual_proportion=0.8)
    for model in (near, exact):
        model.fit_parameters(u)
    assert near.residual_proportion.item() == pytest.approx(
        exact.residual_proportion.item(), abs=0.1
    )


def test_fits_learn_the_correlation_with_the_flow():
    blocks = np.repeat(np.arange(100), 4)
    truth = EquicorrelatedBlocks(blocks, rho=0.6)
    x = 3 + 2 * truth.sample(2, torch.Generator().manual_seed(1)).detach()
    structure = EquicorrelatedBlocks(blocks, rho=0.05)
    torch.manual_seed(0)
    flow = coupling_flow(2, layers=1, scalar="affine", hidden=(4,))
    fit(
        flow,
        {"x": x, "row": torch.arange(len(x))},
        DependentLikelihood(structure, chunk=150),
        validation=None,
        batch_size=len(x),
        epochs=300,
        lr=3e-2,
        compile=False,
        progress=False,
    )
    assert structure.rho.item() == pytest.approx(0.6, abs=0.1)
    drawn = sample_jointly(flow, structure, generator=torch.Generator().manual_seed(2))
    assert drawn.shape == x.shape
    assert abs(drawn.mean().item() - 3) < 0.5
    some = torch.arange(0, 400, 4)
    filled = sample_jointly(flow, structure, x=x[some], observed=some)
    assert torch.equal(filled[some], x[some])
    # Relatives are near: rows of a family correlate with the observed one.
    rest = filled.reshape(100, 4, 2)[:, 1:].mean(1)
    assert np.corrcoef(rest[:, 0].detach(), x[some][:, 0])[0, 1] > 0.4


def test_given_observations_that_do_not_fit_are_refused():
    families, flow = EquicorrelatedBlocks([0, 0, 1]), coupling_flow(2, layers=1, context=1)
    x, context = torch.ones(1, 2), torch.ones(3, 1)
    for given, theirs, error, words in (
        (x, context, DataError, "different indices from 0 to 2"),
        (x, context[:1], ShapeError, r"context \(3, C\), got \(1, 1\)"),
        ([[1.0, 2.0]], context, ArgumentError, "x as a Tensor"),
    ):
        observed = [3] if error is DataError else [1]
        with pytest.raises(error, match=words):
            sample_jointly(flow, families, x=given, observed=observed, context=theirs)


def test_the_root_of_blocks_is_that_of_their_matrix_in_double_precision():
    families = EquicorrelatedBlocks([0, 0, 0, 1, 1, 2], rho=0.4)
    root = families.correlate(torch.eye(6, dtype=torch.float64))
    torch.testing.assert_close(root @ root.mT, families.matrix().double(), atol=1e-14, rtol=0)


def test_what_has_no_joint_likelihood_is_named():
    blocks = EquicorrelatedBlocks([0, 0, 1])
    flow, x = coupling_flow(2, layers=1), torch.zeros(3, 2)
    loss = DependentLikelihood(blocks)
    with pytest.raises(DataError, match="a batch with 'row'"):
        loss(flow, {"x": x})
    with pytest.raises(DataError, match="all 3 samples at once, or whole blocks of them, got 2"):
        loss(flow, {"x": x[:2], "row": torch.tensor([1, 2])})
    with pytest.raises(DataError, match="name the block of each as 'group'"):
        DependentLikelihood(blocks, mode="blocks")(flow, {"x": x[:1], "row": torch.tensor([0])})
    whole = DependentLikelihood(Kinship(torch.eye(3).double()), mode="blocks")
    with pytest.raises(DataError, match="a covariance that has some"):
        whole(flow, {"x": x, "row": torch.arange(3)})
    with pytest.raises(DataError, match="on a StandardNormal base, got StudentT"):
        joint_log_prob(coupling_flow(2, base="student_t"), x, blocks)
    pairs = DependentLikelihood(blocks, mode="pairs")
    with pytest.raises(DataError, match="at least 2 samples"):
        pairs(flow, {"x": x[:1], "row": torch.arange(1)})
    with pytest.raises(DataError, match="different indices from 0 to 2"):
        loss(flow, {"x": x, "row": torch.tensor([0, 0, 2])})
    with pytest.raises(DataError, match="different indices from 0 to 2"):
        loss(flow, {"x": x, "row": torch.tensor([0, 1, 3])})
    with pytest.raises(DataError, match="samples of one weight"):
        loss(flow, {"x": x, "row": torch.arange(3), "weight": torch.arange(3.0)})
    with pytest.raises(DataError, match="got whole groups"):
        pairs(flow, {"x": x, "row": torch.arange(3), "group": torch.arange(3)})
    with pytest.raises(DataError, match="all 3 observations of the covariance"):
        UpdateCovariance(blocks, x[:2])
    with pytest.raises(DataError, match="different indices"):
        blocks.sample_given(x[:2], [1, 1])
    GivenCovariance(torch.eye(3)).fit_parameters(x)
    with pytest.raises(ArgumentError, match="mode as one of"):
        DependentLikelihood(blocks, mode="all")
    with pytest.raises(ArgumentError, match="chunk as an integer >= 1"):
        DependentLikelihood(blocks, chunk=0)
