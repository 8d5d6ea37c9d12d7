"""Base distributions."""

from __future__ import annotations

from typing import Any

import torch

from flowkit.bases import (
    Base,
    DiagonalNormal,
    Logistic,
    NormalMixture,
    ProductBase,
    StandardNormal,
    StudentT,
    Uniform,
)

from .harness import also, differs, draws, falls, number_of_parameters, of, rises, shows
from .parts import UNIT, C, X, ignores_context, reads_context, stirred

Q = UNIT[:, :1]
Z = X[:, :1]


def _draws(make: Any, context: Any = None) -> None:
    """Shape, generator and context of ``sample``."""
    given = {} if context is None else {"context": C}
    base = make()
    also(
        type(base).sample,
        lambda **o: base.sample(**{**given, **o}),
        shape=shows(lambda x: x.shape[:2] == (2, 3), (2, 3)),
        context=shows(lambda x: len(x) == 6, C)
        if context is None
        else differs(3 * C, base=C, using={}, see=lambda **o: base.sample(**o)),
        generator=draws(see=lambda **o: base.sample((20,), **given, **o)),
    )


NORMAL, LOGISTIC, UNIFORM = StandardNormal(1), Logistic(1), Uniform(1)
FROM_CONTEXT = stirred(DiagonalNormal(1, context=1))
MIXTURE, STUDENT = stirred(NormalMixture(1, components=3)), StudentT(1)
PRODUCT = ProductBase((stirred(DiagonalNormal(1, context=1)), [1]), (StandardNormal(1), [0]))


class Given(Base):
    """A base of one's own, for what the class gives."""

    def icdf(self, q: Any, context: Any = None) -> Any:
        return 2 * q


for part in (NORMAL, LOGISTIC, MIXTURE):
    ignores_context(part, Z, "log_prob", "log_cdf", "log_survival")
    ignores_context(part, Q, "icdf", "isf")
ignores_context(STUDENT, Z, "log_prob", "log_cdf", "log_survival")
ignores_context(STUDENT, Q, "icdf", "isf")
ignores_context(UNIFORM, Q, "log_prob", "log_cdf", "log_survival", "icdf", "isf")
ignores_context(Given((1,)), Q, "isf")
reads_context(FROM_CONTEXT, Z, "log_prob", "log_cdf", "log_survival", "cdf")
reads_context(FROM_CONTEXT, Q, "icdf", "isf")
reads_context(PRODUCT, X, "log_prob", "log_cdf", "log_survival")
reads_context(PRODUCT, UNIT, "icdf", "isf")

for make in (lambda: NORMAL, lambda: LOGISTIC, lambda: MIXTURE, lambda: STUDENT, lambda: UNIFORM):
    _draws(make)
for make in (lambda: FROM_CONTEXT, lambda: PRODUCT):
    _draws(make, C)

of(Base, lambda **o: Base((2,), **o).context_size, context=rises(1))
of(Base.log_prob, None, context="abstract: raises, whatever is given")
of(
    Base.sample,
    None,
    **dict.fromkeys(("shape", "context", "generator"), "abstract: raises, whatever is given"),
)

FAR = torch.full((1, 2), 50.0)


def _scaled(**options: Any) -> Any:
    base = DiagonalNormal(2, **options)
    with torch.no_grad():
        base.params += 3.0
    return base.log_prob(torch.ones(1, 2))


of(
    DiagonalNormal,
    lambda **o: number_of_parameters(DiagonalNormal(2, **o)),
    context=rises(2, 3),
    max_log_scale=differs(1.0, None, see=_scaled),
)
of(
    NormalMixture,
    lambda **o: number_of_parameters(NormalMixture(2, **o)),
    components=rises(9),
    covariance=rises("full"),
    seed=differs(1, 2, see=lambda **o: NormalMixture(2, **o).means),
)
of(
    StudentT,
    lambda **o: StudentT(2, **o).log_prob(FAR),
    df=falls(10.0, 30.0),
    learn=falls(False, see=lambda **o: number_of_parameters(StudentT(2, **o))),
    shared=falls(True, see=lambda **o: number_of_parameters(StudentT(2, **o))),
)
of(
    Uniform,
    lambda **o: Uniform(2, **o).sample((50,)),
    lower=falls(-1.0, -2.0),
    upper=rises(2.0, 3.0),
)
