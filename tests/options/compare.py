"""Whether two observations agree: nests of tensors, arrays, numbers, texts and anything else."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

ROUNDING = 1e-4  # relative to the largest number; an effect is larger than this


def parts(value: Any, path: str = "") -> dict[str, Any]:
    """A nest of containers as a flat dict of leaves."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        pairs: Sequence[tuple[Any, Any]] = list(value.items())
    elif isinstance(value, (list, tuple)):
        pairs = list(enumerate(value))
    else:
        return {path: value}
    out: dict[str, Any] = {f"{path}#": len(pairs)}
    for key, item in pairs:
        out.update(parts(item, f"{path}.{key}"))
    return out


def _tensor(value: Any) -> Tensor | None:
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in "fiub":
        return torch.as_tensor(np.array(value))
    if isinstance(value, (float, int)) and not isinstance(value, bool):
        return torch.tensor(value, dtype=torch.float64)
    return None


def same_leaf(a: Any, b: Any, rounding: float) -> bool:
    """Whether two leaves agree, numbers within rounding; dtype, shape and device count."""
    x, y = _tensor(a), _tensor(b)
    if x is None or y is None:
        equal = a == b
        return bool(equal.all()) if isinstance(equal, np.ndarray) else bool(equal)
    if x.shape != y.shape or x.dtype != y.dtype or x.device != y.device:
        return False
    if x.device.type == "meta" or not x.numel():
        return True
    if not x.dtype.is_floating_point:
        return torch.equal(x, y)
    x, y = x.double(), y.double()
    if not torch.equal(x.isfinite(), y.isfinite()):
        return False
    safe = x.isfinite()
    odd_x, odd_y = x[~safe], y[~safe]
    if not torch.equal(odd_x.nan_to_num(7.0), odd_y.nan_to_num(7.0)):
        return False
    if not safe.any():
        return True
    x, y = x[safe], y[safe]
    scale = max(x.abs().max().item(), y.abs().max().item(), 1e-30)
    return (x - y).abs().max().item() <= rounding * scale


def same_thing(a: Any, b: Any, rounding: float = 0.0) -> bool:
    """Whether two observations agree."""
    left, right = parts(a), parts(b)
    return left.keys() == right.keys() and all(
        same_leaf(left[k], right[k], rounding) for k in left
    )


def amount(value: Any) -> float:
    """An observation as one number: itself, or the mean of its entries."""
    tensor = _tensor(value)
    if tensor is None:
        raise TypeError(f"expected one number to compare, got {type(value).__name__}")
    return tensor.double().mean().item()
