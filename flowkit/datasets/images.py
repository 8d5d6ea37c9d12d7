"""Images that a system package brings: Fashion-MNIST."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flowkit import checks
from flowkit.datasets.packaged import read_packaged
from flowkit.errors import DataError

#: Where the Debian package ``dataset-fashion-mnist`` puts its files.
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
_FILES = {"train": "train-images-idx3-ubyte.gz", "test": "t10k-images-idx3-ubyte.gz"}


def fashion_mnist(part: str = "train", folder: str | os.PathLike[str] | None = None) -> Tensor:
    """Load the images of Fashion-MNIST: 60,000 to train on and 10,000 to test, 28 x 28 pixels.

    Args:
        part: ``"train"`` or ``"test"``.
        folder: Where the file is, ``train-images-idx3-ubyte.gz`` or
            ``t10k-images-idx3-ubyte.gz``; by default where the Debian package
            ``dataset-fashion-mnist`` puts it.

    Returns:
        uint8 tensor (images, 1, 28, 28), 0 is background.

    Raises:
        MissingDependencyError: If the file is not there.
        ArgumentError: If the part is unknown.
        DataError: If the file is damaged.

    References:
        Xiao, Rasul, Vollgraf 2017, arXiv 1708.07747.

    Example:
        >>> from flowkit.datasets import fashion_mnist
        >>> fashion_mnist("validation")
        Traceback (most recent call last):
        ...
        flowkit.errors.ArgumentError: fashion_mnist expected part as one of 'test', 'train', got \
'validation'
    """
    file_name = checks.choice("fashion_mnist", "part", part, _FILES)
    path = Path(DEBIAN_FOLDER if folder is None else folder) / file_name
    remedy = "apt install dataset-fashion-mnist, or give the folder of the file with folder="
    raw = read_packaged("fashion_mnist", path, remedy)
    # The IDX format: four big-endian integers, and one byte per pixel.
    header = struct.unpack(">4i", raw[:16]) if len(raw) >= 16 else (0, 0, 0, 0)
    kind, count, height, width = header
    if kind != 0x803 or len(raw) != 16 + count * height * width:
        raise DataError(
            f"fashion_mnist expected images in the IDX format, got {len(raw)} bytes of another "
            f"in {path}; remedy: fetch the file anew"
        )
    pixels = np.frombuffer(raw, np.uint8, offset=16).reshape(count, 1, height, width)
    return torch.from_numpy(pixels.copy())
