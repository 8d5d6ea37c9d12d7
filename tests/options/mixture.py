"""Mixtures of flows."""

from __future__ import annotations

import copy
from typing import Any
from unittest import mock

import torch

from flowkit import Flow, FlowMixture
from flowkit.bases import Uniform
from flowkit.scalar import Affine
from flowkit.transforms import Elementwise

from .harness import differs, draws, of, shows
from .parts import UNIT, C, D, X, conditional, plain, reads_context, small, stirred

MIXTURE = FlowMixture([conditional(), stirred(conditional(seed=1))], weights=[1, 2])
SCALAR = FlowMixture([conditional(1), stirred(conditional(1, seed=1))])
PLAIN = FlowMixture([plain(), plain(seed=1)])
ONE, Q = X[:, :1], UNIT[:, :1]

reads_context(MIXTURE, X, "forward")
reads_context(SCALAR, ONE, "log_survival", "log_cdf")
reads_context(SCALAR, Q, "quantile")
of(
    FlowMixture,
    lambda **o: FlowMixture([plain(), plain(seed=1)], **o).log_prob(X),
    weights=differs([1, 2], [3, 1]),
)
of(FlowMixture.log_normalizer, MIXTURE.log_normalizer, context=differs(C, base=C[:2]))  # its batch
for method in (FlowMixture.rsample, FlowMixture.rsample_and_log_prob):
    of(
        method,
        lambda method=method, **o: method(MIXTURE, **{"context": C, **o}),
        shape=shows(lambda out: len(out) == 7 or len(out[0]) == 7, 7, (7,)),
        context=differs(D, base=C, see=lambda method=method, **o: method(MIXTURE, **o)),
        generator=draws(),
    )
of(
    FlowMixture.distribution,
    lambda **o: MIXTURE.distribution(**o).log_prob(X),
    context=differs(D, base=C),
)


shifted = Flow(stirred(Elementwise(1, Affine(), context=1, conditioner=small)), Uniform(1))
boxes = FlowMixture([shifted, stirred(copy.deepcopy(shifted), 0.01)])
grid = torch.linspace(-3, 3, 600).reshape(100, 6, 1)
of(FlowMixture.region, lambda **o: boxes.region(**o), context=differs(C, D))
of(FlowMixture.in_support, lambda **o: boxes.in_support(grid, **o), context=differs(D, base=C))


def compiled(**options: Any) -> Any:
    """What the compiler is given; the compiler itself is left out."""
    with (
        mock.patch("flowkit.flow.can_compile", return_value=True),
        mock.patch("torch.compile", side_effect=lambda module, *_, **__: module) as compiler,
    ):
        copy.deepcopy(PLAIN).compile(**options)
    return [call.kwargs for call in compiler.call_args_list]


of(FlowMixture.compile, compiled, kwargs=differs({"dynamic": True}, {"mode": "reduce-overhead"}))
