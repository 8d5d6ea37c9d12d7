"""Products of bases: groups of features with different supports."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from flowkit import checks
from flowkit.bases.base import Base
from flowkit.config import register
from flowkit.errors import ArgumentError
from flowkit.numerics.types import Context, Generator


@register
class ProductBase(Base):
    r"""The product of independent bases of groups of features, :math:`p(z) = \prod_g p_g(z_g)`.

    Args:
        *parts: Pairs of a base with a one-dimensional event and the features that it gives, in its
            order; each feature once.

    Raises:
        ArgumentError: If the features do not fit the bases, or are not each given once, or the
            bases read contexts of different sizes.

    Example:
        >>> import torch
        >>> from flowkit.bases import ProductBase, StandardNormal, Uniform
        >>> cube = Uniform(2, lower=-1.0, upper=1.0)
        >>> base = ProductBase((cube, [0, 2]), (StandardNormal(1), [1]))
        >>> base.log_prob(torch.zeros(3))
        tensor(-2.3052)
    """

    def __init__(self, *parts: tuple[Base, Sequence[int]]) -> None:
        name = "ProductBase"
        for part in parts or [()]:
            if not isinstance(part, (tuple, list)) or len(part) != 2:
                raise checks.fail(name, "parts", "pairs (base, its features), one or more", part)
            checks.instance(name, "parts", part[0], Base)
        groups = [list(checks.integers(name, "parts", features)) for _, features in parts]
        joined = checks.permutation(name, "features of all parts", sum(groups, []))
        shapes = [base.event_shape for base, _ in parts]
        if shapes != [(len(group),) for group in groups]:
            raise ArgumentError(
                f"{name} expected as many features per base as its event has, got events {shapes} "
                f"for features {groups}"
            )
        contexts = {base.context_size for base, _ in parts} - {0}
        if len(contexts) > 1:
            raise ArgumentError(
                f"{name} expected bases of one context size, got {sorted(contexts)}"
            )
        super().__init__(len(joined), context=max(contexts, default=0))
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
            # A product of its own holds one constraint per feature already.
            own = inner.cseq if isinstance(inner, type(constraints.cat([]))) else None
            parts += own or [inner] * base.event_shape[0]
        parts = [parts[i] for i in self._places]
        return constraints.independent(constraints.cat(parts, -1, [1] * len(parts)), 1)

    def _groups(self, z: Tensor) -> tuple[Tensor, ...]:
        return z.index_select(-1, self.get_buffer("order")).split(self._sizes, -1)

    def _join(self, groups: list[Tensor]) -> Tensor:
        return torch.cat(groups, -1).index_select(-1, self.get_buffer("back"))

    def log_prob(self, z: Tensor, context: Context = None) -> Tensor:
        """Sum of the log-densities of the groups."""
        groups = zip(self._parts(), self._groups(z), strict=True)
        first, *others = [base.log_prob(part, context) for base, part in groups]
        return sum(others, first)

    def sample(
        self, shape: tuple[int, ...] = (), context: Context = None, generator: Generator = None
    ) -> Tensor:
        """Draw from every group."""
        return self._join([base.sample(shape, context, generator) for base in self._parts()])

    def _each(self, name: str, value: Tensor, context: Context) -> Tensor:
        """A function of every feature, from the base of its group."""
        groups = zip(self._parts(), self._groups(value), strict=True)
        return self._join([getattr(base, name)(part, context) for base, part in groups])

    def isf(self, q: Tensor, context: Context = None) -> Tensor:
        """Quantiles of ``1 - q`` of each group."""
        return self._each("isf", q, context)
