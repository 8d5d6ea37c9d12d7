"""A reversible Compose: the gradients of the plain one, in the memory of one layer."""

import copy
import pickle
import weakref

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.utils._python_dispatch import TorchDispatchMode

import flowkit
from flowkit import ReverseKL, coupling_flow, fit
from flowkit.conditioners import MLP
from flowkit.errors import NotInvertibleError
from flowkit.scalar import Affine, LogisticMixture, RationalQuadraticSpline
from flowkit.stochastic import Dequantize
from flowkit.testing.probe import randomize
from flowkit.transforms import (
    ActNorm,
    Compose,
    Coupling,
    Elementwise,
    LULinear,
    MaskedAutoregressive,
    OrthogonalLinear,
    Permutation,
    Standardize,
    Transform,
)

SPLINE = RationalQuadraticSpline(bins=4, bound=3.0)


def mlp(*args, **kwargs):
    return MLP(*args, hidden=(8, 8), **kwargs)


def every_kind_of_layer():
    torch.manual_seed(0)
    shared = Coupling([True, False, True], Affine(), conditioner=mlp)
    return [
        Standardize(3),
        ActNorm(3),
        Permutation([2, 0, 1]),
        Coupling([False, True, True], SPLINE, conditioner=mlp, context=2),
        LULinear(3),
        shared,
        Elementwise(3, LogisticMixture(components=2), context=2, conditioner=mlp),
        OrthogonalLinear(3),
        MaskedAutoregressive(3, Affine()),
        Coupling([True, True, False], SPLINE, conditioner=mlp, context=2).inv,
        Compose(
            Permutation([1, 2, 0]), Coupling([1, 1, 0], SPLINE, conditioner=mlp), reversible=True
        ),
        # The same layer again: its gradients add up.
        shared,
    ]


def pair(layers):
    """The same layers, plain and reversible, with the same random parameters."""
    plain = randomize(Compose(*layers), 0.2, torch.Generator().manual_seed(0)).double()
    reversible = copy.deepcopy(plain)
    reversible.reversible = True
    return plain, reversible


def gradients(transform, x, context, direction="forward", outputs=(0, 1)):
    x, context = x.clone().requires_grad_(), context.clone().requires_grad_()
    both = getattr(transform, direction)(x, context)
    weight = torch.linspace(0.5, 1.5, 3, dtype=x.dtype)
    losses = (weight * both[0].square()).mean(), both[1].mean()
    transform.zero_grad()
    sum(losses[i] for i in outputs).backward()
    found = {name: p.grad for name, p in transform.named_parameters()}
    return {"x": x.grad, "context": context.grad, **found}


def rows(n=16, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, 3, generator=generator, dtype=torch.float64).to(dtype)
    return x, torch.randn(n, 2, generator=generator, dtype=torch.float64).to(dtype)


def expect_same(got, want, tolerance):
    assert got.keys() == want.keys()
    for name, gradient in want.items():
        if gradient is None:
            assert got[name] is None, name
            continue
        error = (got[name] - gradient).norm() / gradient.norm().clamp_min(1e-3)
        assert error < tolerance, f"{name}: {error:.2g}"


@pytest.mark.parametrize("outputs", [(0, 1), (0,), (1,)], ids=["both", "z", "log_det"])
@pytest.mark.parametrize("direction", ["forward", "inverse", "unnormalized"])
def test_gradients_are_those_of_the_plain_stack(direction, outputs):
    plain, reversible = pair(every_kind_of_layer())
    x, context = rows()
    with torch.no_grad():
        x = plain(x, context)[0] if direction == "inverse" else x
    both = (getattr(t, direction)(x, context) for t in (reversible, plain))
    torch.testing.assert_close(*both, rtol=1e-12, atol=1e-12)
    want = gradients(plain, x, context, direction, outputs)
    expect_same(gradients(reversible, x, context, direction, outputs), want, 1e-9)


@pytest.mark.parametrize("scalar", ["affine", "spline"])
def test_deep_stacks_keep_the_digits(scalar):
    torch.manual_seed(0)
    flow = coupling_flow(6, layers=64, scalar=scalar, hidden=(8,))
    randomize(flow, 0.01, torch.Generator().manual_seed(0))
    # A spline's second derivative jumps at knots, where single precision has no digits to keep.
    for dtype, tolerance in {torch.float64: 1e-9, torch.float32: 1e-5}.items():
        if (scalar, dtype) == ("spline", torch.float32):
            continue
        flow.to(dtype)
        x = torch.randn(64, 6, dtype=dtype, generator=torch.Generator().manual_seed(1))
        found = {}
        for reversible in (False, True):
            flow.transform.reversible = reversible
            flow.zero_grad()
            flow.log_prob(x).mean().backward()
            found[reversible] = torch.cat([p.grad.flatten() for p in flow.parameters()])
        assert (found[True] - found[False]).norm() < tolerance * found[False].norm()


def test_frozen_parameters_get_no_gradient_and_early_layers_are_not_undone(monkeypatch):
    plain, reversible = pair([LULinear(3) for _ in range(4)])
    for transform in (plain, reversible):
        for layer in list(transform.transforms)[:2]:
            layer.requires_grad_(False)
    x, _ = rows()
    want = plain(x)[1].sum() + plain(x)[0].square().sum()
    want.backward()
    calls = []
    inverse = LULinear.inverse
    monkeypatch.setattr(
        LULinear,
        "inverse",
        lambda self, *args, **kw: calls.append(self) or inverse(self, *args, **kw),
    )
    z, log_det = reversible(x)
    (log_det.sum() + z.square().sum()).backward()
    assert calls == [reversible[3], reversible[2]]
    expect_same(*({n: p.grad for n, p in t.named_parameters()} for t in (reversible, plain)), 1e-9)


def test_context_may_be_none_and_batches_may_have_any_shape():
    plain, reversible = pair(
        [LULinear(3), Coupling([0, 1, 1], SPLINE, conditioner=mlp), ActNorm(3)]
    )
    for shape in ((3,), (0, 3), (2, 4, 3)):
        x = torch.randn(*shape, dtype=torch.float64)
        for t in (plain, reversible):
            z, log_det = t(x)
            assert log_det.shape == shape[:-1]
            t.zero_grad()
            (z.sum() + log_det.sum()).backward()
        for p, q in zip(plain.parameters(), reversible.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad)


def test_context_broadcasts_over_the_batch():
    plain, reversible = pair(
        [Coupling([0, 1, 1], SPLINE, conditioner=mlp, context=2), LULinear(3)]
    )
    x, context = rows(5)
    expect_same(*(gradients(t, x, context[:1]) for t in (reversible, plain)), 1e-9)


class Peak(TorchDispatchMode):
    """Largest number of bytes that were alive at once, of those made under this mode."""

    def __init__(self):
        super().__init__()
        self.alive, self.peak, self.sizes = 0, 0, {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.sizes:
                    self.sizes[storage._cdata] = storage.nbytes()
                    self.alive += storage.nbytes()
                    weakref.finalize(storage, self._gone, storage._cdata)
                self.peak = max(self.peak, self.alive)
        return out

    def _gone(self, key):
        self.alive -= self.sizes.pop(key)


def peak_bytes(layers, reversible):
    """Of one training step, less what its parameters' gradients take."""
    torch.manual_seed(0)
    flow = coupling_flow(6, layers=layers, scalar="affine", hidden=(16, 16))
    flow.transform.reversible = reversible
    x = torch.randn(4096, 6)
    with Peak() as peak:
        flow.log_prob(x).mean().backward()
    return peak.peak - sum(p.numel() * p.element_size() for p in flow.parameters())


def test_memory_does_not_grow_with_depth():
    assert peak_bytes(24, True) < 1.1 * peak_bytes(4, True)
    assert peak_bytes(24, False) > 4 * peak_bytes(4, False)


class OneWay(Transform):
    def forward(self, x, context=None):
        return x + 1, x.new_zeros(x.shape[:-1])


class Noisy(nn.Module):
    def __init__(self, n, out, context=0):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(n, 8), nn.Dropout(0.5), nn.Linear(8, out))

    def forward(self, x, context=None):
        return self.layers(x)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (lambda: OneWay((2,)), r"OneWay\(features=2\) does not define both directions.*remedy"),
        (lambda: OneWay((2,)).inv, r"Inverse\(features=2\) does not define both directions"),
        (lambda: Compose(LULinear(2), OneWay((2,))), r"Compose\(features=2\) does not define"),
        (lambda: Dequantize(2), r"Dequantize\(features=2\) is stochastic.*remedy"),
    ],
)
def test_layers_that_cannot_be_undone_are_refused(layer, message):
    with pytest.raises(NotInvertibleError, match=message):
        Compose(layer(), LULinear(2), reversible=True)
    later = Compose(layer(), LULinear(2))
    with pytest.raises(NotInvertibleError, match=message):
        later.reversible = True
    assert not later.reversible


def test_active_dropout_is_refused():
    t = Compose(Coupling([0, 1], Affine(), conditioner=Noisy), reversible=True)
    with pytest.raises(NotInvertibleError, match=r"holds Dropout\(p=0.5\).*remedy"):
        t(torch.zeros(3, 2))
    t.eval()(torch.zeros(3, 2))[0].sum().backward()


def test_gradients_can_be_differentiated_again():
    plain, reversible = pair([Coupling([0, 1, 1], SPLINE, conditioner=mlp), LULinear(3)])
    found = []
    for t in (plain, reversible):
        x = rows()[0].requires_grad_()
        z, log_det = t(x)
        loss = z.square().sum() + log_det.sum()
        (first,) = torch.autograd.grad(loss, x, create_graph=True)
        first.square().sum().backward()
        found.append({"x": x.grad, **{n: p.grad for n, p in t.named_parameters()}})
    expect_same(found[1], found[0], 1e-9)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_torch_func_and_forward_mode_see_the_layers():
    plain, reversible = pair([Coupling([0, 1, 1], Affine(), conditioner=mlp), LULinear(3)])
    x, _ = rows()
    results = [
        (
            vmap(grad(lambda row, t=t: t(row)[1] + t(row)[0].sum()))(x),
            torch.func.jvp(lambda x, t=t: t(x)[0], (x,), (torch.ones_like(x),))[1],
            torch.autograd.functional.jacobian(lambda x, t=t: t(x)[0], x[0], vectorize=True),
        )
        for t in (plain, reversible)
    ]
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_parameters_given_for_one_call_get_the_gradients():
    plain, reversible = pair([Coupling([0, 1, 1], Affine(), conditioner=mlp), LULinear(3)])
    x, _ = rows()
    found = []
    for t in (plain, reversible):
        given = {n: (2 * p).detach().requires_grad_() for n, p in t.named_parameters()}
        z, log_det = functional_call(t, given, (x,))
        (z.square().sum() + log_det.sum()).backward()
        assert all(p.grad is None for p in t.parameters())
        found.append({n: p.grad for n, p in given.items()})
    expect_same(found[1], found[0], 1e-9)


def test_parameters_changed_before_the_backward_pass_are_noticed():
    t = Compose(LULinear(3), LULinear(3), reversible=True)
    z, _ = t(torch.randn(4, 3))
    with torch.no_grad():
        t[0].bias.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.sum().backward()


def test_without_gradients_nothing_is_undone(monkeypatch):
    t = Compose(LULinear(3), LULinear(3), reversible=True)
    monkeypatch.setattr("flowkit.transforms.reversible._Reversible.apply", None)
    x = torch.randn(4, 3)
    with torch.no_grad():
        assert not t(x)[0].requires_grad
    assert not t.requires_grad_(False)(x)[0].requires_grad


def test_layers_are_repeated_under_the_same_autocast():
    torch.manual_seed(0)
    flow = coupling_flow(4, layers=3, scalar="affine", hidden=(16,))
    randomize(flow, 0.1, torch.Generator().manual_seed(0))
    x = torch.randn(32, 4)
    found = []
    for reversible in (False, True):
        flow.transform.reversible = reversible
        flow.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = flow.log_prob(x).mean()
        loss.backward()
        found.append(torch.cat([p.grad.flatten() for p in flow.parameters()]))
    # Rounding of bfloat16 where gradients add up; without autocast it would be in the states.
    assert (found[1] - found[0]).norm() < 1e-2 * found[0].norm()


def test_copies_stay_reversible_and_files_do_not_know(tmp_path):
    flow = coupling_flow(2, layers=2, hidden=(8,))
    flow.transform.reversible = True
    assert copy.deepcopy(flow).transform.reversible
    assert pickle.loads(pickle.dumps(flow)).transform.reversible
    flowkit.save(flow, tmp_path / "flow.safetensors")
    loaded = flowkit.load(tmp_path / "flow.safetensors")
    assert not loaded.transform.reversible
    x = torch.randn(5, 2)
    assert torch.equal(loaded.log_prob(x), flow.log_prob(x))


@pytest.mark.parametrize("objective", [None, "reverse"])
def test_a_fit_goes_the_same_way(objective):
    x = torch.randn(300, 2, generator=torch.Generator().manual_seed(0)).double()
    found = []
    for reversible in (False, True):
        torch.manual_seed(0)
        flow = coupling_flow(2, layers=3, hidden=(8,), scalar="affine").double()
        flow.transform.reversible = reversible
        if objective is None:
            history = fit(flow, x, epochs=3, progress=False)
        else:
            energy = ReverseKL(lambda x: (x - 1).square().sum(-1))
            history = fit(flow, None, energy, steps=20, validation=None, progress=False)
        found.append((history.train, torch.cat([p.detach().flatten() for p in flow.parameters()])))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-5, atol=1e-7)
