"""Natural image patches: the 63-dimensional recipe of the flow papers, on packaged photographs.

The images come with scikit-learn and scikit-image and are read from their wheels, never from a
network. Each image belongs to one split only.
"""

import io
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from flowkit import checks
from flowkit.datasets.packaged import installed, read_packaged
from flowkit.datasets.photos import PHOTOGRAPHS, load_photograph
from flowkit.datasets.splits import Splits, valid_seed

# The right motorcycle shows the same as the left one, so only one of the pair is used. Each
# held-out part has one smooth and one textured picture.
PATCH_IMAGES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "train": (
            "china.jpg", "astronaut.png", "coffee.png", "coins.png", "grass.png", "gravel.png",
            "hubble_deep_field.jpg", "ihc.png", "moon.png", "motorcycle_left.png", "rocket.jpg",
        ),
        "validation": ("chelsea.png", "brick.png"),
        "test": ("flower.jpg", "camera.png"),
    }
)  # fmt: skip

_SIDE = 8
_OWNER = "photograph_patches"
_REMEDY = (
    'pip install "flowkit-density[patches]", for scikit-image, of which release 0.26 holds 13 of '
    "the 15 photographs"
)


def photograph_patches(
    *,
    limit: int | None = 100_000,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Splits:
    """Load grey 8 by 8 patches of 15 photographs, as samples of 63 features.

    The recipe is that of BSDS300 in the papers below: grey levels 0..255, uniform noise of one
    unit added to each, divided by 256, the mean of the patch removed (which makes the place of the
    cells immaterial), and the last pixel dropped
    because it then follows from the others. The images are others than those of BSDS300, so
    log-likelihoods are not comparable with published ones.

    Args:
        limit: Most rows of the training part; validation and test get at most a tenth of it each,
            at least one row. Patches are drawn without replacement from all positions of all
            images of a part. ``None`` takes every position: 3.4 million rows for training, and
            about 2 GB of memory.
        seed: Seed of the choice of patches and of the noise; the global random state is left
            alone.
        dtype: Floating dtype of the parts.

    Returns:
        Splits with rows of 63 numbers in (-1, 1); columns are named by pixel row and column. The
        images of each part are listed in ``PATCH_IMAGES``.

    Raises:
        ArgumentError: If limit is below 1.
        MissingDependencyError: If scikit-image is not installed, or lacks one of the images.

    References:
        Papamakarios, Pavlakou and Murray, "Masked autoregressive flow", arXiv 1705.07057;
        Durkan et al., "Neural spline flows", arXiv 1906.04032.

    Example:
        >>> from flowkit.datasets import photograph_patches
        >>> splits = photograph_patches(limit=500)
        >>> [tuple(part.shape) for part in splits[:3]]
        [(500, 63), (50, 63), (50, 63)]
    """
    if limit is not None:
        limit = checks.integer(_OWNER, "limit", limit, least=1)
    generator = torch.Generator().manual_seed(valid_seed(_OWNER, seed))
    held = None if limit is None else max(1, limit // 10)
    train, validation, test = (
        _rows([_grey(name) for name in PATCH_IMAGES[part]], rows, generator).to(dtype)
        for part, rows in (("train", limit), ("validation", held), ("test", held))
    )
    columns = tuple(f"pixel_{i // _SIDE}_{i % _SIDE}" for i in range(_SIDE**2 - 1))
    return Splits(train, validation, test, columns)


def _rows(images: list[Tensor], limit: int | None, generator: torch.Generator) -> Tensor:
    """Choose patches over all images and process them: (rows, 63) in float32."""
    patches = [image.unfold(0, _SIDE, 1).unfold(1, _SIDE, 1) for image in images]
    counts = torch.tensor([p.shape[0] * p.shape[1] for p in patches])
    total = int(counts.sum())
    chosen = torch.randperm(total, generator=generator)[:limit]
    starts = counts.cumsum(0) - counts
    owner = torch.searchsorted(starts, chosen, right=True) - 1
    grey = torch.empty(len(chosen), _SIDE, _SIDE)
    for i, patch in enumerate(patches):
        mine = owner == i
        place = chosen[mine] - starts[i]
        grey[mine] = patch[place // patch.shape[1], place % patch.shape[1]].float()
    grey += torch.rand(grey.shape, generator=generator)
    flat = grey.div_(256).flatten(1)
    return (flat - flat.mean(-1, keepdim=True))[:, :-1]


def _grey(name: str) -> Tensor:
    """One image as integer grey levels 0..255, by the luma weights of ITU-R BT.601."""
    from PIL import Image

    if name in PHOTOGRAPHS:
        pixels = load_photograph(name)
    else:
        content = read_packaged(_OWNER, installed("skimage", "data", name), _REMEDY)
        pixels = np.array(Image.open(io.BytesIO(content)))
    if pixels.ndim == 3:
        pixels = (pixels[..., :3] @ np.array([0.299, 0.587, 0.114])).round()
    return torch.from_numpy(pixels.astype(np.uint8))
