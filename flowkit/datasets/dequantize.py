"""Uniform dequantisation: integers become points of the unit cells above them.

A density of integers is unbounded; the density of integers plus uniform noise is not, and its mean
log-likelihood is a lower bound on that of the integers.
"""

import torch
from torch import Tensor

from flowkit.errors import DataError


def dequantize(values: Tensor, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    r"""Add independent uniform noise of one unit to every entry of an integer tensor.

    .. math:: y = k + u, \quad u \sim U[0, 1), \quad \lfloor y \rfloor = k

    Args:
        values: Whole numbers of any dtype, any shape, in the units of the data.
        seed: Seed of a private generator; the global random state is left alone.
        dtype: Floating dtype of the result.

    Returns:
        Tensor of the shape of ``values``, from which ``floor`` gives the integers back.

    Raises:
        DataError: If an entry is not a finite whole number.

    References:
        Theis, van den Oord and Bethge, "A note on the evaluation of generative models",
        arXiv 1511.01844.

    Example:
        >>> import torch
        >>> from flowkit.datasets import dequantize
        >>> grey = torch.tensor([0, 17, 255])
        >>> dequantize(grey, seed=1).floor().tolist()
        [0.0, 17.0, 255.0]
    """
    whole = values.double()
    if not bool(torch.isfinite(whole).all()) or not torch.equal(whole, whole.round()):
        raise DataError(
            "dequantize expected whole numbers, got entries with a fraction or not finite; "
            "round them to the unit of record, or leave such columns as they are"
        )
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(whole.shape, generator=generator, dtype=torch.float64)
    noisy = (whole + noise).to(dtype)
    # Rounding to a coarse dtype may carry 639.99999999 to 640.0, which is another cell.
    last = torch.nextafter((whole + 1).to(dtype), whole.to(dtype))
    return torch.minimum(noisy, last)
