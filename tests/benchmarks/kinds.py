"""What is measured: the kinds of flow, their sizes, the workloads and the bars to reach."""

from __future__ import annotations

from dataclasses import dataclass

HIDDEN = (128, 128)
BINS, BOUND, COMPONENTS = 8, 5.0, 8

WORKLOADS = ("log_prob", "training", "sampling")

# Parameters a moved feature: scale and shift; widths, heights and inner slopes; and weights,
# centres and scales.
PARAM_SIZES = {"affine": 2, "spline": 3 * BINS - 1, "mixture": 3 * COMPONENTS}


@dataclass(frozen=True)
class Kind:
    """A kind of flow: its title, its scalar map, its layers and how they are conditioned."""

    title: str
    scalar: str
    layers: int
    autoregressive: bool

    @property
    def param_size(self) -> int:
        return PARAM_SIZES[self.scalar]


KINDS = {
    "spline-coupling": Kind("Spline coupling", "spline", 5, False),
    "affine-coupling": Kind("Affine coupling", "affine", 8, False),
    "affine-autoregressive": Kind("Affine autoregressive (MAF)", "affine", 8, True),
    "spline-autoregressive": Kind("Spline autoregressive", "spline", 5, True),
    "mixture-coupling": Kind("Mixture coupling (root-found)", "mixture", 5, False),
    "mixture-autoregressive": Kind("Mixture autoregressive (root-found)", "mixture", 5, True),
}


def moved_features(kind: Kind, features: int, layer: int) -> list[bool]:
    """The mask of a coupling layer: the second half moves, then the first, in turn."""
    first = layer % 2 == 1
    return [(j < features // 2) == first for j in range(features)]


@dataclass(frozen=True)
class Bar:
    """A claim about D = 63: ``library`` takes at most ``bound`` times the limit.

    With ``peer`` the claim is that the peer takes at least ``bound`` times as long. With
    ``against`` it is that the time is at most ``bound`` times that of flowkit's flow of this other
    kind, which is measured in the same rounds.
    """

    kind: str
    workload: str
    batch: int
    library: str
    bound: float
    peer: str | None = None
    against: str | None = None


def _bars() -> list[Bar]:
    spline, affine, maf, neural = list(KINDS)[:4]
    both, bars = (256, 4096), []
    limits = [
        (spline, "log_prob", "flowkit", (2.4, 2.4)),
        (spline, "log_prob", "compiled", (1.25, 1.25)),
        (spline, "training", "flowkit", (1.8, 1.8)),
        (spline, "training", "compiled", (1.2, 1.2)),
        (affine, "log_prob", "flowkit", (1.15, 1.15)),
        (affine, "training", "flowkit", (1.15, 1.15)),
        (affine, "training", "compiled", (0.95, 0.95)),
        (neural, "log_prob", "flowkit", (2.3, 2.3)),
        (neural, "log_prob", "compiled", (1.3, 1.3)),
        (maf, "sampling", "flowkit", (8.0, 3.0)),
        (neural, "sampling", "flowkit", (9.0, 3.0)),
        (neural, "sampling", "compiled", (9.0, 3.0)),
    ]
    for kind, workload, library, bounds in limits:
        bars += [Bar(kind, workload, b, library, m) for b, m in zip(both, bounds, strict=True)]
    for peer in ("nflows", "zuko"):
        for workload, compiled in (("log_prob", 3.5), ("training", 2.5)):
            for library, bound in (("flowkit", 2.0), ("compiled", compiled)):
                bars += [Bar(spline, workload, b, library, bound, peer) for b in both]
    for kind in (maf, neural):
        for batch, bound in ((256, 10.0), (4096, 40.0)):
            bars.append(Bar(kind, "sampling", batch, "flowkit", bound, "nflows"))
    mixture = "mixture-autoregressive"
    bars += [Bar(mixture, "sampling", b, "flowkit", 3.0, against=neural) for b in both]
    for kind, bound in ((spline, 1.0), (neural, 1.0), (affine, 1 / 1.5), (maf, 1 / 1.5)):
        for workload in ("log_prob", "training"):
            bars += [Bar(kind, workload, b, "compiled", bound, "flowjax") for b in both]
    return bars


BAR_FEATURES = 63
BARS = _bars()
