"""Single points at which maps are put together of pieces, and one-sided derivatives there."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from flowkit.scalar import ScalarMap
from flowkit.testing.probe import expect

# One-sided differences of three points are right to the square of the step times the third
# derivative, less rounding over the step.
_STEP = 1e-5
_TOLERANCE = 1e-4
# Slopes beside a point exceed that of autodiff plus one by this factor at most.
_STEEPEST = 1e3
# A value of a circular layer that moves by so much has gone around.
_JUMP = 0.1

Function = Callable[[Tensor], Sequence[Tensor]]


def exact_points(scalar: ScalarMap, params: Tensor) -> list[float]:
    """Zero with both signs, the joints of a scalar map, and the middles between them.

    Args:
        scalar: The map.
        params: ``(..., param_size)``; the joints are those of all of them.
    """
    joints = scalar.joints(params.detach())
    middles = (joints[..., 1:] + joints[..., :-1]) / 2
    found = {0.0, *joints.flatten().tolist(), *middles.flatten().tolist()}
    return [-0.0, *sorted(found)]


def expect_one_sided_derivatives(
    what: str, f: Function, at: Tensor, both: Sequence[bool], *, wraps: bool = False
) -> None:
    """Expect continuous values, and gradients that are the slopes of one side, or of both.

    Args:
        what: What is checked, for the message.
        f: Function of ``(..., rows, n)`` in float64 that returns tensors ``(..., rows)``.
        at: The points, ``(rows, n)``.
        both: For each value of ``f``, whether it is differentiable, or from each side alone.
        wraps: Whether values may go around a circle; such a side says nothing.
    """
    x = at.detach().clone().requires_grad_()
    values = f(x)
    steps = _STEP * torch.tensor([1.0, 2.0, -1.0, -2.0]).to(at).reshape(-1, 1, 1, 1)
    with torch.no_grad():
        # (steps, numbers, rows)
        beside = f(at + steps * torch.eye(at.shape[-1]).to(at).unsqueeze(-2))
    for value, near, differentiable in zip(values, beside, both, strict=True):
        gradient = None
        if value.requires_grad:
            (gradient,) = torch.autograd.grad(value.sum(), x, retain_graph=True, allow_unused=True)
        want = torch.zeros_like(at).mT if gradient is None else gradient.mT
        above, beyond_above, below, beyond_below = near - value.detach()
        jump = torch.stack([above, below]).abs()
        slope = torch.stack([4 * above - beyond_above, beyond_below - 4 * below]) / (2 * _STEP)
        # Neither does a side outside of the domain.
        silent = ~slope.isfinite() | (wraps & (jump > _JUMP))
        error = (slope - want).abs() / (1 + want.abs())
        error = error.masked_fill(silent, 0.0 if differentiable else math.inf)
        error = error.amax(0) if differentiable else error.amin(0)
        error = error.masked_fill(silent.all(0), 0.0)
        jump = (jump / (1 + want.abs())).masked_fill(silent, 0.0).amax(0)
        for bad, bound, found in (
            (error, _TOLERANCE, "slopes"),
            (jump, _STEEPEST * _STEP, "a jump"),
        ):
            i, row = divmod(int(bad.argmax()), bad.shape[-1])
            expect(
                bool(bad[i, row] <= bound),
                f"expected {what} to be continuous at {at[row].tolist()}, with the derivative "
                f"{want[i, row].item():.6g} of autodiff in number {i}; got {found} beside it, of "
                f"{slope[0, i, row].item():.6g} above and {slope[1, i, row].item():.6g} below",
            )


def expect_second_derivatives(
    what: str, f: Function, at: Tensor, generator: torch.Generator, *, wraps: bool = False
) -> None:
    """Expect second derivatives, in one direction, that are those of autodiff from both sides.

    The arguments are those of :func:`expect_one_sided_derivatives`.
    """

    def gradient(x: Tensor) -> Tensor | None:
        total = torch.stack([value.sum() for value in f(x)]).sum()
        if not total.requires_grad:
            return None
        return torch.autograd.grad(total, x, create_graph=True, allow_unused=True)[0]

    way = torch.randn(at.shape, generator=generator, dtype=at.dtype)
    x = at.detach().clone().requires_grad_()
    here = gradient(x)
    if here is None or not here.requires_grad:  # affine
        return
    (curvature,) = torch.autograd.grad((here * way).sum(), x, allow_unused=True)
    want = torch.zeros_like(at) if curvature is None else curvature
    here = here.detach()
    for side in (_STEP, -_STEP):
        near, far = (gradient((at + k * side * way).requires_grad_()) for k in (1, 2))
        got = (4 * (near - here) - (far - here)).detach() / (2 * side)  # type: ignore[operator]
        error = (got - want).abs() / (1 + want.abs().amax(-1, keepdim=True))
        silent = ~got.isfinite() | (wraps & (got.abs() * _STEP > _JUMP))
        error = error.masked_fill(silent, 0.0)
        row, i = divmod(int(error.argmax()), error.shape[-1])
        expect(
            bool(error[row, i] <= 10 * _TOLERANCE),
            f"expected {what} to have the second derivative {want[row, i].item():.6g} of autodiff "
            f"at {at[row].tolist()} in number {i}, got {got[row, i].item():.6g} from "
            f"{'above' if side > 0 else 'below'}; remedy: a map that is less smooth says so by "
            "its attribute smoothness",
        )
