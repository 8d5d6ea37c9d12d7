"""Uniform dequantisation: rounded values become points of the cells around them.

A density of integers is unbounded; the density of integers plus uniform noise is not, and its mean
log-likelihood is a lower bound on that of the integers.
"""

import torch
from torch import Tensor

from flowkit.errors import DataError


def dequantize(values: Tensor, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    r"""Add independent uniform noise of one unit, centred at 0, to integers.

    .. math:: y = k + u, \quad u \sim U(-1/2, 1/2), \quad \mathrm{round}(y) = k

    **The convention of flowkit, everywhere** (here, :class:`flowkit.stochastic.Dequantize`,
    ``FlowDensity(dequantize=w)``, the command line): a rounded value v stands for the cell
    :math:`[v - w/2, v + w/2)` around it, as measured numbers are rounded to the nearest, so that
    means stay what they are. Pixels 0..255 fill [-0.5, 255.5). Numbers that were rounded *down*,
    such as ages in years, stand for [v, v + 1): add one half to them, or to what comes out.

    Args:
        values: Integers of any dtype, any shape, in the units of the data.
        seed: Seed of a private generator; the global random state is left alone.
        dtype: Floating dtype of the result.

    Returns:
        Tensor of the shape of ``values``, from which ``round`` gives the integers back.

    Raises:
        DataError: If an entry is not a finite integer, or so large that ``dtype`` has no digits
            left for noise, or ``dtype`` is not a floating one.

    References:
        Theis, van den Oord and Bethge, "A note on the evaluation of generative models",
        arXiv 1511.01844.

    Example:
        >>> import torch
        >>> from flowkit.data import dequantize
        >>> grey = torch.tensor([0, 17, 255])
        >>> dequantize(grey, seed=1).round().int().tolist()
        [0, 17, 255]
    """
    if not isinstance(values, Tensor) or values.is_complex():
        got = values.dtype if isinstance(values, Tensor) else type(values).__name__
        raise DataError(
            f"dequantize expected a tensor of real numbers, got {got}; remedy: torch.as_tensor"
        )
    if not dtype.is_floating_point:
        raise DataError(f"dequantize expected a floating dtype, got {dtype}")
    whole = values.double()
    if not bool(torch.isfinite(whole).all()) or not torch.equal(whole, whole.round()):
        raise DataError(
            "dequantize expected integers, got entries with a fraction or not finite; "
            "round them to the unit of record, or leave such columns as they are"
        )
    largest = float(whole.abs().amax()) if whole.numel() else 0.0
    if largest * torch.finfo(dtype).eps >= 1:
        raise DataError(
            f"dequantize expected numbers that leave {dtype} digits for noise, below "
            f"{1 / torch.finfo(dtype).eps:g}, got {largest:g}; remedy: dtype=torch.float64, or "
            "subtract an offset"
        )
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(whole.shape, generator=generator, dtype=torch.float64) - 0.5
    # Rounding to a coarse dtype may carry 639.49999999 to 639.5, which is the end of the cell.
    low, high = (
        torch.nextafter((whole + half).to(dtype), whole.to(dtype)) for half in (-0.5, 0.5)
    )
    return (whole + noise).to(dtype).clamp(low, high)
