"""A product of bases: groups of features that live in different places."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from flowkit.bases.base import Base
from flowkit.config import register
from flowkit.errors import ShapeError


@register
class Product(Base):
    r"""Independent groups of features, :math:`p(z) = \prod_g p_g(z_g)`.

    Args:
        *parts: Pairs of a base with a one-dimensional event and the features that it gives, in its
            order; each feature once.

    Raises:
        ShapeError: If the features do not fit the bases, or are not each given once, or the bases
            read contexts of different sizes.

    Example:
        >>> import torch
        >>> from flowkit.bases import Product, StandardNormal, Uniform
        >>> base = Product((Uniform(2, -1.0, 1.0), [0, 2]), (StandardNormal(1), [1]))
        >>> base.log_prob(torch.zeros(3))
        tensor(-2.3052)
    """

    def __init__(self, *parts: tuple[Base, Sequence[int]]) -> None:
        for part in parts:
            if not (isinstance(part, (tuple, list)) and len(part) == 2) or (
                not isinstance(part[0], Base)
            ):
                raise ShapeError(f"Product expected pairs (base, its features), got {part}")
        groups = [list(features) for _, features in parts]
        joined = [i for group in groups for i in group]
        shapes = [base.event_shape for base, _ in parts]
        if not parts or shapes != [(len(group),) for group in groups]:
            raise ShapeError(
                f"Product expected as many features a base as its event has, got events {shapes} "
                f"for features {groups}"
            )
        if sorted(joined) != list(range(len(joined))):
            raise ShapeError(f"Product expected each feature once, from 0 on, got {groups}")
        contexts = sorted({base.context_size for base, _ in parts} - {0})
        if len(contexts) > 1:
            raise ShapeError(f"Product expected bases of one context size, got {contexts}")
        super().__init__((len(joined),), max(base.context_size for base, _ in parts))
        self.bases = nn.ModuleList(base for base, _ in parts)
        self.reparameterized = all(base.reparameterized for base, _ in parts)
        self._sizes = [len(group) for group in groups]
        order = torch.tensor(joined)
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("back", order.argsort(), persistent=False)
        self._places = sorted(range(len(joined)), key=joined.__getitem__)

    def _parts(self) -> list[Base]:
        return list(self.bases)  # type: ignore[arg-type]

    @property
    def support(self) -> constraints.Constraint:
        """That of each group."""
        parts: list[constraints.Constraint] = []
        for base in self._parts():
            part = base.support
            inner = part.base_constraint if isinstance(part, constraints.independent) else part
            # A product of its own holds one constraint a feature already.
            own = inner.cseq if isinstance(inner, type(constraints.cat([]))) else None
            parts += own or [inner] * base.event_shape[0]
        parts = [parts[i] for i in self._places]
        return constraints.independent(constraints.cat(parts, -1, [1] * len(parts)), 1)

    def _groups(self, z: Tensor) -> tuple[Tensor, ...]:
        return z.index_select(-1, self.get_buffer("order")).split(self._sizes, -1)

    def _join(self, groups: list[Tensor]) -> Tensor:
        return torch.cat(groups, -1).index_select(-1, self.get_buffer("back"))

    def log_prob(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Sum of the log-densities of the groups."""
        groups = zip(self._parts(), self._groups(z), strict=True)
        first, *others = [base.log_prob(part, context) for base, part in groups]
        return sum(others, first)

    def sample(
        self,
        shape: tuple[int, ...] = (),
        context: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw from every group."""
        return self._join([base.sample(shape, context, generator) for base in self._parts()])

    def log_cdf(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """That of each group."""
        groups = zip(self._parts(), self._groups(z), strict=True)
        return self._join([base.log_cdf(part, context) for base, part in groups])

    def log_survival(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """That of each group."""
        groups = zip(self._parts(), self._groups(z), strict=True)
        return self._join([base.log_survival(part, context) for base, part in groups])

    def icdf(self, q: Tensor, context: Tensor | None = None) -> Tensor:
        """Quantiles of each group."""
        groups = zip(self._parts(), self._groups(q), strict=True)
        return self._join([base.icdf(part, context) for base, part in groups])

    def isf(self, q: Tensor, context: Tensor | None = None) -> Tensor:
        """Quantiles of ``1 - q`` of each group."""
        groups = zip(self._parts(), self._groups(q), strict=True)
        return self._join([base.isf(part, context) for base, part in groups])
