"""An objective of what comes after the first layers of a flow."""

from __future__ import annotations

import torch
from torch import nn

from flowkit import checks
from flowkit.config import register
from flowkit.errors import DataError
from flowkit.flow import Flow
from flowkit.numerics.types import Generator
from flowkit.objectives.base import Batch, Loss, Objective
from flowkit.transforms import Compose


@register
class AfterPreprocessing(Objective):
    r"""Apply an objective behind the first layers of a flow, its parameter-free preprocessing.

    Match-after-preprocessing: with :math:`y = T(x)` by dequantisation, scaling and logit, the
    objective sees the data y and the flow that is left, whose density is
    :math:`\log p(y) = \log p(x) - \log|\det T'(x)|`. For likelihoods that changes a constant. For
    score matching it changes the objective, because Fisher divergences depend on coordinates, and
    the scores of a logit explode at the ends of its interval. ``Flow.log_prob`` stays the density
    in the units of the data.

    Args:
        objective: What to apply.
        layers: How many layers of the flow's ``Compose`` come first; by default all before the
            first that has parameters.

    Raises:
        DataError: If the flow is no ``Compose`` of more layers, or the first have parameters.

    References:
        Chao et al. 2023, arXiv 2305.15267, section 4.

    Example:
        >>> import torch
        >>> from flowkit import AfterPreprocessing, Flow, SlicedScoreMatching
        >>> from flowkit.bases import StandardNormal
        >>> from flowkit.transforms import Compose, DenseLinear, Logit
        >>> flow = Flow(Compose(Logit(2), DenseLinear(2)), StandardNormal(2))
        >>> objective = AfterPreprocessing(SlicedScoreMatching(slices=None))
        >>> x = torch.full((3, 2), 0.5)
        >>> objective(flow, {"x": x}).value.item()
        -2.0
    """

    def __init__(self, objective: Objective, *, layers: int | None = None) -> None:
        super().__init__()
        name = "AfterPreprocessing"
        remedy = "for example SlicedScoreMatching()"
        checks.instance(name, "objective", objective, Objective, remedy)
        if layers is not None:
            layers = checks.integer(name, "layers", layers, least=1)
        self.objective = objective
        self.layers = layers
        self.needs_data, self.reads = objective.needs_data, objective.reads
        self.diverges_at_ties = objective.diverges_at_ties

    def forward(
        self, flow: Flow, batch: Batch, *, generator: Generator = None, progress: float = 1.0
    ) -> Loss:
        """Return the loss of the rest of the flow on preprocessed samples."""
        rest, batch = self._rest(flow, batch, generator)
        return self.objective(rest, batch, generator=generator, progress=progress)

    def fault(self, flow: Flow, batch: Batch) -> str | None:
        """What the objective within finds."""
        return self.objective.fault(*self._rest(flow, batch))

    def _rest(self, flow: Flow, batch: Batch, generator: Generator = None) -> tuple[Flow, Batch]:
        """The rest of the flow, and preprocessed samples."""
        transform = flow.transform
        stack = list(transform.transforms) if isinstance(transform, Compose) else []
        count = self.layers
        if count is None:
            count = next((i for i, layer in enumerate(stack) if _learns(layer)), 0)
        if not 1 <= count < len(stack):
            raise DataError(
                f"AfterPreprocessing({'' if self.layers is None else self.layers}) expected a "
                f"flow of a Compose that begins with layers without parameters and goes on, got "
                f"{transform.label}"
            )
        first, rest = stack[:count], stack[count:]
        for layer in first:
            if _learns(layer):
                raise DataError(
                    f"AfterPreprocessing expected layers without parameters, got {layer.label}; "
                    "remedy: fewer layers"
                )
        inner = Flow(Compose(*rest), flow.base, embedding=flow.embedding)  # type: ignore[arg-type]
        if "x" in batch:
            context = batch.get("context")
            with torch.no_grad():
                y = Compose(*first)(batch["x"], flow.embed(context), generator)[0]  # type: ignore[arg-type]
            batch = {**batch, "x": y}
        return inner, batch

    def start(self, batch: Batch, *, generator: Generator = None) -> Batch:
        """What the objective within does."""
        return self.objective.start(batch, generator=generator)


def _learns(layer: nn.Module) -> bool:
    return any(True for _ in layer.parameters())
