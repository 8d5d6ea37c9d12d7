"""Real data: seeds, dtypes, shapes and files."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from flowkit import datasets
from flowkit.data import dequantize
from flowkit.datasets import photograph_colors, photograph_patches, stock_returns
from flowkit.datasets.images import fashion_mnist
from flowkit.datasets.mice import heterogeneous_stock_mice
from flowkit.datasets.photos import PhotographColors
from flowkit.datasets.splits import Splits, split_rows

from .harness import differs, of, rises, seeds
from .parts import folder

COUNTS = torch.arange(40.0).reshape(20, 2)


def random(see: Any) -> dict[str, Any]:
    """Cases of a seed and a dtype."""
    return {"seed": seeds(see=see), "dtype": differs(torch.float64, see=see)}


of(
    dequantize,
    lambda **o: dequantize(2 * COUNTS, **o),
    **random(lambda **o: dequantize(COUNTS, **o)),
    width=differs(2.0, 0.5),
    rounding=differs("down"),
)
of(split_rows, None, **random(lambda **o: split_rows(COUNTS, ("a", "b"), **o)))
whole = Splits(COUNTS, COUNTS, COUNTS, ("a", "b"))
of(Splits.dequantized, lambda **o: whole.dequantized(**o), seed=seeds())
points = PhotographColors(torch.arange(20).reshape(4, 5), 2, 2)
of(PhotographColors.dequantized, None, **random(lambda **o: points.dequantized(**o)))
of(PhotographColors, lambda **o: PhotographColors(COUNTS, 2, 2, **o), columns=differs(("a",)))
of(photograph_colors, lambda **o: photograph_colors(**o).points, name=differs("flower.jpg"))
for name in ("breast_cancer", "diabetes", "digits", "magic", "wine"):
    of(getattr(datasets, name), None, **random(getattr(datasets, name)))


def patches(**options: Any) -> Any:
    """Patches of small pictures that stand for the photographs."""
    grey = torch.arange(400).reshape(20, 20).to(torch.uint8)
    with mock.patch("flowkit.datasets.patches._grey", return_value=grey):
        return photograph_patches(**{"limit": 20, **options})


of(
    photograph_patches,
    patches,
    limit=rises(30, 40, base=10, see=lambda **o: float(len(patches(**o).train))),
    **random(patches),
)

# Files, written here ------------------------------------------------------------------------


def zipped(path: Path, content: bytes) -> None:
    with gzip.open(path, "wb") as file:
        file.write(content)


FOLDERS = [folder() for _ in range(2)]
PARTS = {"train-images-idx3-ubyte.gz": 0, "t10k-images-idx3-ubyte.gz": 9}
for number, here in enumerate(FOLDERS):
    for file, pixel in PARTS.items():
        zipped(here / file, struct.pack(">4i", 0x803, 1, 1, 1) + bytes([pixel + number]))
    table = {"pheno": "1 NA\n2 3\n", "fam": "f a m d\ng b m d\n", "anno": "rs1 7 2\n"}
    for name, text in {**table, "geno": f"rs1, A, T, {number}, 2\n"}.items():
        ending = "gz" if name == "fam" else "txt.gz"
        zipped(here / f"mouse_hs1940.{name}.{ending}", text.encode())
    zipped(here / "prices.csv.gz", f"date,A,B\n1,1,2\n2,2,3\n3,{number + 4},5\n".encode())

FIRST, SECOND = (str(place) for place in FOLDERS)
of(
    fashion_mnist,
    lambda **o: fashion_mnist(**{"folder": FIRST, **o}),
    part=differs("test"),
    folder=differs(SECOND, base=FIRST, see=lambda **o: fashion_mnist(**o)),
)
of(
    heterogeneous_stock_mice,
    lambda **o: heterogeneous_stock_mice(**o).genotypes,
    folder=differs(SECOND, base=FIRST),
)


def prices(**options: Any) -> Any:
    return stock_returns(**{"file": f"{FIRST}/prices.csv.gz", **options}).returns


of(
    stock_returns,
    prices,
    file=differs(f"{SECOND}/prices.csv.gz", base=f"{FIRST}/prices.csv.gz"),
    seed=seeds(),
    dtype=differs(torch.float64),
)
