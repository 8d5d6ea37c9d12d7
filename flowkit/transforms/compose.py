"""One transform after the other."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from flowkit.errors import ShapeError
from flowkit.transforms.base import Transform


class Compose(Transform):
    r"""Apply transforms in turn, from data to noise: :math:`z = t_n(\dots t_1(x))`.

    Log-determinants add up; with stochastic layers the same sum is the log path-probability ratio.

    Args:
        transforms: At least one transform; all share one event rank and one context size.

    Raises:
        ShapeError: If there is none, or they do not fit together.

    Example:
        >>> import torch
        >>> from flowkit.transforms import Compose, LULinear, Permutation
        >>> t = Compose(Permutation([1, 0]), LULinear(2))
        >>> [tuple(state.shape) for state in t.states(torch.zeros(7, 2))]
        [(7, 2), (7, 2), (7, 2)]
    """

    def __init__(self, *transforms: Transform) -> None:
        if not transforms:
            raise ShapeError("Compose needs at least one transform, got none")
        for t in transforms:
            if not isinstance(t, Transform):
                raise ShapeError(f"Compose takes Transforms, got {type(t).__name__}")
        ranks = {t.event_ndim for t in transforms}
        if len(ranks) > 1:
            raise ShapeError(f"Compose needs transforms of one event rank, got ranks {ranks}")
        sizes = {t.context_size for t in transforms if t.needs_context}
        if len(sizes) > 1:
            raise ShapeError(f"Compose needs one context size, got {sorted(sizes)}")
        shape = list(transforms[0].event_shape)
        for t in transforms:
            for i, n in enumerate(t.event_shape):
                if n is not None and shape[i] not in (None, n):
                    raise ShapeError(f"{t.label} cannot follow layers with events {tuple(shape)}")
                shape[i] = n if shape[i] is None else shape[i]
        super().__init__(tuple(shape), max(sizes, default=0))
        self.needs_context = bool(sizes)
        self.transforms = nn.ModuleList(transforms)
        self.constant_log_det = all(t.constant_log_det for t in transforms)
        self.stochastic = any(t.stochastic for t in transforms)
        self.accepts_integers = transforms[0].accepts_integers

    def __len__(self) -> int:
        return len(self.transforms)

    def __getitem__(self, index: int) -> Transform:
        return self.transforms[index]  # type: ignore[return-value]

    @property
    def domain(self) -> constraints.Constraint:
        """The domain of the first transform."""
        return self[0].domain

    @property
    def codomain(self) -> constraints.Constraint:
        """The codomain of the last transform."""
        return self[len(self) - 1].codomain

    def orientation(self) -> Tensor | float:
        """The product of the signs."""
        sign: Tensor | float = 1.0
        for i in range(len(self)):
            sign = sign * self[i].orientation()
        return sign

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Apply all transforms and add up their log-determinants."""
        return self._run("forward", x, context, generator)

    def inverse(
        self,
        z: Tensor,
        context: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Apply all inverses in reverse order and add up their log-determinants."""
        return self._run("inverse", z, context, generator)

    def unnormalized(
        self,
        x: Tensor,
        context: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Apply all transforms; only log-determinants that depend on ``x`` are computed."""
        return self._run("unnormalized", x, context, generator)

    def _run(
        self,
        direction: str,
        x: Tensor,
        context: Tensor | None,
        generator: torch.Generator | None,
    ) -> tuple[Tensor, Tensor]:
        total = None
        for t in reversed(self.transforms) if direction == "inverse" else self.transforms:
            kwargs = {"generator": generator} if t.stochastic else {}
            apply = t if direction == "forward" else getattr(t, direction)
            x, log_det = apply(x, context, **kwargs)
            total = log_det if total is None else total + log_det
        return x, total  # type: ignore[return-value]

    def states(
        self,
        x: Tensor,
        context: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> list[Tensor]:
        """Return ``x`` and the value after each transform, in order."""
        states = [x]
        for t in self.transforms:
            kwargs = {"generator": generator} if t.stochastic else {}
            states.append(t(states[-1], context, **kwargs)[0])
        return states

    def initialize(self, x: Tensor, context: Tensor | None = None) -> None:
        """Start each transform from the data as they reach it."""
        for t in self.transforms:
            t.initialize(x, context)  # type: ignore[operator]
            with torch.no_grad():
                x = t(x, context)[0]
