"""Uniform dequantization: rounded values become points of the cells around them.

A density of rounded values is unbounded; the density of these plus uniform noise is not, and its
mean log-likelihood is a lower bound on that of the rounded values.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flowkit import checks
from flowkit.data.sources import unusable
from flowkit.errors import DataError

# Where the cell of a value begins, in widths from the value.
_BEGINS = {"nearest": -0.5, "down": 0.0}


def dequantize(
    values: Tensor,
    *,
    width: float = 1.0,
    rounding: str = "nearest",
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    r"""Add independent uniform noise over the cells of rounded values.

    .. math:: y = v + w u, \quad u \sim U(-1/2, 1/2)

    **The convention of flowkit, everywhere** (here, :class:`flowkit.stochastic.Dequantize`,
    ``FlowDensity(dequantize=w)``, the command line): a rounded value v stands for the cell
    :math:`[v - w/2, v + w/2)` around it, as measured numbers are rounded to the nearest, so that
    means stay what they are. A rounded 3 stands for [2.5, 3.5); pixels 0..255 fill [-0.5, 255.5).
    Numbers that were rounded down, such as ages in years, stand for :math:`[v, v + w)`: that is
    ``rounding="down"`` here, and one half of the width to be added to the data elsewhere.

    Args:
        values: Multiples of the width, of any dtype and shape, in the units of the data.
        width: Width w of the cells; 1 for integers.
        rounding: ``"nearest"``, or ``"down"`` for values that were rounded down, with u in [0, 1).
        seed: Seed of a private generator; the global random state is left alone.
        dtype: Floating dtype of the result.

    Returns:
        Tensor of the shape of ``values``, from which the same rounding gives the values back.

    Raises:
        ArgumentError: If an argument is out of its range.
        DataError: If an entry is no finite multiple of the width, or so large that ``dtype`` has
            no digits left for noise, or ``values`` is no tensor of real numbers.

    References:
        Theis, van den Oord and Bethge, "A note on the evaluation of generative models",
        arXiv 1511.01844.

    Example:
        >>> import torch
        >>> from flowkit.data import dequantize
        >>> grey = torch.tensor([0, 17, 255])
        >>> dequantize(grey, seed=1).round().int().tolist()
        [0, 17, 255]
        >>> ages = torch.tensor([8, 17])
        >>> dequantize(ages, rounding="down").floor().int().tolist()
        [8, 17]
    """
    width = checks.number("dequantize", "width", width, above=0)
    begin = checks.choice("dequantize", "rounding", rounding, _BEGINS)
    seed = checks.integer("dequantize", "seed", seed, least=0, most=2**63 - 1)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise checks.fail("dequantize", "dtype", "a floating dtype", dtype)
    if not isinstance(values, Tensor) or values.is_complex():
        got = values.dtype if isinstance(values, Tensor) else type(values).__name__
        raise unusable("dequantize", "a tensor of real numbers", got, "torch.as_tensor")
    exact = values.double()
    _check_multiples(values, width)
    largest = float(exact.abs().amax()) if exact.numel() else 0.0
    if largest * torch.finfo(dtype).eps >= width:
        raise DataError(
            f"dequantize expected numbers that leave {dtype} digits for noise, below "
            f"{width / torch.finfo(dtype).eps:g}, got {largest:g}; remedy: dtype=torch.float64, "
            "or subtract an offset"
        )
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(exact.shape, generator=generator, dtype=torch.float64) + begin
    # Rounding to a coarse dtype may carry 639.49999999 to 639.5, which is the end of the cell.
    low, high = (
        torch.nextafter((exact + width * end).to(dtype), exact.to(dtype))
        for end in (begin, begin + 1)
    )
    return (exact + width * noise).to(dtype).clamp(low, high)


def _check_multiples(values: Tensor, width: float) -> None:
    """Refuse numbers that are not multiples of a width, but for the digits of their dtype."""
    counts = values.double() / width
    eps = torch.finfo(values.dtype).eps if values.is_floating_point() and width != 1 else 0.0
    tolerance = 2 * eps * counts.abs()
    if not bool(((counts - counts.round()).abs() <= tolerance).all()):
        expected = "integers" if width == 1 else f"multiples of the width {width:g}"
        raise DataError(
            f"dequantize expected {expected}, got entries between them or not finite; remedy: "
            "round them to the unit of record, or leave such columns as they are"
        )
